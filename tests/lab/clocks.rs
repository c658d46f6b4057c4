//! A node whose clock is wrong: nothing but what is shown of it depends on a node's time.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{
    rig::{Lab, eventually},
    skewed_engine::SkewedEngine,
};

const NODES: [&str; 2] = ["node1", "node2"];
const HOURS: i64 = 2 * 3600;

/// What a release, an instance's death and cleaning came to.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    deployed: i32,
    lost: usize,
    healed_within_ten_seconds: bool,
    /// Of each node.
    containers: [usize; 2],
    cleaning_errors: Option<usize>,
    problems: usize,
}

fn story(lab: &Lab, turn: u32) -> Outcome {
    let load = lab.load(&["/web/"], 50);
    let plan =
        format!("[apps.web]\nimage = \"hello\"\nnodes = [\"node1\", \"node2\"]\nenvironment = {{ TURN = {turn} }}\n");
    let deployed = lab.deploy(&plan).code;
    let victim = lab.containers("node1").into_keys().next().expect("one runs there");
    lab.on("node1", &["docker", "kill", &victim]).ok();
    let killed = Instant::now();
    let serving = || lab.instances().iter().filter(|i| i.state == "serving").count();
    eventually("the death is seen", 5, || serving() < 2);
    eventually("it is healed", 30, || serving() == 2);
    let healed = killed.elapsed();
    let cleaned = lab.matrix(&["gc", "--json"]).ok();
    let end = cleaned.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).find(|l| l["type"] == "end");
    let lost = load.stop().lost();
    eprintln!("  turn {turn}: healed after {healed:?}, {lost} lost");
    let problems = lab.cloud()["problems"].as_array().map_or(0, Vec::len);
    Outcome {
        deployed,
        lost,
        healed_within_ten_seconds: healed < Duration::from_secs(10),
        containers: NODES.map(|node| lab.containers(node).len()),
        cleaning_errors: end.and_then(|end| end["errors"].as_array().map(Vec::len)),
        problems,
    }
}

/// How many seconds the clock of a node's engine is ahead of ours.
fn ahead(lab: &Lab, node: &str) -> i64 {
    let said = lab.on(node, &["docker", "info", "-f", "{{.SystemTime}}"]).ok();
    let at: jiff::Timestamp = said.trim().parse().unwrap();
    at.as_second() - jiff::Timestamp::now().as_second()
}

/// The age that `matrix status` shows of the instance on a node.
fn age(lab: &Lab, node: &str) -> String {
    let status = lab.matrix(&["status"]).ok();
    let line = status.lines().find(|line| line.contains("web.") && line.contains(&format!(" {node} ")));
    let words: Vec<&str> = line.unwrap_or_else(|| panic!("{node} in {status}")).split_whitespace().collect();
    let is_age = |word: &&&str| word.ends_with(['s', 'm', 'h', 'd']) && word[..word.len() - 1].parse::<i64>().is_ok();
    (*words.iter().find(is_age).unwrap_or_else(|| panic!("no age in {status}"))).to_owned()
}

#[test]
fn a_node_whose_clock_is_two_hours_off_is_a_node_like_any_other() {
    let lab = Lab::up(&NODES);
    lab.ready(&NODES);
    lab.hello("hello", &[]);
    lab.deploy("[apps.web]\nimage = \"hello\"\nnodes = [\"node1\", \"node2\"]\n").ok();
    let right = story(&lab, 1);
    assert_eq!((right.deployed, right.lost, right.cleaning_errors), (0, 0, Some(0)), "{right:?}");

    let engine = SkewedEngine::on(&lab, "node1", HOURS);
    // Its events come by the engine that is asked from now on.
    lab.lab(&["service", "restart", "matrix"]).ok();
    lab.ready(&NODES);
    for (turn, skew, shown) in [(2, HOURS, "0s"), (3, -HOURS, "2h")] {
        engine.set(skew);
        let before = engine.moved();
        assert!((ahead(&lab, "node1") - skew).abs() < 5 && ahead(&lab, "node2").abs() < 5);
        assert_eq!(story(&lab, turn), right, "{skew} s ahead");
        assert!(engine.moved() > before + 20, "the manager asks it: {}", engine.moved());
        assert_eq!(age(&lab, "node1"), shown);
        assert!(age(&lab, "node2").ends_with('s'));
        // By its own clock, it tells what happened in the last minutes; and what is upgraded is passed on.
        let now = jiff::Timestamp::now().as_second() + skew;
        let (since, until) = (format!("--since={}", now - 120), format!("--until={}", now + 1));
        let told = lab.on("node1", &["docker", "events", &since, &until, "--filter=event=start"]).ok();
        assert!(told.contains("web.1"), "{told}");
        let name = lab.containers("node1").into_keys().next().unwrap();
        assert_eq!(lab.on("node1", &["docker", "exec", &name, "/bin/sh", "-c", "echo in"]).ok().trim(), "in");
    }
    drop(engine);
    assert!(ahead(&lab, "node1").abs() < 5, "the true engine is back");
    assert_eq!(story(&lab, 4), right, "as before");
}
