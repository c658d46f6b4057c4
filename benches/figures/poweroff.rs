//! One of three nodes loses its power, under load.

use std::{
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    deploys::Plan,
    load::{Flow, Kind, Load, Report as Counted},
    releases::{APPS, How, INSTANCES, count, deploy, gateway, mix, plan},
    report::{Figure, Goal, Other, Report, Unit, note},
    rig::{Lab, Res, run, until},
};

pub const VICTIM: &str = "node2";

/// What came of it.
pub struct Off {
    pub counted: Counted,
    /// When it was switched off, in the load's time.
    pub at: Duration,
    /// Until all instances served elsewhere, in seconds.
    pub elsewhere: f64,
    /// Lost POSTs whose bodies had begun to flow.
    pub explained: usize,
}

pub fn measure(lab: &Lab, report: &mut Report) -> Res<()> {
    for rate in [200, 500] {
        let off = cut(lab, rate)?;
        add(report, rate, &off);
    }
    Ok(())
}

/// Switches it off amid the load, and on again at the end.
pub fn cut(lab: &Lab, rate: u32) -> Res<Off> {
    // Placed anew: the last power-off has left them beside each other.
    Plan::new(lab, 1)?.nothing()?;
    deploy(lab, &plan(&APPS, How::Staged, 0))?;
    until("all instances serve", 30, || Ok(serving(lab, false)? == APPS.len() * INSTANCES))?;
    let flow = Flow::start(&lab.state_dir().join("varnish"), lab.state_dir().join("bench-flow.log"))?;
    let load = lab.inside("client", || Ok(Load::with(gateway(), mix(&APPS, rate))))?;
    load.until(Duration::from_secs(3));
    let at = load.elapsed();
    let began = Instant::now();
    run(lab.lab(&["poweroff", VICTIM]))?;
    let elsewhere = until("the instances run elsewhere", 40, || {
        thread::sleep(Duration::from_millis(50));
        Ok(serving(lab, true)? == APPS.len() * INSTANCES)
    });
    let elsewhere = elsewhere.map(|()| began.elapsed().as_secs_f64());
    load.until(at + Duration::from_secs(15));
    let counted = load.quietly();
    let fates = flow.read();
    run(lab.lab(&["boot", VICTIM]))?;
    note(&format!("power-off, {rate}/s: {counted}"));
    let flowed = |id: &Option<String>| id.as_ref().and_then(|id| fates.get(id)).is_some_and(|fate| fate.flowed);
    let explained = counted.losses().filter(|a| a.kind == Kind::Post && flowed(&a.id)).count();
    until("the node is back and all is well", 60, || {
        thread::sleep(Duration::from_millis(200));
        let shown: Value = serde_json::from_str(&run(lab.matrix(&["status", "--json"]))?)?;
        let ready = shown["nodes"].as_object().is_some_and(|all| all.values().all(|n| n["state"] == "ready"));
        Ok(ready && shown["settled"] == true)
    })?;
    Ok(Off { counted, at, elsewhere: elsewhere?, explained })
}

fn add(report: &mut Report, rate: u32, off: &Off) {
    let counted = &off.counted;
    let (lost_posts, gets) = (counted.lost_posts(), counted.asked.iter().filter(|a| a.kind != Kind::Post).count());
    note(&format!(
        "{} of {lost_posts} lost POSTs: their bodies had begun to flow to {VICTIM} (varnishlog); none is sent twice",
        off.explained
    ));
    let mut after: Vec<Duration> = counted.asked.iter().filter(|a| a.due >= off.at).map(|a| a.took).collect();
    after.sort_unstable();
    let p99 = after.get(after.len() * 99 / 100).copied().unwrap_or_default();
    let zero = |name: String, lost: usize| Figure {
        name,
        unit: Unit::Count,
        ours: vec![count(lost)],
        other: Other::Limit(0.0),
        goal: Goal::AtMost(0.0),
        noisy: 0,
    };
    report.add(zero(format!("lost GETs of {gets} in a power-off, {rate}/s"), counted.lost() - lost_posts));
    let posts = counted.total() - gets;
    report.add(zero(format!("lost POSTs of {posts} not explained, {rate}/s"), lost_posts - off.explained));
    let mut below = |name: &str, unit, ours: f64, limit| {
        report.add(Figure {
            name: format!("power-off, {rate}/s: {name}"),
            unit,
            ours: vec![ours],
            other: Other::Limit(limit),
            goal: Goal::AtMost(1.0),
            noisy: 0,
        });
    };
    below("p99 of the 15 s after", Unit::Millis, p99.as_secs_f64() * 1000.0, 350.0);
    below("longest wait", Unit::Seconds, after.last().copied().unwrap_or_default().as_secs_f64(), 3.0);
    below("instances elsewhere", Unit::Seconds, off.elsewhere, 10.0);
}

/// How many instances serve, on all nodes or on the others.
fn serving(lab: &Lab, others: bool) -> Res<usize> {
    let shown: Value = serde_json::from_str(&run(lab.matrix(&["status", "--json"]))?)?;
    let apps = shown["applications"].as_object().ok_or("no applications")?;
    let instances = apps.values().flat_map(|app| app["instances"].as_array().into_iter().flatten());
    Ok(instances.filter(|i| i["state"] == "serving" && !(others && i["node"] == VICTIM)).count())
}
