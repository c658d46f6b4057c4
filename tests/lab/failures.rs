//! Parts that die, are full, or are silent while a plan goes out: what was running goes on, and what failed is named.

use std::{
    fs,
    path::Path,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use crate::{
    cloud::{SmallDisk, written},
    load::request,
    rig::{Lab, eventually},
};

const NODES: [&str; 2] = ["node1", "node2"];

fn lab() -> Lab {
    let lab = Lab::up(&NODES);
    lab.ready(&NODES);
    lab.hello("hello:v1", &[("APP", "v1")]);
    lab
}

fn plan(tag: &str) -> String {
    format!("[apps.web]\nimage = \"hello:{tag}\"\nreplicas = 2\n")
}

fn page(lab: &Lab) -> String {
    request(lab.varnish(), "GET /web/ HTTP/1.1").map(|a| a.body).unwrap_or_default()
}

#[test]
fn a_manager_that_is_killed_amid_a_deploy_ends_it_when_it_is_back() {
    let lab = lab();
    lab.hello("hello:v2", &[("APP", "v2")]);
    lab.deploy(&plan("v1")).ok();
    let load = lab.load(&["/web/"], 200);
    for (turn, after) in [60, 250, 700, 1500].into_iter().enumerate() {
        let tag = if turn % 2 == 0 { "v2" } else { "v1" };
        let file = written(&plan(tag));
        let socket = lab.socket();
        let mut deploy = crate::rig::matrix();
        deploy.arg("--manager").arg(&socket).arg("deploy").arg(file.path());
        let mut deploy = deploy.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        thread::sleep(Duration::from_millis(after));
        lab.lab(&["service", "crash", "matrix"]).ok();
        deploy.wait().unwrap();
        eventually("the manager is back", 10, || lab.matrix(&["status"]).code == 0);
        // Killed before it was written down, the release is not there: a user who was told so deploys again.
        lab.deploy(&plan(tag)).ok();
        lab.matrix(&["status", "--wait", "20"]).ok();
        assert!(page(&lab).contains(&format!("<h1>{tag}</h1>")), "killed after {after} ms");
        eventually("two instances, no more", 15, || lab.containers_of("web", &NODES).len() == 2);
    }
    load.stop().none_lost();
}

#[test]
fn a_cloud_serves_while_its_manager_is_away_and_finds_it_again() {
    let lab = lab();
    lab.deploy(&plan("v1")).ok();
    let before = lab.containers_of("web", &NODES);
    let load = lab.load(&["/web/"], 100);
    lab.lab(&["service", "stop", "matrix"]).ok();
    assert_eq!(lab.matrix(&["status"]).code, 3);
    thread::sleep(Duration::from_secs(1));
    lab.lab(&["service", "start", "matrix"]).ok();
    lab.matrix(&["status", "--wait", "15"]).ok();
    let said = lab.deploy(&plan("v1")).ok();
    assert!(said.contains("nothing to change"), "{said}");
    assert_eq!(lab.containers_of("web", &NODES), before);
    load.until(Duration::from_secs(4));
    load.stop().none_lost();
}

#[test]
fn a_varnish_that_comes_back_empty_has_its_routes_within_a_second() {
    let lab = lab();
    lab.deploy(&plan("v1")).ok();
    let load = lab.load(&["/web/"], 200);
    load.until(Duration::from_secs(1));
    lab.lab(&["service", "crash", "varnish"]).ok();
    load.until(Duration::from_secs(5));
    let report = load.stop();
    assert!(report.lost() > 0, "varnishd was killed: {report}");
    let empty = report.span_of(|status| status == Some(503));
    let gap = report.span_of(|status| status != Some(200));
    eprintln!("  varnishd killed: no answer or 503 for {gap:?}, of it 503 for {empty:?}");
    assert!(empty < Duration::from_secs(1), "{report}");
    assert!(gap < Duration::from_secs(3), "{report}");
    eventually("the status knows", 5, || lab.matrix(&["status", "--wait", "1"]).code == 0);
}

#[test]
fn a_registry_that_is_down_is_named_and_nothing_changes() {
    let lab = lab();
    lab.deploy(&plan("v1")).ok();
    let before = lab.containers_of("web", &NODES);
    let digest = lab.cloud()["applications"]["web"]["image"].as_str().unwrap().split_once('@').unwrap().1.to_owned();
    lab.lab(&["service", "stop", "registry"]).ok();
    let begun = Instant::now();
    let ran = lab.deploy(&plan("v2"));
    assert_eq!(ran.code, 1, "{}", ran.err);
    assert!(ran.err.contains("registry") && ran.err.contains(":5000"), "{}", ran.err);
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    assert_eq!(lab.containers_of("web", &NODES), before);

    // The content is known, and every node has it: no registry is needed.
    let pinned = format!("[apps.web]\nimage = \"hello@{digest}\"\nreplicas = 2\nenvironment = {{ A = 1 }}\n");
    lab.deploy(&pinned).ok();
    // A node that has it not says that it cannot be had.
    for node in NODES {
        let id = lab.on(node, &["docker", "images", "-q", "matrix-manager.matrix:5000/cloud/hello"]).out;
        assert!(!id.trim().is_empty(), "{id}");
    }
    lab.lab(&["service", "start", "registry"]).ok();
    lab.deploy(&plan("v1")).ok();
    assert!(page(&lab).contains("<h1>v1</h1>"));
}

/// 60 MB that no compressor makes smaller.
fn big_image(lab: &Lab) {
    let directory = tempfile::tempdir().unwrap();
    let noise: Vec<u8> = std::iter::successors(Some(1u64), |x| {
        let x = x ^ (x << 13);
        let x = x ^ (x >> 7);
        Some(x ^ (x << 17))
    })
    .take(60 << 17)
    .flat_map(u64::to_le_bytes)
    .collect();
    fs::write(directory.path().join("noise"), noise).unwrap();
    fs::copy(crate::cloud::project("vm/apps/simplewebapp1/hello"), directory.path().join("hello")).unwrap();
    let toml = "base = \"scratch\"\ncommand = [\"/hello\"]\nport = 8080\n";
    fs::write(directory.path().join("image.toml"), format!("files = [{{ from = \"hello\", to = \"/hello\", mode = \"0755\" }}, {{ from = \"noise\", to = \"/noise\" }}]\n{toml}")).unwrap();
    lab.matrix(&["create-image", "big", directory.path().to_str().unwrap(), "--push"]).ok();
}

#[test]
fn a_full_disk_on_a_node_is_told_with_the_nodes_name() {
    let lab = lab();
    let disk = SmallDisk::under(&lab, "node2", "40m");
    lab.ready(&NODES);
    lab.deploy(&plan("v1")).ok();
    big_image(&lab);
    let before = lab.containers_of("web", &NODES);
    let load = lab.load(&["/web/"], 100);
    load.until(Duration::from_secs(2));
    let ran = lab.deploy("[apps.web]\nimage = \"big\"\nnodes = [\"node1\", \"node2\"]\n");
    assert_eq!(ran.code, 2, "{}", ran.err);
    let full = ran.err.lines().find(|l| l.contains("no space left") || l.contains("disk")).unwrap_or_default();
    assert!(full.contains("node2") && !full.contains("node1 "), "{}", ran.err);
    assert!(before.iter().any(|name| lab.containers_of("web", &NODES).contains(name)), "an old one serves on");
    load.stop().none_lost();
    lab.lab(&["poweroff", "node2"]).ok();
    drop(disk);
}

#[test]
fn a_host_port_somebody_on_a_node_holds_is_stepped_over() {
    let lab = Lab::up(&["node1"]);
    lab.ready(&["node1"]);
    lab.hello("hello:v1", &[("APP", "v1")]);
    lab.deploy("[apps.first]\nimage = \"hello:v1\"\nreplicas = 1\n").ok();
    let first = lab.containers("node1");
    // Nobody who looks at containers sees these ports.
    for port in [20001, 20002] {
        let image =
            lab.on("node1", &["docker", "inspect", "-f", "{{.Config.Image}}", first.keys().next().unwrap()]).ok();
        let port = format!("PORT={port}");
        lab.on("node1", &["docker", "run", "-d", "--network", "host", "-e", &port, image.trim()]).ok();
    }
    lab.deploy("[apps.first]\nimage = \"hello:v1\"\nreplicas = 3\n").ok();
    eventually("what did not start is removed", 10, || lab.containers_of("first", &["node1"]).len() == 3);
    let status = lab.matrix(&["status"]).ok();
    assert!(status.contains(":20003") && status.contains(":20004"), "{status}");
    lab.deploy("[apps.first]\nimage = \"hello:v1\"\nreplicas = 3\nenvironment = { A = \"b\" }\n").ok();
}

#[test]
fn a_plan_file_is_followed_and_a_wrong_edit_changes_nothing_and_is_shown() {
    let lab = lab();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("applications.plan");
    let write = |text: &str| {
        // As editors do: a new file in its place.
        fs::write(folder.path().join("new"), text).unwrap();
        fs::rename(folder.path().join("new"), &file).unwrap();
    };
    write(&plan("v1"));
    follow(&lab, &file);
    let serving = |app: &str| lab.instances().iter().filter(|i| i.app == app && i.state == "serving").count();
    eventually("read at the start", 15, || serving("web") == 2);
    write(&(plan("v1") + "[apps.more]\nimage = \"hello:v1\"\n"));
    eventually("an edit is followed", 10, || serving("more") == 1);
    let before = lab.instances();

    write("[apps.web]\nimage = \"hello:v1\"\nreplica = 3\n");
    eventually("a wrong edit is shown", 5, || lab.matrix(&["status"]).err.contains("replica"));
    let shown = lab.cloud()["problems"].to_string();
    assert!(shown.contains("applications.plan") && shown.contains("replicas"), "{shown}");
    thread::sleep(Duration::from_millis(1500));
    assert_eq!(lab.instances(), before, "nothing changed");
    write("[apps.web]\nimage = \"nowhere\"\n");
    eventually("an image that is not there is shown", 5, || lab.cloud()["problems"].to_string().contains("nowhere"));
    assert_eq!(lab.instances(), before, "nothing changed");

    write(&plan("v1"));
    eventually("a good edit is followed again", 15, || serving("web") == 2 && serving("more") == 0);
    assert_eq!(lab.cloud()["problems"].as_array().map(Vec::len), Some(0));
}

fn follow(lab: &Lab, file: &Path) {
    let config = lab.run_dir().join("matrix.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{text}\n[plan]\nfile = \"{}\"\nwatch = true\n", file.display())).unwrap();
    lab.lab(&["service", "restart", "matrix"]).ok();
    eventually("the manager answers", 10, || lab.matrix(&["status"]).code == 0);
}
