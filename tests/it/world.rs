//! Laws of deciding, on a simulated world: whatever the plan and whatever is there, following the decisions ends where
//! the plan wants it, and does no harm on the way.

use std::collections::{BTreeMap, BTreeSet};

use matrix::{
    inventory::{
        Admission, Container, ContainerSpec, ContainerState, Engine, HostKey, Intake, Node, NodeState, Ours, Snapshot,
        SpecHash,
    },
    model::{CloudId, Memory, NodeName, Port, Timestamp},
    plan,
    reconcile::{Action, Reason, World, changes, diff},
    release::Release,
    routing::{RoutingTable, routes},
    schedule::{self, Assignments, Doubts, Placed},
};
use proptest::prelude::*;

/// A cloud without wires: what actions do to it is written down at once.
#[derive(Debug, Clone)]
pub struct Sim {
    pub cloud: CloudId,
    pub snapshot: Snapshot,
    pub assignments: Assignments,
    pub verified: BTreeMap<String, Option<u16>>,
    pub table: RoutingTable,
    pub release: Release,
    previous: Option<Release>,
    ids: u64,
    pub doubts: Doubts,
}

static NONE: BTreeSet<matrix::model::AppName> = BTreeSet::new();

fn now() -> Timestamp {
    Timestamp::UNIX_EPOCH
}

fn node(number: usize) -> Node {
    Node {
        name: NodeName::try_from(format!("node{number}")).unwrap(),
        address: [10, 10, 10, u8::try_from(number).unwrap()].into(),
        mac: None,
        lease_expires: None,
        admission: Admission::Admitted {
            key: HostKey { algorithm: "ssh-ed25519".into(), key: "AAAA".into(), fingerprint: "SHA256:x".into() },
        },
        state: NodeState::Ready,
        since: now(),
        engine: Some(Engine {
            version: "20.10".into(),
            cpus: 2,
            memory: Memory(1 << 30),
            disk_free: None,
            disk_total: None,
            id: number.to_string(),
            os: "linux".into(),
            architecture: "amd64".into(),
        }),
        containers: Vec::new(),
        trouble: None,
        intake: Intake::Open,
        disk_full: false,
    }
}

pub fn release(number: u64, text: &str) -> Release {
    let plan = plan::read("test.plan", text).unwrap_or_else(|e| panic!("{text}\n{e:?}")).plan;
    let images = plan
        .apps
        .iter()
        .map(|(name, app)| {
            // The tag decides the digest: another tag, another image.
            let digest = format!("sha256:{:0>64}", app.image.tag.as_deref().unwrap_or("0").trim_start_matches('v'));
            (name.clone(), app.image.pinned("registry.matrix:5000", digest.parse().unwrap()))
        })
        .collect();
    Release { number, plan, images, created: now(), by: "test".into(), message: None, restarts: BTreeMap::new() }
}

impl Sim {
    pub fn new(nodes: usize, release: Release) -> Self {
        let nodes = (1..=nodes).map(node).map(|n| (n.name.clone(), n)).collect();
        Self {
            cloud: CloudId::try_from("test").unwrap(),
            snapshot: Snapshot { nodes },
            assignments: BTreeMap::new(),
            verified: BTreeMap::new(),
            table: RoutingTable::default(),
            release,
            previous: None,
            ids: 0,
            doubts: Doubts::NONE,
        }
    }

    pub fn deploy(&mut self, release: Release) {
        self.previous = Some(std::mem::replace(&mut self.release, release));
    }

    fn world<'a>(&'a self, holds: &'a BTreeMap<String, matrix::reconcile::Hold>) -> World<'a> {
        World {
            cloud: &self.cloud,
            release: &self.release,
            previous: self.previous.as_ref(),
            assignments: &self.assignments,
            snapshot: &self.snapshot,
            verified: &self.verified,
            routed: Some(&self.table),
            holds,
            staged: None,
            resting: &NONE,
            now: now(),
        }
    }

