//! A container as an engine reports it, and how it says whose it is.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use crate::model::{CloudId, InstanceId, Port, Timestamp};

/// The labels by which a container says whose it is.
pub mod label {
    /// The cloud's id. What lacks ours is never touched.
    pub const CLOUD: &str = "matrix.cloud";
    /// The application's name.
    pub const APP: &str = "matrix.app";
    /// The instance: `shop.2`.
    pub const INSTANCE: &str = "matrix.instance";
    /// The number of the release that made it.
    pub const RELEASE: &str = "matrix.release";
    /// The hash of all it was made from.
    pub const SPEC: &str = "matrix.spec";
}

/// The hash of all a container is made from but its host port: 16 hexadecimal digits. Equal hash: nothing to replace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SpecHash(pub String);

impl fmt::Display for SpecHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A container on a node, ours or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// The engine's id, 64 hexadecimal digits.
    pub id: String,
    /// The engine's name, without leading slash.
    pub name: String,
    /// What it says of itself, where its labels name a cloud and read well.
    pub ours: Option<Ours>,
    /// The image as it was asked for.
    pub image: String,
    /// The engine's state.
    pub state: ContainerState,
    /// Host port by container port (TCP).
    pub published: BTreeMap<Port, Port>,
    /// When it was created.
    pub created: Option<Timestamp>,
}

/// What our labels say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ours {
    /// The cloud it belongs to: compare before touching it.
    pub cloud: CloudId,
    /// Its instance.
    pub instance: InstanceId,
    /// The release that made it.
    pub release: u64,
    /// What it was made from.
    pub spec: SpecHash,
}

/// The engine's word for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerState {
    /// Made, never started.
    Created,
    /// Its process runs.
    Running,
    /// Frozen.
    Paused,
    /// Between two runs, by its restart policy.
    Restarting,
    /// Being removed.
    Removing,
    /// Its process ended.
    Exited,
    /// Half removed; only removal is left.
    Dead,
}

impl Ours {
    /// What these labels say; none where one is missing or does not read.
    pub fn from_labels(labels: &BTreeMap<String, String>) -> Option<Self> {
        Some(Self {
            cloud: labels.get(label::CLOUD)?.parse().ok()?,
            instance: labels.get(label::INSTANCE)?.parse().ok()?,
            release: labels.get(label::RELEASE)?.parse().ok()?,
            spec: SpecHash(
                labels.get(label::SPEC).filter(|s| s.len() == 16 && s.bytes().all(|b| b.is_ascii_hexdigit()))?.clone(),
            ),
        })
    }
    /// The labels that say this.
    pub fn to_labels(&self) -> BTreeMap<String, String> {
        BTreeMap::from([
            (label::CLOUD.to_owned(), self.cloud.to_string()),
            (label::APP.to_owned(), self.instance.app.to_string()),
            (label::INSTANCE.to_owned(), self.instance.to_string()),
            (label::RELEASE.to_owned(), self.release.to_string()),
            (label::SPEC.to_owned(), self.spec.to_string()),
        ])
    }
}
