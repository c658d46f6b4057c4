//! What goes and what stays of releases, containers, images, tags and blobs that are kept somewhere, and why.
//!
//! Takes nothing away: no I/O, no clock. When in doubt, it stays.

mod keep;
mod node;
mod registry;
mod room;

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use crate::model::{Digest, NodeName, Repository};

pub use keep::{Needed, kept, needed, outdated};
pub use node::{NodeInput, node};
pub use registry::{RegistryInput, RegistryPlan, registry};
pub use room::{Room, UNPACKED, room};

/// Where something is kept.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// In the manager's state.
    Manager,
    /// On a node.
    Node(NodeName),
    /// In the private registry.
    Registry,
}
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Manager => f.write_str("manager"),
            Self::Node(node) => node.fmt(f),
            Self::Registry => f.write_str("registry"),
        }
    }
}

/// What it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum Thing {
    /// A release, with how it ended.
    Release {
        /// Its number.
        number: u64,
    },
    /// A stopped container of this cloud.
    Container {
        /// The engine's id.
        id: String,
        /// Its name.
        name: String,
    },
    /// An image on a node.
    Image {
        /// The engine's id.
        id: String,
        /// All its names: it goes with the last of them.
        names: Vec<String>,
    },
    /// A manifest in the registry, with its tags.
    Manifest {
        /// Its repository.
        repository: Repository,
        /// Its digest.
        digest: Digest,
        /// The tags that go with it.
        tags: Vec<String>,
    },
    /// Blobs in the registry that nothing names any more.
    Blobs {
        /// How many.
        count: usize,
    },
}
impl Thing {
    /// Its kind, in a word.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Release { .. } => "release",
            Self::Container { .. } => "container",
            Self::Image { .. } => "image",
            Self::Manifest { .. } => "manifest",
            Self::Blobs { .. } => "blobs",
        }
    }
}
impl fmt::Display for Thing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Release { number } => number.fmt(f),
            Self::Container { name, .. } => f.write_str(name),
            Self::Image { id, names } => {
                let brief = |name: &String| crate::model::ImageRef::brief(name);
                f.write_str(&names.iter().next_back().map_or_else(|| id.clone(), brief))
            }
            Self::Manifest { repository, digest, tags } if tags.is_empty() => {
                write!(f, "{repository}@{}", digest.short())
            }
            Self::Manifest { repository, tags, .. } => write!(f, "{repository}:{}", tags.join(",")),
            Self::Blobs { count } => write!(f, "{count} blobs"),
        }
    }
}

/// Something that goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// Where it is.
    pub place: Place,
    /// What it is.
    #[serde(flatten)]
    pub thing: Thing,
    /// Why it goes.
    pub why: String,
    /// Bytes that are free then; what is shared with something that stays is not among them.
    pub bytes: u64,
}

/// All that goes, and what is to be said of it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Forecast {
    /// The releases one can go back to.
    pub kept: Vec<u64>,
    /// What goes: first from the manager's state, then from nodes, then from the registry.
    pub items: Vec<Item>,
    /// What was not looked at, or stays for now, and why.
    pub notes: Vec<String>,
}
impl Forecast {
    /// Bytes that are free when all of it is gone.
    pub fn bytes(&self) -> u64 {
        self.items.iter().map(|item| item.bytes).sum()
    }
    /// The same by place.
    pub fn by_place(&self) -> BTreeMap<&Place, u64> {
        self.items.iter().fold(BTreeMap::new(), |mut sums, item| {
            *sums.entry(&item.place).or_default() += item.bytes;
            sums
        })
    }
}
