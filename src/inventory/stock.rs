//! What is kept where: images on a node, tags, manifests and blobs in a registry.
//!
//! Values only: who may have it away is decided elsewhere.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::model::{Digest, ImageRef, Repository, Timestamp};

use super::Container;

/// An image on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeImage {
    /// The engine's id.
    pub id: String,
    /// Its names with tags and with digests, as the engine writes them.
    pub names: BTreeSet<String>,
    /// Its layers, unpacked: what tells each from others (equal on one node: kept once), and its bytes.
    pub layers: BTreeMap<String, u64>,
}

impl NodeImage {
    /// All it takes, if nobody else used its layers.
    pub fn bytes(&self) -> u64 {
        self.layers.values().sum()
    }
    /// Whether all its names are of this registry; an image without a name is nobody's.
    pub fn is_of(&self, registry: &str) -> bool {
        let of = |name: &String| name.parse::<ImageRef>().is_ok_and(|name| name.registry.as_deref() == Some(registry));
        !self.names.is_empty() && self.names.iter().all(of)
    }
    /// The digests among its names.
    pub fn digests(&self) -> impl Iterator<Item = Digest> + '_ {
        self.names.iter().filter_map(|name| name.parse::<ImageRef>().ok()?.digest)
    }
}

/// What a node keeps.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NodeStock {
    /// Its images.
    pub images: Vec<NodeImage>,
    /// Its containers, whoever's they are, each with the id of its image.
    pub containers: Vec<(Container, String)>,
}

/// What a registry keeps.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RegistryStock {
    /// Its repositories.
    pub repositories: BTreeMap<Repository, RepositoryStock>,
    /// Every blob, manifests among them, whoever names it.
    pub blobs: BTreeMap<Digest, StoredBlob>,
}

/// What a repository keeps.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RepositoryStock {
    /// Its tags.
    pub tags: BTreeMap<String, StoredTag>,
    /// Its manifests, with and without tags.
    pub manifests: BTreeMap<Digest, StoredManifest>,
}

/// A tag.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredTag {
    /// The manifest it stands for.
    pub digest: Digest,
    /// Since when.
    pub since: Timestamp,
}

/// A manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredManifest {
    /// When it was pushed last.
    pub since: Timestamp,
    /// What it names: configuration, layers, other manifests. None: it cannot be read.
    pub parts: Option<BTreeSet<Digest>>,
}

/// A blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredBlob {
    /// Its bytes.
    pub size: u64,
    /// When it was last sent, or made one of a repository.
    pub since: Timestamp,
}
