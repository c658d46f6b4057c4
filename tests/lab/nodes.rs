//! Nodes in the lab: found by a real lease, admitted by policy, lost and found, refused under another key.

use std::{
    fs,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::rig::{Lab, eventually, run};

fn node(lab: &Lab, name: &str) -> Value {
    let ran = lab.matrix(&["nodes", "--json"]);
    // While the manager starts again.
    if ran.code == 3 {
        return Value::Null;
    }
    let view = ran.json();
    let nodes = view["nodes"].as_array().cloned().unwrap_or_default();
    nodes.into_iter().find(|n| n["name"] == name).unwrap_or(Value::Null)
}

/// The ids of processes with these words in their arguments. Not run by `matrix lab shell`, which would have them too.
fn processes(words: &str) -> Vec<String> {
    let mut pgrep = std::process::Command::new("pgrep");
    pgrep.args(["-f", "--", words]);
    run(pgrep).out.lines().map(str::to_owned).collect()
}

/// Waits for a state and says how long it took.
#[track_caller]
fn until(lab: &Lab, name: &str, state: &str, seconds: u64) -> Duration {
    let start = Instant::now();
    eventually(&format!("{name} {state}"), seconds, || node(lab, name)["state"] == state);
    start.elapsed()
}

#[test]
fn a_node_is_found_lost_and_found() {
    let lab = Lab::up(&["node25", "node108"]);
    for name in ["node25", "node108"] {
        until(&lab, name, "ready", 10);
    }
    let shown = node(&lab, "node25");
    assert_eq!(shown["address"], lab.node("node25")["address"]);
    assert!(shown["mac"].is_string() && shown["lease_expires"].is_string(), "{shown}");
    assert!(shown["engine"]["cpus"].as_u64().unwrap() > 0 && shown["engine"]["version"].is_string(), "{shown}");
    eventually("the disk is known", 5, || node(&lab, "node25")["engine"]["disk_free"].is_u64());
    let table = lab.matrix(&["nodes"]).ok();
    assert!(table.contains("node25") && table.contains("ready") && table.contains("INSTANCES"), "{table}");

    // A new machine needs nobody's hand, since this lab admits on first use.
    lab.lab(&["up", "--names", "node7"]).ok();
    until(&lab, "node7", "ready", 10);

    lab.lab(&["poweroff", "node25"]).ok();
    let took = until(&lab, "node25", "lost", 10);
    assert!(took < Duration::from_secs(8), "{took:?}");
    assert_eq!(node(&lab, "node108")["state"], "ready");
    lab.lab(&["boot", "node25"]).ok();
    until(&lab, "node25", "ready", 8);

    lab.lab(&["cut", "node108"]).ok();
    until(&lab, "node108", "lost", 10);
    lab.lab(&["heal", "node108"]).ok();
    until(&lab, "node108", "ready", 8);

    // An engine that restarts is no lost node.
    lab.on("node108", &["sh", "-c", "kill $(pgrep -x dockerd)"]);
    for _ in 0..40 {
        assert_ne!(node(&lab, "node108")["state"], "lost");
        std::thread::sleep(Duration::from_millis(100));
    }
    until(&lab, "node108", "ready", 15);
}

#[test]
fn another_machine_under_a_nodes_name_is_refused() {
    let lab = Lab::up(&["node1"]);
    until(&lab, "node1", "ready", 10);
    let pinned = node(&lab, "node1")["key"]["fingerprint"].as_str().unwrap().to_owned();

    // Installed anew: the same name and address, another key.
    lab.on(
        "node1",
        &[
            "sh",
            "-c",
            "rm /etc/ssh/ssh_host_ed25519_key*; ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key",
        ],
    )
    .ok();
    lab.lab(&["reboot", "node1"]).ok();
    until(&lab, "node1", "refused", 15);
    let shown = node(&lab, "node1");
    let offered = shown["offered"]["fingerprint"].as_str().unwrap_or_default().to_owned();
    let trouble = shown["trouble"].as_str().unwrap();
    assert!(trouble.contains(&pinned) && trouble.contains(&offered) && offered != pinned, "{shown}");
    assert!(trouble.contains("matrix nodes admit node1"), "{trouble}");

    let wrong = lab.matrix(&["nodes", "admit", "node1", "--fingerprint", &pinned]);
    assert_eq!(wrong.code, 1, "{}", wrong.err);
    assert_eq!(lab.matrix(&["nodes", "admit", "node1"]).code, 2, "nobody can be asked");
    assert_eq!(lab.matrix(&["nodes", "admit", "node9", "--yes"]).code, 2);
    assert_eq!(node(&lab, "node1")["state"], "refused");
    lab.matrix(&["nodes", "admit", "node1", "--fingerprint", &offered]).ok();
    until(&lab, "node1", "ready", 5);
}

#[test]
fn a_candidate_waits_where_the_policy_asks() {
    let lab = Lab::up(&["node1"]);
    until(&lab, "node1", "ready", 10);
    let file = lab.run_dir().join("matrix.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("first-use", "ask")).unwrap();
    lab.matrix(&["nodes", "forget", "node1"]).ok();
    lab.lab(&["service", "stop", "matrix"]).ok();
    fs::remove_dir_all(lab.state_dir().join("matrix")).unwrap();
    lab.lab(&["service", "start", "matrix"]).ok();
    eventually("the candidate's key", 10, || node(&lab, "node1")["offered"].is_object());
    assert_eq!(node(&lab, "node1")["state"], "candidate");
    let table = lab.matrix(&["nodes"]).ok();
    assert!(table.contains("candidate") && table.contains("matrix nodes admit node1"), "{table}");
    lab.matrix(&["nodes", "admit", "node1", "--yes"]).ok();
    until(&lab, "node1", "ready", 5);

    // A killed manager leaves masters and sockets; the next ends them and knows the node.
    let managers = processes(&format!("^[^ ]*matrix serve --config {}", file.display()));
    assert_eq!(managers.len(), 1);
    lab.gateway(&["kill", "-KILL", &managers[0]]).ok();
    until(&lab, "node1", "ready", 10);
    let masters = format!("ssh -S {}/", lab.run_dir().join("ssh").display());
    eventually("one master", 5, || processes(&masters).len() == 1);
    lab.lab(&["service", "stop", "matrix"]).ok();
    assert_eq!(processes(&masters), Vec::<String>::new());
}
