//! Load and ports of nodes while places are given, one instance after another.
//!
//! Never takes back a place it gave.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    num::NonZeroU32,
};

use crate::{
    inventory::{Admission, Intake, Node, NodeState, SpecHash},
    model::{AppName, InstanceId, Memory, NodeName, Port},
    plan::{App, Placement},
};

use super::{Assignment, Input, Placed, Unplaced};

/// Load and ports of nodes while places are given.
pub(super) struct Board<'a> {
    input: Input<'a>,
    pub(super) placed: Placed,
    /// Host ports in use or spoken for, by node.
    ports: BTreeMap<&'a NodeName, BTreeSet<Port>>,
    /// What is spoken for, by node.
    load: BTreeMap<NodeName, Load>,
}

/// What is spoken for on a node.
#[derive(Debug, Default)]
struct Load {
    memory: u64,
    cpu_millis: u64,
    instances: u32,
    of_app: BTreeMap<AppName, u32>,
    /// Ports the plan fixed.
    fixed: BTreeSet<Port>,
}

impl<'a> Board<'a> {
    /// The board with every instance that finds a place.
    pub(super) fn filled(input: Input<'a>) -> Self {
        let mut board = Self::new(input);
        let apps = &input.release.plan.apps;
        // Fixed places first: what floats goes around them.
        let (pinned, floating): (Vec<_>, Vec<_>) =
            apps.iter().partition(|(_, app)| matches!(app.placement, Placement::Pinned(_)));
        for (name, app) in pinned {
            board.pinned(name, app);
        }
        // What stays, of every application, before anything new: nobody's place is given away.
        let missing: Vec<_> = floating.into_iter().map(|(name, app)| (name, app, board.keep(name, app))).collect();
        for (name, app, slots) in missing {
            board.fill(name, app, slots);
        }
        board
    }

    /// A place for one more instance there, where a port is free.
    pub(super) fn place_on(&self, name: &AppName, app: &App, node: &Node) -> Option<Assignment> {
        let Placement::Replicas { publish, .. } = &app.placement else { return None };
        let spec = self.spec(name);
        let host_port = self.port(&node.name, *publish, None, &spec)?;
        Some(Assignment { node: node.name.clone(), host_port, pinned_port: publish.is_some(), spec })
    }

    /// Where an application's instances are.
    pub(super) fn places_of(&self, app: &AppName) -> impl Iterator<Item = (&InstanceId, &Assignment)> {
        let first = InstanceId::new(app.clone(), NonZeroU32::MIN);
        let last = InstanceId::new(app.clone(), NonZeroU32::MAX);
        self.placed.assignments.range(first..=last)
    }

    /// How full a node is: thousandths of its memory or processors, and instances.
    pub(super) fn fill_of(&self, node: &Node) -> (u64, u32) {
        let Some(load) = self.load.get(&node.name) else { return (0, 0) };
        let share = node.engine.as_ref().map_or(0, |engine| {
            let memory = per_mille(load.memory, engine.memory.bytes());
            memory.max(per_mille(load.cpu_millis, u64::from(engine.cpus) * 1000))
        });
        (share, load.instances)
    }

    fn new(input: Input<'a>) -> Self {
        let mut ports: BTreeMap<&NodeName, BTreeSet<Port>> = BTreeMap::new();
        for (node, container) in input.snapshot.containers() {
            ports.entry(&node.name).or_default().extend(container.published.values());
        }
        for assignment in input.previous.values() {
            ports.entry(&assignment.node).or_default().insert(assignment.host_port);
        }
        // An application's fixed ports are not for others to be allotted.
        for app in input.release.plan.apps.values() {
            match &app.placement {
                Placement::Pinned(pins) => {
                    for pin in pins {
                        ports.entry(&pin.node).or_default().extend(pin.publish);
                    }
                }
                Placement::Replicas { publish: Some(port), .. } => {
                    for node in input.snapshot.nodes.keys() {
                        ports.entry(node).or_default().insert(*port);
                    }
                }
                Placement::Replicas { publish: None, .. } => {}
            }
        }
        for (node, taken) in input.beside.ports.iter().chain(&input.doubts.held) {
            ports.entry(node).or_default().extend(taken);
        }
        let spoken = |(node, (memory, cpu_millis)): (&NodeName, &(u64, u64))| {
            (node.clone(), Load { memory: *memory, cpu_millis: *cpu_millis, ..Load::default() })
        };
        Self { input, placed: Placed::default(), ports, load: input.beside.load.iter().map(spoken).collect() }
    }