    pub fn input(&self) -> schedule::Input<'_> {
        static NOTHING: schedule::Beside = schedule::Beside::NOTHING;
        schedule::Input {
            release: &self.release,
            snapshot: &self.snapshot,
            previous: &self.assignments,
            ports: [20000, 20100],
            frozen: false,
            beside: &NOTHING,
            doubts: &self.doubts,
        }
    }

    pub fn place(&mut self) -> Placed {
        let placed = schedule::place(self.input());
        self.assignments = placed.assignments.clone();
        placed
    }

    /// One turn of the loop; answers the actions, done already.
    pub fn step(&mut self) -> (Vec<Action>, bool) {
        self.place();
        let holds = BTreeMap::new();
        let decision = diff(self.world(&holds));
        let table = routes::table(routes::Input {
            cloud: &self.cloud,
            release: &self.release,
            assignments: &self.assignments,
            snapshot: &self.snapshot,
            verified: &self.verified,
            leaving: &decision.leaving,
            last: &self.table,
            trial: None,
        });
        let moved = table != self.table;
        for action in &decision.actions {
            self.act(action);
        }
        self.table = table;
        (decision.actions, moved)
    }

    pub fn act(&mut self, action: &Action) {
        match action {
            Action::Start { node, container, .. } => {
                self.ids += 1;
                let id = format!("{:064}", self.ids);
                let node = self.snapshot.nodes.get_mut(node).expect("a known node");
                assert!(node.is_ready(), "an action on {}, which does not answer", node.name);
                node.containers.retain(|c| c.name != container.name);
                let taken = node.containers.iter().any(|c| {
                    c.state == ContainerState::Running && c.published.values().any(|p| *p == container.host_port)
                });
                assert!(!taken, "two containers on {}:{}", node.name, container.host_port);
                node.containers.push(running(id, container));
                self.verified.insert(container.name.clone(), Some(200));
            }
            Action::Verify { container, .. } => _ = self.verified.insert(container.name.clone(), Some(200)),
            Action::Stop { node, name, .. } => {
                let routed = self.table.apps.values().any(|app| app.backends.contains_key(name));
                assert!(!routed, "{name} is stopped while requests are sent to it");
                let node = self.snapshot.nodes.get_mut(node).expect("a known node");
                let gone = node.containers.iter().find(|c| c.name == *name).expect("a container");
                assert!(gone.ours.as_ref().is_some_and(|o| o.cloud == self.cloud), "{name} is not ours");
                node.containers.retain(|c| c.name != *name);
                self.verified.remove(name);
            }
        }
    }

    /// Turns until there is nothing to do.
    pub fn settle(&mut self) -> Vec<Action> {
        let mut all = Vec::new();
        for _ in 0..200 {
            let serving_before: BTreeMap<_, _> =
                self.table.apps.iter().map(|(name, app)| (name.clone(), app.backends.len())).collect();
            let (actions, moved) = self.step();
            self.never_dark(&serving_before);
            if actions.is_empty() && !moved {
                return all;
            }
            all.extend(actions);
        }
        panic!("it does not come to rest: {:?}", self.step());
    }

    /// An application of the plan that served does not stop serving, but for the gap that a fixed port forces.
    fn never_dark(&self, before: &BTreeMap<matrix::model::AppName, usize>) {
        for (name, app) in &self.release.plan.apps {
            let had = before.get(name).copied().unwrap_or(0);
            let has = self.table.apps.get(name).map_or(0, |app| app.backends.len());
            let placed = || self.assignments.iter().filter(|(id, _)| id.app == *name);
            let forced = app.count() == 0 || placed().count() <= 1 && placed().all(|(_, a)| a.pinned_port);
            assert!(had == 0 || has > 0 || forced || app.routes.is_empty(), "{name} went dark");
        }
    }

    pub fn ours(&self) -> BTreeSet<String> {
        self.snapshot
            .containers()
            .filter(|(_, c)| c.ours.as_ref().is_some_and(|o| o.cloud == self.cloud))
            .map(|(_, c)| c.name.clone())
            .collect()
    }

    pub fn wanted(&self) -> BTreeSet<String> {
        self.assignments
            .iter()
            .filter(|(_, a)| self.snapshot.nodes[&a.node].is_ready())
            .map(|(id, a)| ContainerSpec::name_of(id, &a.spec, &a.node, a.host_port))
            .collect()
    }
}

