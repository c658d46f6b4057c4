//! The manager killed at random points of a release: is what comes of it whole?

use std::{collections::BTreeSet, process::Stdio, thread, time::Duration};

use serde_json::Value;

use crate::{
    load::Load,
    releases::{APPS, How, INSTANCES, count, deploy, gateway, mix, plan},
    report::{Figure, Goal, Other, Report, Unit, note},
    rig::{Lab, Res, get, run},
};

pub fn measure(lab: &Lab, report: &mut Report) -> Res<()> {
    let rounds = std::env::var("KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(50);
    let seed = std::env::var("SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1u64);
    note(&format!("kills: seed {seed}"));
    deploy(lab, &plan(&APPS, How::Staged, 0))?;
    let normal = deploy(lab, &plan(&APPS, How::Staged, 1))?;
    let load = lab.inside("client", || Ok(Load::with(gateway(), mix(&APPS, 100))))?;
    let (mut whole, mut went, mut stayed) = (0, 0, 0);
    let mut random = seed;
    for turn in 2..2 + rounds {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // Up to a little beyond its end.
        let after = normal.mul_f64(1.1) * u32::try_from((random >> 33) % 1000).unwrap_or(0) / 1000;
        let how = if turn % 3 == 0 { How::Rolling } else { How::Staged };
        match killed(lab, how, turn, after) {
            Ok(new) => {
                whole += 1;
                if new { went += 1 } else { stayed += 1 }
            }
            Err(why) => note(&format!("release {turn}, killed after {} ms: {why}", after.as_millis())),
        }
    }
    let counted = load.quietly();
    note(&format!("{went} went on to the new release, {stayed} stayed with the old; {counted}"));
    report.add(Figure {
        name: format!("manager killed at {rounds} random points: ends whole"),
        unit: Unit::Count,
        ours: vec![count(whole)],
        other: Other::Limit(count(rounds)),
        goal: Goal::AtLeast(1.0),
        noisy: 0,
    });
    report.add(Figure {
        name: format!("lost of {} while it was killed", counted.total()),
        unit: Unit::Count,
        ours: vec![count(counted.lost())],
        other: Other::Limit(0.0),
        goal: Goal::AtMost(0.0),
        noisy: 0,
    });
    Ok(())
}

/// Whether the new release is what runs; an error says what is not whole.
fn killed(lab: &Lab, how: How, turn: usize, after: Duration) -> Res<bool> {
    let path = lab.state_dir().join("bench-kill.toml");
    std::fs::write(&path, plan(&APPS, how, turn))?;
    let mut deploy = lab.matrix(&["deploy", &path.display().to_string()]);
    let mut deploy = deploy.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    thread::sleep(after);
    run(lab.lab(&["service", "crash", "matrix"]))?;
    deploy.wait()?;
    let status = (0..20).find_map(|_| {
        let said = run(lab.matrix(&["status", "--wait", "40", "--json"])).ok();
        if said.is_none() {
            thread::sleep(Duration::from_millis(500));
        }
        said
    });
    let status: Value = serde_json::from_str(&status.ok_or("it does not come to rest")?)?;
    // What runs, by the engines' own word: the turn in each container's environment.
    let mut turns = BTreeSet::new();
    let mut there = 0;
    for node in 1..=3 {
        let filter = format!("label=matrix.cloud={}", lab.name);
        let inspect =
            "docker ps -q --filter $0 | xargs -r docker inspect -f '{{range .Config.Env}}{{println .}}{{end}}'";
        let node = format!("node{node}");
        let said = run(lab.lab(&["shell", &node, "--", "sh", "-c", inspect, &filter]))?;
        for turn in said.lines().filter_map(|l| l.strip_prefix("TURN=")) {
            turns.insert(turn.to_owned());
            there += 1;
        }
    }
    if turns.len() != 1 || there != APPS.len() * INSTANCES {
        return Err(format!("{there} instances of releases {turns:?}; {}", status["applications"]).into());
    }
    for app in APPS {
        let (status, _) = get(&format!("{}:6081", lab.gateway), &format!("/{app}/"))?;
        if status != 200 {
            return Err(format!("/{app}/ answers {status}").into());
        }
    }
    Ok(turns.contains(&turn.to_string()))
}
