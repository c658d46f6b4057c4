//! The manager daemon: configuration, collecting, executing, the only loop.

pub mod config;
pub mod gateway;
pub mod nodes;
mod settings;

use std::sync::Arc;

use config::Config;

/// A handle on the running manager; cheap to clone.
#[derive(Debug, Clone)]
pub struct Manager {
    config: Arc<Config>,
}

impl Manager {
    /// Its configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }
}
