//! What the API shows: shapes for people and programs, made from what the manager knows.
//!
//! The JSON of `matrix status --json` is [`StatusView`]. Fields are only ever added.

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};

use crate::{
    inventory::{Container, ContainerSpec, ContainerState, Engine, Intake, Node, Snapshot},
    manager::{Manager, Overview, journal::Remembered},
    model::{AppName, CloudId, InstanceId, NodeName, Port, Timestamp},
    schedule::Assignment,
};

/// The whole cloud.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusView {
    /// The cloud's id.
    pub cloud: CloudId,
    /// The release it should run; none yet.
    pub release: Option<ReleaseView>,
    /// The release that is to follow it; none is on its way.
    #[serde(default)]
    pub on_its_way: Option<OnItsWayView>,
    /// Whether it runs that, and nothing is under way.
    pub settled: bool,
    /// What is wrong, for people, the worst first.
    pub problems: Vec<String>,
    /// Whether the gateway's Varnish answers; none: there is none configured.
    pub gateway_up: Option<bool>,
    /// Applications by name.
    pub applications: BTreeMap<AppName, ApplicationView>,
    /// Nodes by name.
    pub nodes: BTreeMap<NodeName, NodeBrief>,
}

/// A release that is on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnItsWayView {
    /// Its number.
    pub number: u64,
    /// How far it is, for people.
    pub step: String,
}

/// A release in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseView {
    /// Its number.
    pub number: u64,
    /// When it was made.
    pub created: Timestamp,
    /// Who made it.
    pub by: String,
    /// What they said of it.
    pub message: Option<String>,
}

/// An application.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApplicationView {
    /// Its image as nodes pull it.
    pub image: String,
    /// Its routes: `/shop`, `shop.example/`.
    pub routes: Vec<String>,
    /// How many instances the plan wants.
    pub wanted: u32,
    /// How many serve.
    pub serving: u32,
    /// Its instances by slot, those on their way out last.
    pub instances: Vec<InstanceView>,
}

/// How an instance is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InstanceState {
    /// It answers and (where routed) takes requests.
    Serving,
    /// It runs, and the gateway's probe gets no good answer: requests go to others.
    Unhealthy,
    /// It is being started, or has not answered yet.
    Starting,
    /// It failed and is tried again.
    Failed,
    /// It waits for something.
    Waiting,
    /// Its node does not answer; it may well run.
    Unreachable,
    /// It found no place.
    Unplaced,
    /// It is on its way out.
    Leaving,
}

/// An instance, or a container on its way out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceView {
    /// `shop.2`
    pub instance: InstanceId,
    /// How it is.
    pub state: InstanceState,
    /// Why it is not serving.
    pub why: Option<String>,
    /// Its node.
    pub node: Option<NodeName>,
    /// Its node's address.
    pub address: Option<IpAddr>,
    /// Its host port.
    pub port: Option<Port>,
    /// Its container's name.
    pub container: Option<String>,
    /// The image its container was made from.
    pub image: Option<String>,
    /// When its container was made.
    pub created: Option<Timestamp>,
    /// The release that made it.
    pub release: Option<u64>,
}

/// A node in short; `GET /v1/nodes` shows all of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeBrief {
    /// Its address.
    pub address: IpAddr,
    /// `ready`, `suspect`, `lost`, `unknown`, `candidate`, `refused`.
    pub state: String,
    /// How many containers of this cloud run there.
    pub instances: usize,
    /// How many others.
    pub foreign: usize,
    /// Why it is not ready.
    pub trouble: Option<String>,
    /// Whether instances are placed there.
    #[serde(default)]
    pub intake: Intake,
    /// Whether its disk is too full for anything new.
    #[serde(default)]
    pub disk_full: bool,
}

