//! Deploys on two nodes: what changes and what does not, what a wrong plan does, what callers notice of it.

use std::{
    collections::BTreeMap,
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use crate::{
    cloud::{Instance, written},
    load::request,
    rig::{Lab, eventually, matrix, run},
};

const NODES: [&str; 2] = ["node1", "node2"];

/// The lab, with the images `hello:v1` and `hello:v2`.
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

fn containers(lab: &Lab) -> BTreeMap<String, String> {
    NODES.iter().flat_map(|node| lab.containers(node)).collect()
}

fn of<'a>(containers: &'a BTreeMap<String, String>, app: &str) -> BTreeMap<&'a str, &'a str> {
    let start = format!("{app}.");
    containers.iter().filter(|(name, _)| name.starts_with(&start)).map(|(n, id)| (n.as_str(), id.as_str())).collect()
}

fn page(lab: &Lab, path: &str) -> (u16, String) {
    let answer = request(lab.varnish(), &format!("GET {path} HTTP/1.1")).unwrap();
    (answer.status, answer.body)
}

#[track_caller]
fn serving(lab: &Lab, app: &str, count: usize) -> Vec<Instance> {
    let all: Vec<_> = lab.instances().into_iter().filter(|i| i.app == app).collect();
    assert_eq!(all.iter().filter(|i| i.state == "serving").count(), count, "{all:?}");
    assert_eq!(all.len(), count, "{all:?}");
    all
}

#[test]
fn only_what_differs_changes_and_a_dry_run_changes_nothing() {
    let lab = lab();
    let plan = |variable: &str| {
        format!(
            "[apps.stays]\nimage = \"hello:v1\"\nreplicas = 2\n\
             [apps.moves]\nimage = \"hello:v1\"\nreplicas = 2\nenvironment = {{ A = \"{variable}\" }}\n"
        )
    };
    lab.deploy(&plan("one")).ok();
    let before = containers(lab);
    assert_eq!((of(&before, "stays").len(), of(&before, "moves").len()), (2, 2), "{before:?}");
    let release = lab.cloud()["release"]["number"].clone();

    let said = lab.deploy_with(&plan("two"), &["--dry-run"]).ok();
    assert!(said.contains("moves.1") && said.contains("environment changed") && !said.contains("stays"), "{said}");
    assert!(said.contains("nothing was changed"), "{said}");
    assert_eq!(containers(lab), before);
    assert_eq!(lab.cloud()["release"]["number"], release);

    let said = lab.deploy(&plan("two")).ok();
    assert!(!said.contains("stays"), "{said}");
    let after = containers(lab);
    assert_eq!(of(&after, "stays"), of(&before, "stays"));
    assert_eq!(of(&after, "moves").len(), 2);
    assert!(of(&after, "moves").values().all(|id| !of(&before, "moves").values().any(|old| old == id)));
    assert_ne!(lab.cloud()["release"]["number"], release);

    let begun = Instant::now();
    let said = lab.deploy(&plan("two")).ok();
    assert!(said.contains("nothing to change"), "{said}");
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert_eq!(containers(lab), after);
}

#[test]
fn a_new_image_goes_out_under_load_and_no_request_is_lost() {
    let lab = lab();
    let plan = |tag: &str| format!("[apps.shop]\nimage = \"hello:{tag}\"\nreplicas = 2\n");
    lab.deploy(&plan("v1")).ok();
    let before = containers(lab);
    let load = lab.load(&["/shop/"], 200);
    load.until(Duration::from_secs(1));
    lab.deploy(&plan("v2")).ok();
    assert!(page(lab, "/shop/").1.contains("<h1>v2</h1>"));
    thread::sleep(Duration::from_secs(1));
    let report = load.stop();
    report.none_lost();
    assert!(report.by_instance("/shop/").len() == 4, "two old and two new ones: {:?}", report.by_instance("/shop/"));
    let after = containers(lab);
    assert_eq!(after.len(), 2, "{after:?}");
    assert!(after.keys().all(|name| !before.contains_key(name)));
}

#[test]
fn pinned_ports_roll_one_node_at_a_time_and_no_request_is_lost() {
    let lab = lab();
    let plan =
        |tag: &str| format!("[apps.pinned]\nimage = \"hello:{tag}\"\nnodes = [\"node1\", \"node2\"]\npublish = 5050\n");
    lab.deploy(&plan("v1")).ok();
    let load = lab.load(&["/pinned/"], 200);
    load.until(Duration::from_secs(1));
    lab.deploy(&plan("v2")).ok();
    thread::sleep(Duration::from_secs(1));
    let report = load.stop();
    report.none_lost();
    assert!(page(lab, "/pinned/").1.contains("<h1>v2</h1>"));
    let ports = lab.on("node1", &["docker", "ps", "--format", "{{.Ports}}"]).ok();
    assert!(ports.contains(":5050->8080"), "{ports}");
    serving(lab, "pinned", 2);
}

#[test]
fn an_application_grows_and_shrinks_under_load() {
    let lab = lab();
    let plan = |count: u32| format!("[apps.scaled]\nimage = \"hello:v1\"\nreplicas = {count}\n");
    lab.deploy(&plan(1)).ok();
    let first = containers(lab);
    let load = lab.load(&["/scaled/"], 200);
    load.until(Duration::from_secs(1));
    lab.deploy(&plan(3)).ok();
    let all = serving(lab, "scaled", 3);
    assert!(NODES.iter().all(|node| all.iter().any(|i| i.node == *node)), "spread: {all:?}");
    assert!(first.iter().all(|(name, id)| containers(lab).get(name) == Some(id)), "the first one stays");
    lab.deploy(&plan(1)).ok();
    serving(lab, "scaled", 1);
    assert_eq!(containers(lab), first);
    load.stop().none_lost();

    lab.deploy(&plan(0)).ok();
    assert_eq!(containers(lab).len(), 0);
    assert_eq!(page(lab, "/scaled/").0, 503, "in the plan, with no instance");
}

