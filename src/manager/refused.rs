//! Why a plan or a release is not taken, and what to do then.

use crate::{plan::Diagnostic, remote::registry::RegistryError, store::StoreError};

/// Why it was not taken. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// The plan is wrong: all its errors.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Plan(Vec<Diagnostic>),
    /// Images are not in their registry.
    #[error("{}", .0.join("\n"))]
    Images(Vec<String>),
    /// Nodes' disks cannot hold the images.
    #[error("{}", .0.join("\n"))]
    Disks(Vec<String>),
    /// There is no such release.
    #[error("there is no release {0}")]
    NoRelease(u64),
    /// There was one, and it was cleaned away.
    #[error("release {0} is not kept any more")]
    NotKept(u64),
    /// The registry does not answer.
    #[error("cannot look up images")]
    Registry(#[source] RegistryError),
    /// No release is on its way.
    #[error("no release is on its way")]
    NoRollout,
    /// Another release is going out.
    #[error("release {release} by {by}, made {age} s ago, is still going out ({step})")]
    Busy {
        /// Its number.
        release: u64,
        /// Who made it.
        by: String,
        /// How long ago, in seconds.
        age: i64,
        /// What it is at.
        step: String,
    },
    /// The state cannot be written.
    #[error("cannot keep the release")]
    State(#[from] StoreError),
}

/// Why an old release is not there.
pub const NOT_KEPT: &str =
    "`matrix releases` lists those that are; `[gc] keep_releases` says how many of each application";

impl SubmitError {
    /// What to do.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Plan(_) | Self::State(_) => None,
            Self::Images(_) => Some("`matrix images` lists what is there; `matrix install-image NAME` puts one there"),
            Self::Disks(_) => Some("`matrix gc` frees what no release needs; or place the application elsewhere"),
            Self::NoRelease(_) => Some("`matrix releases` lists them"),
            Self::NotKept(_) => Some(NOT_KEPT),
            Self::Registry(_) => Some("is the registry running, and does the configuration name its address?"),
            Self::NoRollout => Some("`matrix status` shows what runs, `matrix releases` how each release ended"),
            Self::Busy { .. } => {
                Some("`matrix follow` shows it, `matrix abort` ends it; a staged one waits for `matrix activate`")
            }
        }
    }
}
