//! A release that begins with a share of the requests: on, back, by hand, and through a killed manager.

use std::{
    collections::BTreeMap,
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use crate::{
    cloud::written,
    load::{Answer, Asked, Report},
    rig::{Lab, Ran, eventually, matrix, run},
};

const NODES: [&str; 2] = ["node1", "node2"];

fn lab() -> &'static Lab {
    static LAB: OnceLock<Lab> = OnceLock::new();
    static IMAGES: OnceLock<()> = OnceLock::new();
    let lab = Lab::shared(&LAB, &NODES);
    IMAGES.get_or_init(|| {
        lab.hello("hello:v1", &[("APP", "v1")]);
        lab.hello("hello:v2", &[("APP", "v2")]);
        lab.hello("hello:bad", &[("APP", "bad"), ("FAILS", "2")]);
    });
    lab
}

fn plan(app: &str, tag: &str, update: &str) -> String {
    format!(
        "[apps.{app}]\nimage = \"hello:{tag}\"\nreplicas = 2\nhealth = \"/{app}/health\"\n\
         update = {{ mode = \"canary\", {update} }}\n"
    )
}

/// Names and ids of an application's containers.
fn containers(lab: &Lab, app: &str) -> BTreeMap<String, String> {
    let all = NODES.iter().flat_map(|node| lab.containers(node));
    all.filter(|(name, _)| name.starts_with(&format!("{app}-")) || name.starts_with(&format!("{app}."))).collect()
}

/// `matrix deploy`, on its way.
struct Deploy {
    child: Child,
    _plan: tempfile::NamedTempFile,
}

