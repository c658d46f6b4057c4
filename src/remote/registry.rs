//! An image registry: what it holds, what is put there, what is taken out.
//!
//! Believes no digest it has not counted itself. Retries what may pass by itself, and nothing else.

mod error;
mod find;
mod mode;
pub mod storage;
mod transfer;

use std::{net::IpAddr, time::Duration};

use backon::Retryable;
use oci_distribution::{
    Client, Reference,
    client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol},
    errors::OciDistributionError,
    secrets::RegistryAuth,
};

use crate::model::{Digest, Repository};

pub use error::RegistryError;
use error::{policy, transient};
pub use mode::Mode;

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
        let (client, http) = clients(plain, &[]).ok_or_else(wrong)?;
        Ok(Self { client, http, endpoint, host: host.to_owned(), credentials: None })
    }

    /// The same, trusting these authorities (PEM) beside the system's; none where they are no certificates.
    #[must_use]
    pub fn with_authorities(self, pem: &str) -> Option<Self> {
        let authorities: Vec<String> = pem
            .split_inclusive("-----END CERTIFICATE-----")
            .filter(|part| part.contains("-----BEGIN CERTIFICATE-----"))
            .map(str::to_owned)
            .collect();
        if authorities.is_empty() {
            return None;
        }
        let (client, http) = clients(self.endpoint.starts_with("http://"), &authorities)?;
        Some(Self { client, http, ..self })
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
}

/// The clients for images and for what no image client asks; none where an authority is no certificate.
fn clients(plain: bool, authorities: &[String]) -> Option<(Client, reqwest::Client)> {
    // One provider for every TLS client; a second install is harmless.
    _ = rustls::crypto::ring::default_provider().install_default();
    let timeout = Duration::from_secs(60);
    let mut http = reqwest::Client::builder().connect_timeout(Duration::from_secs(5)).timeout(timeout);
    for pem in authorities {
        http = http.add_root_certificate(reqwest::Certificate::from_pem(pem.as_bytes()).ok()?);
    }
    let certificate = |pem: &String| Certificate { encoding: CertificateEncoding::Pem, data: pem.clone().into() };
    let config = ClientConfig {
        protocol: if plain { ClientProtocol::Http } else { ClientProtocol::Https },
        use_monolithic_push: true,
        connect_timeout: Some(Duration::from_secs(5)),
        read_timeout: Some(timeout),
        user_agent: concat!("matrix/", env!("CARGO_PKG_VERSION")),
        extra_root_certificates: authorities.iter().map(certificate).collect(),
        ..ClientConfig::default()
    };
    // Not `Client::new`: it would go on without the authorities.
    Some((Client::try_from(config).ok()?, http.build().ok()?))
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
