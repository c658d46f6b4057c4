//! Follows what engines and probes say of instances: what died gets no request, what keeps failing is replaced.
//!
//! Places nothing and routes nothing: it tells the loop where instances should not run, and the gateway whom to leave out
//! until the loop has seen it answer again.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tokio::sync::{broadcast::error::RecvError, watch};

use crate::{
    inventory::{Container, ContainerSpec, ContainerState, Snapshot},
    model::{InstanceId, NodeName, Timestamp},
    plan::{Placement, defaults},
    schedule::Assignment,
};

use super::{
    config::Config,
    events::{Events, Kind},
    execute::chain,
    gateway::Gateway,
    heal::{Facts, History, Step},
    journal::Remembered,
    nodes::Nodes,
    progress::Overview,
};

/// Where instances should not run, by instance.
pub(super) type Away = BTreeMap<InstanceId, BTreeSet<NodeName>>;

/// What it works with.
pub(super) struct Healer {
    pub config: Arc<Config>,
    pub nodes: Nodes,
    pub gateway: Option<Gateway>,
    pub events: Events,
    pub overview: watch::Receiver<Overview>,
    pub away: watch::Sender<Away>,
}

/// What is remembered between two turns.
#[derive(Default)]
struct Memory {
    history: History,
    /// Ids of containers that answered once: what never did is the release's matter.
    answered: BTreeSet<String>,
    /// Containers, by name, that are overruled since their process ended.
    out: BTreeSet<String>,
}

impl Healer {
    /// Follows until the manager ends.
    pub(super) async fn follow(mut self) {
        let mut deaths = self.nodes.deaths();
        let mut memory = Memory::default();
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                death = deaths.recv() => match death {
                    Ok((node, id)) => self.died(&node, &id, &mut memory).await,
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return,
                },
                changed = self.overview.changed() => match changed {
                    Ok(()) => self.give_back(&mut memory).await,
                    Err(_) => return,
                },
                _ = tick.tick() => {
                    self.give_back(&mut memory).await;
                    self.decide(&mut memory);
                }
            }
        }
    }

    /// At once, before VCL without it is compiled: it gets no more requests.
    async fn died(&self, node: &NodeName, id: &str, memory: &mut Memory) {
        let snapshot = self.nodes.snapshot();
        let Some(container) = snapshot.nodes.get(node).and_then(|n| n.containers.iter().find(|c| c.id == id)) else {
            return;
        };
        let Some(ours) = container.ours.as_ref().filter(|ours| ours.cloud == self.config.cloud) else { return };
        let known = Arc::clone(&self.overview.borrow().remembered);
        if memory.answered.contains(id) && is_wanted(&known, &ours.instance, &container.name) {
            memory.history.died(&ours.instance, node, Timestamp::now());
        }
        // What is stopped on purpose has left the table before.
        let routed = known.table.apps.values().any(|app| app.backends.contains_key(&container.name));
        if let Some(gateway) = self.gateway.as_ref().filter(|_| routed) {
            memory.out.insert(container.name.clone());
            if let Err(error) = gateway.set_health(&container.name, true).await {
                tracing::warn!(container = container.name, %error, "its requests are tried elsewhere one by one");
            }
        }
    }

    /// Leaves to their probes again what was seen to answer since, and what is not there any more.
    async fn give_back(&self, memory: &mut Memory) {
        let known = Arc::clone(&self.overview.borrow().remembered);
        memory.answered.extend(known.verified.values().map(|answered| answered.id.clone()));
        let snapshot = self.nodes.snapshot();
        let there: BTreeMap<&str, &Container> = snapshot.containers().map(|(_, c)| (c.name.as_str(), c)).collect();
        let ids: BTreeSet<&str> = there.values().map(|c| c.id.as_str()).collect();
        if memory.answered.len() > 2 * ids.len() {
            memory.answered.retain(|id| ids.contains(id.as_str()));
        }
        let Some(gateway) = &self.gateway else { return };
        let back = |name: &&String| match there.get(name.as_str()) {
            Some(container) => {
                let answers = known.verified.get(*name).is_some_and(|answered| answered.id == container.id);
                answers && container.state == ContainerState::Running
            }
            None => true,
        };
        let back: Vec<String> = memory.out.iter().filter(back).cloned().collect();
        for name in back {
            match gateway.set_health(&name, false).await {
                Ok(()) => _ = memory.out.remove(&name),
                Err(error) => tracing::debug!(container = name, %error, "it is given back later"),
            }
        }
    }

    fn decide(&self, memory: &mut Memory) {
        let overview = self.overview.borrow().clone();
        // Whoever is unsure moves nothing; a release on its way has its own judgement.
        let blind = self.gateway.as_ref().is_some_and(|gateway| !gateway.hears());
        if blind || overview.progress.frozen.is_some() || overview.progress.rollout.is_some() {
            return;
        }
        let snapshot = self.nodes.snapshot();
        let instances = facts(&overview, &snapshot, &self.unhealthy());
        for step in memory.history.decide(&instances, Timestamp::now()) {
            match step {
                Step::Elsewhere { instance, node, why } => {
                    let text = format!("{why}: it is to run elsewhere");
                    self.events.tell(Kind::Failed, &instance, Some(&node), text);
                }
                Step::Again { instance, node, id, why } => {
                    self.events.tell(Kind::Failed, &instance, Some(&node), format!("{why}: it is started again"));
                    self.again(&instance, &node, id, stop_seconds(&overview, &instance));
                }
            }
        }
        let away = memory.history.away();
        self.away.send_if_modified(|before| {
            let changed = *before != away;
            *before = away;
            changed
        });
    }

    fn unhealthy(&self) -> BTreeMap<String, Timestamp> {
        self.gateway.as_ref().map(|gateway| gateway.unhealthy().borrow().clone()).unwrap_or_default()
    }

    /// Stops and starts a container. Whoever else starts it meanwhile does the same.
    fn again(&self, instance: &InstanceId, node: &NodeName, id: String, stop_seconds: u32) {
        let Some(engine) = self.nodes.engine(node) else { return };
        let (cloud, events) = (self.config.cloud.clone(), self.events.clone());
        let (instance, node) = (instance.clone(), node.clone());
        tokio::spawn(async move {
            let done = async {
                engine.stop(&cloud, &id, stop_seconds).await?;
                engine.start(&id).await
            };
            match done.await {
                Ok(()) => events.tell(Kind::Done, &instance, Some(&node), "started again"),
                Err(error) => events.tell(Kind::Failed, &instance, Some(&node), chain(&error)),
            }
        });
    }
}

