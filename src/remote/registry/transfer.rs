//! Blobs and manifests on their way, counted and hashed.
//!
//! Decides not what is missing: whoever sends asks first.

use std::{
    io::{self, Read},
    sync::{Arc, Mutex},
};

use backon::Retryable;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use oci_distribution::errors::OciDistributionError;

use super::{
    Manifest, Registry, RegistryError,
    error::{policy, transient},
};
use crate::{
    image::{self, Blob},
    model::{Digest, Repository},
};

/// How much of a blob is read at a time.
const PIECE: usize = 256 << 10;

type Opened = Result<Box<dyn Read + Send>, image::Error>;

impl Registry {
    /// Makes a blob of one repository one of another, without sending it. Says whether that worked.
    ///
    /// # Errors
    /// A registry that does not answer.
    pub async fn mount(&self, to: &Repository, from: &Repository, digest: &Digest) -> Result<bool, RegistryError> {
        let (target, source) = (self.reference(to, "latest"), self.reference(from, "latest"));
        self.prepare().await;
        match self.client.mount_blob(&target, &source, digest.as_str()).await {
            Ok(()) => Ok(true),
            // "got 202" and every other refusal mean the same: it must be sent.
            Err(error) if transient(&error) => Err(self.error(error, "mount a blob")),
            Err(_) => Ok(false),
        }
    }

    /// Sends a blob and checks it on its way. `open` gives its content from the beginning, at each try; `sent` is told
    /// how many bytes more have gone.
    ///
    /// # Errors
    /// Content that is unreadable or not what its digest says; a registry that does not answer or refuses.
    pub async fn push_blob(
        &self,
        repository: &Repository,
        blob: &Blob,
        open: impl Fn() -> Opened + Send + Sync,
        sent: Arc<dyn Fn(u64) + Send + Sync>,
    ) -> Result<(), RegistryError> {
        let image = self.reference(repository, "latest");
        self.prepare().await;
        let what = format!("blob {}", blob.digest);
        let bad: Arc<Mutex<Option<image::Error>>> = Arc::default();
        let push = || async {
            let content = open().map_err(|e| {
                note(&bad, e);
                OciDistributionError::PushNoDataError
            })?;
            let stream = content_stream(content, blob.clone(), Arc::clone(&bad), Arc::clone(&sent));
            self.client.push_blob_stream(&image, stream, blob.digest.as_str(), Some(blob.size)).await
        };
        let retry = |e: &OciDistributionError| transient(e) && bad.lock().is_ok_and(|b| b.is_none());
        let result = push.retry(policy()).when(retry).await;
        match (bad.lock().ok().and_then(|mut b| b.take()), result) {
            (Some(source), _) => Err(RegistryError::Content { what, source }),
            (None, Ok(_)) => Ok(()),
            (None, Err(error)) => Err(self.error(error, &format!("take {what}"))),
        }
    }

    /// Puts a manifest under a tag and checks afterwards that it is there, with its digest.
    ///
    /// # Errors
    /// A registry that does not answer, refuses, or has something else afterwards.
    pub async fn push_manifest(
        &self,
        repository: &Repository,
        tag: &str,
        manifest: &Manifest,
    ) -> Result<(), RegistryError> {
        let image = self.reference(repository, tag);
        self.prepare().await;
        let what = format!("{repository}:{tag}");
        let content_type = http::HeaderValue::from_str(&manifest.media_type).map_err(|_| RegistryError::Content {
            what: what.clone(),
            source: image::Error::Format("a media type".into()),
        })?;
        let bytes = Bytes::from(manifest.bytes.clone());
        let put = || self.client.push_manifest_raw(&image, bytes.clone(), content_type.clone());
        self.retry(put).await.map_err(|e| self.error(e, &format!("take {what}")))?;
        match self.find(repository, tag).await? {
            Some(found) if found == manifest.digest => Ok(()),
            found => Err(RegistryError::Digest {
                endpoint: self.endpoint.clone(),
                what,
                wanted: manifest.digest.clone(),
                found: found.map_or_else(|| "none".to_owned(), String::from),
            }),
        }
    }

