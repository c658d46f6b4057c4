//! A node: where it is, whether it is admitted, whether it answers.

use std::{fmt, net::IpAddr, num::NonZeroU8, time::Duration};

use serde::{Deserialize, Serialize};

use crate::model::{MacAddr, Memory, NodeName, Timestamp};

use super::Container;

/// An SSH host key, as `known_hosts` and `ssh-keygen -l` write it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostKey {
    /// `ssh-ed25519`
    pub algorithm: String,
    /// The key, base64.
    pub key: String,
    /// `SHA256:…`
    pub fingerprint: String,
}
impl fmt::Display for HostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.algorithm, self.fingerprint)
    }
}

/// Whether a machine may be a node. A lease alone makes a candidate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Admission {
    /// Seen, not admitted; its key where it was read.
    Candidate {
        /// The key it offers.
        offered: Option<HostKey>,
    },
    /// Admitted with this key, pinned.
    Admitted {
        /// The pinned key.
        key: HostKey,
    },
    /// It offers another key than the pinned one, or is a second machine with a known machine-id: not spoken to.
    Refused {
        /// The pinned key.
        pinned: Option<HostKey>,
        /// The key it offers.
        offered: Option<HostKey>,
        /// Why, for people.
        why: String,
    },
}

/// Whether a node answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// Not yet spoken to since the manager started.
    Unknown,
    /// The session is up and the engine answers.
    Ready,
    /// It missed answers, not yet enough to call it lost.
    Suspect {
        /// How many in a row.
        misses: NonZeroU8,
    },
    /// It does not answer.
    Lost {
        /// Since when.
        since: Timestamp,
    },
}

/// One look at a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// The engine answered.
    Answer,
    /// It did not, within the time allowed.
    Silence {
        /// For how long already.
        lasting: Duration,
        /// What there is to see of it otherwise.
        path: DataPath,
    },
}

/// A node without its engine and its session: what is seen of it from where requests come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataPath {
    /// Whether the machine answers at all, be it with a refusal.
    pub machine: bool,
    /// Whether what runs there serves.
    pub backends: Backends,
}

/// What the gateway sees of its backends on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backends {
    /// It has none there, or there is no gateway: nothing speaks for the node.
    None,
    /// At least one serves.
    Serving,
    /// None serves.
    Sick,
}

impl NodeState {
    /// Two, not one: an engine drops a look while it restarts.
    pub const MISSES_TO_LOSE: u8 = 2;

    /// A machine that answers while its engine or sshd does not is most likely restarting them: it has this many times
    /// longer.
    pub const PATIENCE_WITH_MACHINE: u32 = 3;

    /// The state after one more look at `now`. Lost is what was silent for `lost_after`, seen from two sides.
    #[must_use]
    pub fn next(self, seen: Seen, lost_after: Duration, now: Timestamp) -> Self {
        const ONE: NonZeroU8 = NonZeroU8::MIN;
        let (lasting, path) = match seen {
            Seen::Answer => return Self::Ready,
            Seen::Silence { lasting, path } => (lasting, path),
        };
        let patience = if path.machine { lost_after * Self::PATIENCE_WITH_MACHINE } else { lost_after };
        let gone = lasting >= patience && path.backends != Backends::Serving;
        match self {
            Self::Unknown | Self::Ready => Self::Suspect { misses: ONE },
            Self::Suspect { misses } if gone && misses.get() >= Self::MISSES_TO_LOSE => Self::Lost { since: now },
            Self::Suspect { misses } => Self::Suspect { misses: misses.saturating_add(1) },
            // Its instances have been placed elsewhere: only its engine can say what it runs now.
            Self::Lost { since } => Self::Lost { since },
        }
    }
}

/// Whether instances are placed on a node, as an operator said it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Intake {
    /// They are.
    #[default]
    Open,
    /// Nothing new is placed there; what runs there stays.
    Cordoned,
    /// Nothing new is placed there, and what can move away does.
    Draining,
    /// It was removed: whatever the policy says, only an operator admits it again.
    Removed,
}

/// What its engine says of itself and its machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Engine {
    /// `20.10.24+dfsg1`
    pub version: String,
    /// Processors.
    pub cpus: u32,
    /// Memory.
    pub memory: Memory,
    /// Free bytes where the engine keeps its images; none where unknown.
    pub disk_free: Option<u64>,
    /// All bytes there.
    pub disk_total: Option<u64>,
    /// The engine's own id; equal on two nodes means a cloned machine.
    pub id: String,
    /// `linux`
    pub os: String,
    /// `amd64`, in OCI's words.
    pub architecture: String,
}

