//! When to sit still: what a manager that is unsure must not conclude from what it sees, or does not see.
//!
//! Pure: told the snapshot and how long the manager has run.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    inventory::{Admission, ContainerState, Intake, Node, NodeState, Snapshot},
    model::NodeName,
};

use super::{config::AdmissionPolicy, journal::Answered};

/// How long a manager that just started waits for the first node to show up; five times that for all of them.
const FIRST_LOOK: Duration = Duration::from_secs(1);

/// How long after its start a manager moves nothing away from a node that does not answer.
const SETTLING: Duration = Duration::from_secs(15);

/// Just started: which nodes are expected and have not been looked at yet. Placing on the first that answers would put
/// everything there.
pub(super) fn looks_around(snapshot: &Snapshot, policy: &AdmissionPolicy, running_for: Duration) -> Option<String> {
    let by_itself = matches!(policy, AdmissionPolicy::FirstUse);
    let expected = |node: &&Node| match node.admission {
        Admission::Admitted { .. } => matches!(node.state, NodeState::Unknown),
        Admission::Candidate { .. } => by_itself && node.intake != Intake::Removed,
        Admission::Refused { .. } => false,
    };
    let names: Vec<_> = snapshot.nodes.values().filter(expected).map(|node| node.name.as_str()).collect();
    if names.is_empty() {
        return (snapshot.nodes.is_empty() && running_for < FIRST_LOOK)
            .then(|| "the manager has just started".to_owned());
    }
    (running_for < FIRST_LOOK * 5).then(|| format!("the manager has just started and looks for {}", names.join(", ")))
}

/// Why instances of lost nodes had better stay where they are: more than this share of the nodes gone at once is more
/// likely the manager's own network. One node can always die.
fn unsure(snapshot: &Snapshot, running_for: Duration, freeze_share: f64) -> Option<String> {
    let admitted = snapshot.nodes.values().filter(|n| matches!(n.admission, Admission::Admitted { .. }));
    let (mut all, mut lost) = (0_u32, 0_u32);
    for node in admitted {
        all += 1;
        lost += u32::from(!matches!(node.state, NodeState::Ready));
    }
    if lost > 0 && running_for < SETTLING {
        return Some("the manager has just started".to_owned());
    }
    let most = f64::from(lost) > f64::from(all) * freeze_share;
    (lost > 1 && (most || lost == all)).then(|| format!("{lost} of {all} nodes do not answer at once"))
}

/// Whether the manager is unsure, and was lately: nodes that vanished together do not come back together.
#[derive(Debug, Default)]
pub(super) struct Unsure {
    /// How long it had run when most nodes were gone.
    most_gone: Option<Duration>,
}

impl Unsure {
    /// As [`unsure`]; for a while longer where nodes are still missing.
    pub(super) fn look(&mut self, snapshot: &Snapshot, running_for: Duration, freeze_share: f64) -> Option<String> {
        let why = unsure(snapshot, running_for, freeze_share);
        if why.is_some() {
            self.most_gone = (running_for >= SETTLING).then_some(running_for);
            return why;
        }
        let lately = self.most_gone.is_some_and(|then| running_for.saturating_sub(then) < SETTLING);
        let missing =
            |node: &Node| matches!(node.admission, Admission::Admitted { .. }) && node.state != NodeState::Ready;
        if lately && snapshot.nodes.values().any(missing) {
            return Some("nodes that were silent together are coming back".to_owned());
        }
        None
    }
}

/// What was seen to answer, without what is seen not to run any more: that has to answer again. What a node that does not
/// answer runs is not known to be gone.
pub(super) fn forget_gone(verified: &mut BTreeMap<String, Answered>, snapshot: &Snapshot) {
    let running: BTreeMap<&str, &str> = snapshot
        .containers()
        .filter(|(_, c)| c.state == ContainerState::Running)
        .map(|(_, c)| (c.name.as_str(), c.id.as_str()))
        .collect();
    verified.retain(|name, answered| {
        running.get(name.as_str()).is_some_and(|id| *id == answered.id)
            || match snapshot.nodes.get(&answered.node) {
                Some(node) => !node.is_ready(),
                // A node that was forgotten; or none is known yet.
                None => snapshot.nodes.is_empty(),
            }
    });
}

