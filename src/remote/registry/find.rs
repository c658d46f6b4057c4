//! What a registry holds: tags, manifests, whether a blob is there; and removing an image.
//!
//! Sends and takes no blob.

use std::collections::BTreeMap;

use backon::Retryable;
use oci_distribution::{Reference, errors::OciDistributionError};

use super::{
    Manifest, Registry, RegistryError,
    error::{found, policy, transient},
};
use crate::{
    image::{self, DOCKER_LIST, DOCKER_MANIFEST, INDEX, MANIFEST},
    model::{Digest, Repository},
};

/// How many names a page of a list has.
const PAGE: usize = 200;
/// A registry with more repositories or tags than this is not listed to its end.
const MAX_LISTED: usize = 20_000;

impl Registry {
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
