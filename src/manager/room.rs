//! Before a release: whether the disks of nodes hold the images it brings them.
//!
//! A node or registry that does not answer stops nobody here; pulling says what is wrong then.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytesize::ByteSize;
use futures_util::future::join_all;

use crate::{
    clean::{Room, UNPACKED, room},
    inventory::Node,
    model::{Digest, ImageRef},
    release::Release,
    schedule,
};

use super::{Manager, Overview};

/// For one look at a node's images.
const LOOK: Duration = Duration::from_secs(2);

/// What was found, for people.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Disks {
    /// Nodes that certainly cannot hold what comes.
    pub full: Vec<String>,
    /// Nodes that may not hold it unpacked.
    pub tight: Vec<String>,
}

impl Manager {
    /// Looks at every node that gets an image it has no container of.
    pub(super) async fn disks(&self, release: &Release, overview: &Overview) -> Disks {
        let snapshot = self.nodes().snapshot();
        let placed = schedule::place(schedule::Input {
            release,
            snapshot: &snapshot,
            previous: &overview.remembered.assignments,
            ports: self.config().ports,
            frozen: overview.progress.frozen.is_some(),
            beside: &schedule::Beside::NOTHING,
            doubts: &schedule::Doubts::NONE,
        });
        let mut wanted: BTreeMap<_, BTreeSet<&ImageRef>> = BTreeMap::new();
        for (id, place) in &placed.assignments {
            let Some(node) = snapshot.nodes.get(&place.node).filter(|node| node.is_ready()) else { continue };
            let Some(image) = release.images.get(&id.app) else { continue };
            if !node.containers.iter().any(|container| container.image == image.to_string()) {
                wanted.entry(&node.name).or_default().insert(image);
            }
        }
        let looks = wanted.iter().filter_map(|(name, images)| Some((snapshot.nodes.get(name)?, images)));
        let looks = looks.map(|(node, images)| async move { (node, self.on_disk(node, images).await) });
        let mut disks = Disks::default();
        for (node, found) in join_all(looks).await {
            let (Some(found), Some(free)) = (found, free(node)) else { continue };
            let (name, has) = (&node.name, ByteSize(free));
            match found {
                Room::Enough => {}
                Room::Tight { bytes } => disks.tight.push(format!(
                    "{name} has {has} free; the images that come are {}, unpacked about {}",
                    ByteSize(bytes),
                    ByteSize(bytes.saturating_mul(UNPACKED))
                )),
                Room::No { bytes } => {
                    disks.full.push(format!(
                        "the disk of {name} has {has} free, and the images that come are {}",
                        ByteSize(bytes)
                    ));
                }
            }
        }
        disks
    }

    /// Whether a node's disk holds these images; none where that cannot be told.
    async fn on_disk(&self, node: &Node, images: &BTreeSet<&ImageRef>) -> Option<Room> {
        let engine = self.nodes().engine(&node.name)?;
        let looks = images.iter().map(|image| {
            let engine = engine.clone();
            async move {
                let has = tokio::time::timeout(LOOK, engine.has_image(&image.to_string())).await;
                (*image, matches!(has, Ok(Ok(false))))
            }
        });
        let (coming, mut there): (Vec<_>, Vec<_>) = join_all(looks).await.into_iter().partition(|(_, lacks)| *lacks);
        if coming.is_empty() {
            return None;
        }
        let run: Vec<ImageRef> = node.containers.iter().filter_map(|container| container.image.parse().ok()).collect();
        there.extend(run.iter().map(|image| (image, false)));
        let (coming, there) = tokio::join!(self.layers(&coming), self.layers(&there));
        Some(room(free(node)?, &coming, &there.into_keys().collect()))
    }

    /// All layers of these images as their registries tell them.
    async fn layers(&self, images: &[(&ImageRef, bool)]) -> BTreeMap<Digest, u64> {
        let each = images.iter().map(|(image, _)| async move {
            let registry = self.registry_of(image.registry.as_deref().unwrap_or_default()).ok()?;
            let digest = image.digest.as_ref()?;
            let asked = tokio::time::timeout(LOOK, registry.manifest(&image.repository, digest.as_str())).await;
            let manifest: serde_json::Value = serde_json::from_slice(&asked.ok()?.ok()??.bytes).ok()?;
            let layers = manifest.get("layers")?.as_array()?.iter();
            let layer =
                |l: &serde_json::Value| Some((l.get("digest")?.as_str()?.parse().ok()?, l.get("size")?.as_u64()?));
            Some(layers.filter_map(layer).collect::<Vec<_>>())
        });
        join_all(each).await.into_iter().flatten().flatten().collect()
    }
}

fn free(node: &Node) -> Option<u64> {
    node.engine.as_ref()?.disk_free
}
