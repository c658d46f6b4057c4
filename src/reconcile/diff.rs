//! Wanted against observed: what can be done now. Asked again after every change of the world; done when it has nothing to say.
//!
//! The laws it keeps: a container leaves only when its successor answers and routes (or the plan dropped it, or its port
//! is needed); nothing is decided about a node that does not answer; nothing is touched that is not of our cloud.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    inventory::{Container, ContainerSpec, ContainerState, Node, NodeState, Ours, Snapshot, Spec},
    model::{AppName, CloudId, InstanceId, NodeName, Port, Timestamp},
    plan::{Mode, Restart, defaults},
    release::{Release, differences},
    routing::RoutingTable,
    schedule::{Assignment, Assignments},
};

use super::{Action, Decision, Reason, Stage};

/// Not to be tried again before a moment, since it failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// When it may be tried again.
    pub until: Timestamp,
    /// How often it failed in a row.
    pub failures: u32,
    /// What happened.
    pub why: String,
}

/// All that a decision looks at.
#[derive(Debug, Clone, Copy)]
pub struct World<'a> {
    /// Which containers are ours.
    pub cloud: &'a CloudId,
    /// What is wanted.
    pub release: &'a Release,
    /// The release before, where it is known: to say what changed.
    pub previous: Option<&'a Release>,
    /// Where.
    pub assignments: &'a Assignments,
    /// What is there.
    pub snapshot: &'a Snapshot,
    /// Containers (by name) that were seen to answer, and the HTTP status they gave.
    pub verified: &'a BTreeMap<String, Option<u16>>,
    /// What the gateway routes to now; none: it is not known (nothing may be stopped then).
    pub routed: Option<&'a RoutingTable>,
    /// Containers (by name) not to be tried again yet.
    pub holds: &'a BTreeMap<String, Hold>,
    /// What starts beside it, to take its place once all of that answers.
    pub staged: Option<Staged<'a>>,
    /// Applications that are replaced step by step and pause before the next step.
    pub resting: &'a BTreeSet<AppName>,
    /// Now.
    pub now: Timestamp,
}

/// A release beside the one that is wanted.
#[derive(Debug, Clone, Copy)]
pub struct Staged<'a> {
    /// It.
    pub release: &'a Release,
    /// What of it starts, and what is asked again.
    pub stage: &'a Stage,
    /// Containers (by name) that passed the health check they are asked again by.
    pub passed: &'a BTreeSet<String>,
}

/// What can be done now.
pub fn diff(world: World<'_>) -> Decision {
    let board = Board::new(world);
    let mut decision = Decision::default();
    for (id, assignment) in world.assignments {
        if let Some(container) = board.wanted.get(id) {
            board.bring(id, assignment, container, &mut decision);
        }
    }
    board.bring_beside(&mut decision);
    for (node, container, ours) in &board.ours {
        board.retire(node, container, ours, &mut decision);
    }
    decision
}

