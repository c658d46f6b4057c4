//! The manager's API as the command line calls it: over its unix socket, or over TCP with a token.

use std::{fmt, path::PathBuf, str::FromStr};

/// Where the manager listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ManagerAddress {
    /// A unix socket.
    Socket(PathBuf),
    /// `http://HOST:PORT`
    Http(String),
}
impl FromStr for ManagerAddress {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with("http://") || text.starts_with("https://") {
            return Ok(Self::Http(text.trim_end_matches('/').to_owned()));
        }
        let path = text.strip_prefix("unix://").unwrap_or(text);
        if path.starts_with('/') {
            Ok(Self::Socket(path.into()))
        } else {
            Err("is neither a socket's absolute path nor http://HOST:PORT".to_owned())
        }
    }
}
impl fmt::Display for ManagerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => path.display().fmt(f),
            Self::Http(url) => url.fmt(f),
        }
    }
}

/// A connection to the manager.
#[derive(Debug, Clone)]
pub struct Client {}
