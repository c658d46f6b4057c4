//! The private registry (OCI distribution specification 1.1), as the manager and a workstation use it.
//!
//! Decides nothing.

use crate::model::{Digest, Invalid, Repository};

/// A registry at an address.
#[derive(Debug, Clone)]
pub struct Registry {
    endpoint: String,
}

/// What a registry did not do.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// It does not answer.
    #[error("the registry {endpoint} does not answer")]
    Unreachable {
        /// Its address.
        endpoint: String,
        /// What happened.
        #[source]
        source: reqwest::Error,
    },
    /// It does not have the image.
    #[error("the registry {endpoint} has no {repository}:{tag}")]
    NotFound {
        /// Its address.
        endpoint: String,
        /// The repository.
        repository: Repository,
        /// The tag.
        tag: String,
    },
    /// It answered something else.
    #[error("the registry {endpoint} answered {status}")]
    Status {
        /// Its address.
        endpoint: String,
        /// The status.
        status: u16,
    },
    /// It names no digest.
    #[error("the registry {0} names no digest")]
    Digest(String, #[source] Option<Invalid>),
}

impl RegistryError {
    /// Whether the image is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }
}

impl Registry {
    /// The registry at `http://HOST:PORT` or `HOST:PORT`.
    ///
    /// # Errors
    /// None yet.
    pub fn new(endpoint: &str) -> Result<Self, RegistryError> {
        let endpoint = if endpoint.contains("://") { endpoint.to_owned() } else { format!("http://{endpoint}") };
        Ok(Self { endpoint })
    }
    /// The digest a tag stands for.
    ///
    /// # Errors
    /// When it is not there or the registry does not answer.
    pub async fn resolve(&self, repository: &Repository, tag: &str) -> Result<Digest, RegistryError> {
        let endpoint = self.endpoint.clone();
        let answer = reqwest::Client::new()
            .head(format!("{endpoint}/v2/{repository}/manifests/{tag}"))
            .header(
                http::header::ACCEPT,
                "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json",
            )
            .send()
            .await
            .map_err(|source| RegistryError::Unreachable { endpoint: endpoint.clone(), source })?;
        match answer.status().as_u16() {
            200 => {}
            404 => {
                return Err(RegistryError::NotFound { endpoint, repository: repository.clone(), tag: tag.to_owned() });
            }
            status => return Err(RegistryError::Status { endpoint, status }),
        }
        let named = answer.headers().get("docker-content-digest").and_then(|value| value.to_str().ok());
        named
            .ok_or_else(|| RegistryError::Digest(endpoint.clone(), None))?
            .parse()
            .map_err(|e| RegistryError::Digest(endpoint, Some(e)))
    }
}