struct Board<'a> {
    world: World<'a>,
    /// Every container of our cloud on nodes that answer.
    ours: Vec<(&'a Node, &'a Container, &'a Ours)>,
    by_instance: BTreeMap<&'a InstanceId, Vec<(&'a Node, &'a Container)>>,
    /// What holds a host port, by node and port.
    by_port: BTreeMap<(&'a NodeName, Port), Vec<(&'a Node, &'a Container)>>,
    /// Names of containers the gateway sends requests to.
    serving: BTreeSet<&'a str>,
    wanted: BTreeMap<&'a InstanceId, ContainerSpec>,
    /// What starts beside that, and its names.
    staged: BTreeMap<&'a InstanceId, ContainerSpec>,
    staged_names: BTreeSet<String>,
    /// Applications with a fixed port of which one instance may be replaced now, and which.
    turn: BTreeMap<&'a AppName, &'a InstanceId>,
}

impl<'a> Board<'a> {
    fn new(world: World<'a>) -> Self {
        let ours: Vec<_> = our_containers(world.snapshot, world.cloud).filter(|(node, _, _)| node.is_ready()).collect();
        let mut by_instance: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (node, container, ours) in &ours {
            by_instance.entry(&ours.instance).or_default().push((*node, *container));
        }
        let mut by_port: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (node, container, _) in ours.iter().filter(|(_, container, _)| holds_port(container)) {
            for port in container.published.values() {
                by_port.entry((&node.name, *port)).or_default().push((*node, *container));
            }
        }
        let serving = world
            .routed
            .into_iter()
            .flat_map(|table| table.apps.values())
            .flat_map(|app| &app.backends)
            .filter(|(_, backend)| backend.serving)
            .map(|(name, _)| name.as_str())
            .collect();
        let specs: BTreeMap<_, _> =
            world.release.plan.apps.keys().filter_map(|app| Some((app, world.release.spec(app)?))).collect();
        let wanted = world
            .assignments
            .iter()
            .filter_map(|(id, assignment)| {
                let number = world.release.number;
                Some((id, container(world.cloud, number, id, assignment, specs.get(&id.app)?.clone())))
            })
            .collect();
        let beside = |staged: Staged<'a>| {
            staged.stage.beside.iter().filter_map(move |(id, place)| {
                let spec = staged.release.spec(&id.app)?;
                Some((id, container(world.cloud, staged.release.number, id, place, spec)))
            })
        };
        let staged: BTreeMap<_, _> = world.staged.into_iter().flat_map(beside).collect();
        let staged_names = staged.values().map(|container| container.name.clone()).collect();
        let turn = BTreeMap::new();
        let mut board = Self { world, ours, by_instance, by_port, serving, wanted, staged, staged_names, turn };
        board.turn = board.turns();
        board
    }

    /// One instance at a time where stop comes before start: the lowest slot, while all the others serve.
    fn turns(&self) -> BTreeMap<&'a AppName, &'a InstanceId> {
        let (mut turns, mut idle) = (BTreeMap::new(), BTreeMap::new());
        let mut gaps: BTreeSet<&AppName> = BTreeSet::new();
        let serves_unseen = self.serves_unseen();
        for (id, container) in &self.wanted {
            if self.in_place(container) {
                // Seen to answer, but no request reaches it yet.
                if self.is_routed(&id.app) && !self.serving.contains(container.name.as_str()) {
                    gaps.insert(&id.app);
                }
                continue;
            }
            if let Some((_, occupant)) = self.occupant(id) {
                let these = if self.serves(occupant) { &mut turns } else { &mut idle };
                these.entry(&id.app).or_insert(*id);
            } else if self.world.release.plan.apps.get(&id.app).is_some_and(|app| app.count() > 1)
                && self.world.snapshot.nodes.get(&self.world.assignments[*id].node).is_some_and(may_come_back_soon)
                && !serves_unseen.contains(id)
                && !self.by_instance.get(id).is_some_and(|all| all.iter().any(|(_, c)| self.serves(c)))
            {
                gaps.insert(&id.app);
            }
        }
        // A gap elsewhere: the one whose turn it was has stopped and not yet come back.
        turns.retain(|app, _| !gaps.contains(app));
        // What serves nobody goes before what does.
        turns.extend(idle);
        turns
    }

    /// Instances on nodes that do not answer just now, and still get requests.
    fn serves_unseen(&self) -> BTreeSet<&'a InstanceId> {
        let silent = |node: &Node| !node.is_ready() && may_come_back_soon(node);
        let all = our_containers(self.world.snapshot, self.world.cloud).filter(|(node, _, _)| silent(node));
        let serving = all.filter(|(_, c, _)| self.serves(c) && self.serving.contains(c.name.as_str()));
        serving.map(|(_, _, ours)| &ours.instance).collect()
    }

    fn is_routed(&self, app: &AppName) -> bool {
        self.world.release.plan.apps.get(app).is_some_and(|app| !app.routes.is_empty())
    }

    /// Whether it runs and was seen to answer.
    fn in_place(&self, container: &ContainerSpec) -> bool {
        self.world.verified.contains_key(&container.name)
    }

    fn serves(&self, container: &Container) -> bool {
        container.state == ContainerState::Running && self.world.verified.contains_key(&container.name)
    }

    /// The other container of ours that holds the host port this instance needs.
    fn occupant(&self, id: &InstanceId) -> Option<(&'a Node, &'a Container)> {
        self.occupant_of(self.world.assignments.get(id)?, self.wanted.get(id)?)
    }

    fn occupant_of(&self, assignment: &Assignment, wanted: &ContainerSpec) -> Option<(&'a Node, &'a Container)> {
        let holders = self.by_port.get(&(&assignment.node, assignment.host_port))?;
        holders.iter().find(|(_, container)| container.name != wanted.name).copied()
    }

    fn is_staged(&self, name: &str) -> bool {
        self.staged_names.contains(name)
    }

    /// What is to take its place, and what stays and is asked something else. Nothing gives way to it.
    fn bring_beside(&self, decision: &mut Decision) {
        let Some(staged) = self.world.staged else { return };
        for (id, container) in &self.staged {
            self.bring(id, &staged.stage.beside[*id], container, decision);
        }
        for (id, place) in &staged.stage.again {
            let Some(container) = self.wanted.get(id).filter(|c| !staged.passed.contains(&c.name)) else { continue };
            let held = self.world.holds.get(&container.name).is_some_and(|hold| hold.until > self.world.now);
            let runs =
                |(node, c): &(&Node, &Container)| node.name == place.node && c.name == container.name && self.serves(c);
            if !held && self.by_instance.get(id).is_some_and(|all| all.iter().any(runs)) {
                let (node, container) = (place.node.clone(), container.clone());
                decision.actions.push(Action::Verify { node, container, reason: Reason::CheckChanged });
            }
        }
    }

    fn bring(&self, id: &InstanceId, assignment: &Assignment, container: &ContainerSpec, decision: &mut Decision) {
        let node = match self.world.snapshot.nodes.get(&assignment.node) {
            Some(node) if node.is_ready() => node,
            _ => {
                decision.waiting.push((id.clone(), format!("{} does not answer", assignment.node)));
                return;
            }
        };
        let ours = |c: &&Container| c.ours.as_ref().is_some_and(|ours| ours.cloud == *self.world.cloud);
        let there = node.containers.iter().filter(ours).find(|c| c.name == container.name);
        let reason = match there.map(|c| c.state) {
            Some(ContainerState::Running) if self.in_place(container) => return,
            Some(ContainerState::Running) => Reason::NotVerified,
            // The engine is at it already.
            Some(ContainerState::Restarting | ContainerState::Removing | ContainerState::Paused) => {
                decision.waiting.push((id.clone(), format!("its container on {} is restarting", node.name)));
                return;
            }
            Some(ContainerState::Exited) if self.ended_for_good(id) => return,
            Some(ContainerState::Created | ContainerState::Exited | ContainerState::Dead) => Reason::Stopped,
            None => self.why_new(id, &node.name, container),
        };
        if let Some(hold) = self.world.holds.get(&container.name).filter(|hold| hold.until > self.world.now) {
            decision.waiting.push((id.clone(), hold.why.clone()));
            return;
        }
        // One that is there and has ended may have lost its port to another one meanwhile.
        let occupant = self.occupant_of(assignment, container).filter(|_| reason != Reason::NotVerified);
        let replaces = there.is_none() || occupant.is_some();
        if replaces && !self.is_staged(&container.name) && !self.may_step(id, decision) {
            decision.waiting.push((id.clone(), "its turn comes".to_owned()));
            return;
        }
        if let Some((_, occupant)) = occupant {
            if !self.is_staged(&container.name) && self.must_give_way(occupant, id) {
                decision.leaving.insert(occupant.name.clone());
            }
            decision.waiting.push((id.clone(), format!("{} on {} is in use", assignment.host_port, node.name)));
            return;
        }
        let (node, container) = (node.name.clone(), container.clone());
        decision.actions.push(if reason == Reason::NotVerified {
            Action::Verify { node, container, reason }
        } else {
            Action::Start { node, container, reason }
        });
    }

    /// Whether the plan lets this instance be replaced now, where it says how; lets old ones leave that have to go first.
    fn may_step(&self, id: &InstanceId, decision: &mut Decision) -> bool {
        let Some(app) = self.world.release.plan.apps.get(&id.app) else { return true };
        let old = |id: &InstanceId| {
            let all = self.by_instance.get(id).into_iter().flatten();
            let wanted = self.wanted.get(id).map(|wanted| &wanted.name);
            all.filter(move |(_, c)| Some(&c.name) != wanted && holds_port(c)).map(|(_, c)| *c)
        };
        let of_app = || self.wanted.keys().filter(|other| other.app == id.app);
        match app.update.mode {
            Mode::Staged | Mode::Canary => true,
            Mode::Recreate => {
                let before: Vec<_> = of_app().flat_map(|other| old(other)).map(|c| c.name.clone()).collect();
                let may = before.is_empty();
                decision.leaving.extend(before);
                may
            }
            Mode::Rolling => {
                if old(id).next().is_none() {
                    return true;
                }
                let open = of_app().filter(|other| !self.in_place(&self.wanted[*other]) && old(other).next().is_some());
                let mut open: Vec<_> = open.collect();
                // Whose turn it is at a fixed port could not step otherwise; then what serves nobody.
                let turn = self.turn.get(&id.app);
                open.sort_by_key(|other| (turn != Some(*other), old(other).any(|c| self.serves(c))));
                let batch = usize::try_from(app.update.batch).unwrap_or(usize::MAX);
                !self.world.resting.contains(&id.app) && open.into_iter().take(batch).any(|other| *other == id)
            }
        }
    }

    fn why_new(&self, id: &InstanceId, node: &NodeName, container: &ContainerSpec) -> Reason {
        let differs = |before: &Release| {
            let before = before.spec(&id.app)?;
            let keys = differences(&before, &container.spec);
            (before != container.spec).then(|| keys.into_iter().map(str::to_owned).collect())
        };
        if self.is_staged(&container.name) {
            return differs(self.world.release).map_or(Reason::New, Reason::Changed);
        }
        match self.by_instance.get(id).and_then(|all| all.first()) {
            Some((other, _)) if other.name != *node => Reason::Moved { node: other.name.clone() },
            Some((_, old)) if old.ours.is_some() => {
                Reason::Changed(old.ours.as_ref().map(|ours| changed_keys(self.world, ours)).unwrap_or_default())
            }
            // Its old container had to go first.
            _ => self.world.previous.and_then(differs).map_or(Reason::New, Reason::Changed),
        }
    }

    fn ended_for_good(&self, id: &InstanceId) -> bool {
        let app = self.world.release.plan.apps.get(&id.app);
        app.is_some_and(|app| app.restart == Restart::No)
    }

    /// Whether a container leaves before its successor serves, since `id` cannot start otherwise.
    fn must_give_way(&self, occupant: &Container, id: &InstanceId) -> bool {
        let Some(ours) = &occupant.ours else { return false };
        let app = &ours.instance.app;
        if *app == id.app && self.turn.get(app).is_none_or(|turn| *turn != id) {
            return false;
        }
        if ours.instance == *id {
            return true;
        }
        // Another instance's: while a successor of it can come up elsewhere, it leaves in its own time.
        let comes_up = |(other, container): (&&InstanceId, &ContainerSpec)| {
            other.app == *app
                && !self.in_place(container)
                && self.occupant(other).is_none_or(|(_, blocking)| self.is_dropped(blocking))
                && self
                    .world
                    .assignments
                    .get(*other)
                    .is_some_and(|a| self.world.snapshot.nodes.get(&a.node).is_some_and(may_come_back_soon))
        };
        !self.wanted.iter().any(comes_up)
    }

    /// Whether its application left the plan: it goes whatever comes after it.
    fn is_dropped(&self, container: &Container) -> bool {
        let apps = &self.world.release.plan.apps;
        container.ours.as_ref().is_some_and(|ours| !apps.contains_key(&ours.instance.app))
    }

    /// Whether an instance was seen to answer, and its node still does.
    fn stands_in(&self, id: &InstanceId, container: &ContainerSpec) -> bool {
        let node = self.world.assignments.get(id).and_then(|place| self.world.snapshot.nodes.get(&place.node));
        self.in_place(container) && node.is_some_and(Node::is_ready)
    }

    /// Whether its application is wanted, and none of the wanted instances serves yet.
    fn is_last(&self, ours: &Ours) -> bool {
        let app = &ours.instance.app;
        let wanted = self.world.release.plan.apps.get(app).is_some_and(|app| app.count() > 0);
        let serves = |(id, container): (&&InstanceId, &ContainerSpec)| id.app == *app && self.stands_in(id, container);
        wanted && !self.wanted.iter().any(serves)
    }

    fn retire(&self, node: &Node, container: &Container, ours: &Ours, decision: &mut Decision) {
        let id = &ours.instance;
        let successor = self.wanted.get(id);
        if successor.is_some_and(|s| s.name == container.name && self.world.assignments[id].node == node.name) {
            return;
        }
        if container.state == ContainerState::Removing || self.is_staged(&container.name) {
            return;
        }
        let reason = match successor {
            _ if decision.leaving.contains(&container.name) => Reason::MakesRoom,
            // Too many, or on the wrong node: it stays until another instance of its application serves.
            None if container.state == ContainerState::Running && self.is_last(ours) => return,
            None => Reason::NotInPlan,
            Some(new) if !self.stands_in(id, new) && container.state == ContainerState::Running => return,
            Some(_) if self.world.assignments[id].node != node.name => {
                Reason::Moved { node: self.world.assignments[id].node.clone() }
            }
            Some(_) => Reason::Replaced,
        };
        decision.leaving.insert(container.name.clone());
        // Unknown routing, or still in it: not yet.
        if self.world.routed.is_none() || self.serving.contains(container.name.as_str()) {
            return;
        }
        let successor_serves =
            successor.is_none_or(|new| !self.is_routed(&id.app) || self.serving.contains(new.name.as_str()));
        if reason != Reason::MakesRoom && !successor_serves && container.state == ContainerState::Running {
            return;
        }
        if self.world.holds.get(&container.name).is_some_and(|hold| hold.until > self.world.now) {
            return;
        }
        let app = self.world.release.plan.apps.get(&id.app);
        decision.actions.push(Action::Stop {
            node: node.name.clone(),
            instance: id.clone(),
            id: container.id.clone(),
            name: container.name.clone(),
            drain_seconds: app.map_or(defaults::DRAIN_SECONDS, |app| app.drain_timeout_seconds),
            stop_seconds: app.map_or(defaults::STOP_SECONDS, |app| app.stop_timeout_seconds),
            reason,
        });
    }
}

