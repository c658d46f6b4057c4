//! A registry's folder, as Debian's docker-registry keeps it: the API tells no manifest without a tag, no age, no size.
//!
//! Reads only.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use crate::{
    image,
    inventory::{RegistryStock, RepositoryStock, StoredBlob, StoredManifest, StoredTag},
    model::{Digest, Repository, Timestamp},
};

/// Why the folder cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the registry's folder {path}")]
pub struct StorageError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// All that is kept below `root`, the storage's root directory.
///
/// # Errors
/// When a folder cannot be read. Blocks: some hundred milliseconds for ten thousand blobs.
pub fn read(root: &Path) -> Result<RegistryStock, StorageError> {
    let v2 = base(root);
    let mut stock = RegistryStock::default();
    for prefix in entries(&v2.join("blobs/sha256"))? {
        for blob in entries(&prefix)? {
            let Some(digest) = digest_of(&blob) else { continue };
            if let Some((size, since)) = facts(&blob.join("data")) {
                stock.blobs.insert(digest, StoredBlob { size, since });
            }
        }
    }
    for (name, folder) in repositories(&v2.join("repositories"))? {
        let mut repository = RepositoryStock::default();
        for revision in entries(&folder.join("_manifests/revisions/sha256"))? {
            let (Some(digest), Some((_, since))) = (digest_of(&revision), facts(&revision.join("link"))) else {
                continue;
            };
            let parts = parts(&v2, &digest);
            repository.manifests.insert(digest, StoredManifest { since, parts });
        }
        for tag in entries(&folder.join("_manifests/tags"))? {
            let link = tag.join("current/link");
            let digest = fs::read_to_string(&link).ok().and_then(|text| text.trim().parse().ok());
            let name = tag.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if let (Some(digest), Some((_, since))) = (digest, facts(&link)) {
                repository.tags.insert(name, StoredTag { digest, since });
            }
        }
        // A blob that was there long ago and was mounted just now is part of a push under way.
        for layer in entries(&folder.join("_layers/sha256"))? {
            if let (Some(digest), Some((_, since))) = (digest_of(&layer), facts(&layer.join("link")))
                && let Some(blob) = stock.blobs.get_mut(&digest)
            {
                blob.since = blob.since.max(since);
            }
        }
        stock.repositories.insert(name, repository);
    }
    Ok(stock)
}

/// When an upload was last written to; none: none is under way. Broken-off ones stay for a week.
///
/// # Errors
/// When a folder cannot be read.
pub fn last_upload(root: &Path) -> Result<Option<Timestamp>, StorageError> {
    let mut last = None;
    for (_, folder) in repositories(&base(root).join("repositories"))? {
        for upload in entries(&folder.join("_uploads"))? {
            let written = ["data", "startedat"].iter().filter_map(|file| facts(&upload.join(file)));
            last = written.map(|(_, since)| since).max().max(last);
        }
    }
    Ok(last)
}

fn base(root: &Path) -> PathBuf {
    root.join("docker/registry/v2")
}

/// What a manifest names; none where it is missing or does not read.
fn parts(v2: &Path, digest: &Digest) -> Option<BTreeSet<Digest>> {
    let file = v2.join("blobs/sha256").join(&digest.hex()[..2]).join(digest.hex()).join("data");
    if fs::metadata(&file).ok()?.len() > image::MAX_JSON {
        return None;
    }
    let manifest: serde_json::Value = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
    let lists = ["layers", "manifests", "blobs"].iter().filter_map(|key| manifest.get(key)?.as_array());
    let named: Vec<&serde_json::Value> = lists.flatten().chain(manifest.get("config")).collect();
    // The first schema lists its layers under another name: what it holds on to is not known.
    if manifest.get("schemaVersion").and_then(serde_json::Value::as_u64) != Some(2) {
        return None;
    }
    named.into_iter().map(|part| part.get("digest")?.as_str()?.parse().ok()).collect()
}

/// Repositories by name: folders that hold `_manifests`, `_layers` or `_uploads`.
fn repositories(folder: &Path) -> Result<BTreeMap<Repository, PathBuf>, StorageError> {
    let mut found = BTreeMap::new();
    let mut next = vec![(String::new(), folder.to_owned())];
    while let Some((name, folder)) = next.pop() {
        for entry in entries(&folder)? {
            let last = entry.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if last.starts_with('_') {
                if let Ok(name) = name.parse() {
                    found.insert(name, folder.clone());
                }
            } else if entry.is_dir() {
                next.push((if name.is_empty() { last } else { format!("{name}/{last}") }, entry));
            }
        }
    }
    Ok(found)
}

/// What a folder holds; nothing where there is none.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, StorageError> {
    let wrap = |source| StorageError { path: folder.to_owned(), source };
    match fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| entry.map(|e| e.path()).map_err(wrap)).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(wrap(error)),
    }
}

fn digest_of(folder: &Path) -> Option<Digest> {
    format!("sha256:{}", folder.file_name()?.to_str()?).parse().ok()
}

/// Bytes, and when it was written last.
fn facts(file: &Path) -> Option<(u64, Timestamp)> {
    let metadata = fs::metadata(file).ok()?;
    let since = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
    Some((metadata.len(), Timestamp::try_from(since).ok()?))
}
