//! Operating nodes under load: emptied, taken out, brought back, and no request is lost.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::OnceLock,
    time::Duration,
};

use serde_json::Value;

use crate::{
    cloud::SmallDisk,
    rig::{Lab, eventually},
};

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

#[test]
fn scaling_under_load_loses_no_request_and_says_what_cannot_be() {
    let lab = lab();
    let plan = "[apps.web]\nimage = \"hello:v1\"\nreplicas = 2\n\
                [apps.pinned]\nimage = \"hello:v1\"\nnodes = [\"node1\"]\n\
                [apps.fixed]\nimage = \"hello:v1\"\nreplicas = 1\npublish = 5051\n";
    lab.deploy(plan).ok();
    let before = containers(lab);
    let load = lab.load(&["/web/", "/fixed/"], 200);
    load.until(Duration::from_secs(1));

    let said = lab.matrix(&["scale", "web=6", "--dry-run"]).ok();
    assert!(said.contains("+ start web.6") && said.contains("nothing was changed"), "{said}");
    assert_eq!(containers(lab), before);
    lab.matrix(&["scale", "web=6", "fixed=3"]).ok();
    for node in NODES {
        assert_eq!((on(lab, "web", node), on(lab, "fixed", node)), (2, 1), "{node}");
    }
    assert!(before.iter().all(|(name, id)| containers(lab).get(name) == Some(id)), "what ran stays");
    assert_eq!(lab.cloud()["release"]["message"], "scale fixed=3 web=6");
    lab.matrix(&["scale", "web=1", "fixed=1"]).ok();
    eventually("one of each is left", 20, || lab.containers_of("web", &NODES).len() == 1);

    let before = (containers(lab), lab.cloud()["release"].clone());
    for (wrong, said) in [
        ("web=-1", "from 0 to 1000"),
        ("web=1001", "from 0 to 1000"),
        ("web=many", "from 0 to 1000"),
        ("web", "APP=N"),
        ("wep=2", "did you mean web?"),
        ("pinned=2", "pinned to its nodes"),
        ("fixed=4", "1 of 4 instances of fixed have no place: no node has room: node1 has port 5051 in use"),
    ] {
        let ran = lab.matrix(&["scale", wrong]);
        assert_eq!(ran.code, 2, "{wrong}: {}{}", ran.out, ran.err);
        assert!(ran.err.contains(said), "{wrong}: {}", ran.err);
    }
    assert_eq!((containers(lab), lab.cloud()["release"].clone()), before);
    load.stop().none_lost();
}

#[test]
fn a_restart_makes_every_container_anew_and_loses_no_request() {
    let lab = lab();
    let plan = "[apps.web]\nimage = \"hello:v1\"\nreplicas = 3\n\
                [apps.pinned]\nimage = \"hello:v1\"\nnodes = [\"node1\", \"node2\"]\npublish = 5050\n\
                [apps.other]\nimage = \"hello:v1\"\n";
    lab.deploy(plan).ok();
    let before = containers(lab);
    let load = lab.load(&["/web/", "/pinned/", "/other/"], 200);
    load.until(Duration::from_secs(1));
    let said = lab.matrix(&["restart", "web", "--dry-run"]).ok();
    assert!(said.contains("web.1") && said.contains("(restart requested)") && !said.contains("pinned"), "{said}");
    assert_eq!(containers(lab), before);

    lab.matrix(&["restart", "web", "pinned"]).ok();
    eventually("the old ones are gone", 20, || containers(lab).len() == before.len());
    let after = containers(lab);
    let same: Vec<_> = after.iter().filter(|(_, id)| before.values().any(|old| old == *id)).collect();
    assert!(same.len() == 1 && same[0].0.starts_with("other."), "{same:?}");
    let said = lab.deploy(plan).ok();
    assert!(said.contains("nothing to change"), "{said}");
    assert_eq!(containers(lab), after, "the plan means what runs");
    assert_eq!(lab.matrix(&["restart", "nothing"]).code, 2);
    load.stop().none_lost();
}