/// A node that is lost holds nothing up; one that is silent for a moment may just have been told to stop an instance.
fn may_come_back_soon(node: &Node) -> bool {
    !matches!(node.state, NodeState::Lost { .. })
}

fn holds_port(container: &Container) -> bool {
    matches!(container.state, ContainerState::Running | ContainerState::Restarting | ContainerState::Paused)
}

/// Every container of this cloud, with its node and what its labels say.
pub(super) fn our_containers<'a>(
    snapshot: &'a Snapshot,
    cloud: &'a CloudId,
) -> impl Iterator<Item = (&'a Node, &'a Container, &'a Ours)> {
    snapshot
        .containers()
        .filter_map(move |(node, c)| Some((node, c, c.ours.as_ref().filter(|ours| ours.cloud == *cloud)?)))
}

/// The plan's keys that differ from what this container was made from; empty where that is not known any more.
pub(super) fn changed_keys(world: World<'_>, old: &Ours) -> BTreeSet<String> {
    let app = &old.instance.app;
    let before = world.previous.and_then(|release| release.spec(app)).filter(|spec| spec.hash() == old.spec);
    match (before, world.release.spec(app)) {
        (Some(before), Some(after)) => differences(&before, &after).into_iter().map(str::to_owned).collect(),
        _ => BTreeSet::new(),
    }
}

/// The container an instance wants.
pub(super) fn wanted(world: World<'_>, id: &InstanceId, assignment: &Assignment) -> Option<ContainerSpec> {
    Some(container(world.cloud, world.release.number, id, assignment, world.release.spec(&id.app)?))
}

fn container(cloud: &CloudId, release: u64, id: &InstanceId, assignment: &Assignment, spec: Spec) -> ContainerSpec {
    let ours = Ours { cloud: cloud.clone(), instance: id.clone(), release, spec: assignment.spec.clone() };
    let name = ContainerSpec::name_of(id, &assignment.spec, &assignment.node, assignment.host_port);
    ContainerSpec { name, ours, host_port: assignment.host_port, spec }
}