fn is_wanted(known: &Remembered, instance: &InstanceId, container: &str) -> bool {
    let name = |a: &Assignment| ContainerSpec::name_of(instance, &a.spec, &a.node, a.host_port);
    known.assignments.get(instance).is_some_and(|assignment| name(assignment) == container)
}

/// The instances of the plan whose containers are there, on nodes that answer.
fn facts(
    overview: &Overview,
    snapshot: &Snapshot,
    unhealthy: &BTreeMap<String, Timestamp>,
) -> BTreeMap<InstanceId, Facts> {
    let known = &overview.remembered;
    let Some(release) = &known.release else { return BTreeMap::new() };
    let see = |(id, place): (&InstanceId, &Assignment)| {
        let node = snapshot.nodes.get(&place.node).filter(|node| node.is_ready())?;
        let name = ContainerSpec::name_of(id, &place.spec, &place.node, place.host_port);
        let container = node.containers.iter().find(|c| c.name == name)?;
        let app = release.plan.apps.get(&id.app)?;
        let facts = Facts {
            node: node.name.clone(),
            id: container.id.clone(),
            ready_since: node.since,
            unhealthy_since: unhealthy.get(&name).copied().filter(|_| container.state == ContainerState::Running),
            replica: matches!(app.placement, Placement::Replicas { .. }),
        };
        Some((id.clone(), facts))
    };
    known.assignments.iter().filter_map(see).collect()
}

fn stop_seconds(overview: &Overview, instance: &InstanceId) -> u32 {
    let release = overview.remembered.release.as_ref();
    let app = release.and_then(|release| release.plan.apps.get(&instance.app));
    app.map_or(defaults::STOP_SECONDS, |app| app.stop_timeout_seconds)
}
