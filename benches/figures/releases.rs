//! Releases under load, one after another: what is lost, how long anybody waits, and how long one takes.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::{
    load::{Load, Mix, Report as Counted},
    report::{Figure, Goal, Other, Report, Unit, note},
    rig::{Lab, Res, run},
};

/// Applications, and instances of each.
pub const APPS: [&str; 3] = ["red", "green", "blue"];
pub const INSTANCES: usize = 3;

/// How a release replaces instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// All that is new beside what is old.
    Staged,
    /// A fixed port: on each node the old one goes first.
    Rolling,
}

/// The plan of these applications; the turn makes it another release.
pub fn plan(apps: &[&str], how: How, turn: usize) -> String {
    let app = |(at, name): (usize, &&str)| {
        let publish = if how == How::Rolling { format!("publish = {}\n", 6100 + at) } else { String::new() };
        format!(
            "[apps.{name}]\nimage = \"hello\"\nreplicas = {INSTANCES}\n{publish}volumes = [\"ledger:/ledger\"]\n\
             environment = {{ LEDGER = \"/ledger\", TURN = {turn} }}\n"
        )
    };
    apps.iter().enumerate().map(app).collect()
}

/// `matrix deploy`; how long it took.
pub fn deploy(lab: &Lab, text: &str) -> Res<Duration> {
    let path = lab.state_dir().join("bench-release.toml");
    std::fs::write(&path, text)?;
    let begun = Instant::now();
    run(lab.matrix(&["deploy", &path.display().to_string()]))?;
    Ok(begun.elapsed())
}

/// The gateway, from inside.
pub fn gateway() -> SocketAddr {
    ([10, 10, 10, 1], 6081).into()
}

/// A tenth are POSTs, on all applications in turn.
pub fn mix(apps: &[&str], rate: u32) -> Mix {
    let paths = apps.iter().map(|app| format!("/{app}/")).collect();
    Mix { paths, rate, posts: 10, slow: 0, fresh: 10, sockets: Vec::new() }
}

/// Does something again and again while requests come in from the lab's client, for so long.
pub fn under_load(
    lab: &Lab,
    to: SocketAddr,
    mix: Mix,
    time: Duration,
    mut work: impl FnMut(usize) -> Res<()> + Send,
) -> Res<Counted> {
    let load = lab.inside("client", || Ok(Load::with(to, mix)))?;
    load.until(Duration::from_secs(1));
    let mut turn = 0;
    let mut result = Ok(());
    while load.elapsed() < time && result.is_ok() {
        turn += 1;
        result = work(turn);
    }
    load.until(time);
    let report = load.quietly();
    result.map(|()| report)
}

pub fn measure(lab: &Lab, report: &mut Report) -> Res<()> {
    floor(lab)?;
    let mut requests = 0;
    // 60,000 requests in all.
    for (rate, seconds) in [(200, 30), (500, 48)] {
        for how in [How::Rolling, How::Staged] {
            let name = if how == How::Rolling { "rolling" } else { "staged" };
            deploy(lab, &plan(&APPS, how, 0))?;
            let mut took = Vec::new();
            let counted = under_load(lab, gateway(), mix(&APPS, rate), Duration::from_secs(seconds), |turn| {
                took.push(deploy(lab, &plan(&APPS, how, turn))?.as_secs_f64());
                thread::sleep(Duration::from_millis(500));
                Ok(())
            })?;
            requests += counted.total();
            note(&format!(
                "{name}, 3 applications of 3, {rate}/s: {} releases of {:.1} s; {counted}",
                took.len(),
                crate::report::median(&took)
            ));
            report.add(Figure {
                name: format!("lost of {} in {name} releases of 3 × 3, {rate}/s", counted.total()),
                unit: Unit::Count,
                ours: vec![count(counted.lost())],
                other: Other::Limit(0.0),
                goal: Goal::AtMost(0.0),
                noisy: 0,
            });
            report.add(Figure {
                name: format!("p99 in {name} releases of 3 × 3, {rate}/s"),
                unit: Unit::Millis,
                ours: vec![counted.percentile(99).as_secs_f64() * 1000.0],
                other: Other::Limit(10.0),
                goal: Goal::AtMost(1.0),
                noisy: 0,
            });
        }
    }
    note(&format!("{requests} requests in all"));
    one(lab, report)
}

/// One application, from command to done.
fn one(lab: &Lab, report: &mut Report) -> Res<()> {
    let apps = &APPS[..1];
    for (how, name) in [(How::Rolling, "rolling"), (How::Staged, "staged")] {
        deploy(lab, &plan(apps, how, 0))?;
        let mut took = Vec::new();
        let counted = under_load(lab, gateway(), mix(apps, 200), Duration::from_secs(24), |turn| {
            took.push(deploy(lab, &plan(apps, how, turn))?.as_secs_f64());
            thread::sleep(Duration::from_millis(500));
            Ok(())
        })?;
        if counted.lost() > 0 {
            note(&counted.to_string());
        }
        report.add(Figure {
            name: format!("{name} release of 1 application of 3, command to done"),
            unit: Unit::Seconds,
            ours: took,
            other: Other::Limit(4.0),
            goal: Goal::Below(1.0),
            noisy: 0,
        });
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "a count of requests")]
pub fn count(number: usize) -> f64 {
    number as f64
}

/// What the load itself needs: nothing is released.
fn floor(lab: &Lab) -> Res<()> {
    let never = AtomicBool::new(false);
    deploy(lab, &plan(&APPS, How::Staged, 0))?;
    for rate in [200, 500] {
        let quiet = under_load(lab, gateway(), mix(&APPS, rate), Duration::from_secs(6), |_| {
            thread::sleep(Duration::from_secs(6));
            never.store(true, Ordering::Relaxed);
            Ok(())
        })?;
        note(&format!("no release, {rate}/s: {quiet}"));
    }
    Ok(())
}
