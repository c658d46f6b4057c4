//! Placing and comparing for a large cloud: no world, only the processor.

use std::collections::{BTreeMap, BTreeSet};

use matrix::{
    inventory::{Admission, Container, ContainerState, Engine, HostKey, Intake, Node, NodeState, Snapshot},
    model::{CloudId, Memory, NodeName, Timestamp},
    plan,
    reconcile::{self, Action, World},
    release::Release,
    routing::RoutingTable,
    schedule::{self, Assignments},
};

use crate::{
    report::{Figure, Goal, Other, Report, Unit},
    rig::Res,
};

const NODES: usize = 1000;
const APPS: usize = 200;
const REPLICAS: usize = 100;

struct Cloud {
    id: CloudId,
    release: Release,
    snapshot: Snapshot,
    verified: BTreeMap<String, Option<u16>>,
}

pub fn measure(report: &mut Report) -> Res<()> {
    let mut cloud = Cloud::new()?;
    let nothing = Assignments::new();
    let (assignments, actions) = cloud.decide(&nothing);
    if actions.len() != APPS * REPLICAS {
        return Err(format!("{} actions, not {}", actions.len(), APPS * REPLICAS).into());
    }
    let fresh = rounds(|| cloud.decide(&nothing))?;
    add(report, "nothing runs yet", fresh);
    cloud.done(actions);
    let (_, left) = cloud.decide(&assignments);
    if !left.is_empty() {
        return Err(format!("{} actions left where all is done", left.len()).into());
    }
    let settled = rounds(|| cloud.decide(&assignments))?;
    add(report, "all is as wanted", settled);
    Ok(())
}

fn rounds<T>(mut work: impl FnMut() -> T) -> Res<Vec<f64>> {
    let once = |_| {
        let before = on_processor()?;
        std::hint::black_box(work());
        Ok((on_processor()? - before) / 1e6)
    };
    (0..7).map(once).collect()
}

/// Nanoseconds this thread has had a processor: one thread that waits for nothing needs no quiet machine.
fn on_processor() -> Res<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    Ok(text.split_whitespace().next().ok_or("no schedstat")?.parse()?)
}

fn add(report: &mut Report, when: &str, millis: Vec<f64>) {
    report.add(Figure {
        name: format!("deciding, {NODES} nodes and {} instances, {when}", APPS * REPLICAS),
        unit: Unit::Millis,
        ours: millis,
        other: Other::Limit(200.0),
        goal: Goal::Below(1.0),
        noisy: 0,
    });
}

impl Cloud {
    fn new() -> Res<Self> {
        let app = |n| format!("[apps.app{n}]\nreplicas = {REPLICAS}\nmemory = \"64m\"\n");
        let text: String = (0..APPS).map(app).collect();
        let plan = plan::read("bench.toml", &text).map_err(|all| format!("{all:?}"))?.plan;
        let digest: matrix::model::Digest = format!("sha256:{:064}", 1).parse()?;
        let images = plan
            .apps
            .iter()
            .map(|(name, app)| (name.clone(), app.image.pinned("registry.matrix:5000", digest.clone())));
        let release = Release {
            number: 1,
            images: images.collect(),
            plan,
            created: Timestamp::UNIX_EPOCH,
            by: "bench".to_owned(),
            message: None,
            restarts: BTreeMap::new(),
        };
        let nodes = (1..=NODES).map(|n| node(n).map(|node| (node.name.clone(), node))).collect::<Res<_>>()?;
        Ok(Self { id: CloudId::try_from("bench")?, release, snapshot: Snapshot { nodes }, verified: BTreeMap::new() })
    }

    fn decide(&self, previous: &Assignments) -> (Assignments, Vec<Action>) {
        let placed = schedule::place(schedule::Input {
            release: &self.release,
            snapshot: &self.snapshot,
            previous,
            ports: [20000, 29999],
            frozen: false,
            beside: &schedule::Beside::NOTHING,
            doubts: &schedule::Doubts::NONE,
        });
        let decision = reconcile::diff(World {
            cloud: &self.id,
            release: &self.release,
            previous: None,
            assignments: &placed.assignments,
            snapshot: &self.snapshot,
            verified: &self.verified,
            routed: Some(&RoutingTable::default()),
            holds: &BTreeMap::new(),
            staged: None,
            resting: &BTreeSet::new(),
            now: Timestamp::UNIX_EPOCH,
        });
        (placed.assignments, decision.actions)
    }

    /// As if every instance had been started and had answered.
    fn done(&mut self, actions: Vec<Action>) {
        for (number, action) in actions.into_iter().enumerate() {
            let Action::Start { node, container, .. } = action else { continue };
            self.verified.insert(container.name.clone(), Some(200));
            let started = Container {
                id: format!("{number:064}"),
                name: container.name,
                ours: Some(container.ours),
                image: container.spec.image.to_string(),
                state: ContainerState::Running,
                published: BTreeMap::from([(container.spec.port, container.host_port)]),
                created: None,
            };
            if let Some(node) = self.snapshot.nodes.get_mut(&node) {
                node.containers.push(started);
            }
        }
    }
}

fn node(number: usize) -> Res<Node> {
    let octet = |n: usize| u8::try_from(n % 250);
    Ok(Node {
        name: NodeName::try_from(format!("node{number}"))?,
        address: [10, 10, octet(number / 250)?, octet(number)?].into(),
        mac: None,
        lease_expires: None,
        admission: Admission::Admitted {
            key: HostKey { algorithm: "ssh-ed25519".into(), key: "AAAA".into(), fingerprint: "SHA256:x".into() },
        },
        state: NodeState::Ready,
        since: Timestamp::UNIX_EPOCH,
        engine: Some(Engine {
            version: "20.10".into(),
            cpus: 8,
            memory: Memory(16 << 30),
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
    })
}
