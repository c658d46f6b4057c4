//! Who serves what: the table the gateway should have, from what is wanted and what was seen.
//!
//! Does no harm: what is unknown (a node that does not answer, a manager just started) keeps its place in the table.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use crate::{
    inventory::{Container, ContainerSpec, ContainerState, Node, Ours, Snapshot},
    model::{CloudId, InstanceId, Port},
    plan::{App, Check},
    release::Release,
    schedule::Assignments,
};

use super::{AppRouting, Backend, Canary, Probe, RoutingTable};

/// What the table is made from.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// Which containers are ours.
    pub cloud: &'a CloudId,
    /// What is wanted.
    pub release: &'a Release,
    /// Where.
    pub assignments: &'a Assignments,
    /// What is there.
    pub snapshot: &'a Snapshot,
    /// Containers (by name) that were seen to answer, and the HTTP status they gave.
    pub verified: &'a BTreeMap<String, Option<u16>>,
    /// Containers (by name) that are to leave routing.
    pub leaving: &'a BTreeSet<String>,
    /// The table as it was last.
    pub last: &'a RoutingTable,
    /// What of another release gets a share of the requests.
    pub trial: Option<Trial<'a>>,
}

/// A release some of whose instances get a share of their applications' requests.
#[derive(Debug, Clone, Copy)]
pub struct Trial<'a> {
    /// It.
    pub release: &'a Release,
    /// Where these instances are.
    pub places: &'a Assignments,
}

impl Trial<'_> {
    /// Their containers' names.
    pub fn names(&self) -> BTreeSet<String> {
        self.places.iter().map(|(id, a)| ContainerSpec::name_of(id, &a.spec, &a.node, a.host_port)).collect()
    }
}

/// The table the gateway should have.
pub fn table(input: Input<'_>) -> RoutingTable {
    let mut apps = BTreeMap::new();
    let mut here: BTreeMap<&crate::model::AppName, Vec<(&Node, &Container, &Ours)>> = BTreeMap::new();
    for (node, container) in input.snapshot.containers() {
        if let Some(ours) = container.ours.as_ref().filter(|ours| ours.cloud == *input.cloud) {
            here.entry(&ours.instance.app).or_default().push((node, container, ours));
        }
    }
    let tried = input.trial.map(|trial| trial.names()).unwrap_or_default();
    for (name, app) in &input.release.plan.apps {
        if app.routes.is_empty() {
            continue;
        }
        let next = input.trial.and_then(|trial| trial.release.plan.apps.get(name)).unwrap_or(app);
        let last = input.last.apps.get(name).map(|app| &app.backends);
        let mut backends = BTreeMap::new();
        for (node, container, ours) in here.get(name).into_iter().flatten() {
            if input.leaving.contains(&container.name) {
                continue;
            }
            // Port and health check are those of the release that made it.
            let app = if tried.contains(&container.name) { next } else { app };
            let before = last.and_then(|last| last.get(&container.name));
            let status = input.verified.get(&container.name);
            // Unknown, or to be asked anew since its health check changed.
            let running = container.state == ContainerState::Running;
            let keeps = before.is_some() && (!node.is_ready() || running && status.is_none());
            let serves = running && status.is_some() && node.is_ready();
            if !keeps && !serves {
                continue;
            }
            let Some(port) = container.published.get(&app.port).copied().or(before.map(|b| b.port)) else { continue };
            let mut backend = backend(app, &ours.instance, node.address, port, status.copied().flatten(), before);
            // A check it was never seen to pass (a new plan's, while an old container serves on) may be a wrong one.
            let wanted = input.assignments.get(&ours.instance).is_some_and(|a| {
                container.name == ContainerSpec::name_of(&ours.instance, &a.spec, &a.node, a.host_port)
            });
            if let Some(before) = before.filter(|_| status.is_none() || !wanted) {
                backend.probe.clone_from(&before.probe);
            }
            backends.insert(container.name.clone(), backend);
        }
        // Containers of nodes that have not been looked at since the manager started.
        for (key, before) in last.into_iter().flatten() {
            let places = input.trial.into_iter().flat_map(|trial| trial.places).chain(input.assignments);
            let unseen = places.into_iter().any(|(id, a)| {
                *id == before.instance
                    && before.port == a.host_port
                    && input.snapshot.nodes.get(&a.node).is_none_or(|n| !n.is_ready())
                    && *key == ContainerSpec::name_of(id, &a.spec, &a.node, a.host_port)
            });
            if unseen && !input.leaving.contains(key) {
                backends.entry(key.clone()).or_insert_with(|| before.clone());
            }
        }
        let trial: BTreeSet<String> = backends.keys().filter(|key| tried.contains(*key)).cloned().collect();
        let share = next.update.canary.share;
        let canary = (!trial.is_empty()).then_some(Canary { share, backends: trial });
        apps.insert(name.clone(), AppRouting { canary, ..AppRouting::of(app, backends) });
    }
    RoutingTable { apps }
}

/// The table once every wanted instance answers: what the gateway can be made ready for meanwhile.
pub fn planned(input: Input<'_>) -> RoutingTable {
    let routed = input.release.plan.apps.iter().filter(|(_, app)| !app.routes.is_empty());
    let apps = routed.map(|(name, app)| (name.clone(), AppRouting::of(app, BTreeMap::new()))).collect();
    let mut planned = RoutingTable { apps };
    for (id, place) in input.assignments {
        let (Some(app), Some(routing)) = (input.release.plan.apps.get(&id.app), planned.apps.get_mut(&id.app)) else {
            continue;
        };
        let Some(node) = input.snapshot.nodes.get(&place.node).filter(|node| node.is_ready()) else { continue };
        let name = ContainerSpec::name_of(id, &place.spec, &place.node, place.host_port);
        let before = input.last.apps.get(&id.app).and_then(|last| last.backends.get(&name));
        let status = input.verified.get(&name).copied().flatten();
        routing.backends.insert(name, backend(app, id, node.address, place.host_port, status, before));
    }
    planned
}

fn backend(
    app: &App,
    instance: &InstanceId,
    address: IpAddr,
    port: Port,
    status: Option<u16>,
    before: Option<&Backend>,
) -> Backend {
    let probe = match &app.health.check {
        Check::Tcp => None,
        Check::Http { path, host, status: wanted } => Some(Probe {
            path: path.clone(),
            host: host.clone(),
            // A probe knows one status: the one asked for, or the one the instance first answered.
            status: wanted
                .or(status)
                .or_else(|| before.and_then(|b| b.probe.as_ref()).map(|p| p.status))
                .unwrap_or(200),
            interval_ms: app.health.interval_ms,
            timeout_ms: app.health.timeout_ms,
        }),
    };
    Backend { instance: instance.clone(), address, port, probe, serving: true }
}
