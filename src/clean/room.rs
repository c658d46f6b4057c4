//! Whether a node's disk holds the images a release brings it.
//!
//! Layers are compared by digest, compressed, as the registry tells them: what a node has already costs nothing again.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::Digest;

/// Unpacked, layers take about three times what they take on their way: text and programs compress to a third, and
/// while a layer is unpacked its compressed form is on the disk too.
pub const UNPACKED: u64 = 3;

/// Whether there is room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// For all that comes, unpacked.
    Enough,
    /// For what comes as it comes; perhaps not for what it takes unpacked.
    Tight {
        /// Compressed bytes that come.
        bytes: u64,
    },
    /// Not even for what comes as it comes.
    No {
        /// Compressed bytes that come.
        bytes: u64,
    },
}

/// Whether `free` bytes hold these layers, but for those that are `there`.
pub fn room(free: u64, coming: &BTreeMap<Digest, u64>, there: &BTreeSet<Digest>) -> Room {
    let sizes = coming.iter().filter(|(digest, _)| !there.contains(*digest)).map(|(_, bytes)| *bytes);
    let bytes = sizes.fold(0u64, u64::saturating_add);
    match bytes {
        _ if bytes > free => Room::No { bytes },
        _ if bytes.saturating_mul(UNPACKED) > free => Room::Tight { bytes },
        _ => Room::Enough,
    }
}
