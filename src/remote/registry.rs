//! An image registry: what it holds, what is put there, what is taken out.
//!
//! Believes no digest it has not counted itself. Retries what may pass by itself, and nothing else.

use std::{
    collections::BTreeMap,
    io::{self, Read},
    net::IpAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use backon::{ExponentialBuilder, Retryable};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use oci_distribution::{
    Client, Reference,
    client::{ClientConfig, ClientProtocol},
    errors::{OciDistributionError, OciErrorCode},
    secrets::RegistryAuth,
};

use crate::{
    image::{self, Blob, DOCKER_LIST, DOCKER_MANIFEST, INDEX, MANIFEST},
    model::{Digest, Repository},
};

/// How much of a blob is read at a time.
const PIECE: usize = 256 << 10;
/// How many names a page of a list has.
const PAGE: usize = 200;
/// A registry with more repositories or tags than this is not listed to its end.
const MAX_LISTED: usize = 20_000;

/// Why a registry did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// It does not answer.
    #[error("the registry at {endpoint} does not answer")]
    Unreachable {
        /// Its address.
        endpoint: String,
        /// Why.
        source: OciDistributionError,
    },
    /// It answers, and refuses.
    #[error("the registry at {endpoint} refuses to {doing}: {why}")]
    Refused {
        /// Its address.
        endpoint: String,
        /// What was asked.
        doing: String,
        /// What it says.
        why: String,
    },
    /// It does not have the image.
    #[error("the registry at {endpoint} has no {name}")]
    NotFound {
        /// Its address.
        endpoint: String,
        /// `cloud/shop:v2`
        name: String,
    },
    /// The address is none.
    #[error("{0:?} is no registry's address")]
    Address(String),
    /// What was to be sent cannot be read or is damaged.
    #[error("cannot send {what}")]
    Content {
        /// What.
        what: String,
        /// Why.
        source: image::Error,
    },
    /// What came is not what was asked for.
    #[error("the registry at {endpoint} has {what} with the digest {found}, not {wanted}")]
    Digest {
        /// Its address.
        endpoint: String,
        /// What was asked for.
        what: String,
        /// The digest it should have.
        wanted: Digest,
        /// The digest it has.
        found: String,
    },
}

impl RegistryError {
    /// Whether the image is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }
}

/// Name and password.
#[derive(Clone)]
pub struct Credentials {
    /// The name.
    pub user: String,
    /// The password.
    pub password: String,
}
impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// A manifest as it is in a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// What it is.
    pub media_type: String,
    /// Its digest, counted here.
    pub digest: Digest,
}

/// A registry.
#[derive(Clone)]
pub struct Registry {
    client: Client,
    http: reqwest::Client,
    /// `http://10.10.9.2:5000`
    endpoint: String,
    /// `10.10.9.2:5000`
    host: String,
    credentials: Option<Credentials>,
}
impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

type Opened = Result<Box<dyn Read + Send>, image::Error>;

