//! An image into a registry: only what is missing there, checked before and after.
//!
//! Tags nothing before every blob is there: whoever pulls meanwhile gets the old image or the new one, whole.

use std::{
    collections::BTreeMap,
    io::Read,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, TryStreamExt, stream};

use super::{Error, ImageName, Source, Watch};
use crate::{
    image::{self, Blob, Composed},
    model::{Digest, Repository},
    remote::registry::{Manifest, Registry, RegistryError},
};

/// How many blobs are sent at a time.
const AT_ONCE: usize = 4;
/// A blob smaller than this is sent sooner than it is found elsewhere.
const WORTH_MOUNTING: u64 = 64 << 10;
/// In how many other repositories a blob is looked for.
const LOOKED_IN: usize = 100;

/// What was done.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Installed {
    /// `cloud/shop:v2`
    pub name: String,
    /// The registry's address.
    pub registry: String,
    /// The image's digest.
    pub digest: Digest,
    /// Whether the registry had exactly this under this name.
    pub unchanged: bool,
    /// Bytes of all its blobs.
    pub size: u64,
    /// Bytes sent.
    pub sent: u64,
    /// Blobs taken over from another repository.
    pub mounted: usize,
    /// Blobs that were there.
    pub skipped: usize,
}

/// How long a registry that is being cleaned is waited for.
const PATIENCE: Duration = Duration::from_secs(300);
/// Between two tries.
const PAUSE: Duration = Duration::from_secs(1);

enum Done {
    There,
    Mounted,
    Sent(u64),
}

/// Puts an image into a registry under this name. One that is being cleaned is waited for; what it lost is sent again.
///
/// # Errors
/// A damaged image; a registry that does not answer or refuses.
pub async fn install(
    registry: &Registry,
    source: Arc<Source>,
    name: &ImageName,
    watch: Arc<dyn Watch>,
) -> Result<Installed, Error> {
    let begun = Instant::now();
    loop {
        let error = match once(registry, Arc::clone(&source), name, Arc::clone(&watch)).await {
            Err(Error::Registry(error)) if begun.elapsed() < PATIENCE => error,
            result => return result,
        };
        match error {
            RegistryError::ReadOnly { .. } => watch.step(&format!("{name} waits: the registry is being cleaned"), 0),
            RegistryError::Lost { .. } => watch.step(&format!("{name} again: the registry was cleaned"), 0),
            other => return Err(other.into()),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn once(
    registry: &Registry,
    source: Arc<Source>,
    name: &ImageName,
    watch: Arc<dyn Watch>,
) -> Result<Installed, Error> {
    let image = &source.image;
    let repository = &name.repository;
    let there = registry.find(repository, &name.tag).await?;
    let tagged = there.as_ref() == Some(&image.digest);
    let blobs: BTreeMap<Digest, Blob> =
        image.layers.iter().chain([&image.config]).map(|b| (b.digest.clone(), b.clone())).collect();
    let size: u64 = blobs.values().map(|b| b.size).sum();
    watch.step(&format!("install {name}"), size);
    let others = tokio::sync::OnceCell::new();
    let put = |blob: Blob| {
        let (source, watch, others) = (Arc::clone(&source), Arc::clone(&watch), &others);
        async move { one(registry, source, repository, &blob, others, watch).await }
    };
    let done: Vec<Done> = stream::iter(blobs.into_values()).map(put).buffer_unordered(AT_ONCE).try_collect().await?;
    if !tagged {
        tag(registry, &source.image, &source.media_type, name).await?;
    }
    let count = |f: fn(&Done) -> u64| done.iter().map(f).sum::<u64>();
    let sent = count(|d| if let Done::Sent(n) = d { *n } else { 0 });
    Ok(Installed {
        name: name.to_string(),
        registry: registry.endpoint().to_owned(),
        digest: image.digest.clone(),
        unchanged: tagged && done.iter().all(|d| matches!(d, Done::There)),
        size,
        sent,
        mounted: done.iter().filter(|d| matches!(d, Done::Mounted)).count(),
        skipped: done.iter().filter(|d| matches!(d, Done::There)).count(),
    })
}

/// Gives a name to an image whose blobs are all there.
async fn tag(registry: &Registry, image: &Composed, media_type: &str, name: &ImageName) -> Result<(), Error> {
    let manifest =
        Manifest { bytes: image.manifest.clone(), media_type: media_type.to_owned(), digest: image.digest.clone() };
    Ok(registry.push_manifest(&name.repository, &name.tag, &manifest).await?)
}

/// Whether every part of this image is in the registry, so that nothing of it need be made to name it.
pub async fn is_complete(registry: &Registry, name: &ImageName, image: &Composed) -> bool {
    let has = |blob: Blob| async move { registry.has_blob(&name.repository, &blob.digest).await.unwrap_or(false) };
    let blobs = image.layers.iter().chain([&image.config]).cloned();
    stream::iter(blobs).map(has).buffer_unordered(AT_ONCE).all(|there| async move { there }).await
}

async fn one(
    registry: &Registry,
    source: Arc<Source>,
    repository: &Repository,
    blob: &Blob,
    others: &tokio::sync::OnceCell<Vec<Repository>>,
    watch: Arc<dyn Watch>,
) -> Result<Done, Error> {
    if registry.has_blob(repository, &blob.digest).await? {
        watch.advance(blob.size);
        return Ok(Done::There);
    }
    if blob.size >= WORTH_MOUNTING
        && let Some(from) = holder(registry, repository, &blob.digest, others).await
        && registry.mount(repository, &from, &blob.digest).await?
    {
        watch.advance(blob.size);
        return Ok(Done::Mounted);
    }
    let config = (blob.digest == source.image.config.digest).then(|| source.image.config_bytes.clone());
    let digest = blob.digest.clone();
    let open = move || match &config {
        Some(bytes) => Ok(Box::new(std::io::Cursor::new(bytes.clone())) as Box<dyn Read + Send>),
        None => source.reader(&digest).map_err(|e| match e {
            Error::Image { source, .. } => source,
            Error::File { source, path, .. } => image::Error::read(path.display().to_string())(source),
            other => image::Error::Format(other.to_string()),
        }),
    };
    let told = Arc::clone(&watch);
    registry.push_blob(repository, blob, open, Arc::new(move |n| told.advance(n))).await?;
    Ok(Done::Sent(blob.size))
}

/// Another repository that holds this blob. A registry that cannot say is no error: the blob is sent.
async fn holder(
    registry: &Registry,
    repository: &Repository,
    digest: &Digest,
    others: &tokio::sync::OnceCell<Vec<Repository>>,
) -> Option<Repository> {
    let others = others.get_or_init(|| async { registry.repositories().await.unwrap_or_default() }).await;
    let looks = others.iter().filter(|r| *r != repository).take(LOOKED_IN).map(|other| async move {
        registry.has_blob(other, digest).await.is_ok_and(|there| there).then(|| other.clone())
    });
    let mut looks = stream::iter(looks).buffer_unordered(8);
    while let Some(found) = looks.next().await {
        if found.is_some() {
            return found;
        }
    }
    None
}
