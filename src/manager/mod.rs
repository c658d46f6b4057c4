//! The manager daemon: configuration, collecting, executing, the only loop.
//!
//! Not needed for routes to stay up: when it is gone, the gateway and the nodes go on as they are.

mod acting;
mod balance;
mod canary;
mod caution;
pub mod config;
mod decide;
pub mod events;
mod execute;
pub mod gateway;
pub mod gc;
mod heal;
mod healer;
pub mod journal;
pub mod nodes;
mod operate;
mod pace;
mod pins;
mod plan_file;
mod progress;
mod refused;
mod rollout;
mod room;
mod route;
mod run;
mod settings;
mod steer;
mod submit;
pub mod undo;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU64},
};

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    remote::registry::Registry,
    store::{Sqlite, Store, StoreError},
};

use config::Config;
use events::Events;
use gateway::Gateway;
use journal::Journal;
use nodes::{Nodes, NodesError};
use run::Message;

pub use execute::chain;
pub use operate::{Drain, Leaving, OperateError};
pub use progress::{Overview, Progress};
pub use refused::{NOT_KEPT, SubmitError};
pub use steer::{Again, Scale, SteerError};
pub use submit::{Rollback, Submission, Submitted};

/// Why the manager does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A folder it needs cannot be made.
    #[error("cannot make the folder {folder}")]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The state cannot be read: it acts on nothing then.
    #[error("cannot read the state in {file}; nothing was touched, nodes and routes go on as they are")]
    State {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        #[source]
        source: StoreError,
    },
    /// Nodes cannot be spoken to.
    #[error("cannot start speaking to nodes")]
    Nodes(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The registry's address in the configuration is none.
    #[error("cannot use the registry {endpoint}")]
    Registry {
        /// The address.
        endpoint: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl StartError {
    /// What to do.
    pub fn hint(&self) -> Option<String> {
        let Self::State { file, .. } = self else { return None };
        let file = file.display();
        Some(format!(
            "put a backup in its place (and remove {file}-wal and {file}-shm): what runs is taken over as it is. Without a \
             backup move it away: the manager begins anew, routes nothing until the plan is deployed again, and nodes are \
             to be admitted again where the policy asks"
        ))
    }
}

/// A handle on the running manager; cheap to clone.
#[derive(Debug, Clone)]
pub struct Manager(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: Arc<Config>,
    store: Arc<dyn Store>,
    journal: Journal,
    nodes: Nodes,
    gateway: Option<Gateway>,
    registry: Registry,
    events: Events,
    overview: watch::Receiver<Overview>,
    inbox: mpsc::UnboundedSender<Message>,
    /// What is wrong with the plan file that is followed; shown in the status.
    plan_problem: Mutex<Option<String>>,
    /// Submissions so far.
    turns: AtomicU64,
    gc: gc::Gc,
    /// One submission at a time.
    submitting: tokio::sync::Mutex<()>,
    stop: CancellationToken,
}

impl Manager {
    /// Starts it: reads the state, speaks to nodes, sets the loop going. It runs until `stop` is cancelled.
    ///
    /// # Errors
    /// When its folders or its state cannot be used.
    pub async fn start(config: Config, stop: CancellationToken) -> Result<Self, StartError> {
        let config = Arc::new(config);
        for folder in [&config.state, &config.run] {
            tokio::fs::create_dir_all(folder)
                .await
                .map_err(|source| StartError::Folder { folder: folder.clone(), source })?;
        }
        let file = config.state.join("matrix.db");
        let unreadable = |source| StartError::State { file: file.clone(), source };
        let store: Arc<dyn Store> = Arc::new(Sqlite::open(&file).map_err(unreadable)?);
        let journal = Journal::new(Arc::clone(&store));
        let remembered = journal.read().map_err(unreadable)?;
        let registry = Registry::new(&config.registry.endpoint)
            .map_err(|e| StartError::Registry { endpoint: config.registry.endpoint.clone(), source: Box::new(e) })?;
        let events = Events::default();
        let nodes =
            Nodes::start(Arc::clone(&config), Arc::clone(&store), stop.clone()).map_err(|error| match error {
                NodesError::Store(source) => unreadable(source),
                error => StartError::Nodes(Box::new(error)),
            })?;
        let gateway = config.varnish.is_some().then(|| Gateway::start(&config, stop.clone()));
        if let Some(gateway) = &gateway {
            nodes.look_through(gateway);
        }
        let (overview_in, overview) = watch::channel(Overview::default());
        let (inbox, messages) = mpsc::unbounded_channel();
        let (away_in, away) = watch::channel(healer::Away::default());
        let healer = healer::Healer {
            config: Arc::clone(&config),
            nodes: nodes.clone(),
            gateway: gateway.clone(),
            events: events.clone(),
            overview: overview.clone(),
            away: away_in,
        };
        let until = stop.clone();
        tokio::spawn(async move { until.run_until_cancelled(healer.follow()).await });
        let parts = run::Parts {
            config: Arc::clone(&config),
            journal: journal.clone(),
            nodes: nodes.clone(),
            gateway: gateway.clone(),
            events: events.clone(),
            overview: overview_in,
            away,
            stop: stop.clone(),
        };
        tokio::spawn(run::run(parts, remembered, inbox.clone(), messages));
        let manager = Self(Arc::new(Inner {
            config,
            store,
            journal,
            nodes,
            gateway,
            registry,
            events,
            overview,
            inbox,
            plan_problem: Mutex::default(),
            turns: AtomicU64::default(),
            gc: gc::Gc::default(),
            submitting: tokio::sync::Mutex::default(),
            stop,
        }));
        manager.gc_remember();
        tokio::spawn(gc::nightly(manager.clone()));
        if let Some(plan) = manager.config().plan.clone() {
            tokio::spawn(plan_file::follow(manager.clone(), plan));
        }
        Ok(manager)
    }
    /// Its configuration.
    pub fn config(&self) -> &Config {
        &self.0.config
    }
    /// Its state.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.0.store
    }
    /// Its releases and what else it remembers.
    pub fn journal(&self) -> &Journal {
        &self.0.journal
    }
    /// Its nodes.
    pub fn nodes(&self) -> &Nodes {
        &self.0.nodes
    }
    /// The gateway's Varnish; none: nothing is routed.
    pub fn gateway(&self) -> Option<&Gateway> {
        self.0.gateway.as_ref()
    }
    /// The private registry.
    pub fn registry(&self) -> &Registry {
        &self.0.registry
    }
    /// What happens.
    pub fn events(&self) -> &Events {
        &self.0.events
    }
    /// What is known, as it changes.
    pub fn overview(&self) -> watch::Receiver<Overview> {
        self.0.overview.clone()
    }
    /// What is wrong with the plan file that is followed.
    pub fn plan_problem(&self) -> Option<String> {
        self.0.plan_problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
    /// Cancelled when the manager ends.
    pub fn stopped(&self) -> &CancellationToken {
        &self.0.stop
    }
    fn set_plan_problem(&self, problem: Option<String>) {
        *self.0.plan_problem.lock().unwrap_or_else(PoisonError::into_inner) = problem;
    }
}
