//! Why a node cannot be admitted, looked at or forgotten.

use crate::{
    model::NodeName,
    remote::{docker::EngineError, ssh::SshError},
    store::StoreError,
};

/// Why it was not done.
#[derive(Debug, thiserror::Error)]
pub enum NodesError {
    /// Nobody has this name.
    #[error("no machine is named {node}")]
    Unknown {
        /// The name.
        node: NodeName,
    },
    /// It is seen, and no node.
    #[error("{node} is not admitted")]
    NotAdmitted {
        /// The machine.
        node: NodeName,
    },
    /// The key is not the one that was looked at before.
    #[error("{node} offers the host key {offered}, not {expected}")]
    OtherKey {
        /// The node.
        node: NodeName,
        /// The fingerprint wanted.
        expected: String,
        /// The offered key's.
        offered: String,
    },
    /// The session.
    #[error(transparent)]
    Ssh(#[from] SshError),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl NodesError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unknown { .. } => Some(
                "matrix nodes lists those that have a lease or are named in matrix.toml; does it send its host name?"
                    .to_owned(),
            ),
            Self::NotAdmitted { node } => Some(format!("matrix nodes admit {node}")),
            Self::OtherKey { node, .. } => {
                Some(format!("look at the key on {node} itself: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub"))
            }
            Self::Ssh(error) => error.hint(),
            Self::Engine(error) => error.hint(),
            Self::Store(_) => None,
        }
    }
}
