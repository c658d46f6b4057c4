//! Which node gets which instance, and on which host port.
//!
//! No I/O, no clock, no chance: what is placed stays where it is while it can; ties break by name.

mod balance;
mod board;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::{Deserialize, Serialize};

use crate::{
    inventory::{Snapshot, SpecHash},
    model::{AppName, InstanceId, Memory, NodeName, Port},
    release::Release,
};

pub use balance::{Move, better};

use board::Board;

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
    /// The node the plan names takes nothing new: it is cordoned, drained or full.
    Closed {
        /// Which, and why, for people.
        why: String,
    },
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
            Self::Closed { why } => f.write_str(why),
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
    /// Every instance that should leave a drained node, has no other place, and stays until there is one.
    pub stuck: BTreeMap<InstanceId, Unplaced>,
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
    /// What goes badly.
    pub doubts: &'a Doubts,
}

/// What goes badly where it is, and what had better be waited for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Doubts {
    /// Nodes where an instance failed again and again: it runs elsewhere, if there is another place.
    pub away: BTreeMap<InstanceId, BTreeSet<NodeName>>,
    /// Lost nodes whose instances wait for them still.
    pub awaited: BTreeSet<NodeName>,
    /// Host ports an engine refused to publish: somebody holds them, whom no container shows.
    pub held: BTreeMap<NodeName, BTreeSet<Port>>,
}

impl Doubts {
    /// None.
    pub const NONE: Self = Self { away: BTreeMap::new(), awaited: BTreeSet::new(), held: BTreeMap::new() };

    /// Applications with the nodes where one of their instances failed.
    pub fn places(&self) -> BTreeSet<(AppName, NodeName)> {
        let of = |(id, nodes): (&InstanceId, &BTreeSet<NodeName>)| {
            nodes.iter().map(|node| (id.app.clone(), node.clone())).collect::<Vec<_>>()
        };
        self.away.iter().flat_map(of).collect()
    }
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

    /// The host ports of a release on its way: whatever else finds a place meanwhile gets others.
    pub fn ports_of(places: &Assignments) -> Self {
        let mut beside = Self::default();
        for place in places.values() {
            beside.ports.entry(place.node.clone()).or_default().insert(place.host_port);
        }
        beside
    }

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
    Board::filled(input).placed
}