#[test]
fn an_application_that_left_the_plan_ends_its_requests_and_is_gone() {
    let lab = lab();
    // Its process drops what it is at when it is told to end: only the gateway can wait for it.
    let rude = "/hello & trap 'kill -9 $!; exit 0' TERM; wait";
    let leaves = format!("[apps.leaves]\nimage = \"hello:v1\"\ncommand = [\"/bin/sh\", \"-c\", \"{rude}\"]\n");
    lab.deploy(&format!("[apps.keeps]\nimage = \"hello:v1\"\n{leaves}")).ok();
    let to = lab.varnish();
    let slow = thread::spawn(move || request(to, "GET /leaves/slow?ms=2500 HTTP/1.1"));
    thread::sleep(Duration::from_millis(300));
    lab.deploy("[apps.keeps]\nimage = \"hello:v1\"\n").ok();
    let answer = slow.join().unwrap().unwrap();
    assert_eq!(answer.status, 200, "the request under way: {}", answer.body);
    assert_eq!(page(lab, "/leaves/").0, 404);
    assert_eq!(page(lab, "/keeps/").0, 200);
    let left = containers(lab);
    assert!(of(&left, "leaves").is_empty() && of(&left, "keeps").len() == 1, "{left:?}");
}

#[test]
fn what_is_wrong_is_said_and_changes_nothing() {
    let lab = lab();
    let good = "[apps.good]\nimage = \"hello:v1\"\n";
    lab.deploy(good).ok();
    let (before, status) = (containers(lab), lab.cloud()["release"].clone());
    for (plan, said) in [
        ("[apps.good]\nimage = \"hello:v1\"\nreplica = 2\n", "replicas"),
        ("[apps.good]\nimage = \"hello:v1\"\npublish = 70000\n", "65535"),
        ("this is no plan at all, is it?\n", ".plan:1"),
        ("[apps.good]\nimage = \"nowhere:v9\"\n", "nowhere:v9"),
        ("[apps.good]\nimage = \"hello:v9\"\n", "hello:v9"),
    ] {
        let ran = lab.deploy(plan);
        assert_eq!(ran.code, 2, "{plan}: {}", ran.err);
        assert!(ran.err.contains(said), "{plan}: {}", ran.err);
    }
    assert_eq!(lab.matrix(&["deploy", "/nonexistent/applications.plan"]).code, 2);
    let file = written(good);
    let mut nobody = matrix();
    nobody.args(["--manager", "/run/nobody.sock", "deploy"]).arg(file.path());
    let ran = run(nobody);
    assert_eq!(ran.code, 3, "{}", ran.err);
    assert!(ran.err.contains("/run/nobody.sock"), "{}", ran.err);
    assert_eq!((containers(lab), lab.cloud()["release"].clone()), (before, status));
}

#[test]
fn what_never_serves_is_told_with_its_reason_and_the_old_one_serves_on() {
    let lab = lab();
    let good = "[apps.web]\nimage = \"hello:v1\"\nreplicas = 2\nhealth = { deadline = \"6s\" }\n";
    lab.deploy(good).ok();
    let before = containers(lab);
    let load = lab.load(&["/web/"], 50);
    let bad = |more: &str| format!("[apps.web]\nimage = \"hello:v2\"\nreplicas = 2\n{more}\n");
    for (more, words) in [
        // its process ends again and again
        (
            "command = [\"/bin/sh\", \"-c\", \"echo cannot open the database >&2; exit 3\"]\nhealth = { deadline = \"30s\" }",
            ["ends again and again", "cannot open the database"],
        ),
        // nobody listens
        ("environment = { PORT = 9999 }\nhealth = { deadline = \"3s\" }", ["does not answer", "on port 9999"]),
        // unhealthy by its own words
        (
            "health = { path = \"/web/status?code=500\", deadline = \"3s\" }",
            ["/web/status?code=500 answered 500", "on port 8080"],
        ),
    ] {
        let ran = lab.deploy(&bad(more));
        assert_eq!(ran.code, 1, "{more}: {}{}", ran.out, ran.err);
        for word in words {
            assert!(ran.err.contains(word), "{word}: {}", ran.err);
        }
        let now = containers(lab);
        assert!(before.iter().all(|(name, id)| now.get(name) == Some(id)), "the old ones are there: {now:?}");
        assert!(page(lab, "/web/").1.contains("<h1>v1</h1>"), "{more}");
        let shown = lab.matrix(&["status"]).err;
        assert!(shown.contains("failed") && shown.contains(words[0]), "{shown}");
        assert_eq!(containers(lab), before, "the new ones are gone");
    }
    // The same containers, and only what is asked of them is wrong.
    let wrong = good.replace("{ deadline", "{ path = \"/web/status?code=500\", deadline");
    let ran = lab.deploy(&wrong);
    assert_eq!(ran.code, 1, "{}{}", ran.out, ran.err);
    assert!(ran.err.contains("/web/status?code=500 answered 500"), "{}", ran.err);
    thread::sleep(Duration::from_secs(3));
    lab.deploy(good).ok();
    assert_eq!(containers(lab), before, "nothing of the failed ones is left, and nothing was made anew");
    assert!(page(lab, "/web/").1.contains("<h1>v1</h1>"));
    load.stop().none_lost();
    eventually("all is well again", 5, || lab.matrix(&["status", "--wait", "1"]).code == 0);
}
