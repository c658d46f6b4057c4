//! Nodes as the manager knows them: admission, sessions that come and go, clones, leases. Real sshds on loopback.

use std::{fs, path::Path, sync::Arc, time::Duration};

use matrix::{
    inventory::{Admission, Intake, Node, NodeState, Snapshot},
    manager::{
        config::{AdmissionPolicy, Config, Ssh, StaticNode},
        nodes::{Nodes, NodesError},
    },
    model::NodeName,
    remote::leases,
    store::Sqlite,
};
use tokio_util::sync::CancellationToken;

use crate::rig_sshd::{Sshd, fake_engine, free_port, user};

const SOON: Duration = Duration::from_secs(20);

struct Manager {
    nodes: Nodes,
    stop: CancellationToken,
}

impl Manager {
    /// A manager with its state in `dir`, over these nodes. They share a port, a user's key and an engine's path.
    fn start(dir: &Path, policy: AdmissionPolicy, machines: &[(&str, &Sshd)]) -> Self {
        let config = Config {
            run: dir.to_owned(),
            leases: None,
            ssh: Ssh {
                user: user(),
                identity: dir.join("id"),
                port: machines[0].1.port.get(),
                engine_socket: dir.join("engine.sock"),
            },
            admission: policy,
            nodes: machines
                .iter()
                .map(|(name, sshd)| StaticNode { name: name.parse().unwrap(), address: sshd.address.parse().unwrap() })
                .collect(),
            ..Config::default()
        };
        let store = Arc::new(Sqlite::open(&dir.join("matrix.db")).unwrap());
        let stop = CancellationToken::new();
        let nodes = Nodes::start(Arc::new(config), store, stop.clone()).unwrap();
        Self { nodes, stop }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.nodes.finished().await;
    }

    async fn until(&self, what: &str, mut good: impl FnMut(&Snapshot) -> bool) -> Arc<Snapshot> {
        self.within(SOON, what, &mut good).await
    }

    async fn within(&self, time: Duration, what: &str, mut good: impl FnMut(&Snapshot) -> bool) -> Arc<Snapshot> {
        let mut receiver = self.nodes.subscribe();
        let found = tokio::time::timeout(time, receiver.wait_for(|snapshot| good(snapshot))).await;
        let Ok(snapshot) = found else { panic!("not {what} within {time:?}: {:#?}", self.nodes.snapshot()) };
        Arc::clone(&snapshot.unwrap())
    }
}

fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

fn node<'a>(snapshot: &'a Snapshot, text: &str) -> &'a Node {
    &snapshot.nodes[&name(text)]
}

fn ready(text: &str) -> impl FnMut(&Snapshot) -> bool + use<> {
    let name = name(text);
    move |snapshot| snapshot.nodes.get(&name).is_some_and(Node::is_ready)
}

