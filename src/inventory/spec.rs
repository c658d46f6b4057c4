//! All a container is made from.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{
    model::{Cpus, ImageRef, InstanceId, Memory, NodeName, Port},
    plan::{Restart, Volume},
};

use super::{Ours, SpecHash};

/// All a container is made from, apart from whose it is and its host port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// The image, pinned to a digest, with its registry as nodes know it.
    pub image: ImageRef,
    /// The port it listens on inside.
    pub port: Port,
    /// Environment variables.
    pub environment: BTreeMap<String, String>,
    /// Replaces the image's command.
    pub command: Option<Vec<String>>,
    /// Replaces the image's entry point.
    pub entrypoint: Option<Vec<String>>,
    /// Mounts.
    pub volumes: Vec<Volume>,
    /// Memory limit.
    pub memory: Option<Memory>,
    /// Processor limit.
    pub cpus: Option<Cpus>,
    /// `USER[:GROUP]`.
    pub user: Option<String>,
    /// Working directory.
    pub working_dir: Option<String>,
    /// The user's labels.
    pub labels: BTreeMap<String, String>,
    /// The engine's restart policy.
    pub restart: Restart,
    /// Seconds between SIGTERM and SIGKILL.
    pub stop_timeout_seconds: u32,
    /// How often it was asked to be made anew.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub restarts: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Spec {
    /// Equal specs, and only they, have equal hashes (the first 64 bits of SHA-256 over their JSON).
    pub fn hash(&self) -> SpecHash {
        let json = serde_json::to_vec(self).unwrap_or_else(|_| unreachable!("strings and numbers only"));
        let sum = Sha256::digest(json);
        SpecHash(sum.iter().take(8).fold(String::with_capacity(16), |hex, byte| hex + &format!("{byte:02x}")))
    }
}

/// A container to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// The container's name: making the same twice meets the first.
    pub name: String,
    /// Whose it is.
    pub ours: Ours,
    /// The host port that leads to `spec.port`, on all addresses of the node.
    pub host_port: Port,
    /// What it is made from.
    pub spec: Spec,
}

impl ContainerSpec {
    /// The container's name: instance, node, host port and spec, so that two generations of one slot live side by side
    /// and a name is one container in the whole cloud.
    pub fn name_of(instance: &InstanceId, spec: &SpecHash, node: &NodeName, host_port: Port) -> String {
        format!("{instance}-{node}-{host_port}-{}", &spec.0[..8.min(spec.0.len())])
    }
}
