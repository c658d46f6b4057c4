//! Operating nodes under load: emptied, taken out, brought back, and no request is lost.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::OnceLock,
    time::Duration,
};

use serde_json::Value;

use crate::rig::{Lab, eventually};

const NODES: [&str; 3] = ["node1", "node2", "node3"];

fn lab() -> &'static Lab {
    static LAB: OnceLock<Lab> = OnceLock::new();
    static IMAGES: OnceLock<()> = OnceLock::new();
    let lab = Lab::shared(&LAB, &NODES);
    IMAGES.get_or_init(|| lab.hello("hello:v1", &[("APP", "v1")]));
    for node in NODES {
        lab.matrix(&["nodes", "undrain", node]).ok();
    }
    lab
}

fn containers(lab: &Lab) -> BTreeMap<String, String> {
    NODES.iter().flat_map(|node| lab.containers(node)).collect()
}

fn on(lab: &Lab, app: &str, node: &str) -> usize {
    lab.containers_of(app, &[node]).len()
}

fn state(lab: &Lab, node: &str) -> Value {
    let view = lab.matrix(&["nodes", "--json"]).json();
    let nodes = view["nodes"].as_array().cloned().unwrap_or_default();
    nodes.into_iter().find(|n| n["name"] == node).unwrap_or(Value::Null)
}

#[test]
fn a_drain_under_load_empties_a_node_and_loses_no_request() {
    let lab = lab();
    let plan = "[apps.web]\nimage = \"hello:v1\"\nreplicas = 6\n\
                [apps.one]\nimage = \"hello:v1\"\n\
                [apps.pinned]\nimage = \"hello:v1\"\nnodes = [\"node1\", \"node2\"]\npublish = 5050\n";
    lab.deploy(plan).ok();
    let before = containers(lab);
    let load = lab.load(&["/web/", "/one/", "/pinned/"], 200);
    load.until(Duration::from_secs(1));

    let said = lab.matrix(&["nodes", "drain", "node2", "--dry-run"]).ok();
    assert!(said.contains("> move web.") && said.contains("= pinned.2 stays"), "{said}");
    assert_eq!(state(lab, "node2")["intake"], "open");
    assert_eq!(containers(lab), before);

    let ran = lab.matrix(&["nodes", "drain", "node2", "--deadline", "60s"]);
    assert!(ran.err.contains("pinned.2 stay"), "{}", ran.err);
    let said = ran.ok();
    assert!(said.contains("moved to node"), "{said}");
    assert_eq!((on(lab, "web", "node2"), on(lab, "one", "node2")), (0, 0), "{:?}", lab.containers("node2"));
    assert_eq!(lab.containers("node2").len(), 1, "what is pinned runs on");
    assert_eq!((on(lab, "web", "node1") + on(lab, "web", "node3"), lab.instances().len()), (6, 9));
    let table = lab.matrix(&["nodes"]).ok();
    assert!(table.contains("ready, draining"), "{table}");

    // Again is nothing to do; a restarted manager knows it still.
    lab.matrix(&["nodes", "drain", "node2"]).ok();
    lab.lab(&["service", "restart", "matrix"]).ok();
    lab.matrix(&["status", "--wait", "15"]).ok();
    assert_eq!(state(lab, "node2")["intake"], "draining");
    lab.deploy(&plan.replace("replicas = 6", "replicas = 8")).ok();
    assert_eq!(on(lab, "web", "node2"), 0, "nothing new comes");
    load.stop().none_lost();

    lab.matrix(&["nodes", "cordon", "node3"]).ok();
    let before = lab.containers("node3");
    lab.deploy(&plan.replace("replicas = 6", "replicas = 10")).ok();
    assert_eq!(lab.containers("node3"), before, "what runs stays, and nothing new comes");
    let last = lab.matrix(&["nodes", "drain", "node1"]);
    assert_eq!(last.code, 2, "{}", last.err);
    assert!(
        last.err.contains("node1 is the last node that takes instances: node2 is drained, node3 is cordoned"),
        "{}",
        last.err
    );
    assert_eq!(state(lab, "node1")["intake"], "open");
    let unknown = lab.matrix(&["nodes", "drain", "node9"]);
    assert_eq!(unknown.code, 2, "{}", unknown.err);
}

#[test]
fn a_drain_that_finds_no_room_says_what_is_left_and_why() {
    let lab = lab();
    // Two thirds of a processor each: as many as there are processors, less one, fill the lab.
    let cpus = usize::try_from(state(lab, "node1")["engine"]["cpus"].as_u64().unwrap()).unwrap();
    let plan = format!("[apps.big]\nimage = \"hello:v1\"\nreplicas = {}\ncpus = 0.9\n", cpus * 3);
    lab.deploy(&plan).ok();
    let before = containers(lab);
    let ran = lab.matrix(&["nodes", "drain", "node1", "--deadline", "2s"]);
    assert_eq!(ran.code, 1, "{}{}", ran.out, ran.err);
    assert!(
        ran.err.contains("node1 is not empty after 2s") && ran.err.contains("node2 lacks processors"),
        "{}",
        ran.err
    );
    assert_eq!(containers(lab), before, "what has no other place runs on");
    // There is room again: it goes on by itself.
    lab.deploy(&format!("[apps.big]\nimage = \"hello:v1\"\nreplicas = {}\ncpus = 0.9\n", cpus * 2)).ok();
    lab.matrix(&["nodes", "drain", "node1", "--deadline", "60s"]).ok();
    assert_eq!(lab.containers("node1").len(), 0);
}

#[test]
fn a_rebooted_nodes_containers_are_adopted() {
    let lab = lab();
    lab.deploy("[apps.web]\nimage = \"hello:v1\"\nnodes = [\"node1\", \"node2\", \"node3\"]\n").ok();
    let before = containers(lab);
    assert_eq!(before.len(), 3);
    let load = lab.load(&["/web/"], 100);
    load.until(Duration::from_secs(1));
    lab.lab(&["reboot", "node3"]).ok();
    eventually("node3 serves again", 30, || {
        let serving =
            lab.instances().iter().filter(|i| i.state == "serving").map(|i| i.node.clone()).collect::<BTreeSet<_>>();
        serving.len() == 3
    });
    load.until(Duration::from_secs(3));
    load.stop().none_lost();
    assert_eq!(containers(lab), before, "the same containers");
}
