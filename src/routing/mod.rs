//! Who serves what, and the VCL that says so.
//!
//! No I/O, no clock: the same table gives the same bytes. Health, order and identifiers are settled before rendering.

mod paths;
pub mod routes;
pub mod vcl;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use serde::{Deserialize, Serialize};

use crate::{
    model::{AppName, InstanceId, Port, Route},
    plan::{App, Plan},
};

/// Every routed application and its backends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct RoutingTable {
    /// Applications that have at least one route. One without a serving backend answers 503.
    pub apps: BTreeMap<AppName, AppRouting>,
}

impl RoutingTable {
    /// What a plan would route, to the instances that serve its applications now.
    #[must_use]
    pub fn planned(plan: &Plan, active: &Self) -> Self {
        let routed = plan.apps.iter().filter(|(_, app)| !app.routes.is_empty());
        let apps = routed.map(|(name, app)| {
            let backends = active.apps.get(name).map(|now| now.backends.clone()).unwrap_or_default();
            (name.clone(), AppRouting::of(app, backends))
        });
        Self { apps: apps.collect() }
    }

    /// Whether of some application all serving backends are others than before, as when a release is switched to.
    pub(crate) fn switches(&self, before: &Self) -> bool {
        let serving = |app: &AppRouting| -> BTreeSet<String> {
            app.backends.iter().filter(|(_, b)| b.serving).map(|(key, _)| key.clone()).collect()
        };
        self.apps.iter().any(|(name, app)| {
            let before = before.apps.get(name).map(serving).unwrap_or_default();
            let now = serving(app);
            !before.is_empty() && !now.is_empty() && before.is_disjoint(&now)
        })
    }
}

/// One application's routing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppRouting {
    /// Which requests are its own; never empty, sorted.
    pub routes: Vec<Route>,
    /// Whether the route's path is cut off before the application sees the request.
    pub strip_path: bool,
    /// How long an answer that says nothing about caching may be kept, in seconds.
    pub cache_seconds: Option<u32>,
    /// Whether any request may be sent twice.
    pub idempotent: bool,
    /// Who serves, by instance (during a rollout two containers of one slot may serve: the key is the container's name).
    pub backends: BTreeMap<String, Backend>,
    /// Which of them get a share of the requests only; none: all take turns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<Canary>,
}

/// Backends that are tried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Canary {
    /// So many of a hundred requests go to them.
    pub share: u32,
    /// Their names among the backends.
    pub backends: BTreeSet<String>,
}

impl AppRouting {
    /// What the plan says of it, with these backends.
    fn of(app: &App, backends: BTreeMap<String, Backend>) -> Self {
        Self {
            routes: app.routes.clone(),
            strip_path: app.strip_path,
            cache_seconds: app.cache_seconds,
            idempotent: app.idempotent,
            backends,
            canary: None,
        }
    }
}

/// An address that serves an application.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    /// The instance.
    pub instance: InstanceId,
    /// The node's address.
    pub address: IpAddr,
    /// The host port.
    pub port: Port,
    /// How the gateway watches it; none: not at all.
    pub probe: Option<Probe>,
    /// Whether it takes new requests.
    pub serving: bool,
}

/// What the gateway asks a backend, again and again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// The path with query: visible ASCII without quotes or backslash.
    pub path: String,
    /// The `Host` header; none: the backend's address.
    pub host: Option<String>,
    /// The one status that is healthy (a probe knows no ranges).
    pub status: u16,
    /// Between two, in milliseconds.
    pub interval_ms: u32,
    /// For one answer, in milliseconds.
    pub timeout_ms: u32,
}
