//! What a lab fails with.

use std::{io, path::PathBuf};

/// Why a lab could not do it.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// Namespaces and mounts are root's.
    #[error("a lab needs root")]
    NotRoot,
    /// Programs are missing.
    #[error("a lab needs {programs}")]
    Missing {
        /// The programs.
        programs: String,
        /// The Debian packages that bring them.
        packages: String,
    },
    /// Overlays do not stack.
    #[error("{} is on an overlay file system, which cannot hold the nodes' overlays", path.display())]
    Overlay {
        /// The directory.
        path: PathBuf,
    },
    /// No cgroups to keep the lab's processes together.
    #[error("no control groups are mounted at /sys/fs/cgroup")]
    NoCgroups,
    /// A name or path that cannot be used.
    #[error("{what} {value:?} {rule}")]
    Invalid {
        /// What it is.
        what: &'static str,
        /// The value.
        value: String,
        /// The rule it breaks.
        rule: &'static str,
    },
    /// A program failed.
    #[error("{program} failed: {message}")]
    Program {
        /// The program and its first arguments.
        program: String,
        /// Its last words.
        message: String,
    },
    /// A file or directory.
    #[error("cannot {what} {}", path.display())]
    File {
        /// `write`, `create`
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// That lab is not there.
    #[error("there is no lab named {0}")]
    NoLab(String),
    /// That node is not there.
    #[error("lab {lab} has no node {node}")]
    NoNode {
        /// The lab.
        lab: String,
        /// The node.
        node: String,
    },
    /// It is switched off.
    #[error("{0} is switched off")]
    Off(String),
    /// A wait was in vain.
    #[error("{what} took longer than {seconds} s{detail}")]
    TooSlow {
        /// What was waited for.
        what: String,
        /// How long.
        seconds: u64,
        /// What the logs say.
        detail: String,
    },
    /// All host legs are taken.
    #[error("no free address for the lab's leg to this machine in 10.10.0.0/16")]
    NoSubnet,
    /// Processes that do not end.
    #[error("processes of lab {lab} do not end: {pids}")]
    Undead {
        /// The lab.
        lab: String,
        /// The processes.
        pids: String,
    },
}

impl LabError {
    pub(crate) fn file(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { what, path, source }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotRoot => Some("run it as root: sudo matrix lab …".to_owned()),
            Self::Missing { packages, .. } => Some(format!("apt-get install -y --no-install-recommends {packages}")),
            Self::Overlay { .. } => Some(
                "set MATRIX_LAB_DIR to a directory on a disk's own file system (ext4, xfs, btrfs) or a tmpfs".into(),
            ),
            Self::NoLab(_) => Some("matrix lab up starts one".to_owned()),
            Self::NoNode { .. } => Some("matrix lab status lists the nodes".to_owned()),
            Self::Off(node) => Some(format!("matrix lab boot {node}")),
            Self::NoSubnet => Some("matrix lab down for labs that are no longer used".to_owned()),
            _ => None,
        }
    }
}
