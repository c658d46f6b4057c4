//! What is known of the world, admittedly stale: leases, nodes, containers.
//!
//! Values and transitions only. Nothing here looks at the world; `remote` does, and hands over what it saw.

mod container;
pub mod lease;
mod node;
mod spec;
mod stock;

pub use container::{Container, ContainerState, Ours, SpecHash, label};
pub use node::{Admission, Backends, DataPath, Engine, HostKey, Intake, Node, NodeState, Seen};
pub use spec::{ContainerSpec, Spec};
pub use stock::{NodeImage, NodeStock, RegistryStock, RepositoryStock, StoredBlob, StoredManifest, StoredTag};

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::model::NodeName;

/// The world at one moment, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Snapshot {
    /// Nodes, candidates among them.
    pub nodes: BTreeMap<NodeName, Node>,
}

impl Snapshot {
    /// Every container on every node.
    pub fn containers(&self) -> impl Iterator<Item = (&Node, &Container)> {
        self.nodes.values().flat_map(|node| node.containers.iter().map(move |c| (node, c)))
    }
}
