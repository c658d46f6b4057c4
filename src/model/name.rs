//! Names: of the cloud, applications, nodes, instances.
//!
//! No name here can break out of a shell word, a VCL identifier, a URL segment or a terminal line.

use std::{fmt, num::NonZeroU32, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{Invalid, text_value};

/// A lower-case label: starts and ends with a letter or digit, at most 63 characters.
fn label(what: &'static str, text: &str, extra: &[char], rule: &'static str) -> Result<String, Invalid> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let good = !text.is_empty()
        && text.len() <= 63
        && text.chars().all(|c| fits(c) || extra.contains(&c))
        && text.starts_with(fits)
        && text.ends_with(fits);
    if good { Ok(text.to_owned()) } else { Err(Invalid::new(what, text, rule)) }
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal, $extra:expr, $rule:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $type {
            type Err = Invalid;
            fn from_str(text: &str) -> Result<Self, Invalid> {
                label($what, text, $extra, $rule).map(Self)
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
        text_value!($type);
    };
}

name!(
    /// An application's name, also its repository's last part and its default path: `shop`.
    AppName, "application name", &['-', '_'],
    "may hold only a-z, 0-9, - and _, begins and ends with a letter or digit, and has at most 63 characters"
);
name!(
    /// A node's host name without its domain (a DNS label, RFC 1123): `node25`.
    NodeName, "node name", &['-'],
    "may hold only a-z, 0-9 and -, begins and ends with a letter or digit, and has at most 63 characters"
);
name!(
    /// Which cloud a container belongs to. What carries another, or none, is never touched.
    CloudId, "cloud id", &['-'],
    "may hold only a-z, 0-9 and -, begins and ends with a letter or digit, and has at most 63 characters"
);

impl AppName {
    /// A VCL identifier for this name; two distinct names never share one.
    ///
    /// `-` becomes `_m`, `_` becomes `_u`: what follows an underscore is always a letter, so the text reads back.
    pub fn vcl_identifier(&self) -> String {
        let mut id = String::from("app_");
        for c in self.0.chars() {
            match c {
                '-' => id.push_str("_m"),
                '_' => id.push_str("_u"),
                c => id.push(c),
            }
        }
        id
    }
}

/// One container of an application, in a numbered slot counted from 1: `shop.2`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InstanceId {
    /// The application.
    pub app: AppName,
    /// The slot, from 1.
    pub slot: NonZeroU32,
}

impl InstanceId {
    /// The instance of `app` in `slot`.
    pub fn new(app: AppName, slot: NonZeroU32) -> Self {
        Self { app, slot }
    }
}
impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}.{}", self.app, self.slot))
    }
}
impl FromStr for InstanceId {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let wrong = || Invalid::new("instance", text, "is an application name, a dot and a slot from 1, as in shop.2");
        let (app, slot) = text.rsplit_once('.').ok_or_else(wrong)?;
        if slot.starts_with(['0', '+']) {
            return Err(wrong());
        }
        Ok(Self { app: app.parse()?, slot: slot.parse().map_err(|_| wrong())? })
    }
}
text_value!(InstanceId);

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_say_which_rule_they_break() {
        for bad in ["", "my app", "Shop", "-shop", "shop-", "a\nb", "a;b", "é", &"a".repeat(64)] {
            let error = AppName::try_from(bad).expect_err(bad);
            assert!(error.to_string().contains("may hold only"), "{error}");
        }
        for good in ["a", "shop", "simple-web_app1", "0x"] {
            assert_eq!(AppName::try_from(good).map(String::from).as_deref(), Ok(good));
        }
        assert!(NodeName::try_from("node_1").is_err(), "an underscore is no host name");
    }

    #[test]
    fn vcl_identifiers_are_distinct() {
        let names = ["a-b", "a_b", "ab", "a-m", "a_m", "a--b", "a__b", "a-_b", "a_-b", "a-ub", "am-b"];
        let ids: HashSet<_> = names.iter().map(|n| AppName::try_from(*n).expect(n).vcl_identifier()).collect();
        assert_eq!(ids.len(), names.len());
    }

    #[test]
    fn instances_read_back() {
        let id: InstanceId = "shop.2".parse().expect("an instance");
        assert_eq!(id.to_string(), "shop.2");
        for bad in ["shop", "shop.0", "shop.", ".1", "shop.-1", "shop.01", "shop.+1"] {
            assert!(bad.parse::<InstanceId>().is_err(), "{bad}");
        }
    }
}