#[test]
fn a_removed_node_is_out_until_it_is_admitted_by_hand() {
    let lab = lab();
    let plan = "[apps.web]\nimage = \"hello:v1\"\nreplicas = 3\n";
    lab.deploy(plan).ok();
    let ran = lab.matrix(&["nodes", "remove", "node3"]);
    assert_eq!(ran.code, 2, "{}{}", ran.out, ran.err);
    // Which replica is there, what ran before has decided.
    assert!(ran.err.contains("node3 is not empty: web."), "{}", ran.err);
    assert_eq!(lab.matrix(&["nodes", "remove", "node3", "--force"]).code, 2, "it answers: it is drained first");
    lab.matrix(&["nodes", "drain", "node3"]).ok();
    lab.matrix(&["nodes", "remove", "node3"]).ok();
    eventually("node3 is no node", 5, || state(lab, "node3")["state"] == "candidate");
    lab.lab(&["service", "restart", "matrix"]).ok();
    lab.matrix(&["status", "--wait", "15"]).ok();
    eventually("its key is read", 10, || state(lab, "node3")["offered"].is_object());
    assert_eq!(state(lab, "node3")["state"], "candidate", "though its lease lives and the policy is first-use");
    assert_eq!((on(lab, "web", "node3"), lab.containers_of("web", &NODES).len()), (0, 3));
    lab.matrix(&["nodes", "remove", "node3"]).ok();
    lab.matrix(&["nodes", "admit", "node3", "--yes"]).ok();
    lab.ready(&NODES);
    assert_eq!(state(lab, "node3")["intake"], "open");

    // One that died with something on it.
    lab.matrix(&["scale", "web=6"]).ok();
    assert_eq!(on(lab, "web", "node3"), 2);
    lab.lab(&["poweroff", "node3"]).ok();
    eventually("node3 is lost", 20, || state(lab, "node3")["state"] == "lost");
    let ran = lab.matrix(&["nodes", "remove", "node3"]);
    assert_eq!(ran.code, 2, "{}{}", ran.out, ran.err);
    assert!(ran.err.contains("does not answer, and ran web.") && ran.err.contains("--force"), "{}", ran.err);
    lab.matrix(&["nodes", "remove", "node3", "--force"]).ok();
    eventually("six run elsewhere", 30, || lab.containers_of("web", &["node1", "node2"]).len() == 6);
    lab.matrix(&["status", "--wait", "15"]).ok();
    lab.lab(&["boot", "node3"]).ok();
    eventually("its key is read", 20, || state(lab, "node3")["offered"].is_object());
    assert_eq!(state(lab, "node3")["state"], "candidate");
    lab.matrix(&["nodes", "admit", "node3", "--yes"]).ok();
    lab.ready(&NODES);
    eventually("exactly six", 30, || lab.containers_of("web", &NODES).len() == 6);
}

#[test]
fn load_spreads_again_when_a_node_returns() {
    let lab = Lab::up(&NODES);
    lab.ready(&NODES);
    lab.hello("hello:v1", &[("APP", "v1")]);
    let config = lab.run_dir().join("matrix.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, format!("rebalance_pause = \"2s\"\n{text}")).unwrap();
    lab.lab(&["service", "restart", "matrix"]).ok();
    lab.ready(&NODES);
    lab.deploy("[apps.web]\nimage = \"hello:v1\"\nreplicas = 6\n").ok();
    lab.lab(&["poweroff", "node3"]).ok();
    eventually("node3 is lost", 20, || state(&lab, "node3")["state"] == "lost");
    lab.matrix(&["status", "--wait", "30"]).ok();
    assert_eq!((on(&lab, "web", "node1"), on(&lab, "web", "node2")), (3, 3));

    let load = lab.load(&["/web/"], 200);
    load.until(Duration::from_secs(1));
    lab.lab(&["boot", "node3"]).ok();
    eventually("two on each", 60, || NODES.iter().all(|node| on(&lab, "web", node) == 2));
    let spread = containers(&lab);
    std::thread::sleep(Duration::from_secs(8));
    assert_eq!(containers(&lab), spread, "and there it ends");
    load.stop().none_lost();
}

#[test]
fn a_full_disk_keeps_what_is_new_away_and_the_status_says_so() {
    let nodes = ["node1", "node2"];
    let lab = Lab::up(&nodes);
    let disk = SmallDisk::under(&lab, "node2", "100m");
    lab.ready(&nodes);
    lab.hello("hello:v1", &[("APP", "v1")]);
    lab.deploy("[apps.web]\nimage = \"hello:v1\"\nreplicas = 2\n").ok();
    let before = lab.containers("node2");
    assert_eq!(before.len(), 1);
    let fill = "free=$(df -k --output=avail /var/lib/docker | tail -1); head -c $((free*95/100*1024)) /dev/zero > /var/lib/docker/fill";
    lab.on("node2", &["sh", "-c", fill]).ok();
    // The figures are read every half minute, and at the start.
    lab.lab(&["service", "restart", "matrix"]).ok();
    lab.ready(&nodes);
    eventually("it is known", 10, || state(&lab, "node2")["disk_full"] == true);
    let problems = lab.cloud()["problems"].to_string();
    assert!(
        problems.contains("the disk of node2 is 9") && problems.contains("nothing new is placed there"),
        "{problems}"
    );
    assert!(lab.matrix(&["nodes"]).ok().contains("ready, disk full"));
    lab.matrix(&["scale", "web=4"]).ok();
    assert_eq!(lab.containers("node2"), before, "what runs stays, nothing new comes");
    assert_eq!(lab.containers("node1").len(), 3);

    lab.on("node2", &["rm", "/var/lib/docker/fill"]).ok();
    lab.lab(&["service", "restart", "matrix"]).ok();
    lab.ready(&nodes);
    eventually("it is known", 10, || state(&lab, "node2")["disk_full"] == false);
    lab.matrix(&["scale", "web=6"]).ok();
    assert!(lab.containers("node2").len() >= 3, "{:?}", lab.containers("node2"));
    lab.lab(&["poweroff", "node2"]).ok();
    drop(disk);
}