    fn spec(&self, app: &AppName) -> SpecHash {
        self.input.release.spec(app).map_or_else(|| SpecHash(String::new()), |spec| spec.hash())
    }

    fn previous(&self, app: &AppName) -> impl Iterator<Item = (&'a InstanceId, &'a Assignment)> + use<'a> {
        let first = InstanceId::new(app.clone(), NonZeroU32::MIN);
        let last = InstanceId::new(app.clone(), NonZeroU32::MAX);
        self.input.previous.range(first..=last)
    }

    fn pinned(&mut self, name: &AppName, app: &App) {
        let Placement::Pinned(pins) = &app.placement else { return };
        let spec = self.spec(name);
        let mut left: BTreeMap<_, _> = self.previous(name).collect();
        // A pin keeps the slot that was on its node: taking a node out of the plan must not renumber the others.
        let mut slots: Vec<Option<InstanceId>> = Vec::new();
        for pin in pins {
            let same = |a: &Assignment, exact: bool| {
                a.node == pin.node
                    && (!exact || pin.publish.map_or(!a.pinned_port, |port| a.pinned_port && a.host_port == port))
            };
            let found = left
                .iter()
                .find(|(_, a)| same(a, true))
                .or_else(|| left.iter().find(|(_, a)| same(a, false)))
                .map(|(id, _)| (*id).clone());
            if let Some(id) = &found {
                left.remove(id);
            }
            slots.push(found);
        }
        let mut taken: BTreeSet<u32> = slots.iter().flatten().map(|id| id.slot.get()).collect();
        for (pin, slot) in pins.iter().zip(slots) {
            let id = slot.unwrap_or_else(|| free_slot(name, &mut taken));
            let known = self.input.snapshot.nodes.get(&pin.node);
            let previous = self.input.previous.get(&id).filter(|a| a.node == pin.node);
            let refused = match known {
                Some(Node { intake: Intake::Removed, .. }) => Some(Unplaced::NotAdmitted(pin.node.clone())),
                // It was placed before: whatever happened to the node, the instance stays its.
                _ if previous.is_some() => None,
                None => Some(Unplaced::UnknownNode(pin.node.clone())),
                Some(node) => match node.admission {
                    Admission::Admitted { .. } => {
                        node.refuses().map(|why| Unplaced::Closed { why: format!("{} {why}", node.name) })
                    }
                    _ => Some(Unplaced::NotAdmitted(pin.node.clone())),
                },
            };
            if let Some(why) = refused {
                self.placed.unplaced.insert(id, why);
                continue;
            }
            if let Some(host_port) = self.port(&pin.node, pin.publish, previous, &spec) {
                self.assign(id, app, pin.node.clone(), host_port, pin.publish.is_some(), &spec);
            } else {
                let [first, last] = self.input.ports;
                let why = format!("{} has no free port in {first}-{last}", pin.node);
                self.placed.unplaced.insert(id, Unplaced::NoRoom { why });
            }
        }
    }

    /// Keeps the replicas that can stay; answers the slots still to fill.
    fn keep(&mut self, name: &AppName, app: &App) -> Vec<InstanceId> {
        let Placement::Replicas { count, nodes, publish } = &app.placement else { return Vec::new() };
        let spec = self.spec(name);
        let mut kept: BTreeSet<u32> = BTreeSet::new();
        let mut used: BTreeSet<NodeName> = BTreeSet::new();
        for (id, assignment) in self.previous(name) {
            let stays = u32::try_from(kept.len()).is_ok_and(|n| n < *count)
                && (nodes.is_empty() || nodes.contains(&assignment.node))
                && self.stay(id, &assignment.node) == Stay::Yes
                && (publish.is_none() || used.insert(assignment.node.clone()));
            if !stays {
                continue;
            }
            let Some(host_port) = self.port(&assignment.node, *publish, Some(assignment), &spec) else {
                continue;
            };
            kept.insert(id.slot.get());
            self.assign(id.clone(), app, assignment.node.clone(), host_port, publish.is_some(), &spec);
        }
        let wanted = usize::try_from(*count).unwrap_or(usize::MAX);
        let free = (1..u32::MAX).filter(|slot| !kept.contains(slot)).filter_map(NonZeroU32::new);
        free.take(wanted.saturating_sub(kept.len())).map(|slot| InstanceId::new(name.clone(), slot)).collect()
    }

    /// Whether an instance there need not move: its node may come back, or the manager is unsure.
    fn stay(&self, id: &InstanceId, node: &NodeName) -> Stay {
        let unless_frozen = |stay| if self.input.frozen { Stay::Yes } else { stay };
        match self.input.snapshot.nodes.get(node) {
            // It was forgotten on purpose.
            Some(Node { admission: Admission::Candidate { .. }, .. }) => Stay::No,
            Some(Node { state: NodeState::Lost { .. }, .. }) if self.input.doubts.awaited.contains(node) => Stay::Yes,
            None | Some(Node { state: NodeState::Lost { .. }, .. }) => unless_frozen(Stay::No),
            Some(Node { intake: Intake::Draining, .. }) => unless_frozen(Stay::UnlessElsewhere),
            Some(_) if self.is_kept_away(id, node) => unless_frozen(Stay::UnlessElsewhere),
            Some(_) => Stay::Yes,
        }
    }

    /// Whether it failed there again and again.
    fn is_kept_away(&self, id: &InstanceId, node: &NodeName) -> bool {
        self.input.doubts.away.get(id).is_some_and(|nodes| nodes.contains(node))
    }

    /// Where an instance that should leave stays, since there is no other place.
    fn remains(
        &self,
        id: &InstanceId,
        nodes: &[NodeName],
        publish: Option<Port>,
        spec: &SpecHash,
    ) -> Option<(NodeName, Port)> {
        let before = self.input.previous.get(id)?;
        let may =
            self.stay(id, &before.node) == Stay::UnlessElsewhere && (nodes.is_empty() || nodes.contains(&before.node));
        let port = may.then(|| self.port(&before.node, publish, Some(before), spec))??;
        Some((before.node.clone(), port))
    }

    fn fill(&mut self, name: &AppName, app: &App, slots: Vec<InstanceId>) {
        let Placement::Replicas { nodes, publish, .. } = &app.placement else { return };
        let spec = self.spec(name);
        let candidates: Vec<&'a Node> = self
            .input
            .snapshot
            .nodes
            .values()
            .filter(|node| node.is_ready() && (nodes.is_empty() || nodes.contains(&node.name)))
            .collect();
        let scored = |(at, node): (usize, &&Node)| Some(Reverse((self.score(name, app, node, *publish).ok()?, at)));
        // A place that is given changes the score of its own node alone.
        let mut best: BinaryHeap<_> = candidates.iter().enumerate().filter_map(scored).collect();
        for id in slots {
            let mut passed_over = Vec::new();
            let place = loop {
                let Some(Reverse((score, at))) = best.pop() else { break None };
                let node = candidates[at];
                if self.is_kept_away(&id, &node.name) {
                    passed_over.push(Reverse((score, at)));
                    continue;
                }
                if let Some(host_port) = self.port(&node.name, *publish, None, &spec) {
                    break Some((at, node, host_port));
                }
            };
            best.extend(passed_over);
            if let Some((at, node, host_port)) = place {
                self.assign(id, app, node.name.clone(), host_port, publish.is_some(), &spec);
                best.extend(self.score(name, app, node, *publish).ok().map(|score| Reverse((score, at))));
            } else {
                let lacks = candidates.iter().map(|node| match self.score(name, app, node, *publish) {
                    Ok(_) if self.is_kept_away(&id, &node.name) => format!("it failed on {} lately", node.name),
                    Ok(_) => format!("{} has no free port", node.name),
                    Err(why) => format!("{} {why}", node.name),
                });
                let why = lacks.collect::<Vec<_>>().join(", ");
                let why = if candidates.is_empty() { Unplaced::NoNode } else { Unplaced::NoRoom { why } };
                match self.remains(&id, nodes, *publish, &spec) {
                    Some((node, port)) => {
                        self.placed.stuck.insert(id.clone(), why);
                        self.assign(id, app, node, port, publish.is_some(), &spec);
                    }
                    None => _ = self.placed.unplaced.insert(id, why),
                }
            }
        }
    }

    /// How a node would stand with one more instance, or why it takes none.
    pub(super) fn score(&self, name: &AppName, app: &App, node: &Node, publish: Option<Port>) -> Result<Score, String> {
        if let Some(why) = node.refuses() {
            return Err(why.to_owned());
        }
        let empty = Load::default();
        let load = self.load.get(&node.name).unwrap_or(&empty);
        if let Some(port) = publish.filter(|port| load.fixed.contains(port)) {
            return Err(format!("has port {port} in use"));
        }
        let (memory, cpus) = (load.memory, load.cpu_millis);
        let (mut memory_share, mut cpu_share) = (0, 0);
        if let Some(engine) = &node.engine {
            let wants_memory = app.memory.map_or(0, Memory::bytes);
            let wants_cpus = app.cpus.map_or(0, |c| u64::from(c.millis()));
            let has_cpus = u64::from(engine.cpus) * 1000;
            if memory + wants_memory > engine.memory.bytes() {
                return Err("lacks memory".to_owned());
            }
            if cpus + wants_cpus > has_cpus {
                return Err("lacks processors".to_owned());
            }
            memory_share = per_mille(memory + wants_memory, engine.memory.bytes());
            cpu_share = per_mille(cpus + wants_cpus, has_cpus);
        }
        Ok(Score {
            same: load.of_app.get(name).copied().unwrap_or(0),
            share: memory_share.max(cpu_share),
            all: load.instances,
        })
    }

    /// The fixed port; the one it has, while its spec is the same and nobody else holds it; else a free one, so that old
    /// and new live side by side.
    fn port(
        &self,
        node: &NodeName,
        fixed: Option<Port>,
        previous: Option<&Assignment>,
        spec: &SpecHash,
    ) -> Option<Port> {
        if fixed.is_some() {
            return fixed;
        }
        let held = |port: &Port| self.input.doubts.held.get(node).is_some_and(|ports| ports.contains(port));
        if let Some(previous) = previous.filter(|p| p.spec == *spec && !p.pinned_port && !held(&p.host_port)) {
            return Some(previous.host_port);
        }
        let unused = BTreeSet::new();
        let used = self.ports.get(node).unwrap_or(&unused);
        let [first, last] = self.input.ports;
        (first..=last).filter_map(Port::new).find(|port| !used.contains(port))
    }

    fn assign(&mut self, id: InstanceId, app: &App, node: NodeName, host_port: Port, pinned: bool, spec: &SpecHash) {
        let load = self.load.entry(node.clone()).or_default();
        load.memory += app.memory.map_or(0, Memory::bytes);
        load.cpu_millis += app.cpus.map_or(0, |c| u64::from(c.millis()));
        load.instances += 1;
        *load.of_app.entry(id.app.clone()).or_default() += 1;
        if pinned {
            load.fixed.insert(host_port);
        }
        if let Some((known, _)) = self.input.snapshot.nodes.get_key_value(&node) {
            self.ports.entry(known).or_default().insert(host_port);
        }
        self.placed.assignments.insert(id, Assignment { node, host_port, pinned_port: pinned, spec: spec.clone() });
    }
}

/// Whether an instance stays where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stay {
    Yes,
    /// Only while there is no other place.
    UnlessElsewhere,
    No,
}

/// Less is better: spread the application first, then the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Score {
    /// How many of the application's instances are there.
    pub(super) same: u32,
    /// How much of the memory or the processors is spoken for, in thousandths.
    pub(super) share: u64,
    /// How many instances are there.
    pub(super) all: u32,
}

fn per_mille(part: u64, whole: u64) -> u64 {
    part.saturating_mul(1000).checked_div(whole).unwrap_or(0)
}

fn free_slot(app: &AppName, taken: &mut BTreeSet<u32>) -> InstanceId {
    let slot = (1..u32::MAX).find(|slot| !taken.contains(slot)).unwrap_or(u32::MAX);
    taken.insert(slot);
    InstanceId::new(app.clone(), NonZeroU32::new(slot).unwrap_or(NonZeroU32::MIN))
}
