//! What can be done next, each with its reason.

use std::{collections::BTreeSet, fmt};

use serde::{Deserialize, Serialize};

use crate::{
    inventory::ContainerSpec,
    model::{InstanceId, NodeName},
    release::told,
};

/// Why something is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// It was not there before.
    New,
    /// Its container is there but does not run.
    Stopped,
    /// Its container runs, but nobody has seen it answer yet.
    NotVerified,
    /// The plan asks something else of it now.
    CheckChanged,
    /// It is made from something else now: these keys of the plan.
    Changed(BTreeSet<String>),
    /// It runs elsewhere now.
    Moved {
        /// Where from for a start, where to for a stop.
        node: NodeName,
    },
    /// The plan does not name it any more.
    NotInPlan,
    /// Another container took its place.
    Replaced,
    /// It holds the host port that its successor needs.
    MakesRoom,
}
impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::New => f.write_str("new in plan"),
            Self::Stopped => f.write_str("its container does not run"),
            Self::CheckChanged => f.write_str("its health check changed"),
            Self::NotVerified => f.write_str("not yet seen to answer"),
            Self::Changed(keys) if keys.is_empty() => f.write_str("changed"),
            Self::Changed(keys) => f.write_str(&told(keys.iter().map(String::as_str))),
            Self::Moved { node } => write!(f, "moved: {node}"),
            Self::NotInPlan => f.write_str("no longer in plan"),
            Self::Replaced => f.write_str("replaced"),
            Self::MakesRoom => f.write_str("its successor needs its port"),
        }
    }
}

/// One thing that can be done now. Doing it twice does no harm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Pull, create, start, and wait until it answers.
    Start {
        /// The node.
        node: NodeName,
        /// The container.
        container: ContainerSpec,
        /// Why.
        reason: Reason,
    },
    /// Wait until a running container answers.
    Verify {
        /// The node.
        node: NodeName,
        /// The container's name.
        container: ContainerSpec,
        /// Why.
        reason: Reason,
    },
    /// Let in-flight requests end, stop, remove. It is out of routing when this is asked for.
    Stop {
        /// The node.
        node: NodeName,
        /// The instance.
        instance: InstanceId,
        /// The engine's id of the container.
        id: String,
        /// The container's name.
        name: String,
        /// For in-flight requests, in seconds.
        drain_seconds: u32,
        /// Between SIGTERM and SIGKILL, in seconds.
        stop_seconds: u32,
        /// Why.
        reason: Reason,
    },
}

impl Action {
    /// The name of the container it is about: two actions about one container never run at once.
    pub fn container(&self) -> &str {
        match self {
            Self::Start { container, .. } | Self::Verify { container, .. } => &container.name,
            Self::Stop { name, .. } => name,
        }
    }
    /// The instance it is about.
    pub fn instance(&self) -> &InstanceId {
        match self {
            Self::Start { container, .. } | Self::Verify { container, .. } => &container.ours.instance,
            Self::Stop { instance, .. } => instance,
        }
    }
    /// The node it happens on.
    pub fn node(&self) -> &NodeName {
        match self {
            Self::Start { node, .. } | Self::Verify { node, .. } | Self::Stop { node, .. } => node,
        }
    }
}
impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (verb, reason) = match self {
            Self::Start { reason, .. } => ("+ start", reason),
            Self::Verify { reason, .. } => ("? verify", reason),
            Self::Stop { reason, .. } => ("- stop", reason),
        };
        write!(f, "{verb} {} on {} ({reason})", self.instance(), self.node())
    }
}

/// All that can be done now, and what waits.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Decision {
    /// To do now, all at once.
    pub actions: Vec<Action>,
    /// Containers that must leave routing before they can be stopped.
    pub leaving: BTreeSet<String>,
    /// What cannot go on yet, and on what it waits: `node25 does not answer`.
    pub waiting: Vec<(InstanceId, String)>,
}