/// The whole cloud as this manager knows it.
pub fn status(manager: &Manager) -> StatusView {
    let overview = manager.overview().borrow().clone();
    let snapshot = manager.nodes().snapshot();
    let cloud = &manager.config().cloud;
    let gateway_up = manager.gateway().map(|gateway| gateway.state().borrow().up);
    let mut problems = Vec::new();
    if gateway_up == Some(false) {
        problems.push("the gateway's Varnish does not answer".to_owned());
    }
    problems.extend(overview.progress.gateway.iter().map(|why| format!("the gateway refused its routing: {why}")));
    if let Some((number, ending)) =
        overview.progress.failed.and_then(|n| Some((n, overview.remembered.endings.get(&n)?)))
    {
        problems.push(format!("release {number} {}: {}", ending.state.word(), ending.why.join("; ")));
    }
    problems.extend(overview.progress.frozen.iter().map(|why| format!("nothing is moved: {why}")));
    problems.extend(manager.plan_problem().map(|why| format!("the plan file is not followed: {why}")));
    problems.extend(snapshot.nodes.values().filter(|node| node.disk_full).map(full));
    problems.extend(manager.gc_problem());
    let unhealthy = manager.gateway().map(|gateway| gateway.unhealthy().borrow().clone()).unwrap_or_default();
    let applications = applications(&overview, &snapshot, &unhealthy, cloud);
    let nodes = snapshot
        .nodes
        .values()
        .map(|node| {
            let ours = |c: &&Container| c.ours.as_ref().is_some_and(|ours| ours.cloud == *cloud);
            let instances = node.containers.iter().filter(ours).count();
            let brief = NodeBrief {
                address: node.address,
                state: node.state_word().to_owned(),
                instances,
                foreign: node.containers.len() - instances,
                trouble: node.trouble.clone(),
                intake: node.intake,
                disk_full: node.disk_full,
            };
            (node.name.clone(), brief)
        })
        .collect();
    let release = overview.remembered.release.as_ref().map(|r| ReleaseView {
        number: r.number,
        created: r.created,
        by: r.by.clone(),
        message: r.message.clone(),
    });
    StatusView {
        cloud: cloud.clone(),
        release,
        on_its_way: overview
            .progress
            .rollout
            .clone()
            .map(|step| OnItsWayView { number: overview.progress.release, step }),
        settled: overview.progress.settled,
        problems,
        gateway_up,
        applications,
        nodes,
    }
}

fn full(node: &Node) -> String {
    let used = node.engine.as_ref().and_then(Engine::disk_used).unwrap_or_default();
    format!("the disk of {} is {used} % full: nothing new is placed there", node.name)
}

fn applications(
    overview: &Overview,
    snapshot: &Snapshot,
    unhealthy: &BTreeMap<String, Timestamp>,
    cloud: &CloudId,
) -> BTreeMap<AppName, ApplicationView> {
    let known = &overview.remembered;
    let Some(release) = &known.release else { return BTreeMap::new() };
    let mut all = BTreeMap::new();
    for (name, app) in &release.plan.apps {
        let mut instances: Vec<InstanceView> = known
            .assignments
            .iter()
            .filter(|(id, _)| id.app == *name)
            .map(|(id, assignment)| instance(id, assignment, overview, snapshot, unhealthy))
            .collect();
        instances.extend(overview.progress.unplaced.iter().filter(|(id, _)| id.app == *name).map(|(id, why)| {
            let state = InstanceState::Unplaced;
            InstanceView { why: Some(why.clone()), ..bare(id, state) }
        }));
        all.insert(
            name.clone(),
            ApplicationView {
                image: release.images.get(name).map(ToString::to_string).unwrap_or_default(),
                routes: app.routes.iter().map(ToString::to_string).collect(),
                wanted: app.count(),
                serving: 0,
                instances,
            },
        );
    }
    // Containers on their way out, also of applications that left the plan.
    for (node, container) in snapshot.containers() {
        let Some(ours) = container.ours.as_ref().filter(|ours| ours.cloud == *cloud) else { continue };
        let view = all.entry(ours.instance.app.clone()).or_insert_with(|| ApplicationView {
            image: container.image.clone(),
            routes: Vec::new(),
            wanted: 0,
            serving: 0,
            instances: Vec::new(),
        });
        if view.instances.iter().any(|i| i.container.as_deref() == Some(&container.name)) {
            continue;
        }
        let (state, why) = if !node.is_ready() {
            (InstanceState::Unreachable, Some(format!("{} does not answer; when it does, this goes", node.name)))
        } else if let Some(beside) = beside(known, &ours.instance, &container.name) {
            beside
        } else {
            (InstanceState::Leaving, None)
        };
        view.instances.push(InstanceView {
            node: Some(node.name.clone()),
            address: Some(node.address),
            port: container.published.values().next().copied(),
            container: Some(container.name.clone()),
            image: Some(container.image.clone()),
            created: container.created,
            release: Some(ours.release),
            why,
            ..bare(&ours.instance, state)
        });
    }
    for view in all.values_mut() {
        let serving = view.instances.iter().filter(|i| i.state == InstanceState::Serving).count();
        view.serving = u32::try_from(serving).unwrap_or(u32::MAX);
    }
    all
}

