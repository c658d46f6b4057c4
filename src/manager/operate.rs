//! Operating nodes: nothing new there, everything away from there, not a node any more.
//!
//! Moves nothing by itself: it says what is meant, and the loop brings it about.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{
    inventory::{Admission, Container, Intake, Node, NodeState, Snapshot},
    model::{InstanceId, NodeName},
    plan::Placement,
    schedule::{self, Beside, Placed},
};

use super::{Manager, Overview, events::Kind, nodes::NodesError};

/// How far a node is from being empty of what can move.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// The node.
    pub node: NodeName,
    /// Whether instances are placed there.
    pub intake: Intake,
    /// Instances that can move and are there still, or would move.
    pub leaving: Vec<Leaving>,
    /// Instances that the plan pins there: they stay and run on.
    pub pinned: Vec<InstanceId>,
}

/// An instance on its way to another node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaving {
    /// `shop.2`
    pub instance: InstanceId,
    /// Where to; none: there is no other place for it, or it goes for good.
    pub to: Option<NodeName>,
    /// What keeps it.
    pub why: Option<String>,
}

/// Why a node is not drained or removed. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum OperateError {
    /// Nobody else takes instances.
    #[error("{node} is the last node that takes instances{others}")]
    LastNode {
        /// The node.
        node: NodeName,
        /// The others, and why they take none, for people.
        others: String,
    },
    /// Something is there still.
    #[error("{node} is not empty: {left} {} there", if *.many { "are" } else { "is" })]
    NotEmpty {
        /// The node.
        node: NodeName,
        /// What is there, for people.
        left: String,
        /// Whether that is more than one.
        many: bool,
        /// Whether the plan pins something there.
        pinned: bool,
    },
    /// It does not answer, and something ran there.
    #[error("{node} does not answer, and ran {left} when it last did")]
    Silent {
        /// The node.
        node: NodeName,
        /// What ran there, for people.
        left: String,
    },
    /// It is silent since a moment only.
    #[error("{node} is {state}: whether it runs something is not known")]
    Unsure {
        /// The node.
        node: NodeName,
        /// How it is.
        state: &'static str,
    },
    /// The node.
    #[error(transparent)]
    Node(#[from] NodesError),
}

impl OperateError {
    /// What to do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::LastNode { .. } => {
                Some("add a node, or end another's cordon (matrix nodes undrain NODE), then drain".to_owned())
            }
            Self::NotEmpty { node, pinned: false, .. } => Some(format!("matrix nodes drain {node}")),
            Self::NotEmpty { node, .. } => {
                Some(format!("the plan pins it there: deploy a plan that does not name {node}"))
            }
            Self::Silent { .. } => {
                Some("--force removes it anyway: what it runs is forgotten, and placed elsewhere".to_owned())
            }
            Self::Unsure { .. } => Some("wait until it answers or is lost (matrix nodes)".to_owned()),
            Self::Node(error) => error.hint(),
        }
    }
}

