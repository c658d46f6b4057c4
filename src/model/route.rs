//! Which requests are meant: host and path.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{Invalid, text_value};

/// A request's host (RFC 1123, lower case, without port), exact or with one leading wildcard: `shop.example`, `*.shop.example`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostName(String);

impl HostName {
    /// The name as text, with its wildcard.
    pub fn as_str(&self) -> &str {
        &self.0
    }
    /// The part after `*.`, where there is a wildcard.
    pub fn wildcard_suffix(&self) -> Option<&str> {
        self.0.strip_prefix("*.")
    }
}
impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}
impl FromStr for HostName {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let name = text.strip_prefix("*.").unwrap_or(text);
        let label = |l: &str| {
            let alnum = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
            l.len() <= 63 && l.starts_with(alnum) && l.ends_with(alnum) && l.chars().all(|c| alnum(c) || c == '-')
        };
        if text.len() <= 253 && name.split('.').all(label) {
            Ok(Self(text.to_owned()))
        } else {
            Err(Invalid::new("host", text, "is a host name in lower case without port, optionally with one leading *."))
        }
    }
}
text_value!(HostName);

/// A path and all below it: `/shop` means `/shop`, `/shop/` and `/shop/…`, never `/shopping`. `/` means everything.
///
/// Kept without a trailing slash (but for `/` itself).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PathPrefix(String);

impl PathPrefix {
    /// `/`: every path.
    pub fn root() -> Self {
        Self("/".to_owned())
    }
    /// The path as text, without a trailing slash unless it is `/`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
    /// Whether it is `/`.
    pub fn is_root(&self) -> bool {
        self.0 == "/"
    }
}
impl fmt::Display for PathPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}
impl FromStr for PathPrefix {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let trimmed = if text == "/" { text } else { text.strip_suffix('/').unwrap_or(text) };
        // RFC 3986 unreserved characters and slash: nothing that needs escaping in VCL, a URL or a page.
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '-' | '_' | '.' | '~');
        let good = trimmed.starts_with('/')
            && trimmed.len() <= 200
            && trimmed.chars().all(fits)
            && (text == "/" || trimmed[1..].split('/').all(|part| !matches!(part, "" | "." | "..")));
        if good {
            Ok(Self(trimmed.to_owned()))
        } else {
            Err(Invalid::new(
                "path",
                text,
                "begins with / and holds letters, digits, - _ . ~ and single slashes, at most 200 characters",
            ))
        }
    }
}
text_value!(PathPrefix);

/// The requests an application serves: a host (any, where none) and a path with all below it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Route {
    /// Any host, where none.
    pub host: Option<HostName>,
    /// The path and all below it.
    pub path: PathPrefix,
}
impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Some(host) => f.pad(&format!("{host}{}", self.path)),
            None => f.pad(self.path.as_str()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_hosts() {
        assert_eq!("/shop/".parse::<PathPrefix>().map(String::from).as_deref(), Ok("/shop"));
        assert!("/".parse::<PathPrefix>().is_ok_and(|p| p.is_root()));
        for bad in ["", "shop", "//", "/a//b", "/../x", "/a b", "/a\"b", "/a?b", "/%2e", "/a;b", "/{}"] {
            assert!(bad.parse::<PathPrefix>().is_err(), "{bad:?}");
        }
        let wild: HostName = "*.shop.example".parse().expect("a host");
        assert_eq!(wild.wildcard_suffix(), Some("shop.example"));
        for bad in ["", "*", "*.", "a.*.b", "Shop.example", "a_b", "a:80", "a..b", "-a.b", "a\".b"] {
            assert!(bad.parse::<HostName>().is_err(), "{bad:?}");
        }
    }
}
