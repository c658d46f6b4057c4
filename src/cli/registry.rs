//! Which registry a command means: the one named, or the manager's.

use std::path::PathBuf;

use serde::Deserialize;

use super::{Client, Failure, Global, create_image::failure};
use crate::pack::{Credentials, Error, Registry};

/// What `--registry-ca` takes.
const HINT: &str = "--registry-ca (or MATRIX_REGISTRY_CA) names a file with the authority's certificates in PEM";

/// Options of commands that speak to a registry.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct RegistryArgs {
    /// The registry [default: the manager's]
    #[arg(long, value_name = "ADDRESS", env = "MATRIX_REGISTRY")]
    registry: Option<String>,
    /// The registry's user
    #[arg(long, value_name = "USER", env = "MATRIX_REGISTRY_USER")]
    registry_user: Option<String>,
    /// The registry's password; better in the environment
    #[arg(long, value_name = "PASSWORD", env = "MATRIX_REGISTRY_PASSWORD", hide_env_values = true, hide = true)]
    registry_password: Option<String>,
    /// Certificates of the authority that signed the registry's, in PEM, trusted beside the system's
    #[arg(long, value_name = "FILE", env = "MATRIX_REGISTRY_CA")]
    registry_ca: Option<PathBuf>,
}

/// What the manager says of its registry.
#[derive(Debug, Deserialize)]
struct Known {
    endpoint: String,
}

impl RegistryArgs {
    /// The registry these options mean; the manager is asked only where they name none.
    pub(super) async fn find(&self, global: &Global) -> Result<Registry, Failure> {
        let address = match &self.registry {
            Some(address) => address.clone(),
            None => self.ask(global).await?,
        };
        self.at(&address).map_err(|e| failure(&e))
    }
    /// Another registry, with these options' user.
    pub(super) fn at(&self, address: &str) -> Result<Registry, Error> {
        let credentials = self
            .registry_user
            .clone()
            .map(|user| Credentials { user, password: self.registry_password.clone().unwrap_or_default() });
        let registry = Registry::new(address)?.with_credentials(credentials);
        let Some(path) = &self.registry_ca else { return Ok(registry) };
        let pem = std::fs::read_to_string(path)
            .map_err(|e| Error::refused(format!("cannot read {}: {e}", path.display()), HINT))?;
        registry
            .with_authorities(&pem)
            .ok_or_else(|| Error::refused(format!("{} holds no certificate", path.display()), HINT))
    }
    /// A registry on another host than the one that was named gets no password of ours.
    pub(super) fn foreign(address: &str) -> Result<Registry, Error> {
        Ok(Registry::new(address)?)
    }
    async fn ask(&self, global: &Global) -> Result<String, Failure> {
        let known: Result<Known, Failure> = Client::new(global).get("/v1/registry").await;
        known.map(|k| k.endpoint).map_err(|e| Failure {
            message: format!("no registry is named, and the manager cannot be asked: {}", e.message),
            hint: Some(
                "name it with --registry HOST:PORT or MATRIX_REGISTRY, or the manager with --manager".to_owned(),
            ),
            ..e
        })
    }
}