/// How a container of the release on its way is, beside those that it is to replace.
fn beside(known: &Remembered, id: &InstanceId, container: &str) -> Option<(InstanceState, Option<String>)> {
    let place = known.staged.get(id).filter(|_| known.rollout.is_some())?;
    if ContainerSpec::name_of(id, &place.spec, &place.node, place.host_port) != container {
        return None;
    }
    let canary = known.table.apps.get(&id.app).and_then(|routing| routing.canary.as_ref());
    Some(match canary.filter(|canary| canary.backends.contains(container)) {
        Some(canary) => {
            let why = format!("of the next release, which has {}% of the requests until the switch", canary.share);
            (InstanceState::Waiting, Some(why))
        }
        None if known.verified.contains_key(container) => {
            (InstanceState::Waiting, Some("answers and waits for the switch".to_owned()))
        }
        None => (InstanceState::Starting, None),
    })
}

fn bare(id: &InstanceId, state: InstanceState) -> InstanceView {
    InstanceView {
        instance: id.clone(),
        state,
        why: None,
        node: None,
        address: None,
        port: None,
        container: None,
        image: None,
        created: None,
        release: None,
    }
}

fn instance(
    id: &InstanceId,
    assignment: &Assignment,
    overview: &Overview,
    snapshot: &Snapshot,
    unhealthy: &BTreeMap<String, Timestamp>,
) -> InstanceView {
    let name = ContainerSpec::name_of(id, &assignment.spec, &assignment.node, assignment.host_port);
    let node = snapshot.nodes.get(&assignment.node);
    let container = node.and_then(|node| node.containers.iter().find(|c| c.name == name));
    let ready = node.is_some_and(crate::inventory::Node::is_ready);
    let running = container.is_some_and(|c| c.state == ContainerState::Running);
    let failure = overview.progress.failures.get(id);
    let waiting = overview.progress.waiting.get(id);
    let (state, why) = if !ready {
        (InstanceState::Unreachable, Some(format!("{} does not answer", assignment.node)))
    } else if let Some(since) = unhealthy.get(&name).filter(|_| running) {
        let since = since.strftime("%H:%M:%S UTC");
        (InstanceState::Unhealthy, Some(format!("the gateway's probe gets no good answer since {since}")))
    } else if running && overview.remembered.verified.contains_key(&name) {
        (InstanceState::Serving, None)
    } else if let Some(why) = failure {
        (InstanceState::Failed, Some(why.clone()))
    } else if let Some(why) = waiting {
        (InstanceState::Waiting, Some(why.clone()))
    } else {
        (InstanceState::Starting, None)
    };
    InstanceView {
        why,
        node: Some(assignment.node.clone()),
        address: node.map(|node| node.address),
        port: Some(assignment.host_port),
        container: Some(name),
        image: container.map(|c| c.image.clone()),
        created: container.and_then(|c| c.created),
        release: container.and_then(|c| c.ours.as_ref()).map(|ours| ours.release),
        ..bare(id, state)
    }
}
