//! What users of other tools suffered, one by one: none of it happens here.

use std::{
    process::Stdio,
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use crate::{
    cloud::written,
    load::{Load, Mix, request},
    rig::{Lab, eventually, matrix},
};

const NODES: [&str; 2] = ["node1", "node2"];

fn lab() -> &'static Lab {
    static LAB: OnceLock<Lab> = OnceLock::new();
    static IMAGES: OnceLock<()> = OnceLock::new();
    let lab = Lab::shared(&LAB, &NODES);
    IMAGES.get_or_init(|| {
        lab.hello("hello:v1", &[("APP", "v1")]);
        lab.hello("hello:v2", &[("APP", "v2")]);
    });
    // What a failed test has left under way.
    lab.matrix(&["abort"]);
    lab
}

fn plan(tag: &str) -> String {
    format!("[apps.web]\nimage = \"hello:{tag}\"\nreplicas = 2\n")
}

fn state(lab: &Lab, node: &str) -> String {
    let view = lab.matrix(&["nodes", "--json"]).json();
    let nodes = view["nodes"].as_array().cloned().unwrap_or_default();
    let found = nodes.iter().find(|n| n["name"] == node).and_then(|n| n["state"].as_str());
    found.unwrap_or_default().to_owned()
}

/// 502 and 503 for half a minute in every rolling update: the container died before the proxy dropped it.
#[test]
fn the_balancer_drops_a_backend_before_the_signal_is_sent() {
    let lab = lab();
    // Told to end, it drops what it is at: whoever signals it too early loses requests.
    let rude = "command = [\"/bin/sh\", \"-c\", \"/hello & trap 'kill -9 $!; exit 0' TERM; wait\"]\n";
    let rude = |tag: &str| plan(tag) + rude;
    lab.deploy(&rude("v1")).ok();
    let mix = Mix { paths: vec!["/web/".into()], rate: 100, posts: 10, slow: 20, fresh: 30, sockets: Vec::new() };
    let load = Load::with(lab.varnish(), mix);
    for tag in ["v2", "v1"] {
        thread::sleep(Duration::from_secs(1));
        lab.deploy(&rude(tag)).ok();
    }
    thread::sleep(Duration::from_secs(1));
    load.stop().none_lost();
}

/// Nobody could tell who held it, or why.
#[test]
fn a_lock_never_outlives_its_owner() {
    let lab = lab();
    lab.deploy(&plan("v1")).ok();
    // It would go on for a while: nobody answers on that port.
    let never = plan("v2") + "environment = { PORT = 9999 }\nhealth = { deadline = \"15s\" }\n";
    let file = written(&never);
    let mut deploy = matrix();
    deploy.arg("--manager").arg(lab.socket()).arg("deploy").arg(file.path());
    let mut deploy = deploy.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    eventually("it is under way", 10, || lab.containers_of("web", &NODES).len() == 4);
    lab.lab(&["service", "crash", "matrix"]).ok();
    deploy.wait().unwrap();
    eventually("the manager is back", 15, || lab.matrix(&["status"]).code == 0);
    // Whoever was refused is told by whom; nobody has to break a lock.
    let begun = Instant::now();
    eventually("the next deploy goes out", 75, || {
        let ran = lab.deploy(&plan("v1"));
        assert!(ran.code == 0 || ran.err.contains("by root"), "{}", ran.err);
        ran.code == 0
    });
    eprintln!("  the next deploy went out {:?} after the crash", begun.elapsed());
    assert_eq!(lab.containers_of("web", &NODES).len(), 2);
}