impl Engine {
    /// How full the disk is, in percent; none where it is not known.
    pub fn disk_used(&self) -> Option<u8> {
        let (free, total) = self.disk_free.zip(self.disk_total).filter(|(_, total)| *total > 0)?;
        let used = u128::from(total - free.min(total)) * 100 / u128::from(total);
        u8::try_from(used).ok()
    }
}

/// A node as it is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its name.
    pub name: NodeName,
    /// Its address.
    pub address: IpAddr,
    /// Its hardware address, where its lease says it.
    pub mac: Option<MacAddr>,
    /// Until when its lease runs; none: infinite, or a static node.
    pub lease_expires: Option<Timestamp>,
    /// Whether it may be a node.
    pub admission: Admission,
    /// Whether it answers.
    pub state: NodeState,
    /// Since when it is in this state.
    pub since: Timestamp,
    /// Its engine, once it has answered.
    pub engine: Option<Engine>,
    /// Its containers when it last answered.
    pub containers: Vec<Container>,
    /// Why it is not ready, for people.
    pub trouble: Option<String>,
    /// Whether instances are placed there.
    #[serde(default)]
    pub intake: Intake,
    /// Whether its disk is too full for anything new.
    #[serde(default)]
    pub disk_full: bool,
}

impl Node {
    /// How it is, in a word.
    pub fn state_word(&self) -> &'static str {
        match (&self.admission, self.state) {
            (Admission::Candidate { .. }, _) => "candidate",
            (Admission::Refused { .. }, _) => "refused",
            (Admission::Admitted { .. }, NodeState::Unknown) => "unknown",
            (Admission::Admitted { .. }, NodeState::Ready) => "ready",
            (Admission::Admitted { .. }, NodeState::Suspect { .. }) => "suspect",
            (Admission::Admitted { .. }, NodeState::Lost { .. }) => "lost",
        }
    }
    /// Whether it is admitted and answers.
    pub fn is_ready(&self) -> bool {
        matches!(self.admission, Admission::Admitted { .. }) && matches!(self.state, NodeState::Ready)
    }
    /// Why nothing new is placed there, to follow its name; none: something may be, while it is ready.
    pub fn refuses(&self) -> Option<&'static str> {
        match self.intake {
            Intake::Cordoned => Some("is cordoned"),
            Intake::Draining => Some("is drained"),
            Intake::Removed => Some("is removed"),
            Intake::Open => self.disk_full.then_some("has a full disk"),
        }
    }
    /// Whether something new may be placed there now.
    pub fn takes_instances(&self) -> bool {
        self.is_ready() && self.refuses().is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOST_AFTER: Duration = Duration::from_secs(4);

    fn suspect(misses: u8) -> NodeState {
        NodeState::Suspect { misses: NonZeroU8::new(misses).expect("not 0") }
    }

    #[test]
    fn a_node_is_lost_when_it_is_silent_on_both_sides() {
        use Backends::{None, Serving, Sick};
        let lost = NodeState::Lost { since: Timestamp::UNIX_EPOCH };
        for (before, seconds, machine, backends, after) in [
            (NodeState::Ready, 1, false, Sick, suspect(1)),
            (NodeState::Ready, 60, false, Sick, suspect(1)),
            (NodeState::Unknown, 1, false, None, suspect(1)),
            (suspect(1), 60, false, Sick, suspect(2)),
            (suspect(2), 3, false, Sick, suspect(3)),
            (suspect(2), 4, false, Sick, lost),
            (suspect(2), 4, false, None, lost),
            // Only the session is dead: what serves goes on, for however long.
            (suspect(2), 4, true, Serving, suspect(3)),
            (suspect(255), 90_000, true, Serving, suspect(255)),
            // Probes that have not noticed yet, or that are far apart.
            (suspect(2), 4, false, Serving, suspect(3)),
            // An engine that restarts takes its containers with it.
            (suspect(2), 4, true, Sick, suspect(3)),
            (suspect(2), 12, true, Sick, lost),
            (suspect(2), 4, true, None, suspect(3)),
            (suspect(2), 12, true, None, lost),
            (lost, 90, true, Serving, lost),
        ] {
            let seen = Seen::Silence { lasting: Duration::from_secs(seconds), path: DataPath { machine, backends } };
            assert_eq!(
                before.next(seen, LOST_AFTER, Timestamp::UNIX_EPOCH),
                after,
                "{before:?} {seconds} {machine} {backends:?}"
            );
            assert_eq!(before.next(Seen::Answer, LOST_AFTER, Timestamp::UNIX_EPOCH), NodeState::Ready);
        }
    }
}