impl Deploy {
    fn begin(lab: &Lab, text: &str) -> Self {
        let plan = written(text);
        let mut command = matrix();
        command.arg("--manager").arg(lab.socket()).arg("deploy").arg(plan.path());
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        Self { child, _plan: plan }
    }
    fn end(self) -> Ran {
        let output = self.child.wait_with_output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ran { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
    }
}

/// How far the release on its way is; nothing while the manager is away.
fn step(lab: &Lab) -> String {
    let ran = lab.matrix(&["status", "--json"]);
    let status: serde_json::Value = serde_json::from_str(&ran.out).unwrap_or_default();
    status["on_its_way"]["step"].as_str().unwrap_or_default().to_owned()
}

fn says(asked: &Asked, app: &str) -> bool {
    asked.answer.as_ref().is_ok_and(|answer: &Answer| answer.body.contains(&format!("<h1>{app}</h1>")))
}

/// Of the requests between the first and the last `new` answer before all are new: how many, and how many of them were new.
fn shared_out(report: &Report, new: &str, old: &str) -> (usize, usize) {
    let first = report.asked.iter().position(|a| says(a, new)).unwrap_or(0);
    let last = report.asked.iter().rposition(|a| says(a, old)).unwrap_or(0);
    let last_new = report.asked.iter().rposition(|a| says(a, new)).unwrap_or(0);
    let window = &report.asked[first..last.min(last_new)];
    (window.len(), window.iter().filter(|a| says(a, new)).count())
}

/// Readers of this lab's gateway's log.
fn readers(lab: &Lab) -> usize {
    let mut list = Command::new("ps");
    list.args(["-eo", "args"]);
    let ours = format!("{}/", lab.name);
    run(list).ok().lines().filter(|line| line.starts_with("varnishncsa") && line.contains(&ours)).count()
}

#[test]
fn a_good_canary_goes_on_and_loses_nothing() {
    let lab = lab();
    lab.deploy(&plan("good", "v1", "share = 20")).ok();
    let load = lab.load(&["/good/"], 150);
    let begun = Instant::now();
    let next = plan("good", "v2", "share = 20, time = \"12s\", latency = \"5s\"");
    let said = lab.deploy_with(&next, &["--dry-run"]).ok();
    assert!(said.contains("good begins with 20% of its requests, for 12 s"), "{said}");
    let deploy = Deploy::begin(lab, &next);
    eventually("it is tried out", 30, || step(lab).starts_with("canary: 20% of good's requests go to release"));
    assert_eq!(containers(lab, "good").len(), 4, "old and new side by side");
    let status = lab.matrix(&["status"]).ok();
    assert!(status.contains("is on its way: canary: 20% of good's requests"), "{status}");
    assert_eq!(readers(lab), 1);
    let ran = deploy.end();
    eprintln!("{}", ran.out);
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    assert!(begun.elapsed() >= Duration::from_secs(12), "it had its time: {:?}", begun.elapsed());
    assert!(ran.out.contains("requests to its new instances failed"), "{}", ran.out);
    assert_eq!(containers(lab, "good").len(), 2);
    let report = load.stop();
    report.none_lost();
    let (all, new) = shared_out(&report, "v2", "v1");
    eprintln!("  {new} of {all} requests went to the new instances");
    assert!(all > 1000 && (14..=26).contains(&(new * 100 / all)), "{new} of {all}");
    assert!(lab.get("/good/").1.contains("<h1>v2</h1>"));
    eventually("its log is read no more", 5, || readers(lab) == 0);

    // The way back, and what changes no image, need no trial.
    for command in [&["rollback"][..], &["restart", "good"], &["scale", "good=3"]] {
        let ran = lab.matrix(command);
        assert!(ran.code == 0 && !ran.out.contains("% of"), "{}{}", ran.out, ran.err);
    }
}

#[test]
fn a_canary_that_fails_some_requests_is_taken_back() {
    let lab = lab();
    lab.deploy(&plan("some", "v1", "share = 20")).ok();
    let before = containers(lab, "some");
    let load = lab.load(&["/some/"], 150);
    load.until(Duration::from_secs(2));
    let ran = lab.deploy(&plan("some", "bad", "share = 20, time = \"30s\""));
    eprintln!("{}{}", ran.out, ran.err);
    assert_eq!(ran.code, 1, "{}{}", ran.out, ran.err);
    for word in ["some: ", " requests to its new instances failed", "to the old ones: at most 1% more may"] {
        assert!(ran.err.contains(word), "{word}: {}", ran.err);
    }
    eventually("the old ones alone, the very same", 15, || containers(lab, "some") == before);
    let lost_before = load.heard();
    load.until(load.elapsed() + Duration::from_secs(3));
    let more = load.heard() - lost_before;
    let report = load.stop();
    let (all, new) = shared_out(&report, "bad", "v1");
    eprintln!("  {} of {all} requests failed; {new} went to the new instances", report.lost());
    assert!(report.losses().all(|a| a.answer.as_ref().is_ok_and(|answer| answer.status == 500)), "{report}");
    // Half of a fifth.
    assert!(report.lost() >= 3 && report.lost() * 100 < all * 20 + 500, "{report}");
    assert!(more > 200 && report.asked.iter().rev().take(200).all(Asked::is_good), "{report}");
    assert!(lab.matrix(&["releases"]).ok().contains("failed"));
}

#[test]
fn a_manager_killed_in_the_phase_goes_on_with_it() {
    let lab = lab();
    lab.deploy(&plan("kept", "v1", "share = 30")).ok();
    let load = lab.load(&["/kept/"], 100);
    let deploy = Deploy::begin(lab, &plan("kept", "v2", "share = 30, time = \"8s\""));
    eventually("it is tried out", 30, || step(lab).starts_with("canary: 30% of kept's"));
    std::thread::sleep(Duration::from_secs(3));
    lab.lab(&["service", "crash", "matrix"]).ok();
    assert_ne!(deploy.end().code, 0, "who watched is not told that it is out");
    eventually("the manager is back in it", 20, || step(lab).starts_with("canary: 30% of kept's"));
    let again = Instant::now();
    eventually("what read for the killed one has ended", 5, || readers(lab) == 1);
    let followed = lab.matrix(&["follow"]);
    assert_eq!(followed.code, 0, "{}{}", followed.out, followed.err);
    assert!(again.elapsed() > Duration::from_secs(6), "its time began anew: {:?}", again.elapsed());
    assert!(lab.get("/kept/").1.contains("<h1>v2</h1>"));
    let report = load.stop();
    report.none_lost();
    assert_eq!(containers(lab, "kept").len(), 2);
    assert_eq!(readers(lab), 0);
}

#[test]
fn a_canary_is_held_ended_early_and_thrown_away() {
    let lab = lab();
    lab.deploy(&plan("hand", "v1", "share = 50")).ok();
    let before = containers(lab, "hand");
    let load = lab.load(&["/hand/"], 100);
    let next = plan("hand", "v2", "share = 50, time = \"5m\"");
    // Held before the first request.
    let said = lab.deploy_with(&next, &["--stage"]).ok();
    assert!(said.contains("is staged"), "{said}");
    for _ in 0..20 {
        assert!(lab.get("/hand/").1.contains("<h1>v1</h1>"));
    }
    let mut activate = matrix();
    activate.arg("--manager").arg(lab.socket()).arg("activate").stdout(Stdio::null()).stderr(Stdio::null());
    let mut first = activate.spawn().unwrap();
    eventually("it is tried out", 20, || step(lab).starts_with("canary: 50% of hand's"));
    lab.matrix(&["abort"]).ok();
    assert_eq!(first.wait().unwrap().code(), Some(1));
    eventually("nothing of it is left", 20, || containers(lab, "hand") == before);

    let deploy = Deploy::begin(lab, &next);
    eventually("it is tried out", 30, || step(lab).starts_with("canary: 50% of hand's"));
    let begun = Instant::now();
    lab.matrix(&["activate"]).ok();
    assert_eq!(deploy.end().code, 0);
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    for _ in 0..20 {
        assert!(lab.get("/hand/").1.contains("<h1>v2</h1>"));
    }
    load.stop().none_lost();
}

#[test]
fn a_canary_whose_answers_take_too_long_is_taken_back() {
    let lab = lab();
    lab.deploy(&plan("late", "v1", "share = 50")).ok();
    let before = containers(lab, "late");
    let load = lab.load(&["/late/slow?ms=150"], 60);
    let ran = lab.deploy(&plan("late", "v2", "share = 50, time = \"30s\", latency = \"100ms\""));
    assert_eq!(ran.code, 1, "{}{}", ran.out, ran.err);
    assert!(ran.err.contains("answers of its new instances took longer than 100 ms to begin"), "{}", ran.err);
    eventually("the old ones alone, the very same", 15, || containers(lab, "late") == before);
    assert_eq!(load.stop().lost(), 0);
}

/// How many requests to the new instances are known of.
fn counted(lab: &Lab) -> Option<u64> {
    step(lab).rsplit_once(" of ")?.1.split_once(' ')?.0.parse().ok()
}

#[test]
fn what_dies_in_the_phase_does_not_end_it() {
    let lab = lab();
    lab.deploy(&plan("dies", "v1", "share = 50")).ok();
    let old = containers(lab, "dies");
    let load = lab.load(&["/dies/"], 100);
    // The requests that a dying process takes with it are told as failed; they are sent again elsewhere.
    let deploy = Deploy::begin(lab, &plan("dies", "v2", "share = 50, time = \"25s\", errors = \"50%\""));
    eventually("it is tried out", 30, || step(lab).starts_with("canary: 50% of dies's"));
    eventually("it is counted", 10, || counted(lab).is_some_and(|count| count > 20));
    let killed = containers(lab, "dies").into_keys().find(|name| !old.contains_key(name)).unwrap();
    let on = NODES.into_iter().find(|node| lab.containers(node).contains_key(&killed)).unwrap();
    lab.on(on, &["docker", "kill", &killed]).ok();
    let running = || lab.on(on, &["docker", "ps", "--format", "{{.Names}}"]).out.lines().any(|name| name == killed);
    eventually("it runs again", 10, running);
    load.stop().none_lost();

    // The gateway's Varnish starts anew: its log is read again.
    let load = lab.load(&["/dies/"], 100);
    let before = counted(lab).unwrap();
    lab.lab(&["service", "crash", "varnish"]).ok();
    eventually("it answers again", 10, || lab.get("/dies/").0 == 200);
    eventually("it is counted again", 15, || counted(lab).is_some_and(|count| count > before + 50));
    let ran = deploy.end();
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    assert!(lab.get("/dies/").1.contains("<h1>v2</h1>"));
    load.stop();
}
