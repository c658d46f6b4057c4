//! Which node gets which instance, and on which host port.
//!
//! No I/O, no clock, no chance: what is placed stays where it is while it can; ties break by name.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    fmt,
    num::NonZeroU32,
};

use serde::{Deserialize, Serialize};

use crate::{
    inventory::{Node, NodeState, Snapshot, SpecHash},
    model::{AppName, InstanceId, Memory, NodeName, Port},
    plan::{App, Placement},
    release::Release,
};

/// An instance's place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// The node.
    pub node: NodeName,
    /// The host port.
    pub host_port: Port,
    /// Whether the plan fixed the host port.
    pub pinned_port: bool,
    /// What its container is made from.
    pub spec: SpecHash,
}

/// Every instance's place.
pub type Assignments = BTreeMap<InstanceId, Assignment>;

/// Why an instance has no place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unplaced {
    /// The plan names a node nobody has seen.
    UnknownNode(NodeName),
    /// The plan names a node that is not admitted.
    NotAdmitted(NodeName),
    /// No node is ready.
    NoNode,
    /// Every ready node lacks memory, processors or a free port.
    NoRoom {
        /// What each lacks, for people.
        why: String,
    },
}
impl fmt::Display for Unplaced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownNode(node) => write!(f, "{node} is not known: no lease and no configuration names it"),
            Self::NotAdmitted(node) => write!(f, "{node} is not admitted (`matrix nodes admit {node}`)"),
            Self::NoNode => f.write_str("no node is ready"),
            Self::NoRoom { why } => write!(f, "no node has room: {why}"),
        }
    }
}

/// Places, and what found none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Placed {
    /// Every instance that has a place.
    pub assignments: Assignments,
    /// Every instance that has none.
    pub unplaced: BTreeMap<InstanceId, Unplaced>,
}

/// What placement looks at.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// What is wanted.
    pub release: &'a Release,
    /// The world.
    pub snapshot: &'a Snapshot,
    /// Where instances were placed before.
    pub previous: &'a Assignments,
    /// The host ports that may be allotted, first and last.
    pub ports: [u16; 2],
    /// Whether instances of lost nodes stay where they are: the manager is unsure.
    pub frozen: bool,
    /// What runs beside it for a while.
    pub beside: &'a Beside,
}

/// What runs beside a release until that is active: room and ports are taken.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Beside {
    /// Host ports by node.
    pub ports: BTreeMap<NodeName, BTreeSet<Port>>,
    /// Bytes of memory and thousandths of processors by node.
    pub load: BTreeMap<NodeName, (u64, u64)>,
}

impl Beside {
    /// Nothing.
    pub const NOTHING: Self = Self { ports: BTreeMap::new(), load: BTreeMap::new() };

    /// What `active` runs at these places and `next` makes anew or drops.
    pub fn of(active: &Release, places: &Assignments, next: &Release) -> Self {
        let mut beside = Self::default();
        for (id, place) in places {
            beside.ports.entry(place.node.clone()).or_default().insert(place.host_port);
            let Some(app) = active.plan.apps.get(&id.app) else { continue };
            if active.spec(&id.app) != next.spec(&id.app) {
                let load = beside.load.entry(place.node.clone()).or_default();
                load.0 += app.memory.map_or(0, Memory::bytes);
                load.1 += app.cpus.map_or(0, |c| u64::from(c.millis()));
            }
        }
        beside
    }
}

/// Gives every wanted instance a node and a host port.
pub fn place(input: Input<'_>) -> Placed {
    let mut board = Board::new(input);
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
    board.placed
}

/// Load and ports of nodes while places are given.
struct Board<'a> {
    input: Input<'a>,
    placed: Placed,
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
        for (node, taken) in &input.beside.ports {
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
                // It was placed before: whatever happened to the node, the instance stays its.
                _ if previous.is_some() => None,
                None => Some(Unplaced::UnknownNode(pin.node.clone())),
                Some(node) => match node.admission {
                    crate::inventory::Admission::Admitted { .. } => None,
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
                && self.may_stay(&assignment.node)
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
    fn may_stay(&self, node: &NodeName) -> bool {
        match self.input.snapshot.nodes.get(node) {
            Some(node) => self.input.frozen || !matches!(node.state, NodeState::Lost { .. }),
            // A node that was forgotten on purpose.
            None => self.input.frozen,
        }
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
            let place = loop {
                let Some(Reverse((_, at))) = best.pop() else { break None };
                let node = candidates[at];
                if let Some(host_port) = self.port(&node.name, *publish, None, &spec) {
                    break Some((at, node, host_port));
                }
            };
            if let Some((at, node, host_port)) = place {
                self.assign(id, app, node.name.clone(), host_port, publish.is_some(), &spec);
                best.extend(self.score(name, app, node, *publish).ok().map(|score| Reverse((score, at))));
            } else {
                let lacks = candidates.iter().map(|node| match self.score(name, app, node, *publish) {
                    Ok(_) => format!("{} has no free port", node.name),
                    Err(why) => format!("{} {why}", node.name),
                });
                let why = lacks.collect::<Vec<_>>().join(", ");
                let why = if candidates.is_empty() { Unplaced::NoNode } else { Unplaced::NoRoom { why } };
                self.placed.unplaced.insert(id, why);
            }
        }
    }

    fn score(&self, name: &AppName, app: &App, node: &Node, publish: Option<Port>) -> Result<Score, String> {
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

    /// The fixed port; the one it has, while its spec is the same; else a free one, so that old and new live side by side.
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
        if let Some(previous) = previous.filter(|p| p.spec == *spec && !p.pinned_port) {
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

/// Less is better: spread the application first, then the load.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Score {
    same: u32,
    share: u64,
    all: u32,
}

fn per_mille(part: u64, whole: u64) -> u64 {
    part.saturating_mul(1000).checked_div(whole).unwrap_or(0)
}

fn free_slot(app: &AppName, taken: &mut BTreeSet<u32>) -> InstanceId {
    let slot = (1..u32::MAX).find(|slot| !taken.contains(slot)).unwrap_or(u32::MAX);
    taken.insert(slot);
    InstanceId::new(app.clone(), NonZeroU32::new(slot).unwrap_or(NonZeroU32::MIN))
}
