//! Machines, links and processes that fail under load: what is noticed, by whom, how soon, and what follows from it.

use std::time::{Duration, Instant};

use crate::{
    cloud::Instance,
    rig::{Lab, eventually},
};

const NODES: [&str; 3] = ["node1", "node2", "node3"];

fn lab() -> Lab {
    let lab = Lab::up(&NODES);
    lab.ready(&NODES);
    lab.hello("hello", &[]);
    lab
}

/// A manager that has just started moves nothing for a quarter of a minute.
fn experienced() -> Lab {
    let begun = Instant::now();
    let lab = lab();
    std::thread::sleep(Duration::from_secs(16).saturating_sub(begun.elapsed()));
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
    let lab = experienced();
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
fn a_gateway_that_is_cut_off_its_own_network_moves_nothing_and_finds_all_as_it_was() {
    let lab = experienced();
    lab.deploy("[apps.web]\nimage = \"hello\"\nreplicas = 3\n").ok();
    let ids = || NODES.map(|node| lab.containers(node));
    let (before, served) = (ids(), serving(&lab));
    let routed = lab.matrix(&["vcl"]).ok();
    let started =
        NODES.map(|node| lab.on(node, &["sh", "-c", "docker inspect -f '{{.State.StartedAt}}' $(docker ps -q)"]).ok());
    let link = |way| lab.gateway(&["ip", "link", "set", "eth1", way]).ok();
    link("down");
    let cut = Instant::now();
    // Three times what it takes to declare a node lost.
    std::thread::sleep(Duration::from_secs(13));
    let problems = lab.cloud()["problems"].to_string();
    assert!(problems.contains("nothing is moved: 3 of 3 nodes do not answer at once"), "{problems}");
    assert!(NODES.iter().all(|node| state(&lab, node) == "lost"), "{}", lab.cloud()["nodes"]);
    assert_eq!(lab.matrix(&["vcl"]).ok(), routed, "routes stay");
    link("up");
    let healed = Instant::now();
    eventually("the same containers answer", 10, || lab.get("/web/").0 == 200);
    eprintln!("  cut for {:?}, answered again after {:?}", healed - cut, healed.elapsed());
    eventually("all serve again", 30, || serving(&lab) == served);
    // Longer than anything is held back.
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!((ids(), serving(&lab)), (before, served));
    let now =
        NODES.map(|node| lab.on(node, &["sh", "-c", "docker inspect -f '{{.State.StartedAt}}' $(docker ps -q)"]).ok());
    assert_eq!(now, started, "none was started anew");
    let load = lab.load(&["/web/"], 100);
    load.until(Duration::from_secs(6));
    load.stop().none_lost();
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
    assert!(by.values().all(|count| *count > report.total() / 10), "all three served: {by:?}");
    lab.ready(&NODES);
    assert_eq!(serving(&lab), before);
    assert_eq!(lab.containers_of("web", &NODES).len(), 3);
}

/// The instance on a node.
fn on(lab: &Lab, node: &str) -> Instance {
    lab.instances().into_iter().find(|i| i.node == node && i.state == "serving").expect("one serves there")
}

fn shell(lab: &Lab, node: &str, script: &str) {
    lab.on(node, &["sh", "-c", script]).ok();
}

#[test]
fn a_node_that_was_cut_off_comes_back_to_exactly_what_is_wanted() {
    let lab = experienced();
    lab.deploy("[apps.web]\nimage = \"hello\"\nreplicas = 3\n").ok();
    let load = lab.load(&["/web/"], 200);
    load.until(Duration::from_secs(2));
    lab.lab(&["cut", "node2"]).ok();
    let elsewhere = || serving(&lab).iter().filter(|(node, _)| node != "node2").count();
    eventually("three serve elsewhere", 15, || elsewhere() == 3);
    let stay = serving(&lab);
    lab.lab(&["heal", "node2"]).ok();
    lab.ready(&NODES);
    eventually("three containers in all", 20, || lab.containers_of("web", &NODES).len() == 3);
    assert_eq!(serving(&lab), stay, "those that served");

    // For less than it takes to be lost: nothing moves.
    lab.lab(&["cut", "node1"]).ok();
    eventually("it is doubted", 5, || state(&lab, "node1") == "suspect");
    lab.lab(&["heal", "node1"]).ok();
    lab.ready(&NODES);
    assert_eq!(serving(&lab), stay);
    let report = load.stop();
    report.none_lost();
    assert!(report.percentile(100) < Duration::from_secs(4), "{report}");
    assert_eq!(lab.containers_of("web", &NODES).len(), 3);
}

#[test]
fn a_manager_without_a_network_moves_nothing() {
    let lab = experienced();
    lab.deploy("[apps.web]\nimage = \"hello\"\nreplicas = 3\n").ok();
    let (before, containers) = (serving(&lab), lab.containers_of("web", &NODES));
    lab.gateway(&["ip", "link", "set", "eth1", "down"]).ok();
    eventually("it is unsure", 15, || {
        let problems = lab.cloud()["problems"].to_string();
        problems.contains("nothing is moved") && problems.contains("3 of 3 nodes")
    });
    std::thread::sleep(Duration::from_secs(8));
    lab.gateway(&["ip", "link", "set", "eth1", "up"]).ok();
    lab.ready(&NODES);
    eventually("all serve again", 15, || serving(&lab) == before);
    assert_eq!(lab.containers_of("web", &NODES), containers, "the same containers, and no others");
}

#[test]
fn an_instance_that_is_killed_loses_no_request_and_is_back() {
    let lab = lab();
    lab.deploy("[apps.web]\nimage = \"hello\"\nreplicas = 3\n").ok();
    let load = lab.load(&["/web/"], 200);
    load.until(Duration::from_secs(1));
    // The engine takes this for a wish and does not start it again: the manager does.
    let first = on(&lab, "node1");
    shell(&lab, "node1", &format!("docker kill {}", first.container));
    eventually("the manager starts it", 15, || on_is(&lab, &first));
    // This one the engine starts again.
    let second = on(&lab, "node2");
    shell(&lab, "node2", &format!("kill -9 $(docker inspect -f '{{{{.State.Pid}}}}' {})", second.container));
    std::thread::sleep(Duration::from_millis(500));
    eventually("the engine starts it", 15, || on_is(&lab, &second));
    let until = Duration::from_secs(3);
    std::thread::sleep(until);
    let report = load.stop();
    report.none_lost();
    assert!(report.percentile(100) < Duration::from_secs(3), "{report}");
    assert_eq!(lab.containers_of("web", &NODES).len(), 3);
    // All three take requests again.
    let after = lab.load(&["/web/"], 100);
    after.until(Duration::from_secs(3));
    let by = after.stop().by_instance("/web/");
    assert_eq!(by.len(), 3, "{by:?}");
}

fn on_is(lab: &Lab, instance: &Instance) -> bool {
    lab.instances().iter().any(|i| i == instance)
}

#[test]
fn an_instance_that_hangs_is_shown_and_replaced() {
    let lab = lab();
    let health = "health = { path = \"/\", timeout = \"500ms\" }";
    lab.deploy(&format!("[apps.web]\nimage = \"hello\"\nreplicas = 2\n{health}\n")).ok();
    let load = lab.load(&["/web/"], 100);
    load.until(Duration::from_secs(1));
    let hangs = lab.instances().remove(0);
    shell(&lab, &hangs.node, &format!("docker kill -s STOP {}", hangs.container));
    eventually("it is shown", 15, || {
        lab.instances()
            .iter()
            .any(|i| i.state == "unhealthy" && i.container == hangs.container && i.why.contains("probe"))
    });
    eventually("it is replaced elsewhere", 100, || {
        let serving = serving(&lab);
        serving.len() == 2 && serving.iter().all(|(node, _)| *node != hangs.node)
    });
    eventually("it is gone", 30, || lab.containers_of("web", &NODES).len() == 2);
    load.stop().none_lost();
}

#[test]
fn a_replica_that_keeps_dying_on_one_node_runs_on_another() {
    let lab = experienced();
    let command = "command = [\"/bin/sh\", \"-c\", \"/bin/sh -c 'test ! -e /flags/crash' || exit 1; exec /hello\"]";
    let volume = "volumes = [\"/tmp/flags:/flags\"]";
    for node in NODES {
        shell(&lab, node, "mkdir -p /tmp/flags");
    }
    lab.deploy(&format!("[apps.web]\nimage = \"hello\"\nreplicas = 2\n{command}\n{volume}\n")).ok();
    let load = lab.load(&["/web/"], 100);
    load.until(Duration::from_secs(1));
    let bad = lab.instances().remove(0);
    let kill = format!("touch /tmp/flags/crash; kill -9 $(docker inspect -f '{{{{.State.Pid}}}}' {})", bad.container);
    shell(&lab, &bad.node, &kill);
    let begun = Instant::now();
    eventually("two serve elsewhere", 40, || {
        let serving = serving(&lab);
        serving.len() == 2 && serving.iter().all(|(node, _)| *node != bad.node)
    });
    eprintln!("  crash loop: replaced after {:?}", begun.elapsed());
    eventually("it is gone", 20, || lab.containers_of("web", &NODES).len() == 2);
    load.stop().none_lost();
}

#[test]
fn an_engine_that_is_frozen_or_starts_again_leaves_what_serves_alone() {
    let lab = lab();
    lab.deploy("[apps.web]\nimage = \"hello\"\nreplicas = 3\n").ok();
    let before = serving(&lab);
    let load = lab.load(&["/web/"], 100);
    shell(&lab, "node2", "kill -STOP $(pgrep -x dockerd)");
    eventually("it is doubted", 8, || state(&lab, "node2") == "suspect");
    std::thread::sleep(Duration::from_secs(15));
    assert_eq!(state(&lab, "node2"), "suspect", "it serves");
    shell(&lab, "node2", "kill -CONT $(pgrep -x dockerd)");
    lab.ready(&NODES);
    assert_eq!(serving(&lab), before);
    // Its containers end with it, and are started by the next one.
    shell(&lab, "node2", "kill -TERM $(pgrep -x dockerd)");
    std::thread::sleep(Duration::from_secs(2));
    eventually("all serve again", 40, || serving(&lab).len() == 3 && state(&lab, "node2") == "ready");
    eventually("three containers in all", 20, || lab.containers_of("web", &NODES).len() == 3);
    load.stop().none_lost();
}
