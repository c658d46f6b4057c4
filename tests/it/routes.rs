//! Who gets requests, case by case: what is seen of a container, of its node and of its release.

use std::collections::BTreeSet;

use matrix::{
    inventory::{ContainerState, NodeState},
    model::CloudId,
    routing::{RoutingTable, routes},
};

use crate::world::{Sim, release};

const PLAN: &str = "[apps.shop]\nhealth = \"/old\"\n[apps.worker]\npath = false\n";

fn settled() -> Sim {
    let mut sim = Sim::new(1, release(1, PLAN));
    sim.settle();
    sim
}

fn input<'a>(sim: &'a Sim, leaving: &'a BTreeSet<String>, last: &'a RoutingTable) -> routes::Input<'a> {
    routes::Input {
        cloud: &sim.cloud,
        release: &sim.release,
        assignments: &sim.assignments,
        snapshot: &sim.snapshot,
        verified: &sim.verified,
        leaving,
        last,
        trial: None,
    }
}

fn shop(table: &RoutingTable) -> Vec<String> {
    table.apps[&"shop".parse().unwrap()].backends.keys().cloned().collect()
}

fn node(sim: &mut Sim) -> &mut matrix::inventory::Node {
    sim.snapshot.nodes.values_mut().next().unwrap()
}

#[test]
fn only_what_answered_and_is_ours_begins_to_serve() {
    let (nobody, none) = (BTreeSet::new(), RoutingTable::default());
    let serves = |change: fn(&mut Sim)| {
        let mut sim = settled();
        change(&mut sim);
        !shop(&routes::table(input(&sim, &nobody, &none))).is_empty()
    };
    assert!(serves(|_| ()));
    assert!(!serves(|sim| sim.verified.clear()), "it never answered");
    assert!(!serves(|sim| node(sim).containers.iter_mut().for_each(|c| c.state = ContainerState::Exited)));
    assert!(!serves(|sim| node(sim).containers.iter_mut().for_each(|c| c.published.clear())), "no port leads to it");
    assert!(!serves(|sim| node(sim).containers.iter_mut().for_each(|c| c.ours = None)), "somebody else's");
    assert!(!serves(|sim| sim.cloud = CloudId::try_from("other").unwrap()), "of another cloud on the same node");
    assert!(!serves(|sim| node(sim).state = NodeState::Suspect { misses: 1.try_into().unwrap() }));
}

#[test]
fn what_serves_stays_while_nothing_is_known_and_goes_when_it_must() {
    let nobody = BTreeSet::new();
    let last = settled().table;
    let all: BTreeSet<String> = shop(&last).into_iter().collect();
    let stays = |leaving: &BTreeSet<String>, change: fn(&mut Sim)| {
        let mut sim = settled();
        change(&mut sim);
        routes::table(input(&sim, leaving, &last)).apps == last.apps
    };
    let silent = |sim: &mut Sim| {
        for node in sim.snapshot.nodes.values_mut() {
            node.state = NodeState::Unknown;
        }
    };
    let unseen = |sim: &mut Sim| {
        for node in sim.snapshot.nodes.values_mut() {
            node.state = NodeState::Unknown;
            node.containers.clear();
        }
    };
    assert!(stays(&nobody, |_| ()) && stays(&nobody, silent) && stays(&nobody, unseen));
    assert!(stays(&nobody, |sim| sim.verified.clear()), "to be asked anew");
    assert!(!stays(&all, |_| ()) && !stays(&all, silent) && !stays(&all, unseen), "it is to leave");
    assert!(!stays(&nobody, |sim| {
        let containers = sim.snapshot.nodes.values_mut().flat_map(|node| &mut node.containers);
        containers.for_each(|c| c.state = ContainerState::Exited);
    }));
}

#[test]
fn the_gateway_expects_what_was_answered_first() {
    let (nobody, mut sim) = (BTreeSet::new(), settled());
    let last = sim.table.clone();
    let probe = |sim: &Sim, last: &RoutingTable| {
        let table = routes::table(input(sim, &nobody, last));
        let backend = table.apps[&"shop".parse().unwrap()].backends.values().next().unwrap().clone();
        backend.probe.map(|p| (p.path, p.status)).unwrap()
    };
    sim.verified.values_mut().for_each(|status| *status = Some(204));
    assert_eq!(probe(&sim, &last), ("/old".to_owned(), 204));
    // Another check is asked once it was seen to be passed.
    sim.release = release(2, &PLAN.replace("/old", "/new"));
    assert_eq!(probe(&sim, &last), ("/new".to_owned(), 204));
    sim.verified.clear();
    assert_eq!(probe(&sim, &last), ("/old".to_owned(), 200));
}

#[test]
fn what_has_no_route_or_no_node_is_not_prepared() {
    let (nobody, mut sim) = (BTreeSet::new(), settled());
    let names = |table: &RoutingTable| table.apps.keys().map(ToString::to_string).collect::<Vec<_>>();
    let none = RoutingTable::default();
    assert_eq!(names(&routes::table(input(&sim, &nobody, &none))), ["shop"]);
    assert_eq!(names(&routes::planned(input(&sim, &nobody, &none))), ["shop"]);
    assert_eq!(names(&RoutingTable::planned(&sim.release.plan, &none)), ["shop"]);
    assert_eq!(shop(&routes::planned(input(&sim, &nobody, &none))).len(), 1);
    for node in sim.snapshot.nodes.values_mut() {
        node.state = NodeState::Unknown;
    }
    assert_eq!(shop(&routes::planned(input(&sim, &nobody, &none))), Vec::<String>::new());
}
