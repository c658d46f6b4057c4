//! Laws of operating nodes, on the simulated world: what a cordon keeps away, what a drain moves and cannot move, how load
//! is spread again.

use std::collections::{BTreeMap, BTreeSet};

use matrix::{
    inventory::{Intake, NodeState},
    model::{NodeName, Timestamp},
    reconcile::{Action, Reason},
    release::{Release, compare},
    schedule,
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
fn a_port_somebody_else_holds_is_not_allotted_and_a_fixed_one_stays() {
    let text =
        "[apps.a]\nimage = \"a:v1\"\nreplicas = 2\n[apps.p]\nimage = \"a:v1\"\nnodes = [\"node1\"]\npublish = 20001\n";
    let mut sim = Sim::new(2, release(1, text));
    sim.place();
    let before = sim.assignments.clone();
    let at = |sim: &Sim, node: usize| {
        let here = sim.assignments.iter().find(|(id, a)| id.app.as_str() == "a" && a.node == name(node));
        here.map(|(id, a)| (id.clone(), a.host_port)).unwrap()
    };
    let (first, port) = at(&sim, 1);
    let fixed = sim.assignments.iter().find(|(id, _)| id.app.as_str() == "p").map(|(_, a)| a.host_port).unwrap();
    sim.doubts.held.insert(name(1), BTreeSet::from([port, fixed]));
    sim.place();
    let (again, other) = at(&sim, 1);
    assert!(again == first && other != port && other != fixed, "{other}");
    assert_eq!(
        at(&sim, 2).1,
        before.values().find(|a| a.node == name(2)).unwrap().host_port,
        "the other node's is free"
    );
    assert!(sim.assignments.iter().any(|(id, a)| id.app.as_str() == "p" && a.host_port == fixed));
    let settled = sim.assignments.clone();
    sim.place();
    assert_eq!(sim.assignments, settled);
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

/// Moves until there is nothing better, each followed to its end; answers how many.
fn spread(sim: &mut Sim) -> usize {
    let (avoid, mut moves) = (BTreeSet::new(), 0);
    loop {
        let found = schedule::better(sim.input(), &avoid);
        let Some(found) = found else { return moves };
        let place = &sim.assignments[&found.instance];
        assert_eq!(place.node, found.from);
        assert!(sim.snapshot.nodes[&found.to.node].takes_instances(), "{found:?}");
        let before = unevenness(sim);
        sim.assignments.insert(found.instance.clone(), found.to.clone());
        let done = sim.settle();
        assert!(done.iter().all(|action| action.instance() == &found.instance), "one at a time: {done:?}");
        assert_eq!(sim.assignments[&found.instance].node, found.to.node, "it stays there");
        let after = unevenness(sim);
        assert!(after < before, "{found:?}: {before:?} to {after:?}");
        moves += 1;
        assert!(moves < 1000, "it does not end");
    }
}

/// Of applications first, then of the load; what gets less with each move comes to an end.
fn unevenness(sim: &Sim) -> (usize, Vec<(u64, usize)>) {
    let mut apps: BTreeMap<_, usize> = BTreeMap::new();
    let mut load: BTreeMap<_, (u64, usize)> = sim.snapshot.nodes.keys().map(|name| (name, (0, 0))).collect();
    for (id, place) in &sim.assignments {
        *apps.entry((&id.app, &place.node)).or_default() += 1;
        let node = load.entry(&place.node).or_default();
        node.0 += sim.release.plan.apps[&id.app].memory.map_or(0, matrix::model::Memory::bytes);
        node.1 += 1;
    }
    let mut load: Vec<_> = load.into_values().map(|(bytes, all)| (bytes * 1000 / (1 << 30), all)).collect();
    load.sort_unstable_by(|a, b| b.cmp(a));
    (apps.values().map(|count| count * count).sum(), load)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn load_is_spread_step_by_step_and_that_ends(
        apps in prop::collection::btree_map("[a-e]", (0..7u32, 0..4u64, prop::bool::ANY), 1..5),
        nodes in 2..6usize,
        away in prop::collection::btree_set(1..6usize, 0..4),
        cordoned in prop::option::of(1..6usize),
    ) {
        let mut text = String::new();
        for (at, (app, (count, memory, publish))) in apps.iter().enumerate() {
            text += &format!("[apps.{app}]\nimage = \"{app}:v1\"\nreplicas = {count}\n");
            if *memory > 0 { text += &format!("memory = \"{}m\"\n", memory * 10) }
            if *publish { text += &format!("publish = {}\n", 5050 + at) }
        }
        let mut sim = Sim::new(nodes, release(1, &text));
        for number in away.iter().filter(|n| **n <= nodes && away.len() < nodes) {
            sim.snapshot.nodes.get_mut(&name(*number)).unwrap().state = NodeState::Lost { since: Timestamp::UNIX_EPOCH };
        }
        sim.settle();
        for node in sim.snapshot.nodes.values_mut() {
            node.state = NodeState::Ready;
        }
        let held = cordoned.filter(|n| *n <= nodes);
        if let Some(number) = held {
            say(&mut sim, number, Intake::Cordoned);
        }
        sim.settle();
        let on_held = |sim: &Sim| sim.assignments.iter().filter(|(_, a)| held.is_some_and(|n| a.node == name(n))).count();
        let before = (on_held(&sim), sim.assignments.len());
        spread(&mut sim);
        prop_assert_eq!((on_held(&sim), sim.assignments.len()), before, "nothing comes to a cordoned node, or leaves it");
        prop_assert_eq!(sim.ours(), sim.wanted());
        for app in sim.release.plan.apps.keys() {
            let of = |number: usize| sim.assignments.iter().filter(|(id, a)| id.app == *app && a.node == name(number)).count();
            let counts: Vec<_> = (1..=nodes).filter(|n| Some(*n) != held).map(of).collect();
            let (least, most) = (counts.iter().min(), counts.iter().max());
            prop_assert!(most.unwrap_or(&0) - least.unwrap_or(&0) <= 1, "{}: {:?}", app, counts);
        }
    }
}

#[test]
fn a_node_that_returns_gets_its_share_back() {
    let text = ["a", "b", "c", "d"].map(|app| format!("[apps.{app}]\nimage = \"a:v1\"\n")).concat();
    let mut sim = Sim::new(2, release(1, &text));
    sim.snapshot.nodes.get_mut(&name(2)).unwrap().state = NodeState::Lost { since: Timestamp::UNIX_EPOCH };
    sim.settle();
    assert_eq!(movable(&sim, 1).len(), 4);
    sim.snapshot.nodes.get_mut(&name(2)).unwrap().state = NodeState::Ready;
    assert_eq!(sim.settle(), Vec::new(), "nothing moves by itself");
    let all = sim.assignments.keys().map(|id| (id.app.clone(), name(2))).collect();
    assert_eq!(schedule::better(sim.input(), &all), None, "where it failed it is not sent again");
    assert_eq!(spread(&mut sim), 2);
    assert_eq!((movable(&sim, 1).len(), movable(&sim, 2).len()), (2, 2));
}

#[test]
fn a_restart_makes_containers_anew_and_what_was_never_restarted_keeps_its_hash() {
    let mut sim = Sim::new(2, release(1, "[apps.a]\nimage = \"a:v1\"\n[apps.b]\nimage = \"b:v1\"\n"));
    sim.settle();
    let app = |name: &str| matrix::model::AppName::try_from(name).unwrap();
    let written = serde_json::to_string(&sim.release.spec(&app("a"))).unwrap();
    assert!(!written.contains("restarts"), "a new key would replace every container: {written}");
    let again = |last: &Release, names: &[&str]| {
        let again = names.iter().map(|name| app(name)).collect();
        let restarts = Release::restarts_after(Some(last), &last.plan, &again);
        Release { number: last.number + 1, restarts, ..last.clone() }
    };
    let next = again(&sim.release, &["a"]);
    assert_eq!(compare(&sim.release, &next), ["~ a (restart requested)"]);
    sim.deploy(next);
    let order: Vec<_> = sim.settle().iter().map(ToString::to_string).collect();
    assert_eq!(order, ["+ start a.1 on node1 (restart requested)", "- stop a.1 on node1 (replaced)"]);
    sim.deploy(again(&sim.release, &[]));
    assert_eq!(sim.settle(), Vec::new(), "the next release remembers it");
}