/// A machine that was down blocked the whole deploy, or failed it.
#[test]
fn a_machine_that_is_down_does_not_block_the_deploy() {
    let lab = lab();
    let pinned = |tag: &str| format!("[apps.web]\nimage = \"hello:{tag}\"\nnodes = [\"node1\", \"node2\"]\n");
    lab.deploy(&pinned("v1")).ok();
    let load = lab.load(&["/web/"], 100);
    lab.lab(&["poweroff", "node2"]).ok();
    eventually("node2 is lost", 20, || state(lab, "node2") == "lost");
    let begun = Instant::now();
    let ran = lab.deploy(&pinned("v2"));
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    assert!(ran.err.contains("node2"), "it is said: {}{}", ran.out, ran.err);
    assert!(request(lab.varnish(), "GET /web/ HTTP/1.1").unwrap().body.contains("<h1>v2</h1>"));
    // It is finished when the machine returns.
    lab.lab(&["boot", "node2"]).ok();
    eventually("node2 has it too", 40, || {
        let all = lab.instances();
        all.len() == 2 && all.iter().all(|i| i.state == "serving") && lab.containers("node2").len() == 1
    });
    load.stop().none_lost();
    for _ in 0..10 {
        assert!(request(lab.varnish(), "GET /web/ HTTP/1.1").unwrap().body.contains("<h1>v2</h1>"));
    }
}

/// The replacement and the original both ran.
#[test]
fn after_a_partition_heals_exactly_the_desired_number_remains() {
    let lab = lab();
    lab.deploy(&plan("v1")).ok();
    let load = lab.load(&["/web/"], 100);
    lab.lab(&["cut", "node2"]).ok();
    eventually("its instance runs elsewhere", 40, || {
        let there = lab.containers("node1");
        there.keys().filter(|name| name.starts_with("web.")).count() == 2
    });
    lab.lab(&["heal", "node2"]).ok();
    lab.ready(&NODES);
    eventually("two, no more", 40, || {
        lab.containers_of("web", &NODES).len() == 2 && lab.matrix(&["status", "--wait", "1"]).code == 0
    });
    load.stop().none_lost();
}

/// One of a stack's services rolled back, the rest moved on.
#[test]
fn applications_of_one_plan_move_together_or_not_at_all() {
    let lab = lab();
    let both = |tag: &str, more: &str| {
        let app = |name: &str, more: &str| format!("[apps.{name}]\nimage = \"hello:{tag}\"\nreplicas = 2\n{more}");
        app("good", "") + &app("bad", more)
    };
    lab.deploy(&both("v1", "")).ok();
    let load = lab.load(&["/good/", "/bad/"], 100);
    let ran = lab.deploy(&both("v2", "environment = { PORT = 9999 }\nhealth = { deadline = \"4s\" }\n"));
    assert_eq!(ran.code, 1, "{}{}", ran.out, ran.err);
    for path in ["/good/", "/bad/"] {
        let page = request(lab.varnish(), &format!("GET {path} HTTP/1.1")).unwrap().body;
        assert!(page.contains("<h1>v1</h1>"), "{path}: {page}");
    }
    let report = load.stop();
    report.none_lost();
    let newer = report.asked.iter().filter(|a| a.answer.as_ref().is_ok_and(|a| a.body.contains("<h1>v2</h1>"))).count();
    assert_eq!(newer, 0, "requests a failed release answered");
    lab.deploy(&plan("v1")).ok();
}

/// Old VCLs stayed, and each went on probing.
#[test]
fn old_routes_do_not_pile_up() {
    let lab = lab();
    for turn in 0..4 {
        lab.deploy(&(plan("v1") + &format!("environment = {{ TURN = {turn} }}\n"))).ok();
    }
    let workdir = lab.state_dir().join("varnish").display().to_string();
    eventually("one root, one VCL and one label", 40, || {
        let list = lab.gateway(&["varnishadm", "-n", &workdir, "vcl.list"]).ok();
        // A worker of varnishd holds what it used last until it works again: discarded, but not yet gone.
        let kept = || list.lines().filter(|line| !line.starts_with("discarded"));
        let of = |start: &str| kept().filter(|l| l.split_whitespace().any(|w| w.starts_with(start))).count();
        // The label's line names its VCL too.
        of("matrix_root_") == 1 && of("matrix_vcl_app_web_") == 2 && of("matrix_app_") == 1
    });
}
