//! What the user wrote, checked: a [`Plan`] is valid by itself, whatever the world looks like.
//!
//! `document` and `legacy` read text and keep spans; `check` turns either into a plan, or into all its errors at once.
//! No I/O, no clock, no knowledge of nodes that exist or images that are there: those warnings come from the manager.

mod canary;
mod check;
pub(crate) mod diagnostic;
mod document;
mod field;
mod health;
mod legacy;
mod read;
mod show;
pub(crate) mod table;
mod update;
pub(crate) mod value;
mod world;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use canary::{Canary, Percent};
pub use diagnostic::{Diagnostic, Severity};
pub(crate) use document::milliseconds;
pub use document::{APP_KEYS, DEFAULTS_KEYS, NODE_KEYS, VOLUME_KEYS};
pub use health::HEALTH_KEYS;
pub use read::{Checked, MAX_BYTES, read, read_bytes};
pub use show::to_toml;
pub use update::UPDATE_KEYS;
pub use world::{World, world_warnings};

use crate::model::{AppName, Cpus, ImageRef, Memory, NodeName, Port, Route};

/// Applications by name. Serialised (JSON) inside a release; equal plans are equal values, however they were written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Plan {
    /// The applications.
    pub apps: BTreeMap<AppName, App>,
}

/// One application as the plan wants it, every default filled in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct App {
    /// The image; without a registry, the private one's `cloud/…` is meant where the repository has no `/`.
    pub image: ImageRef,
    /// Where its instances run.
    pub placement: Placement,
    /// The port it listens on inside its container.
    pub port: Port,
    /// Which requests it serves; empty: none (it is not routed). Sorted, without repetition.
    pub routes: Vec<Route>,
    /// Whether the route's path is cut off before the application sees the request.
    pub strip_path: bool,
    /// Environment variables.
    pub environment: BTreeMap<String, String>,
    /// Replaces the image's command.
    pub command: Option<Vec<String>>,
    /// Replaces the image's entry point.
    pub entrypoint: Option<Vec<String>>,
    /// Mounts.
    pub volumes: Vec<Volume>,
    /// The memory limit; also what placement counts with.
    pub memory: Option<Memory>,
    /// The processor limit; also what placement counts with.
    pub cpus: Option<Cpus>,
    /// `USER[:GROUP]` to run as.
    pub user: Option<String>,
    /// The working directory, absolute.
    pub working_dir: Option<String>,
    /// Labels for its containers; none begins with `matrix.`.
    pub labels: BTreeMap<String, String>,
    /// How to tell that an instance serves.
    pub health: Health,
    /// What the engine does when the process ends.
    pub restart: Restart,
    /// How long an answer that says nothing about caching may be kept, in seconds; none: not at all.
    pub cache_seconds: Option<u32>,
    /// Whether any request may be sent twice: allows a retry of requests whose body has begun to flow.
    pub idempotent: bool,
    /// How long in-flight requests may take after the instance left routing, in seconds.
    pub drain_timeout_seconds: u32,
    /// How long the process may take between SIGTERM and SIGKILL, in seconds.
    pub stop_timeout_seconds: u32,
    /// How a release replaces its instances.
    #[serde(default, skip_serializing_if = "Update::is_default")]
    pub update: Update,
}

/// How a release replaces an application's instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Update {
    /// In which order.
    pub mode: Mode,
    /// How many instances are replaced at once, where they are replaced step by step.
    pub batch: u32,
    /// How long to wait before the next ones, in seconds.
    pub pause_seconds: u32,
    /// How long after the switch the application may begin to fail and take the release back, in seconds.
    pub watch_seconds: u32,
    /// How it begins, where it begins with a share of the requests.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub canary: Canary,
}
fn is_usual(canary: &Canary) -> bool {
    *canary == Canary::default()
}
impl Default for Update {
    fn default() -> Self {
        Self {
            mode: Mode::Staged,
            batch: 1,
            pause_seconds: 0,
            watch_seconds: defaults::WATCH_SECONDS,
            canary: Canary::default(),
        }
    }
}
impl Update {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// The order in which instances are replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// All new ones answer before any gets a request, then all at once.
    Staged,
    /// Some at a time; old and new ones serve side by side meanwhile.
    Rolling,
    /// As staged, but first some of the requests for a while, watched.
    Canary,
    /// The old ones go first: nobody serves for a while.
    Recreate,
}

