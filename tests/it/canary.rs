//! A share of the requests: who gets one, and against a real varnishd on loopback how many go where, and what its log
//! says of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::Ordering,
    time::Duration,
};

use matrix::{
    inventory::{ContainerSpec, NodeState, Ours},
    manager::gateway::Gateway,
    model::AppName,
    reconcile::{Action, Reason, Stage, StageInput, canary, stage},
    release::Release,
    remote::varnish_log::{Exchange, Log},
    routing::{AppRouting, Canary, RoutingTable, routes, vcl},
    schedule::{self, Assignments, Beside},
};
use tokio_util::sync::CancellationToken;

use crate::{
    gateway::{Edge, app, free_port, server, table},
    world::{Sim, release},
};

/// What of `next` can be beside what runs, and starts it.
fn staged(sim: &mut Sim, next: &Release) -> Stage {
    let beside = Beside::of(&sim.release, &sim.assignments, next);
    let placed = schedule::place(schedule::Input { release: next, beside: &beside, ..sim.input() });
    let stage = stage(StageInput {
        active: &sim.release,
        places: &sim.assignments,
        next,
        beside: &placed.assignments,
        no_room: &BTreeSet::new(),
    });
    for (id, place) in &stage.beside {
        let ours =
            Ours { cloud: sim.cloud.clone(), instance: id.clone(), release: next.number, spec: place.spec.clone() };
        let name = ContainerSpec::name_of(id, &place.spec, &place.node, place.host_port);
        let container =
            ContainerSpec { name, ours, host_port: place.host_port, spec: next.spec(&id.app).expect("a spec") };
        sim.act(&Action::Start { node: place.node.clone(), container, reason: Reason::New });
    }
    stage
}

/// The table while these places of `next` get a share.
fn shared(sim: &Sim, next: &Release, places: &Assignments) -> RoutingTable {
    routes::table(routes::Input {
        cloud: &sim.cloud,
        release: &sim.release,
        assignments: &sim.assignments,
        snapshot: &sim.snapshot,
        verified: &sim.verified,
        leaving: &BTreeSet::new(),
        last: &sim.table,
        trial: Some(routes::Trial { release: next, places }),
    })
}

#[test]
fn what_takes_requests_and_is_made_anew_is_tried_out() {
    let app = |name: &str, tag: &str, more: &str| format!("[apps.{name}]\nimage = \"x:{tag}\"\n{more}\n");
    let canary = "update = \"canary\"";
    let plan = |tag: &str, more: &str| {
        app("shop", tag, canary)
            + &app("staged", tag, "")
            + &app("same", "1", canary)
            + &app("worker", tag, &format!("path = false\n{canary}"))
            + &app("fixed", tag, &format!("nodes = [\"node1\"]\npublish = 5050\n{canary}"))
            + more
    };
    let mut sim = Sim::new(2, release(1, &plan("1", "")));
    sim.settle();
    let next = release(2, &plan("2", &app("new", "2", canary)));
    let stage = staged(&mut sim, &next);
    let names = canary::tried(&sim.release, &next, &stage);
    assert_eq!(names.iter().map(AppName::as_str).collect::<Vec<_>>(), ["shop"]);
    let why = stage.cramped[&"fixed".parse::<AppName>().unwrap()].to_string();
    assert!(why.contains("port 5050 on node1 is held by fixed.1, so that it cannot begin with a share"), "{why}");
    let first = canary::tried(&Release::none(), &next, &stage);
    assert!(first.is_empty(), "nobody has requests to share yet: {first:?}");
}

#[test]
fn the_table_shares_out_by_the_port_and_health_check_of_each_release() {
    let plan = |port: u16, health: &str, share: u32| {
        format!(
            "[apps.shop]\nreplicas = 2\nport = {port}\nhealth = \"{health}\"\n\
             update = {{ mode = \"canary\", share = {share} }}\n"
        )
    };
    let shop: AppName = "shop".parse().unwrap();
    let mut sim = Sim::new(2, release(1, &plan(8080, "/old", 9)));
    sim.settle();
    let before = sim.table.clone();
    let next = release(2, &plan(9090, "/new", 7));
    let places = staged(&mut sim, &next).beside;
    sim.table = shared(&sim, &next, &places);
    let routing = sim.table.apps[&shop].clone();
    let new = routes::Trial { release: &next, places: &places }.names();
    assert_eq!(routing.canary, Some(Canary { share: 7, backends: new.clone() }));
    assert_eq!((routing.backends.len(), new.len()), (4, 2));
    for (name, backend) in &routing.backends {
        let path = &backend.probe.as_ref().unwrap().path;
        assert_eq!(path, if new.contains(name) { "/new" } else { "/old" }, "{name}");
    }
    // Nodes that do not answer just now keep theirs; also before a manager that just started has looked at them.
    let whole = (sim.table.clone(), sim.snapshot.clone());
    for node in sim.snapshot.nodes.values_mut() {
        node.state = NodeState::Unknown;
    }
    assert_eq!(shared(&sim, &next, &places), whole.0);
    for node in sim.snapshot.nodes.values_mut() {
        node.containers.clear();
    }
    assert_eq!(shared(&sim, &next, &places), whole.0);
    // One that does not answer has no share; without any there is none.
    (_, sim.snapshot) = whole;
    sim.verified.retain(|name, _| !new.contains(name));
    sim.table = before.clone();
    assert_eq!(shared(&sim, &next, &places), before);
    // The switch.
    sim.verified.extend(new.into_iter().map(|name| (name, Some(200))));
    sim.deploy(next);
    sim.assignments = places;
    sim.settle();
    let routing = &sim.table.apps[&shop];
    assert_eq!((routing.backends.len(), &routing.canary), (2, &None));
}