impl Registry {
    /// The registry at `http://HOST[:PORT]`, `https://HOST[:PORT]` or `HOST[:PORT]`; without a scheme, plain HTTP for
    /// private names and addresses.
    ///
    /// # Errors
    /// [`RegistryError::Address`]
    pub fn new(address: &str) -> Result<Self, RegistryError> {
        let wrong = || RegistryError::Address(address.chars().take(200).collect());
        let (plain, host) = match (address.strip_prefix("http://"), address.strip_prefix("https://")) {
            (Some(host), _) => (true, host),
            (_, Some(host)) => (false, host),
            _ => (is_private(address), address),
        };
        let host = host.trim_end_matches('/');
        let authority: http::uri::Authority = host.parse().map_err(|_| wrong())?;
        if authority.host().is_empty() || host.contains('@') {
            return Err(wrong());
        }
        let endpoint = format!("{}://{host}", if plain { "http" } else { "https" });
        let config = ClientConfig {
            protocol: if plain { ClientProtocol::Http } else { ClientProtocol::Https },
            use_monolithic_push: true,
            connect_timeout: Some(Duration::from_secs(5)),
            read_timeout: Some(Duration::from_secs(60)),
            user_agent: concat!("matrix/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        };
        // One provider for every TLS client; a second install is harmless.
        _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(5))
            .timeout(Duration::from_secs(60))
            .build()
            .map_err(|_| wrong())?;
        Ok(Self { client: Client::new(config), http, endpoint, host: host.to_owned(), credentials: None })
    }

    /// The same, for somebody it knows.
    #[must_use]
    pub fn with_credentials(self, credentials: Option<Credentials>) -> Self {
        Self { credentials, ..self }
    }

    /// Its address with its scheme.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The digest a tag stands for.
    ///
    /// # Errors
    /// An image that is not there; a registry that does not answer or refuses.
    pub async fn resolve(&self, repository: &Repository, tag: &str) -> Result<Digest, RegistryError> {
        self.find(repository, tag).await?.ok_or_else(|| RegistryError::NotFound {
            endpoint: self.endpoint.clone(),
            name: format!("{repository}:{tag}"),
        })
    }

    /// The digest behind a tag (or of a digest); none where there is no such image.
    ///
    /// # Errors
    /// A registry that does not answer or refuses.
    pub async fn find(&self, repository: &Repository, tag: &str) -> Result<Option<Digest>, RegistryError> {
        let image = self.reference(repository, tag);
        let auth = self.auth();
        let result = self.retry(|| self.client.fetch_manifest_digest(&image, &auth)).await;
        match found(result).map_err(|e| self.error(e, &format!("show {repository}:{tag}")))? {
            None => Ok(None),
            Some(text) => text.parse().map(Some).map_err(|_| RegistryError::Refused {
                endpoint: self.endpoint.clone(),
                doing: format!("show {repository}:{tag}"),
                why: format!("it names the digest {text:?}"),
            }),
        }
    }

    /// A manifest by its tag or digest; none where there is no such image.
    ///
    /// # Errors
    /// A registry that does not answer, refuses, or sends something else.
    pub async fn manifest(&self, repository: &Repository, tag: &str) -> Result<Option<Manifest>, RegistryError> {
        let image = self.reference(repository, tag);
        let auth = self.auth();
        let accept = [MANIFEST, DOCKER_MANIFEST, INDEX, DOCKER_LIST];
        let result = self.retry(|| self.client.pull_manifest_raw(&image, &auth, &accept)).await;
        let doing = format!("show {repository}:{tag}");
        let Some((bytes, _)) = found(result).map_err(|e| self.error(e, &doing))? else { return Ok(None) };
        if bytes.len() as u64 > image::MAX_JSON {
            let why = "its manifest has more bytes than an honest one".to_owned();
            return Err(RegistryError::Refused { endpoint: self.endpoint.clone(), doing, why });
        }
        let digest = image::digest_of(&bytes);
        let media_type = media_type(&bytes);
        Ok(Some(Manifest { bytes: bytes.to_vec(), media_type, digest }))
    }

    /// Whether a blob is in a repository.
    ///
    /// # Errors
    /// A registry that does not answer or refuses.
    pub async fn has_blob(&self, repository: &Repository, digest: &Digest) -> Result<bool, RegistryError> {
        let image = self.reference(repository, "latest");
        self.prepare().await;
        let result = self.retry(|| self.client.blob_exists(&image, digest.as_str())).await;
        result.map_err(|e| self.error(e, &format!("look for a blob of {repository}")))
    }

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

    /// Every repository, in order.
    ///
    /// # Errors
    /// A registry that does not answer or refuses.
    pub async fn repositories(&self) -> Result<Vec<Repository>, RegistryError> {
        let any = Reference::with_tag(self.host.clone(), "matrix".to_owned(), "latest".to_owned());
        let auth = self.auth();
        let mut all: Vec<String> = Vec::new();
        loop {
            let last = all.last().cloned();
            let page = self.retry(|| self.client.catalog(&any, &auth, Some(PAGE), last.as_deref())).await;
            let page = page.map_err(|e| self.error(e, "list its repositories"))?.repositories;
            // A registry that gives the same page again would be asked for ever.
            let full = page.len() >= PAGE && page.last() != all.last();
            all.extend(page);
            if !full || all.len() > MAX_LISTED {
                break;
            }
        }
        // Names another tool put there that no reference of ours could hold are not ours to show.
        Ok(all.into_iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// Every tag of a repository, in order.
    ///
    /// # Errors
    /// A registry that does not answer or refuses.
    pub async fn tags(&self, repository: &Repository) -> Result<Vec<String>, RegistryError> {
        let image = self.reference(repository, "latest");
        let auth = self.auth();
        let result = self.retry(|| self.client.list_tags(&image, &auth, None, None)).await;
        let tags = found(result).map_err(|e| self.error(e, &format!("list the tags of {repository}")))?;
        let mut tags = tags.map(|t| t.tags).unwrap_or_default();
        tags.retain(|tag| format!("{repository}:{tag}").parse::<crate::model::ImageRef>().is_ok());
        tags.sort();
        Ok(tags)
    }

    /// Removes an image: all its tags. Blobs stay until the registry collects them.
    ///
    /// # Errors
    /// A registry that does not answer, or that is not set up to remove.
    pub async fn delete(&self, repository: &Repository, digest: &Digest) -> Result<(), RegistryError> {
        let url = format!("{}/v2/{repository}/manifests/{digest}", self.endpoint);
        let send = || async {
            let mut request = self.http.delete(&url);
            if let Some(c) = &self.credentials {
                request = request.basic_auth(&c.user, Some(&c.password));
            }
            request.send().await.map_err(OciDistributionError::RequestError)
        };
        let response = send.retry(policy()).when(transient).await;
        let doing = format!("remove {repository}@{digest}");
        let response = response.map_err(|e| self.error(e, &doing))?;
        let status = response.status();
        if status.is_success() || status == http::StatusCode::NOT_FOUND {
            return Ok(());
        }
        let why = match status {
            http::StatusCode::METHOD_NOT_ALLOWED => {
                "removing is not enabled there (storage: delete: enabled: true in its configuration)".to_owned()
            }
            status => format!("it answers {status}"),
        };
        Err(RegistryError::Refused { endpoint: self.endpoint.clone(), doing, why })
    }

    fn reference(&self, repository: &Repository, tag: &str) -> Reference {
        let (host, repository) = (self.host.clone(), repository.to_string());
        if tag.parse::<Digest>().is_ok() {
            Reference::with_digest(host, repository, tag.to_owned())
        } else {
            Reference::with_tag(host, repository, tag.to_owned())
        }
    }

    fn auth(&self) -> RegistryAuth {
        match &self.credentials {
            Some(c) => RegistryAuth::Basic(c.user.clone(), c.password.clone()),
            None => RegistryAuth::Anonymous,
        }
    }

    /// Lets the client answer when it is asked who it is.
    async fn prepare(&self) {
        let host = Reference::with_tag(self.host.clone(), "matrix".to_owned(), "latest".to_owned());
        self.client.store_auth_if_needed(host.resolve_registry(), &self.auth()).await;
    }

    async fn retry<T, F: Future<Output = Result<T, OciDistributionError>>>(
        &self,
        call: impl FnMut() -> F,
    ) -> Result<T, OciDistributionError> {
        call.retry(policy()).when(transient).await
    }

    fn error(&self, error: OciDistributionError, doing: &str) -> RegistryError {
        let endpoint = self.endpoint.clone();
        if transient(&error) {
            return RegistryError::Unreachable { endpoint, source: error };
        }
        let why = match &error {
            OciDistributionError::RegistryError { envelope, .. } => {
                let each = envelope.errors.iter().map(|e| format!("{:?}: {}", e.code, e.message));
                each.collect::<Vec<_>>().join("; ")
            }
            OciDistributionError::UnauthorizedError { .. } | OciDistributionError::AuthenticationFailure(_) => {
                "it wants another name and password (MATRIX_REGISTRY_USER, MATRIX_REGISTRY_PASSWORD)".to_owned()
            }
            other => other.to_string(),
        };
        RegistryError::Refused { endpoint, doing: doing.to_owned(), why: why.chars().take(500).collect() }
    }
}

/// 0.2 s, 0.4 s, 0.8 s, 1.6 s, each with jitter: a registry that restarts is back by then.
fn policy() -> ExponentialBuilder {
    ExponentialBuilder::default().with_min_delay(Duration::from_millis(200)).with_max_times(4).with_jitter()
}

/// Whether it may work at the next try.
fn transient(error: &OciDistributionError) -> bool {
    match error {
        OciDistributionError::RequestError(_) | OciDistributionError::IoError(_) => true,
        OciDistributionError::ServerError { code, .. } => *code >= 500 || *code == 429,
        OciDistributionError::RegistryError { envelope, .. } => {
            envelope.errors.iter().any(|e| matches!(e.code, OciErrorCode::Toomanyrequests))
        }
        _ => false,
    }
}

/// None where the registry says that there is no such thing.
fn found<T>(result: Result<T, OciDistributionError>) -> Result<Option<T>, OciDistributionError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(
            OciDistributionError::ServerError { code: 404, .. } | OciDistributionError::ImageManifestNotFoundError(_),
        ) => Ok(None),
        Err(OciDistributionError::RegistryError { envelope, .. })
            if envelope.errors.iter().any(|e| {
                matches!(e.code, OciErrorCode::ManifestUnknown | OciErrorCode::NameUnknown | OciErrorCode::NotFound)
            }) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// What the manifest says it is; an old one says nothing.
fn media_type(bytes: &[u8]) -> String {
    let said: BTreeMap<String, serde_json::Value> = serde_json::from_slice(bytes).unwrap_or_default();
    match said.get("mediaType").and_then(|v| v.as_str()) {
        Some(text) => text.to_owned(),
        None if said.contains_key("manifests") => INDEX.to_owned(),
        None => MANIFEST.to_owned(),
    }
}

/// Whether a host without a scheme is spoken to in plain HTTP.
fn is_private(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']);
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) => ip.is_private() || ip.is_loopback() || ip.is_link_local(),
        Ok(IpAddr::V6(ip)) => ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local(),
        Err(_) => {
            let last = host.rsplit('.').next().unwrap_or(host);
            !host.contains('.')
                || matches!(last, "matrix" | "local" | "localhost" | "lan" | "internal" | "home" | "test")
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (text, endpoint) in [
            ("10.10.9.2:5000", "http://10.10.9.2:5000"),
            ("localhost:5000", "http://localhost:5000"),
            ("matrix-manager.matrix:5000", "http://matrix-manager.matrix:5000"),
            ("registry", "http://registry"),
            ("[::1]:5000", "http://[::1]:5000"),
            ("registry.example.org", "https://registry.example.org"),
            ("8.8.8.8:5000", "https://8.8.8.8:5000"),
            ("http://registry.example.org/", "http://registry.example.org"),
            ("https://10.0.0.1", "https://10.0.0.1"),
        ] {
            let registry = Registry::new(text).map(|r| r.endpoint().to_owned());
            assert_eq!(registry.ok().as_deref(), Some(endpoint), "{text}");
        }
        for bad in ["", "http://", "a b", "ftp://x", "user@host:5000", "x/y", "http://a/b", "a\r\nb"] {
            assert!(Registry::new(bad).is_err(), "{bad:?}");
        }
    }
}
