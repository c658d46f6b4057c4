//! Releases as one transaction: staged, switched, thrown away, undone, watched.

use std::{
    collections::BTreeSet,
    process::Stdio,
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use crate::{
    cloud::written,
    load::request,
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
    lab
}

fn version(lab: &Lab, app: &str) -> String {
    let body = request(lab.varnish(), &format!("GET /{app}/ HTTP/1.1")).map(|a| a.body).unwrap_or_default();
    body.split_once("<h1>").and_then(|(_, rest)| Some(rest.split_once("</h1>")?.0.to_owned())).unwrap_or(body)
}

#[test]
fn what_is_staged_gets_no_request_before_the_switch() {
    let lab = lab();
    let plan = |tag: &str| format!("[apps.web]\nimage = \"hello:{tag}\"\nreplicas = 2\n");
    lab.deploy(&plan("v1")).ok();
    let before = lab.containers_of("web", &NODES);
    let load = lab.load(&["/web/"], 100);
    let said = lab.deploy_with(&plan("v2"), &["--stage"]).ok();
    assert!(said.contains("is staged") && said.contains("matrix activate"), "{said}");
    assert_eq!(lab.containers_of("web", &NODES).len(), 4, "old and new side by side");
    for _ in 0..20 {
        assert_eq!(version(lab, "web"), "v1");
    }
    // A manager that is killed finds it as it was.
    lab.lab(&["service", "crash", "matrix"]).ok();
    eventually("the manager is back", 10, || lab.matrix(&["status"]).code == 0);
    let refused = lab.deploy("[apps.other]\nimage = \"hello:v1\"\n");
    assert_eq!(refused.code, 1, "{}", refused.err);
    for word in ["is still going out", "by root", "matrix abort"] {
        assert!(refused.err.contains(word), "{word}: {}", refused.err);
    }
    lab.matrix(&["abort"]).ok();
    eventually("nothing of it is left", 10, || lab.containers_of("web", &NODES) == before);
    assert!(lab.matrix(&["releases"]).ok().contains("aborted"));
    assert_eq!(lab.matrix(&["activate"]).code, 1, "there is nothing to activate");

    lab.deploy_with(&plan("v2"), &["--stage"]).ok();
    lab.matrix(&["activate"]).ok();
    for _ in 0..20 {
        assert_eq!(version(lab, "web"), "v2");
    }
    assert_eq!(lab.containers_of("web", &NODES).len(), 2);
    lab.matrix(&["rollback"]).ok();
    assert_eq!(version(lab, "web"), "v1");
    load.stop().none_lost();
}

#[test]
fn one_bad_application_keeps_all_of_them_as_they_were() {
    let lab = lab();
    let plan = |tag: &str, more: &str| {
        format!(
            "[apps.good]\nimage = \"hello:{tag}\"\nreplicas = 2\n\
             [apps.fixed]\nimage = \"hello:{tag}\"\nnodes = [\"node1\", \"node2\"]\npublish = 5060\n\
             [apps.bad]\nimage = \"hello:{tag}\"\n{more}\n"
        )
    };
    lab.deploy(&plan("v1", "")).ok();
    let all = || ["good", "fixed", "bad"].map(|app| lab.containers_of(app, &NODES));
    let before = all();
    let load = lab.load(&["/good/", "/fixed/", "/bad/"], 150);
    let ran = lab.deploy(&plan("v2", "environment = { PORT = 9 }\nhealth = { deadline = \"2s\" }"));
    assert_eq!(ran.code, 1, "{}{}", ran.out, ran.err);
    assert!(ran.err.contains("bad.1") && ran.err.contains("its last lines"), "{}", ran.err);
    assert_eq!(all(), before, "no mixed versions, nothing left behind");
    // One whose port leaves no room fails at its first instance; the other one was never touched.
    let fixed = "[apps.fixed]\nimage = \"hello:v2\"\nnodes = [\"node1\", \"node2\"]\npublish = 5060\n\
                 environment = { PORT = 9 }\nhealth = { deadline = \"2s\" }\n";
    let ran = lab.deploy(fixed);
    assert_eq!(ran.code, 1, "{}{}", ran.out, ran.err);
    assert!(ran.err.contains("port 5060 on node1 is held by fixed.1"), "it was said before: {}", ran.err);
    eventually("as it was", 10, || all() == before);
    for app in ["good", "fixed", "bad"] {
        assert_eq!(version(lab, app), "v1");
    }
    load.stop().none_lost();
}

#[test]
fn what_drains_serves_on_where_it_is_needed_after_all() {
    let lab = lab();
    let plan = |turn: &str| {
        format!(
            "[apps.pair]\nimage = \"hello:v1\"\nnodes = [\"node1\", \"node2\"]\npublish = 5070\n\
             drain_timeout = \"20s\"\nenvironment = {{ TURN = \"{turn}\" }}\n"
        )
    };
    lab.deploy(&plan("1")).ok();
    let at = |node: &str| lab.instances().into_iter().find(|i| i.app == "pair" && i.node == node).unwrap();
    let (first, second) = (at("node1").container, at("node2").container);
    // Requests of eight seconds keep each of them draining for as long.
    let varnish = lab.varnish();
    let asked: Vec<_> = (0..4)
        .map(|_| thread::spawn(move || request(varnish, "GET /pair/slow?ms=8000 HTTP/1.1").map_or(0, |a| a.status)))
        .collect();
    thread::sleep(Duration::from_millis(300));
    let file = written(&plan("2"));
    let mut deploy = matrix();
    deploy.args(["deploy", "--manager"]).arg(lab.socket()).arg(file.path());
    let mut deploy = deploy.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    eventually("the first one drains", 10, || lab.log("matrix").contains("stopping (its successor needs its port)"));
    // The other one falls.
    lab.on("node2", &["docker", "kill", &second]).ok();
    let fallen = Instant::now();
    eventually("somebody serves", 5, || version(lab, "pair") == "v1");
    assert!(fallen.elapsed() < Duration::from_secs(3), "before its requests have ended: {:?}", fallen.elapsed());
    assert!(lab.containers("node1").contains_key(&first), "it was not stopped");
    assert!(lab.log("matrix").contains("is needed: it stays"), "{}", lab.log("matrix"));
    // What it was about is not forgotten.
    assert!(deploy.wait().unwrap().success(), "the release goes on");
    assert!(asked.into_iter().filter_map(|asked| asked.join().ok()).filter(|status| *status == 200).count() >= 2);
    let left = lab.containers_of("pair", &NODES);
    assert!(left.len() == 2 && !left.contains(&first) && !left.contains(&second), "{left:?}");
}

#[test]
fn an_application_that_begins_to_fail_takes_its_release_back() {
    let lab = lab();
    let plan = |tag: &str, more: &str| {
        format!("[apps.frail]\nimage = \"hello:{tag}\"\nreplicas = 2\nupdate = {{ watch = \"40s\" }}\n{more}\n")
    };
    lab.deploy(&plan("v1", "")).ok();
    let dies = "command = [\"/bin/sh\", \"-c\", \"/hello & sleep 4; echo out of coffee >&2; exit 7\"]";
    lab.deploy(&plan("v2", dies)).ok();
    let begun = Instant::now();
    eventually("it is taken back", 40, || version(lab, "frail") == "v1");
    eprintln!("  taken back {:?} after its switch", begun.elapsed());
    eventually("it is whole again", 10, || lab.matrix(&["status", "--wait", "1"]).code == 0);
    let releases = lab.matrix(&["releases"]).ok();
    assert!(releases.contains("undone") && releases.contains("began to fail after the switch"), "{releases}");
    assert!(lab.matrix(&["status"]).err.contains("undone"), "the status says so");
    assert_eq!(lab.containers_of("frail", &NODES).len(), 2);
}

#[test]
fn a_release_whose_way_back_fails_stays_and_is_as_good_as_it_serves_when_asked_for_again() {
    let lab = lab();
    let plan = |tag: &str, command: &str| {
        format!(
            "[apps.stuck]\nimage = \"hello:{tag}\"\nreplicas = 2\nvolumes = [\"stuck:/state\"]\n\
             update = {{ watch = \"40s\" }}\ncommand = [\"/bin/sh\", \"-c\", \"{command}\"]\n"
        )
    };
    let touch = |file: &str| {
        for node in NODES {
            lab.on(node, &["touch", &format!("/var/lib/docker/volumes/stuck/_data/{file}")]).ok();
        }
    };
    lab.deploy(&plan("v1", "test ! -e /state/old && exec /hello")).ok();
    touch("old");
    let second = plan("v2", "/hello & sleep 4; test -e /state/mended || exit 7; wait");
    lab.deploy(&second).ok();
    eventually("it cannot go back", 60, || {
        let releases = lab.matrix(&["releases", "--json"]).json().to_string();
        releases.contains("undone") && lab.matrix(&["status"]).err.contains("failed")
    });

    touch("mended");
    eventually("it serves", 40, || lab.matrix(&["status", "--wait", "1"]).code == 0);
    let said = lab.deploy(&second).ok();
    assert!(said.contains("nothing to change"), "{said}");
    assert_eq!(version(lab, "stuck"), "v2");
}

#[test]
fn the_plan_says_how_instances_are_replaced() {
    let lab = lab();
    let plan =
        |tag: &str, update: &str| format!("[apps.steps]\nimage = \"hello:{tag}\"\nreplicas = 3\nupdate = {update}\n");
    lab.deploy(&plan("v1", "\"rolling\"")).ok();
    let load = lab.load(&["/steps/"], 100);
    let begun = Instant::now();
    let ran = lab.deploy(&plan("v2", "{ mode = \"rolling\", batch = 1, pause = \"2s\" }"));
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.err.contains("steps: its plan says rolling: it is replaced step by step"), "{}", ran.err);
    assert!(begun.elapsed() > Duration::from_secs(4), "two pauses between three steps: {:?}", begun.elapsed());
    load.stop().none_lost();
    assert_eq!((version(lab, "steps").as_str(), lab.containers_of("steps", &NODES).len()), ("v2", 3));

    let old = lab.containers_of("steps", &NODES);
    let file = written(&plan("v1", "\"recreate\""));
    let socket = lab.socket();
    let mut deploy = matrix();
    deploy.arg("--manager").arg(&socket).arg("deploy").arg(file.path());
    let mut deploy = deploy.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mut together = BTreeSet::new();
    while deploy.try_wait().unwrap().is_none() {
        let running = |node: &&str| lab.on(node, &["docker", "ps", "--format", "{{.Names}}"]).ok();
        // Node by node: two nodes are not looked at in one moment.
        for out in NODES.iter().map(running) {
            let now: BTreeSet<String> = out.lines().map(str::to_owned).collect();
            if now.iter().any(|name| old.contains(name)) {
                together.extend(now.difference(&old).cloned());
            }
        }
        thread::sleep(Duration::from_millis(50));
    }
    assert!(deploy.wait().unwrap().success());
    assert!(together.is_empty(), "the old ones have ended before a new one starts: {together:?}");
    assert_eq!((version(lab, "steps").as_str(), lab.containers_of("steps", &NODES).len()), ("v1", 3));
}