/// A folder for the manager with the key that lets it in there.
fn folder(sshd: &Sshd) -> tempfile::TempDir {
    let dir = tempfile::Builder::new().prefix("mx").tempdir_in("/tmp").unwrap();
    fs::copy(sshd.dir.path().join("id"), dir.path().join("id")).unwrap();
    dir
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_admitted_on_first_use_lost_and_found() {
    let mut sshd = Sshd::start("");
    let dir = folder(&sshd);
    let _engine = fake_engine(&dir.path().join("engine.sock"), "a");
    let manager = Manager::start(dir.path(), AdmissionPolicy::FirstUse, &[("node1", &sshd)]);
    let snapshot = manager.until("ready", ready("node1")).await;
    assert_eq!(node(&snapshot, "node1").admission, Admission::Admitted { key: sshd.key.clone() });
    let engine = manager.nodes.engine(&name("node1")).expect("a ready node has its engine");
    engine.ping(SOON).await.unwrap();
    let disk = manager
        .until("its disk known", |s| node(s, "node1").engine.as_ref().is_some_and(|e| e.disk_total.is_some()))
        .await;
    assert_eq!(node(&disk, "node1").engine.as_ref().unwrap().version, "20.10.24");

    sshd.stop();
    let lost = |s: &Snapshot| matches!(node(s, "node1").state, NodeState::Lost { .. });
    let snapshot = manager.within(Duration::from_secs(20), "lost", lost).await;
    let trouble = node(&snapshot, "node1").trouble.clone().unwrap();
    assert!(trouble.contains("refuses connections"), "{trouble}");
    assert!(manager.nodes.engine(&name("node1")).is_none());

    sshd.again();
    let snapshot = manager.until("back", ready("node1")).await;
    assert_eq!(node(&snapshot, "node1").trouble, None);
    manager.stop().await;
    let left: Vec<_> = fs::read_dir(dir.path().join("ssh")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_candidate_waits_to_be_admitted_and_a_changed_key_is_refused() {
    let mut sshd = Sshd::start("");
    let dir = folder(&sshd);
    let _engine = fake_engine(&dir.path().join("engine.sock"), "a");
    let manager = Manager::start(dir.path(), AdmissionPolicy::Ask, &[("node1", &sshd)]);
    let offered = Admission::Candidate { offered: Some(sshd.key.clone()) };
    manager.until("its key known", |s| node(s, "node1").admission == offered).await;

    let wrong = manager.nodes.admit(&name("node1"), Some("SHA256:wrong")).await.unwrap_err();
    assert!(matches!(&wrong, NodesError::OtherKey { offered, .. } if *offered == sshd.key.fingerprint), "{wrong}");
    assert!(matches!(manager.nodes.admit(&name("node9"), None).await, Err(NodesError::Unknown { .. })));
    assert_eq!(node(&manager.nodes.snapshot(), "node1").admission, offered);
    manager.nodes.admit(&name("node1"), Some(&sshd.key.fingerprint)).await.unwrap();
    manager.until("ready", ready("node1")).await;
    manager.stop().await;

    // A manager that starts again knows it; a machine installed anew is not it.
    sshd.stop();
    let old = sshd.key.clone();
    sshd.again_with_another_key();
    let manager = Manager::start(dir.path(), AdmissionPolicy::FirstUse, &[("node1", &sshd)]);
    let refused = |s: &Snapshot| matches!(node(s, "node1").admission, Admission::Refused { .. });
    let snapshot = manager.until("refused", refused).await;
    let Admission::Refused { pinned, offered, why } = &node(&snapshot, "node1").admission else { unreachable!() };
    assert_eq!((pinned.as_ref(), offered.as_ref()), (Some(&old), Some(&sshd.key)));
    assert!(why.contains(&old.fingerprint) && why.contains(&sshd.key.fingerprint), "{why}");
    assert!(manager.nodes.engine(&name("node1")).is_none());
    manager.nodes.admit(&name("node1"), None).await.unwrap();
    manager.until("ready with its new key", ready("node1")).await;

    manager.nodes.forget(&name("node1")).unwrap();
    let removed = |s: &Snapshot| {
        let node = node(s, "node1");
        (&node.admission, node.intake) == (&Admission::Candidate { offered: Some(sshd.key.clone()) }, Intake::Removed)
    };
    manager.until("a candidate, whatever the policy says", removed).await;
    manager.stop().await;
    let manager = Manager::start(dir.path(), AdmissionPolicy::FirstUse, &[("node1", &sshd)]);
    manager.until("a candidate over a restart", removed).await;
    manager.nodes.admit(&name("node1"), None).await.unwrap();
    let snapshot = manager.until("admitted by hand", ready("node1")).await;
    assert_eq!(node(&snapshot, "node1").intake, Intake::Open);

    assert!(manager.nodes.set_intake(&name("node1"), Intake::Draining).unwrap());
    assert!(!manager.nodes.set_intake(&name("node1"), Intake::Draining).unwrap());
    manager.stop().await;
    let manager = Manager::start(dir.path(), AdmissionPolicy::FirstUse, &[("node1", &sshd)]);
    let snapshot = manager.until("ready after a restart", ready("node1")).await;
    assert_eq!(node(&snapshot, "node1").intake, Intake::Draining, "kept");
    manager.nodes.admit(&name("node1"), None).await.unwrap();
    assert_eq!(node(&manager.nodes.snapshot(), "node1").intake, Intake::Draining, "a key accepted anew ends no drain");
    manager.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_of_two_clones_is_refused() {
    let port = free_port();
    let (first, second) = (Sshd::start_at("127.0.0.2", port, ""), Sshd::start_at("127.0.0.3", port, ""));
    let dir = folder(&first);
    fs::copy(first.dir.path().join("authorized"), second.dir.path().join("authorized")).unwrap();
    let _engine = fake_engine(&dir.path().join("engine.sock"), "same");
    let manager = Manager::start(dir.path(), AdmissionPolicy::FirstUse, &[("node1", &first), ("node2", &second)]);
    let refused = |s: &Snapshot| {
        let count = |good: fn(&Node) -> bool| s.nodes.values().filter(|n| good(n)).count();
        (count(Node::is_ready), count(|n| matches!(n.admission, Admission::Refused { .. }))) == (1, 1)
    };
    let snapshot = manager.until("one ready, one refused", refused).await;
    let why = snapshot.nodes.values().find_map(|n| match &n.admission {
        Admission::Refused { why, .. } => Some(why.clone()),
        _ => None,
    });
    assert!(why.as_deref().unwrap().contains("clone"), "{why:?}");
    manager.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leases_file_is_followed_and_never_forgotten_by_mistake() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("dnsmasq.leases");
    let stop = CancellationToken::new();
    let mut known = leases::follow(file.clone(), stop.clone());
    let one = "0 02:42:0a:0a:0a:01 10.10.10.1 node1 *\n";
    let two = "0 02:42:0a:0a:0a:02 10.10.10.2 node2 *\n";
    let count = async |known: &mut tokio::sync::watch::Receiver<Arc<matrix::inventory::lease::Leases>>, n| {
        let found = tokio::time::timeout(SOON, known.wait_for(|leases| leases.leases.len() == n)).await;
        found.unwrap_or_else(|_| panic!("not {n} leases")).unwrap().clone()
    };
    fs::write(&file, one).unwrap();
    count(&mut known, 1).await;
    // As dnsmasq does it: emptied, then written in pieces.
    fs::write(&file, "").unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    fs::write(&file, &format!("{one}{two}")[..50]).unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(known.borrow().leases.len(), 1);
    fs::write(&file, format!("{one}{two}")).unwrap();
    assert_eq!(count(&mut known, 2).await.by_name().len(), 2);
    for (bad, wanted) in [("garbage\u{0}\u{7}\nmore garbage\n", "no lease any more"), ("", "cannot read")] {
        if bad.is_empty() {
            fs::remove_file(&file).unwrap();
        } else {
            fs::write(&file, bad).unwrap();
        }
        let complained = known.wait_for(|leases| leases.problems.iter().any(|p| p.contains(wanted)));
        let leases = tokio::time::timeout(SOON, complained).await.expect(wanted).unwrap().clone();
        assert_eq!(leases.leases.len(), 2, "{bad:?}");
    }
    fs::write(&file, one).unwrap();
    count(&mut known, 1).await;
    stop.cancel();
}
