//! What was worked out before: a directory's fingerprint to its layer's digest. Small facts, never content.
//!
//! A lost, stale or damaged cache costs time and nothing else: content is checked by digest wherever it is used.

use std::{fs, path::PathBuf};

use crate::{image::LayerSum, model::Digest};

/// Changes when a layer's bytes would change for the same input.
const FORMAT: &str = "v1";

/// `$XDG_CACHE_HOME/matrix`, or `~/.cache/matrix`.
pub(super) fn directory() -> Option<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|p| p.is_absolute());
    base.or_else(|| std::env::home_dir().map(|h| h.join(".cache"))).map(|p| p.join("matrix"))
}

fn file(kind: &str, key: &Digest) -> Option<PathBuf> {
    Some(directory()?.join(FORMAT).join(kind).join(key.hex()))
}

/// What is known under this key.
pub(super) fn get(kind: &str, key: &Digest) -> Option<LayerSum> {
    serde_json::from_slice(&fs::read(file(kind, key)?).ok()?).ok()
}

/// Remembers; where that fails, nothing is lost.
pub(super) fn put(kind: &str, key: &Digest, sum: &LayerSum) {
    let write = || {
        let path = file(kind, key)?;
        let directory = path.parent()?;
        fs::create_dir_all(directory).ok()?;
        let new = tempfile::NamedTempFile::new_in(directory).ok()?;
        fs::write(new.path(), serde_json::to_vec(sum).ok()?).ok()?;
        new.persist(path).ok()
    };
    if write().is_none() {
        tracing::debug!("cannot write the cache");
    }
}
