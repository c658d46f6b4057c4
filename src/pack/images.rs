//! What a registry holds, and removing from it.
//!
//! Knows nothing of what runs: whoever removes asks the manager first.

use futures_util::{StreamExt, TryStreamExt, stream};

use super::{Error, ImageName};
use crate::{
    model::{Digest, Repository},
    remote::registry::Registry,
};

/// How many images are looked at at a time.
const AT_ONCE: usize = 8;

/// One tag in a registry.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Listed {
    /// `cloud/shop`
    pub repository: Repository,
    /// `v2`
    pub tag: String,
    /// The image's digest.
    pub digest: Digest,
    /// Compressed bytes of its configuration and layers; none for a list of several images.
    pub size: Option<u64>,
}

/// Every tag of every repository, in order.
///
/// # Errors
/// A registry that does not answer or refuses.
pub async fn list(registry: &Registry) -> Result<Vec<Listed>, Error> {
    let repositories = registry.repositories().await?;
    let tags: Vec<(Repository, Vec<String>)> = stream::iter(repositories)
        .map(|r| async move { registry.tags(&r).await.map(|tags| (r, tags)) })
        .buffered(AT_ONCE)
        .try_collect()
        .await?;
    let all = tags.into_iter().flat_map(|(r, tags)| tags.into_iter().map(move |t| (r.clone(), t)));
    let listed: Vec<Option<Listed>> = stream::iter(all)
        .map(|(repository, tag)| async move {
            // A tag that went away meanwhile, or whose manifest was removed, is not there.
            let Some(manifest) = registry.manifest(&repository, &tag).await? else { return Ok(None) };
            let size = size(&manifest.bytes);
            Ok::<_, Error>(Some(Listed { repository, tag, digest: manifest.digest, size }))
        })
        .buffered(AT_ONCE)
        .try_collect()
        .await?;
    Ok(listed.into_iter().flatten().collect())
}

/// The tags that go when one of them is removed: all that name the same image.
///
/// # Errors
/// A registry that does not answer; a name it does not hold.
pub async fn same_image(registry: &Registry, name: &ImageName) -> Result<(Digest, Vec<String>), Error> {
    let repository = &name.repository;
    let Some(digest) = registry.find(repository, &name.tag).await? else {
        let message = format!("{name} is not in the registry at {}", registry.endpoint());
        return Err(Error::refused(message, "`matrix images` lists what is there"));
    };
    let mut same = Vec::new();
    for tag in registry.tags(repository).await? {
        if registry.find(repository, &tag).await?.as_ref() == Some(&digest) {
            same.push(tag);
        }
    }
    Ok((digest, same))
}

/// Removes an image with all its tags.
///
/// # Errors
/// A registry that does not answer, or is not set up to remove.
pub async fn remove(registry: &Registry, repository: &Repository, digest: &Digest) -> Result<(), Error> {
    Ok(registry.delete(repository, digest).await?)
}

fn size(manifest: &[u8]) -> Option<u64> {
    let value: serde_json::Value = serde_json::from_slice(manifest).ok()?;
    let layers = value.get("layers")?.as_array()?;
    let sizes = layers.iter().chain(value.get("config")).map(|b| b.get("size").and_then(serde_json::Value::as_u64));
    sizes.sum()
}
