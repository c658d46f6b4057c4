//! What ssh's words mean.

use std::{io, net::IpAddr, path::PathBuf};

use crate::model::NodeName;

use super::Target;

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum SshError {
    /// The machine offers another key than the pinned one.
    #[error("{node} offers another host key than the one admitted: {} instead of {pinned}", .offered.as_deref().unwrap_or("an unknown one"))]
    ChangedKey {
        /// The node.
        node: NodeName,
        /// The pinned key's fingerprint.
        pinned: String,
        /// The offered key's, where ssh said it.
        offered: Option<String>,
    },
    /// The machine has no key of the pinned key's kind.
    #[error("{node} has no {algorithm} host key")]
    UnknownKey {
        /// The node.
        node: NodeName,
        /// `ssh-ed25519`
        algorithm: String,
    },
    /// Nobody listens on sshd's port.
    #[error("{node} ({address}) refuses connections to its sshd")]
    Refused {
        /// The node.
        node: NodeName,
        /// Its address.
        address: IpAddr,
    },
    /// No answer.
    #[error("{node} ({address}) does not answer")]
    Unreachable {
        /// The node.
        node: NodeName,
        /// Its address.
        address: IpAddr,
    },
    /// sshd does not accept our key for this user.
    #[error("{node} does not let {user} in with {}", .identity.display())]
    Denied {
        /// The node.
        node: NodeName,
        /// The user.
        user: String,
        /// Our private key.
        identity: PathBuf,
    },
    /// ssh ended for another reason.
    #[error("cannot open a session to {node}: {words}")]
    Failed {
        /// The node.
        node: NodeName,
        /// ssh's last words.
        words: String,
    },
    /// The session is up, its socket not forwarded.
    #[error("cannot forward the engine's socket of {node}")]
    Forward {
        /// The node.
        node: NodeName,
        /// What the master said.
        #[source]
        source: Box<openssh::Error>,
    },
    /// The local socket's path would be cut.
    #[error("{} is too long for a socket's path", .path.display())]
    PathTooLong {
        /// The path.
        path: PathBuf,
    },
    /// Something on this machine failed.
    #[error("cannot {doing}")]
    Local {
        /// What was tried.
        doing: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl SshError {
    pub(super) fn local(doing: impl Into<String>, source: io::Error) -> Self {
        Self::Local { doing: doing.into(), source }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::ChangedKey { node, .. } => format!(
                "if {node} was installed anew, accept its key: matrix nodes admit {node}; if not, somebody else answers at its address"
            ),
            Self::UnknownKey { node, algorithm } => {
                format!(
                    "make one on {node} (`ssh-keygen -A`), or admit it anew; matrix pinned a key of kind {algorithm}"
                )
            }
            Self::Refused { node, .. } => format!("start sshd on {node} (`systemctl start ssh`), or set ssh.port"),
            Self::Unreachable { node, .. } => format!("is {node} switched on, and its link up?"),
            Self::Denied { node, user, identity } => format!(
                "add {}.pub to ~{user}/.ssh/authorized_keys on {node}, and {user} to its docker group",
                identity.display()
            ),
            Self::PathTooLong { .. } => "set `run` in matrix.toml to a shorter path".to_owned(),
            Self::Local { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                "is openssh-client installed?".to_owned()
            }
            Self::Failed { .. } | Self::Forward { .. } | Self::Local { .. } => return None,
        })
    }

    /// Whether the machine is not the one admitted: no session may be tried again before somebody looks.
    pub fn is_changed_key(&self) -> bool {
        matches!(self, Self::ChangedKey { .. })
    }

    /// What a master meant by `words`, its standard error.
    pub(super) fn read(target: &Target, words: &str, code: Option<i32>) -> Self {
        let node = target.node.clone();
        let has = |text: &str| words.contains(text);
        if has("REMOTE HOST IDENTIFICATION HAS CHANGED") || has("Host key verification failed") {
            let offered = words
                .split_whitespace()
                .find(|word| word.starts_with("SHA256:"))
                .map(|word| word.trim_end_matches('.').to_owned());
            Self::ChangedKey { node, pinned: target.key.fingerprint.clone(), offered }
        } else if has("no matching host key type found") {
            Self::UnknownKey { node, algorithm: target.key.algorithm.clone() }
        } else if has("Permission denied") || has("Too many authentication failures") {
            Self::Denied { node, user: target.user.clone(), identity: target.identity.clone() }
        } else if has("Connection refused") {
            Self::Refused { node, address: target.address }
        } else if ["timed out", "No route to host", "Network is unreachable", "Host is down", "not responding"]
            .iter()
            .any(|text| has(text))
        {
            Self::Unreachable { node, address: target.address }
        } else {
            let last = words.lines().rev().map(str::trim).find(|line| !line.is_empty());
            let words = last.map_or_else(|| format!("ssh ended with {code:?}"), str::to_owned);
            Self::Failed { node, words }
        }
    }
}
