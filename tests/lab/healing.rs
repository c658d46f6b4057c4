//! Machines, links and processes that fail under load: what is noticed, by whom, how soon, and what follows from it.

use std::time::{Duration, Instant};

use crate::rig::{Lab, eventually};

const NODES: [&str; 3] = ["node1", "node2", "node3"];

fn lab() -> Lab {
    let lab = Lab::up(&NODES);
    lab.ready(&NODES);
    lab.hello("hello", &[]);
    lab
}

fn state(lab: &Lab, node: &str) -> String {
    lab.cloud()["nodes"][node]["state"].as_str().unwrap_or_default().to_owned()
}

/// Nodes and names of what serves.
fn serving(lab: &Lab) -> Vec<(String, String)> {
    let all = lab.instances().into_iter().filter(|i| i.state == "serving");
    all.map(|i| (i.node, i.name)).collect()
}

#[test]
fn a_node_without_power_loses_no_request_and_its_instances_run_elsewhere() {
    let lab = lab();
    lab.deploy("[apps.web]\nimage = \"hello\"\nreplicas = 3\n").ok();
    let load = lab.load(&["/web/"], 200);
    load.until(Duration::from_secs(3));
    let cut = Instant::now();
    lab.lab(&["poweroff", "node2"]).ok();
    let (mut lost, mut restored) = (None, None);
    while restored.is_none() && cut.elapsed() < Duration::from_secs(20) {
        let cloud = lab.cloud();
        let is_lost = cloud["nodes"]["node2"]["state"] == "lost";
        lost = lost.or(is_lost.then(|| cut.elapsed()));
        let instances = cloud["applications"]["web"]["instances"].as_array().cloned().unwrap_or_default();
        let elsewhere = instances.iter().filter(|i| i["state"] == "serving" && i["node"] != "node2").count();
        restored = (elsewhere == 3).then(|| cut.elapsed());
    }
    load.until(Duration::from_secs(20));
    let report = load.stop();
    eprintln!("  power-off: declared lost after {lost:?}, three serve again after {restored:?}");
    report.none_lost();
    let (lost, restored) = (lost.expect("it is lost"), restored.expect("three serve"));
    assert!(lost < Duration::from_secs(7), "{lost:?}");
    assert!(restored < Duration::from_secs(10), "{restored:?}");
    assert!(report.percentile(100) < Duration::from_secs(3), "{report}");
    // A connection that is not taken is given up after 300 ms.
    assert!(report.percentile(99) < Duration::from_millis(600), "{report}");

    // Back again: exactly three, and those that served stay.
    let stay = serving(&lab);
    lab.lab(&["boot", "node2"]).ok();
    lab.ready(&NODES);
    eventually("three containers in all", 20, || lab.containers_of("web", &NODES).len() == 3);
    assert_eq!(serving(&lab), stay);
}

#[test]
fn a_node_whose_sshd_alone_is_cut_off_serves_on_and_nothing_moves() {
    let lab = lab();
    lab.deploy("[apps.web]\nimage = \"hello\"\nreplicas = 3\n").ok();
    let before = serving(&lab);
    let load = lab.load(&["/web/"], 200);
    // By itself open again: nobody gets in meanwhile.
    let rule = "INPUT -p tcp --dport 22 -j DROP";
    let cut = format!("iptables -I {rule}; setsid sh -c 'sleep 25; iptables -D {rule}' >/dev/null 2>&1 &");
    lab.on("node2", &["sh", "-c", &cut]).ok();
    eventually("it is doubted", 5, || state(&lab, "node2") == "suspect");
    load.until(Duration::from_secs(22));
    let cloud = lab.cloud();
    let trouble = cloud["nodes"]["node2"]["trouble"].as_str().unwrap_or_default().to_owned();
    assert_eq!(state(&lab, "node2"), "suspect", "{cloud}");
    assert!(trouble.contains("its instances answer the gateway"), "{trouble}");
    let report = load.stop();
    report.none_lost();
    assert!(report.percentile(100) < Duration::from_secs(1), "nothing was cut: {report}");
    let by = report.by_instance("/web/");
    assert_eq!(by.len(), 3, "{by:?}");
    assert!(by.values().all(|count| *count > report.total() / 4), "all three served: {by:?}");
    lab.ready(&NODES);
    assert_eq!(serving(&lab), before);
    assert_eq!(lab.containers_of("web", &NODES).len(), 3);
}