    /// Takes a blob out, into a writer; checked.
    ///
    /// # Errors
    /// A registry that does not answer, refuses, or sends something else.
    pub async fn pull_blob(
        &self,
        repository: &Repository,
        blob: &Blob,
        mut into: impl io::Write,
        mut came: impl FnMut(u64),
    ) -> Result<(), RegistryError> {
        let image = self.reference(repository, "latest");
        self.prepare().await;
        let doing = format!("give blob {}", blob.digest);
        let layer = oci_distribution::manifest::OciDescriptor {
            digest: blob.digest.to_string(),
            size: i64::try_from(blob.size).unwrap_or(i64::MAX),
            ..Default::default()
        };
        let pull = || self.client.pull_blob_stream(&image, &layer);
        let sized = self.retry(pull).await.map_err(|e| self.error(e, &doing))?;
        let mut stream = sized.stream;
        let mut total = 0u64;
        let refused =
            |why: String| RegistryError::Refused { endpoint: self.endpoint.clone(), doing: doing.clone(), why };
        while let Some(piece) = stream.try_next().await.map_err(|e| refused(e.to_string()))? {
            total += piece.len() as u64;
            if total > blob.size {
                return Err(refused(format!("it sends more than the {} bytes promised", blob.size)));
            }
            into.write_all(&piece).map_err(|e| RegistryError::Content {
                what: doing.clone(),
                source: image::Error::write("the blob")(e),
            })?;
            came(piece.len() as u64);
        }
        if total == blob.size { Ok(()) } else { Err(refused(format!("it sends {total} of {} bytes", blob.size))) }
    }
}

fn note(bad: &Mutex<Option<image::Error>>, error: image::Error) {
    if let Ok(mut bad) = bad.lock() {
        *bad = Some(error);
    }
}

/// The content in pieces, read on a thread of its own, hashed on its way; a wrong digest ends it with an error.
fn content_stream(
    mut content: Box<dyn Read + Send>,
    blob: Blob,
    bad: Arc<Mutex<Option<image::Error>>>,
    sent: Arc<dyn Fn(u64) + Send + Sync>,
) -> stream::BoxStream<'static, Result<Bytes, OciDistributionError>> {
    let (pieces, receive) = tokio::sync::mpsc::channel::<Result<Bytes, OciDistributionError>>(4);
    tokio::task::spawn_blocking(move || {
        let what = format!("blob {}", blob.digest);
        let mut hashing = image::Hashing::new(&mut content);
        let mut left = blob.size;
        let fail = |error: image::Error| {
            note(&bad, error);
            _ = pieces.blocking_send(Err(OciDistributionError::PushNoDataError));
        };
        // The last piece waits until the digest is known: a wrong blob never arrives whole.
        let mut last: Option<Bytes> = None;
        while left > 0 {
            let want = PIECE.min(usize::try_from(left).unwrap_or(PIECE));
            let mut piece = vec![0; want];
            match hashing.read(&mut piece) {
                Ok(0) => return fail(image::Error::Truncated(what)),
                Ok(n) => {
                    piece.truncate(n);
                    left -= n as u64;
                    if let Some(piece) = last.replace(piece.into()) {
                        let n = piece.len() as u64;
                        if pieces.blocking_send(Ok(piece)).is_err() {
                            return;
                        }
                        sent(n);
                    }
                }
                Err(error) => return fail(image::Error::read(what)(error)),
            }
        }
        let (_, found, _) = hashing.finish();
        if found != blob.digest {
            return fail(image::Error::Damaged { what, wanted: blob.digest, found });
        }
        if let Some(piece) = last {
            let n = piece.len() as u64;
            if pieces.blocking_send(Ok(piece)).is_ok() {
                sent(n);
            }
        }
    });
    stream::unfold(receive, |mut receive| async { receive.recv().await.map(|item| (item, receive)) }).boxed()
}