/// How often it is asked.
const ASKED: usize = 600;

fn tried((name, routing): (AppName, AppRouting), share: u32, key: &str) -> (AppName, AppRouting) {
    assert!(routing.backends.contains_key(key));
    (name, AppRouting { canary: Some(Canary { share, backends: [key.to_owned()].into() }), ..routing })
}

/// What the log says until it has said so many things, or nothing for a while.
async fn heard(log: &mut Log, count: usize) -> Vec<Exchange> {
    let mut all = Vec::new();
    while all.len() < count {
        match tokio::time::timeout(Duration::from_secs(5), log.next()).await {
            Ok(Some(exchange)) => all.push(exchange),
            Ok(None) | Err(_) => break,
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_share_of_the_requests_is_that_share_and_each_is_told() {
    let edge = Edge::start();
    let (old, other, new) = (server("old"), server("other"), server("new"));
    let gateway = Gateway::start(&edge.config(), CancellationToken::new());
    let ports = [old.port, other.port, new.port];
    let key = format!("shop-3-{}", new.port);
    // Another application whose name begins as this one's does is not read along.
    let shop = || app("shop", &ports);
    gateway.apply(&table([tried(shop(), 20, &key), app("shop-2", &[old.port])])).await.unwrap();
    let vcl = vcl::app_versions(&"shop".parse().unwrap());
    let mut log = Log::open(&edge.workdir(), [vcl.as_str()]).unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;

    for number in 0..ASKED {
        assert_eq!(edge.get(&format!("/shop/{number}")).0, 200);
        if number % 100 == 0 {
            assert_eq!(edge.get("/shop-2/x").0, 200);
        }
    }
    let share = new.served.load(Ordering::Relaxed);
    eprintln!("  {share} of {ASKED} requests went to 20 %");
    // Four standard deviations: 39 requests.
    assert!((81..=159).contains(&share), "{share} of {ASKED}");
    let heard_all = heard(&mut log, ASKED).await;
    assert!(heard_all.iter().all(|e| e.vcl == vcl && e.status == 200 && e.took < Duration::from_secs(1)));
    let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
    for exchange in &heard_all {
        *counts.entry(&exchange.backend).or_default() += 1;
    }
    assert_eq!(counts.values().sum::<u32>() as usize, ASKED, "{counts:?}");
    assert_eq!(counts[vcl::backend_id(&key).as_str()], share);
    let steady = [0, 1].map(|at| counts[vcl::backend_id(&format!("shop-{}-{}", at + 1, ports[at])).as_str()]);
    assert!(steady[0].abs_diff(steady[1]) <= 1, "the others take turns: {steady:?}");

    // Over: all take turns again.
    gateway.apply(&table([shop(), app("shop-2", &[old.port])])).await.unwrap();
    let before = new.served.load(Ordering::Relaxed);
    (0..30).for_each(|_| assert_eq!(edge.get("/shop/").0, 200));
    assert_eq!(new.served.load(Ordering::Relaxed) - before, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_tried_out_and_refuses_costs_no_request_and_is_told() {
    let edge = Edge::start();
    let old = server("old");
    let gateway = Gateway::start(&edge.config(), CancellationToken::new());
    let (name, mut shop) = app("shop", &[old.port, free_port()]);
    let dead = shop.backends.keys().find(|key| key.starts_with("shop-2-")).unwrap().clone();
    shop.canary = Some(Canary { share: 50, backends: [dead.clone()].into() });
    // Unprobed: it stays in its turn, whatever it answers.
    shop.backends.values_mut().for_each(|backend| backend.probe = None);
    let vcl = vcl::app_versions(&name);
    gateway.apply(&table([(name, shop)])).await.unwrap();
    let mut log = Log::open(&edge.workdir(), [vcl.as_str()]).unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    for number in 0..100 {
        assert_eq!(edge.get(&format!("/shop/{number}")), (200, "old".to_owned()));
    }
    let heard_all = heard(&mut log, 100).await;
    let (failed, good): (Vec<_>, Vec<_>) = heard_all.iter().partition(|e| e.backend == vcl::backend_id(&dead));
    assert!(failed.iter().all(|e| e.status == 503) && good.iter().all(|e| e.status == 200), "{heard_all:?}");
    assert!((30..=70).contains(&failed.len()), "{} of {}", failed.len(), heard_all.len());
}
