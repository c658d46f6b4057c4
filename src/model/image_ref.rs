//! Image references and digests, after the OCI distribution specification 1.1 and the engine's reference grammar.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{Invalid, text_value};

/// A content digest, SHA-256 only: `sha256:` and 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

impl Digest {
    /// The 64 hexadecimal digits, without `sha256:`.
    pub fn hex(&self) -> &str {
        &self.0["sha256:".len()..]
    }
    /// The digest as text, with `sha256:`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
    /// The first 12 hexadecimal digits, for people.
    pub fn short(&self) -> &str {
        &self.hex()[..12]
    }
}
impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}
impl FromStr for Digest {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let good = text.strip_prefix("sha256:").is_some_and(|hex| {
            hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        });
        if good {
            Ok(Self(text.to_owned()))
        } else {
            Err(Invalid::new("digest", text, "is sha256: and 64 hexadecimal digits"))
        }
    }
}
text_value!(Digest);

/// A repository's path in a registry: `cloud/shop`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Repository(String);

impl Repository {
    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn component(text: &str) -> bool {
    let alnum = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let separators = text.split(alnum).filter(|s| !s.is_empty());
    text.starts_with(alnum)
        && text.ends_with(alnum)
        && separators.into_iter().all(|s| matches!(s, "." | "_" | "__") || s.bytes().all(|b| b == b'-'))
}

impl FromStr for Repository {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        if text.len() <= 200 && text.split('/').all(component) {
            Ok(Self(text.to_owned()))
        } else {
            Err(Invalid::new(
                "repository",
                text,
                "has parts of a-z and 0-9, joined inside by . _ __ or -, with / between, at most 200 characters",
            ))
        }
    }
}
text_value!(Repository);

/// Where an image is: `[REGISTRY/]REPOSITORY[:TAG][@DIGEST]`.
///
/// The first part is a registry when it holds a dot or a colon or is `localhost`, as engines read it.
/// Without a registry, the cloud's private one is meant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageRef {
    /// `matrix-manager.matrix:5000`; none means the private registry.
    pub registry: Option<String>,
    /// `cloud/shop`
    pub repository: Repository,
    /// `v2`; none means `latest` unless a digest is given.
    pub tag: Option<String>,
    /// The content, when pinned.
    pub digest: Option<Digest>,
}

impl ImageRef {
    /// The tag to look up: the one written, or `latest`.
    pub fn tag_or_latest(&self) -> &str {
        self.tag.as_deref().unwrap_or("latest")
    }
    /// A reference for people: `cloud/shop@1a2b3c4d5e6f`, no registry, the digest cut; what is none stays as it is.
    pub fn brief(text: &str) -> String {
        match text.parse::<Self>() {
            Ok(image) => match &image.digest {
                Some(digest) => format!("{}@{}", image.repository, digest.short()),
                None => format!("{}:{}", image.repository, image.tag_or_latest()),
            },
            Err(_) => text.to_owned(),
        }
    }
    /// The same image in `registry`, pinned to `digest`, without tag: what a node is told to pull.
    #[must_use]
    pub fn pinned(&self, registry: &str, digest: Digest) -> Self {
        Self {
            registry: Some(registry.to_owned()),
            repository: self.repository.clone(),
            tag: None,
            digest: Some(digest),
        }
    }
}
impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(registry) = &self.registry {
            write!(f, "{registry}/")?;
        }
        write!(f, "{}", self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}
impl FromStr for ImageRef {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let wrong = |rule| Invalid::new("image reference", text, rule);
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse()?)),
            None => (text, None),
        };
        let (registry, rest) = match rest.split_once('/') {
            Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (Some(first), rest),
            _ => (None, rest),
        };
        if let Some(registry) = registry {
            let (host, port) = registry.split_once(':').unwrap_or((registry, "5000"));
            let host_good = !host.is_empty()
                && host.starts_with(|c: char| c.is_ascii_alphanumeric())
                && host.chars().all(|c| c.is_ascii_alphanumeric() || c == '.' || c == '-');
            if !host_good || port.parse::<super::Port>().is_err() {
                return Err(wrong("names a registry that is not HOST[:PORT]"));
            }
        }
        let (repository, tag) = match rest.rsplit_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (rest, None),
        };
        if let Some(tag) = tag {
            let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let good = !tag.is_empty()
                && tag.len() <= 128
                && tag.starts_with(word)
                && tag.chars().all(|c| word(c) || c == '.' || c == '-');
            if !good {
                return Err(wrong("has a tag that is not made of letters, digits, _ . and - (at most 128)"));
            }
        }
        Ok(Self {
            registry: registry.map(str::to_owned),
            repository: repository
                .parse()
                .map_err(|_| wrong("is not [REGISTRY/]REPOSITORY[:TAG][@DIGEST] in lower case"))?,
            tag: tag.map(str::to_owned),
            digest,
        })
    }
}
text_value!(ImageRef);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_read_back() {
        let hex = "a".repeat(64);
        for text in [
            "shop",
            "cloud/shop",
            "cloud/shop:v2",
            "matrix-manager.matrix:5000/cloud/shop",
            "localhost/shop:1.0_b-2",
            &format!("10.10.10.1:5000/cloud/shop:v2@sha256:{hex}"),
        ] {
            let image: ImageRef = text.parse().expect(text);
            assert_eq!(image.to_string(), text);
        }
        let image: ImageRef = "matrix-manager.matrix:5000/cloud/shop".parse().expect("an image");
        assert_eq!(image.registry.as_deref(), Some("matrix-manager.matrix:5000"));
        assert_eq!(image.tag_or_latest(), "latest");
    }

    #[test]
    fn hostile_references_are_refused() {
        for bad in [
            "",
            "Shop",
            "shop:",
            "shop:a b",
            "shop@sha256:12",
            "/shop",
            "shop/",
            "a//b",
            "shop;rm -rf /",
            "$(id)",
            "shop\n",
            "../shop",
            "a..b",
            "a___b",
            "bad_host!:5000/shop",
            "h.o:99999/shop",
            "-x.y/shop",
            "shop:-x",
        ] {
            assert!(bad.parse::<ImageRef>().is_err(), "{bad:?}");
        }
    }
}
