//! Laws of operating nodes, on the simulated world: what a cordon keeps away, what a drain moves and what it cannot move.

use matrix::{
    inventory::{Intake, NodeState},
    model::{NodeName, Timestamp},
    reconcile::{Action, Reason},
};
use proptest::prelude::*;

use crate::world::{Sim, any_plan, release};

fn name(number: usize) -> NodeName {
    NodeName::try_from(format!("node{number}")).unwrap()
}

fn say(sim: &mut Sim, number: usize, intake: Intake) {
    sim.snapshot.nodes.get_mut(&name(number)).unwrap().intake = intake;
}

/// Instances placed on a node that can move.
fn movable(sim: &Sim, number: usize) -> Vec<String> {
    let floats = |app| {
        matches!(
            sim.release.plan.apps.get(app).map(|app| &app.placement),
            Some(matrix::plan::Placement::Replicas { .. })
        )
    };
    let there = sim.assignments.iter().filter(|(id, a)| a.node == name(number) && floats(&id.app));
    there.map(|(id, _)| id.to_string()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// `settle` holds on the way that no application goes dark and nothing is stopped while requests are sent to it.
    #[test]
    fn a_drain_empties_a_node_and_loses_nothing(text in any_plan(), next in any_plan(), nodes in 2..5usize, drained in 1..3usize) {
        let mut sim = Sim::new(nodes, release(1, &text));
        sim.settle();
        let placed: Vec<_> = sim.assignments.keys().cloned().collect();
        let pinned: Vec<_> = sim.assignments.iter().filter(|(_, a)| a.node == name(drained)).map(|(id, _)| id.clone()).collect();
        let movable_before = movable(&sim, drained);
        say(&mut sim, drained, Intake::Draining);
        for action in sim.settle() {
            prop_assert!(!matches!(&action, Action::Start { node, .. } if *node == name(drained)), "{}", action);
            let moved = matches!(&action, Action::Start { reason: Reason::Moved { .. }, .. } | Action::Stop { reason: Reason::Moved { .. }, .. });
            prop_assert!(moved, "{}", action);
        }
        prop_assert_eq!(movable(&sim, drained), Vec::<String>::new());
        prop_assert_eq!(sim.ours(), sim.wanted());
        let after: Vec<_> = sim.assignments.keys().cloned().collect();
        prop_assert_eq!(placed, after, "every instance still has a place");
        for id in pinned.iter().filter(|id| !movable_before.contains(&id.to_string())) {
            prop_assert_eq!(&sim.assignments[id].node, &name(drained), "a pinned one stays");
        }
        // Nothing comes back by itself, nor with a release.
        prop_assert_eq!(sim.step().0, Vec::new());
        let before = sim.assignments.clone();
        sim.deploy(release(2, &next));
        sim.settle();
        for (id, place) in sim.assignments.iter().filter(|(_, a)| a.node == name(drained)) {
            prop_assert!(before.get(id).is_some_and(|b| b.node == place.node), "{} is new there", id);
        }
        prop_assert_eq!(movable(&sim, drained), Vec::<String>::new());
    }

    #[test]
    fn what_runs_on_a_closed_node_stays_and_nothing_new_comes(
        text in any_plan(), next in any_plan(), nodes in 1..5usize, full in prop::bool::ANY,
    ) {
        let mut sim = Sim::new(nodes, release(1, &text));
        sim.settle();
        let (before, ours) = (sim.assignments.clone(), sim.ours());
        let node = sim.snapshot.nodes.get_mut(&name(1)).unwrap();
        if full { node.disk_full = true } else { node.intake = Intake::Cordoned }
        prop_assert_eq!(sim.settle(), Vec::new());
        prop_assert_eq!(sim.ours(), ours);
        sim.deploy(release(2, &next));
        sim.settle();
        for (id, place) in sim.assignments.iter().filter(|(_, a)| a.node == name(1)) {
            prop_assert!(before.get(id).is_some_and(|b| b.node == place.node), "{} is new there", id);
        }
        let node = sim.snapshot.nodes.get_mut(&name(1)).unwrap();
        (node.disk_full, node.intake) = (false, Intake::Open);
        sim.settle();
        prop_assert!(sim.place().unplaced.keys().all(|id| !before.contains_key(id)) || nodes < 4, "the cordon's end gives room");
    }
}

#[test]
fn what_has_no_other_place_stays_on_a_drained_node_until_there_is_one() {
    let mut sim = Sim::new(2, release(1, "[apps.shop]\nimage = \"shop:v1\"\nreplicas = 4\nmemory = \"512m\"\n"));
    sim.settle();
    let before = sim.assignments.clone();
    say(&mut sim, 2, Intake::Draining);
    assert_eq!(sim.settle(), Vec::new(), "node1 is full");
    assert_eq!(sim.assignments, before);
    let stuck: Vec<_> = sim.place().stuck.iter().map(|(id, why)| format!("{id}: {why}")).collect();
    assert_eq!(
        stuck,
        [
            "shop.2: no node has room: node1 lacks memory, node2 is drained",
            "shop.4: no node has room: node1 lacks memory, node2 is drained"
        ]
    );
    // A release in place is no new instance.
    sim.deploy(release(2, "[apps.shop]\nimage = \"shop:v2\"\nreplicas = 4\nmemory = \"512m\"\n"));
    sim.settle();
    assert_eq!(sim.ours(), sim.wanted());
    assert_eq!(movable(&sim, 2).len(), 2);
    // Two instances less: there is room.
    sim.deploy(release(3, "[apps.shop]\nimage = \"shop:v2\"\nreplicas = 2\nmemory = \"512m\"\n"));
    sim.settle();
    assert_eq!((movable(&sim, 1).len(), movable(&sim, 2).len()), (2, 0));
    assert!(sim.place().stuck.is_empty());
}

#[test]
fn a_drained_node_that_dies_is_a_lost_node() {
    let mut sim = Sim::new(2, release(1, "[apps.shop]\nimage = \"shop:v1\"\nreplicas = 2\n"));
    sim.settle();
    say(&mut sim, 1, Intake::Draining);
    sim.snapshot.nodes.get_mut(&name(1)).unwrap().state = NodeState::Lost { since: Timestamp::UNIX_EPOCH };
    sim.settle();
    assert_eq!((movable(&sim, 1).len(), movable(&sim, 2).len()), (0, 2));
}

#[test]
fn a_pinned_instance_does_not_come_to_a_cordoned_node_and_says_so() {
    let mut sim = Sim::new(1, release(1, "[apps.shop]\nimage = \"shop:v1\"\nnodes = [\"node1\"]\n"));
    say(&mut sim, 1, Intake::Cordoned);
    let why: Vec<_> = sim.place().unplaced.values().map(ToString::to_string).collect();
    assert_eq!(why, ["node1 is cordoned"]);
}