fn running(id: String, container: &ContainerSpec) -> Container {
    Container {
        id,
        name: container.name.clone(),
        ours: Some(container.ours.clone()),
        image: container.spec.image.to_string(),
        state: ContainerState::Running,
        published: BTreeMap::from([(container.spec.port, container.host_port)]),
        created: Some(now()),
    }
}

fn foreign(number: u64, cloud: Option<&str>, port: u16) -> Container {
    Container {
        id: format!("f{number:063}"),
        name: format!("foreign{number}"),
        ours: cloud.map(|cloud| Ours {
            cloud: CloudId::try_from(cloud).unwrap(),
            instance: "a.1".parse().unwrap(),
            release: 1,
            spec: SpecHash("0123456789abcdef".into()),
        }),
        image: "something".into(),
        state: ContainerState::Running,
        published: BTreeMap::from([(Port::new(80).unwrap(), Port::new(port).unwrap())]),
        created: None,
    }
}

/// A valid plan for up to four nodes: each application is pinned or spread, its image has one of three tags.
pub fn any_plan() -> impl Strategy<Value = String> {
    let app = (1..4u32, prop::bool::ANY, prop::collection::btree_set(1..=4usize, 1..4), 0..5u32, prop::bool::ANY);
    prop::collection::btree_map("[a-d]", app, 1..4).prop_map(|apps| {
        let mut text = String::new();
        for (at, (name, (tag, pinned, nodes, replicas, publish))) in apps.into_iter().enumerate() {
            text += &format!("[apps.{name}]\nimage = \"{name}:v{tag}\"\n");
            let list: Vec<_> = nodes.iter().map(|n| format!("\"node{n}\"")).collect();
            if pinned {
                text += &format!("nodes = [{}]\n", list.join(", "));
                if publish {
                    text += &format!("publish = {}\n", 5050 + at);
                }
            } else {
                text += &format!("replicas = {replicas}\n");
            }
        }
        text
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn following_the_decisions_ends_where_the_plan_wants_it(
        plans in prop::collection::vec(any_plan(), 1..4),
        nodes in 1..5usize,
        lost in prop::option::of(1..5usize),
    ) {
        let mut sim = Sim::new(nodes, release(1, &plans[0]));
        let first = sim.snapshot.nodes.values_mut().next().unwrap();
        first.containers.push(foreign(1, None, 20000));
        first.containers.push(foreign(2, Some("other"), 20001));
        for (at, text) in plans.iter().enumerate() {
            if at > 0 {
                sim.deploy(release(at as u64 + 1, text));
            }
            sim.settle();
            let homeless: BTreeSet<_> = sim.place().unplaced.into_keys().map(|id| id.app).collect();
            if homeless.is_empty() {
                prop_assert_eq!(sim.ours(), sim.wanted(), "exactly what is wanted is there");
            }
            prop_assert!(sim.ours().is_superset(&sim.wanted()), "all that is wanted is there");
            prop_assert_eq!(sim.step().0, Vec::new(), "there is nothing more to do");
            let unplaced = sim.place().unplaced;
            let holds = BTreeMap::new();
            let report = changes(World { previous: Some(&sim.release), ..sim.world(&holds) }, &unplaced);
            if homeless.is_empty() {
                prop_assert!(report.is_empty(), "the report has nothing more to say: {:?}", report);
            }
            let routed: BTreeSet<_> =
                sim.table.apps.values().flat_map(|app| app.backends.keys().cloned()).collect();
            prop_assert_eq!(&routed, &sim.ours(), "all that is there is routed");
        }
        if let Some(node) = lost.and_then(|n| sim.snapshot.nodes.get_mut(&NodeName::try_from(format!("node{n}")).unwrap())) {
            node.state = NodeState::Lost { since: now() };
            let name = node.name.clone();
            sim.settle();
            prop_assert_eq!(sim.step().0, Vec::new());
            // It comes back: its old containers are there still.
            sim.snapshot.nodes.get_mut(&name).unwrap().state = NodeState::Ready;
            sim.settle();
            if sim.place().unplaced.is_empty() {
                prop_assert_eq!(sim.ours(), sim.wanted(), "exactly what is wanted is left");
            }
        }
        let strangers = sim.snapshot.containers().filter(|(_, c)| c.name.starts_with("foreign")).count();
        prop_assert_eq!(strangers, 2);
    }

    #[test]
    fn the_order_of_what_is_seen_does_not_matter(text in any_plan(), nodes in 1..5usize, next in any_plan()) {
        let mut sim = Sim::new(nodes, release(1, &text));
        sim.settle();
        sim.deploy(release(2, &next));
        let mut shuffled = sim.clone();
        for node in shuffled.snapshot.nodes.values_mut() {
            node.containers.reverse();
        }
        prop_assert_eq!(sim.place(), shuffled.place());
        let holds = BTreeMap::new();
        let (mut a, mut b) = (diff(sim.world(&holds)), diff(shuffled.world(&holds)));
        let key = |action: &Action| action.to_string();
        a.actions.sort_by_key(key);
        b.actions.sort_by_key(key);
        prop_assert_eq!(a, b);
    }
}

#[test]
fn a_fixed_port_is_replaced_one_node_at_a_time() {
    let text = |tag| {
        format!("[apps.shop]\nimage = \"shop:v{tag}\"\nnodes = [\"node1\", \"node2\", \"node3\"]\npublish = 5050\n")
    };
    let mut sim = Sim::new(3, release(1, &text(1)));
    sim.settle();
    sim.deploy(release(2, &text(2)));
    let mut order = Vec::new();
    for _ in 0..50 {
        let (actions, moved) = sim.step();
        assert!(actions.len() <= 1, "one at a time: {actions:?}");
        let serving = sim.table.apps.values().next().unwrap().backends.len();
        assert!(serving >= 2, "two of three serve: {serving}");
        order.extend(actions.iter().map(ToString::to_string));
        if actions.is_empty() && !moved {
            break;
        }
    }
    assert_eq!(
        order,
        [
            "- stop shop.1 on node1 (its successor needs its port)",
            "+ start shop.1 on node1 (image changed)",
            "- stop shop.2 on node2 (its successor needs its port)",
            "+ start shop.2 on node2 (image changed)",
            "- stop shop.3 on node3 (its successor needs its port)",
            "+ start shop.3 on node3 (image changed)",
        ]
    );
}

#[test]
fn the_new_one_serves_before_the_old_one_stops() {
    let text = |tag| format!("[apps.shop]\nimage = \"shop:v{tag}\"\nreplicas = 2\n");
    let mut sim = Sim::new(2, release(1, &text(1)));
    sim.settle();
    sim.deploy(release(2, &text(2)));
    let holds = BTreeMap::new();
    sim.place();
    let report: Vec<_> = changes(sim.world(&holds), &BTreeMap::new()).iter().map(ToString::to_string).collect();
    assert_eq!(report, ["~ replace shop.1 on node1 (image changed)", "~ replace shop.2 on node2 (image changed)"]);
    let order: Vec<_> = sim.settle().iter().map(ToString::to_string).collect();
    assert_eq!(
        order,
        [
            "+ start shop.1 on node1 (image changed)",
            "+ start shop.2 on node2 (image changed)",
            "- stop shop.1 on node1 (replaced)",
            "- stop shop.2 on node2 (replaced)",
        ]
    );
}

#[test]
fn a_new_container_that_does_not_answer_leaves_the_old_ones_alone() {
    let text = |tag| format!("[apps.shop]\nimage = \"shop:v{tag}\"\nreplicas = 2\n");
    let mut sim = Sim::new(2, release(1, &text(1)));
    sim.settle();
    let before = sim.ours();
    let table = sim.table.clone();
    sim.deploy(release(2, &text(2)));
    for _ in 0..5 {
        sim.step();
        // Nobody has seen them answer.
        sim.verified.retain(|name, _| before.contains(name));
    }
    assert!(sim.ours().is_superset(&before));
    assert_eq!(sim.table, table, "requests go where they went");
}

#[test]
fn nothing_is_stopped_while_routing_is_not_known() {
    let mut sim = Sim::new(2, release(1, "[apps.shop]\nreplicas = 2\n"));
    sim.settle();
    sim.deploy(release(2, "[apps.other]\nreplicas = 1\n"));
    sim.place();
    let holds = BTreeMap::new();
    let decision = diff(World { routed: None, ..sim.world(&holds) });
    assert!(decision.actions.iter().all(|a| matches!(a, Action::Start { reason: Reason::New, .. })), "{decision:?}");
}

#[test]
fn taking_a_node_out_of_the_plan_leaves_the_other_instances_in_their_slots() {
    let mut sim = Sim::new(3, release(1, "[apps.shop]\nnodes = [\"node1\", \"node2\", \"node3\"]\npublish = 5050\n"));
    sim.settle();
    sim.deploy(release(2, "[apps.shop]\nnodes = [\"node2\", \"node3\"]\npublish = 5050\n"));
    let order: Vec<_> = sim.settle().iter().map(ToString::to_string).collect();
    assert_eq!(order, ["- stop shop.1 on node1 (no longer in plan)"]);
}

#[test]
fn memory_decides_where_there_is_room() {
    let mut sim = Sim::new(2, release(1, "[apps.shop]\nreplicas = 5\nmemory = \"512m\"\n"));
    let placed = sim.place();
    assert_eq!(placed.assignments.len(), 4);
    let why: Vec<_> = placed.unplaced.values().map(ToString::to_string).collect();
    assert_eq!(why, ["no node has room: node1 lacks memory, node2 lacks memory"]);
}

#[path = "upheaval.rs"]
mod upheaval;

#[test]
fn a_replica_that_fails_on_one_node_starts_elsewhere_before_it_leaves() {
    let mut sim = Sim::new(3, release(1, "[apps.shop]\nreplicas = 3\n"));
    sim.settle();
    let (id, bad) = sim.assignments.iter().next().map(|(id, a)| (id.clone(), a.node.clone())).unwrap();
    sim.doubts.away.entry(id.clone()).or_default().insert(bad.clone());
    let order: Vec<_> = sim.settle().iter().map(ToString::to_string).collect();
    assert_eq!(order.len(), 2, "{order:?}");
    assert!(order[0].starts_with(&format!("+ start {id} on node")) && !order[0].contains(&format!("on {bad} ")));
    assert!(order[1].starts_with(&format!("- stop {id} on {bad}")), "{order:?}");
    // It failed everywhere: it stays where it is.
    let all = sim.snapshot.nodes.keys().cloned().collect();
    sim.doubts.away.insert(id.clone(), all);
    assert_eq!(sim.settle(), Vec::new());
    assert!(sim.place().stuck.contains_key(&id));
}

#[test]
fn instances_of_a_lost_node_wait_for_it_as_long_as_they_are_told() {
    let mut sim = Sim::new(2, release(1, "[apps.shop]\nreplicas = 2\n"));
    sim.settle();
    let lost = node(1).name;
    sim.snapshot.nodes.get_mut(&lost).unwrap().state = NodeState::Lost { since: now() };
    sim.doubts.awaited.insert(lost);
    assert_eq!(sim.settle(), Vec::new());
    sim.doubts = Doubts::NONE;
    assert_eq!(sim.settle().len(), 1);
}