/// Where instances run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    /// One instance for each entry, slots in this order from 1.
    Pinned(Vec<Pin>),
    /// As many instances, spread by the manager.
    Replicas {
        /// How many, from 0 (stopped, but kept in the plan).
        count: u32,
        /// The nodes allowed; empty: any.
        nodes: Vec<NodeName>,
        /// The host port, where the plan fixes it (then at most one instance a node).
        publish: Option<Port>,
    },
}

/// An instance's fixed place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// The node.
    pub node: NodeName,
    /// The host port; none: the manager allots one.
    pub publish: Option<Port>,
}

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// A named volume of the engine, or an absolute path on the node.
    pub source: String,
    /// An absolute path in the container.
    pub target: String,
    /// Whether the container may only read.
    pub read_only: bool,
}

/// How to tell that an instance serves. Used by the manager before it routes and by the gateway's probes after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// What is asked.
    pub check: Check,
    /// Between two probes, in milliseconds.
    pub interval_ms: u32,
    /// For one answer, in milliseconds.
    pub timeout_ms: u32,
    /// How long a new instance may take until it first answers, in seconds.
    pub deadline_seconds: u32,
}

/// What is asked of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// `GET path`, HTTP/1.1.
    Http {
        /// The path with query, as sent.
        path: String,
        /// The `Host` header; none: the instance's address.
        host: Option<String>,
        /// The status wanted; none: any below 500 (the probe then expects what the instance answered first).
        status: Option<u16>,
    },
    /// A TCP connection that is accepted.
    Tcp,
}

/// The engine's restart policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// Always, also after the node restarts (the default).
    Always,
    /// As `always`, unless it was stopped by hand.
    UnlessStopped,
    /// When it ends with an error.
    OnFailure,
    /// Never.
    No,
}

/// The defaults a plan need not say.
pub mod defaults {
    /// The container port of the original plans.
    pub const PORT: u16 = 8080;
    /// Between two probes, in milliseconds.
    pub const INTERVAL_MS: u32 = 1000;
    /// For one probe's answer, in milliseconds.
    pub const TIMEOUT_MS: u32 = 1000;
    /// Until a new instance first answers, in seconds.
    pub const DEADLINE_SECONDS: u32 = 60;
    /// For in-flight requests, in seconds.
    pub const DRAIN_SECONDS: u32 = 30;
    /// Between SIGTERM and SIGKILL, in seconds.
    pub const STOP_SECONDS: u32 = 10;
    /// How long a release that is active is watched, in seconds.
    pub const WATCH_SECONDS: u32 = 30;
    /// A canary's share of the requests, in percent.
    pub const CANARY_SHARE: u32 = 10;
    /// How long it has that, in seconds.
    pub const CANARY_SECONDS: u32 = 60;
    /// By how much its share of failed requests may exceed the old instances'.
    pub const CANARY_ERRORS: super::Percent = super::Percent(100);
}

/// The most instances of one application.
pub const MAX_REPLICAS: u32 = limits::REPLICAS;

/// The bounds of a plan's values.
mod limits {
    /// Instances of one application.
    pub(super) const REPLICAS: u32 = 1000;
    /// Bytes of an environment variable or an argument: Linux gives a process none that is longer.
    pub(super) const STRING: usize = 128 * 1024 - 2;
    /// Bytes of memory, least and most.
    pub(super) const MEMORY: (u64, u64) = (6 << 20, 1 << 50);
    /// How long an answer may be kept: a year.
    pub(super) const CACHE_SECONDS: u32 = 31_536_000;
    /// How long anything is waited for: an hour.
    pub(super) const WAIT_SECONDS: u32 = 3600;
    /// The longest interval and answer of a probe: a minute.
    pub(super) const PROBE_MS: u64 = 60_000;
}

impl App {
    /// How many instances the plan wants.
    pub fn count(&self) -> u32 {
        match &self.placement {
            Placement::Pinned(pins) => u32::try_from(pins.len()).unwrap_or(u32::MAX),
            Placement::Replicas { count, .. } => *count,
        }
    }
}