impl Manager {
    /// Keeps new instances from a node; what runs there stays.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn cordon(&self, node: &NodeName, by: &str) -> Result<bool, OperateError> {
        // A node that is drained is cordoned already, and more.
        let draining = self.0.nodes.snapshot().nodes.get(node).is_some_and(|n| n.intake == Intake::Draining);
        Ok(!draining
            && self.intake(node, Intake::Cordoned, &format!("cordoned by {by}: nothing new is placed here"))?)
    }

    /// Ends a cordon or a drain. Whether there was one.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn undrain(&self, node: &NodeName, by: &str) -> Result<bool, OperateError> {
        self.intake(node, Intake::Open, &format!("takes instances again, says {by}"))
    }

    /// Moves away from a node what can move, or only says what that is.
    ///
    /// # Errors
    /// When there is no such node, or no other one takes instances.
    pub fn drain(&self, node: &NodeName, by: &str, dry_run: bool) -> Result<Drain, OperateError> {
        let snapshot = self.0.nodes.snapshot();
        let known = snapshot.nodes.get(node).ok_or_else(|| NodesError::Unknown { node: node.clone() })?;
        if matches!(known.admission, Admission::Candidate { .. }) {
            return Err(NodesError::NotAdmitted { node: node.clone() }.into());
        }
        if known.intake != Intake::Draining {
            others_take(&snapshot, node)?;
        }
        let drain = self.drained(node)?;
        if !dry_run {
            self.intake(node, Intake::Draining, &format!("drained by {by}: what can move moves away"))?;
        }
        Ok(Drain { intake: if dry_run { drain.intake } else { Intake::Draining }, ..drain })
    }

    /// How far a node is from being empty of what can move, or (where it is not drained) what would have to.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn drained(&self, node: &NodeName) -> Result<Drain, OperateError> {
        let mut snapshot = (*self.0.nodes.snapshot()).clone();
        let known = snapshot.nodes.get_mut(node).ok_or_else(|| NodesError::Unknown { node: node.clone() })?;
        let intake = std::mem::replace(&mut known.intake, Intake::Draining);
        let overview = self.0.overview.borrow().clone();
        let placed = match &overview.remembered.release {
            Some(release) => schedule::place(schedule::Input {
                release,
                snapshot: &snapshot,
                previous: &overview.remembered.assignments,
                ports: self.config().ports,
                frozen: overview.progress.frozen.is_some(),
                beside: &Beside::NOTHING,
                doubts: &schedule::Doubts::NONE,
            }),
            None => Placed::default(),
        };
        let (leaving, pinned) = on(&snapshot.nodes[node], self, &overview, &placed);
        Ok(Drain { node: node.clone(), intake, leaving, pinned })
    }

    /// Takes a node out of the cloud: unpins its key, and admits it no more by itself. Whether it was one.
    ///
    /// # Errors
    /// When there is no such node, or it is not empty; `force` allows for one that is lost.
    pub fn remove(&self, node: &NodeName, by: &str, force: bool) -> Result<bool, OperateError> {
        let snapshot = self.0.nodes.snapshot();
        let known = snapshot.nodes.get(node).ok_or_else(|| NodesError::Unknown { node: node.clone() })?;
        let answers = match (&known.admission, known.state) {
            (Admission::Candidate { .. }, _) if known.intake == Intake::Removed => return Ok(false),
            (Admission::Candidate { .. }, _) => return Err(NodesError::NotAdmitted { node: node.clone() }.into()),
            (Admission::Admitted { .. }, NodeState::Ready) => true,
            (Admission::Admitted { .. }, NodeState::Lost { .. }) | (Admission::Refused { .. }, _) => false,
            (Admission::Admitted { .. }, NodeState::Unknown | NodeState::Suspect { .. }) => {
                return Err(OperateError::Unsure { node: node.clone(), state: known.state_word() });
            }
        };
        let drain = self.drained(node)?;
        let ours = |c: &&Container| c.ours.as_ref().is_some_and(|ours| ours.cloud == self.config().cloud);
        let mut left: BTreeSet<String> = drain.leaving.iter().map(|left| left.instance.to_string()).collect();
        left.extend(drain.pinned.iter().map(ToString::to_string));
        left.extend(known.containers.iter().filter(ours).filter_map(|c| Some(c.ours.as_ref()?.instance.to_string())));
        let (many, left) = (left.len() > 1, left.into_iter().collect::<Vec<_>>().join(", "));
        match (left.is_empty(), answers) {
            (true, _) => {}
            (false, true) => {
                let pinned = !drain.pinned.is_empty() && drain.leaving.is_empty();
                return Err(OperateError::NotEmpty { node: node.clone(), left, many, pinned });
            }
            (false, false) if force => {}
            (false, false) => return Err(OperateError::Silent { node: node.clone(), left }),
        }
        self.0.nodes.forget(node)?;
        let text = format!("removed by {by}; it is a node again when it is admitted by hand");
        self.0.events.tell(Kind::Note, node, Some(node), text);
        Ok(true)
    }

    fn intake(&self, node: &NodeName, intake: Intake, told: &str) -> Result<bool, OperateError> {
        let new = self.0.nodes.set_intake(node, intake)?;
        if new {
            self.0.events.tell(Kind::Note, node, Some(node), told);
        }
        Ok(new)
    }
}

/// That another node takes what leaves this one.
fn others_take(snapshot: &Snapshot, node: &NodeName) -> Result<(), OperateError> {
    let admitted = |n: &&Node| n.name != *node && matches!(n.admission, Admission::Admitted { .. });
    let others: Vec<_> = snapshot.nodes.values().filter(admitted).collect();
    if others.iter().any(|n| n.takes_instances()) {
        return Ok(());
    }
    let why = |n: &&Node| match n.refuses() {
        Some(why) if n.is_ready() => format!("{} {why}", n.name),
        _ => format!("{} is {}", n.name, n.state_word()),
    };
    let others: Vec<_> = others.iter().map(why).collect();
    let others = if others.is_empty() { String::new() } else { format!(": {}", others.join(", ")) };
    Err(OperateError::LastNode { node: node.clone(), others })
}

/// What is on a node: what can move, and what is pinned.
fn on(node: &Node, manager: &Manager, overview: &Overview, placed: &Placed) -> (Vec<Leaving>, Vec<InstanceId>) {
    let known = &overview.remembered;
    let placed_here = known.assignments.iter().filter(|(_, a)| a.node == node.name).map(|(id, _)| id);
    // What a node that does not answer runs is not known, and nobody waits for it.
    let containers = node.containers.iter().filter(|_| node.is_ready());
    let run_here = containers.filter_map(|c| c.ours.as_ref()).filter(|ours| ours.cloud == manager.config().cloud);
    let ids: BTreeSet<&InstanceId> = placed_here.chain(run_here.map(|ours| &ours.instance)).collect();
    let app = |id: &InstanceId| known.release.as_ref().and_then(|release| release.plan.apps.get(&id.app));
    let is_pinned = |id: &&InstanceId| {
        app(id).is_some_and(|app| matches!(app.placement, Placement::Pinned(_)))
            && known.assignments.get(*id).is_some_and(|a| a.node == node.name)
    };
    let (pinned, movable): (Vec<_>, Vec<_>) = ids.into_iter().partition(is_pinned);
    let frozen = overview.progress.frozen.as_ref().map(|why| format!("nothing is moved: {why}"));
    let said = |of: &BTreeMap<InstanceId, String>, id: &InstanceId| of.get(id).cloned();
    let leaving = movable.into_iter().map(|id| Leaving {
        to: placed.assignments.get(id).map(|a| a.node.clone()).filter(|to| *to != node.name),
        why: frozen
            .clone()
            .or_else(|| placed.stuck.get(id).map(ToString::to_string))
            .or_else(|| said(&overview.progress.failures, id))
            .or_else(|| said(&overview.progress.waiting, id)),
        instance: id.clone(),
    });
    (leaving.collect(), pinned.into_iter().cloned().collect())
}