/// Nodes whose state is another than was told last, each with its words; and all states, to be told from next time.
pub(super) fn moved<'a>(
    told: &mut BTreeMap<NodeName, &'static str>,
    snapshot: &'a Snapshot,
) -> Vec<(&'a Node, &'static str)> {
    let before = std::mem::take(told);
    *told = snapshot.nodes.values().map(|node| (node.name.clone(), node.state_word())).collect();
    let states = snapshot.nodes.values().map(|node| (node, node.state_word()));
    states.filter(|(node, state)| before.get(&node.name) != Some(state)).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::{
        inventory::{Container, HostKey},
        model::Timestamp,
    };

    fn world(states: &[(&str, Option<NodeState>)]) -> Snapshot {
        let key = HostKey { algorithm: "ssh-ed25519".into(), key: "AAAA".into(), fingerprint: "SHA256:x".into() };
        let nodes = states.iter().map(|(name, state)| {
            let name = NodeName::try_from(*name).expect("a name");
            let container = Container {
                id: format!("id-{name}"),
                name: format!("shop.1-{name}"),
                ours: None,
                image: "shop".into(),
                state: ContainerState::Running,
                published: BTreeMap::new(),
                created: None,
            };
            let node = Node {
                name: name.clone(),
                address: [10, 10, 10, 1].into(),
                mac: None,
                lease_expires: None,
                admission: match state {
                    Some(_) => Admission::Admitted { key: key.clone() },
                    None => Admission::Candidate { offered: None },
                },
                state: state.unwrap_or(NodeState::Unknown),
                since: Timestamp::UNIX_EPOCH,
                engine: None,
                containers: vec![container],
                trouble: None,
                intake: Intake::Open,
                disk_full: false,
            };
            (name, node)
        });
        Snapshot { nodes: nodes.collect() }
    }

    pub(in super::super) fn ready(names: &[&str]) -> Snapshot {
        let all: Vec<_> = names.iter().map(|name| (*name, READY)).collect();
        world(&all)
    }

    const READY: Option<NodeState> = Some(NodeState::Ready);
    const UNKNOWN: Option<NodeState> = Some(NodeState::Unknown);
    const LOST: Option<NodeState> = Some(NodeState::Lost { since: Timestamp::UNIX_EPOCH });
    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn a_manager_that_just_started_waits_for_its_nodes() {
        let first_use = AdmissionPolicy::FirstUse;
        let soon = Duration::from_secs(2);
        let partly = world(&[("node1", READY), ("node2", UNKNOWN)]);
        let why = looks_around(&partly, &first_use, soon).expect("it waits");
        assert!(why.ends_with("looks for node2"), "{why}");
        assert_eq!(looks_around(&partly, &first_use, HOUR), None, "not for ever");
        assert_eq!(looks_around(&world(&[("node1", READY)]), &first_use, soon), None);
        assert!(looks_around(&Snapshot::default(), &first_use, Duration::ZERO).is_some());
        assert_eq!(looks_around(&Snapshot::default(), &first_use, soon), None);
        let candidate = world(&[("node1", READY), ("node2", None)]);
        assert!(looks_around(&candidate, &first_use, soon).is_some(), "it will be admitted by itself");
        assert_eq!(looks_around(&candidate, &AdmissionPolicy::Ask, soon), None, "somebody has to admit it");
    }

    #[test]
    fn most_nodes_gone_at_once_moves_nothing() {
        let one_of_three = world(&[("node1", LOST), ("node2", READY), ("node3", READY)]);
        assert_eq!(unsure(&one_of_three, HOUR, 0.5), None);
        assert!(unsure(&one_of_three, Duration::from_secs(5), 0.5).is_some(), "it may be coming up still");
        let two_of_three = world(&[("node1", LOST), ("node2", LOST), ("node3", READY)]);
        assert!(unsure(&two_of_three, HOUR, 0.5).is_some());
        assert_eq!(unsure(&two_of_three, HOUR, 0.7), None, "as it was configured");
        assert_eq!(unsure(&world(&[("node1", LOST), ("node2", READY)]), HOUR, 0.0), None, "one node can always die");
        assert!(unsure(&world(&[("node1", LOST), ("node2", LOST)]), HOUR, 1.0).is_some(), "nowhere to go");
    }

    #[test]
    fn nodes_that_were_silent_together_have_time_to_come_back() {
        let gone = world(&[("node1", LOST), ("node2", LOST), ("node3", LOST)]);
        let partly = world(&[("node1", READY), ("node2", READY), ("node3", LOST)]);
        let minute = Duration::from_secs(60);
        let mut unsure = Unsure::default();
        assert_eq!(unsure.look(&partly, minute, 0.5), None, "one node can always die");
        assert!(unsure.look(&gone, minute * 2, 0.5).is_some());
        assert!(unsure.look(&partly, minute * 2 + SETTLING / 2, 0.5).is_some());
        assert_eq!(unsure.look(&partly, minute * 2 + SETTLING, 0.5), None, "not for ever");
        let back = world(&[("node1", READY), ("node2", READY), ("node3", READY)]);
        assert_eq!(unsure.look(&back, minute * 2 + SETTLING / 2, 0.5), None);
    }

    #[test]
    fn what_a_silent_node_ran_is_not_forgotten() {
        let answered = |node: &str, id: &str| Answered {
            id: id.to_owned(),
            status: Some(200),
            node: NodeName::try_from(node).expect("a name"),
        };
        let before = BTreeMap::from([
            ("shop.1-node1".to_owned(), answered("node1", "id-node1")),
            ("shop.1-node2".to_owned(), answered("node2", "another id: it was made anew")),
            ("gone-node1".to_owned(), answered("node1", "gone")),
            ("gone-node3".to_owned(), answered("node3", "hidden, since node3 does not answer")),
            ("gone-node4".to_owned(), answered("node4", "its node was forgotten")),
        ]);
        let mut verified = before.clone();
        forget_gone(&mut verified, &world(&[("node1", READY), ("node2", READY), ("node3", LOST)]));
        assert_eq!(verified.into_keys().collect::<Vec<_>>(), ["gone-node3", "shop.1-node1"]);
        let mut verified = before.clone();
        forget_gone(&mut verified, &Snapshot::default());
        assert_eq!(verified, before, "nothing has been looked at");
    }

    #[test]
    fn a_state_is_told_once() {
        let mut told = BTreeMap::new();
        let up = world(&[("node1", READY), ("node2", READY)]);
        assert_eq!(moved(&mut told, &up).len(), 2);
        assert_eq!(moved(&mut told, &up).len(), 0);
        let down = world(&[("node1", READY), ("node2", LOST)]);
        let words: Vec<_> =
            moved(&mut told, &down).iter().map(|(node, word)| format!("{} {word}", node.name)).collect();
        assert_eq!(words, ["node2 lost"]);
    }
}
