//! The plan this began with, unchanged.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    cloud::project,
    load::{Load, request},
    rig::{Lab, eventually},
};

const NODES: [&str; 2] = ["node25", "node108"];

fn ours(lab: &Lab) -> BTreeMap<String, String> {
    NODES.iter().flat_map(|node| lab.containers(node)).collect()
}

/// Both nodes answer, in turn.
#[track_caller]
fn in_turn(lab: &Lab, path: &str) {
    let load = Load::start(lab.varnish(), &[path], 200);
    load.until(Duration::from_millis(1500));
    let report = load.stop();
    report.none_lost();
    let counts = report.by_instance(path);
    assert_eq!(counts.len(), 2, "{counts:?}");
    let (most, least) = (counts.values().max().unwrap(), counts.values().min().unwrap());
    assert!(most - least <= report.total() / 20, "{path}: {counts:?}");
}

#[test]
fn the_original_plan_deploys_unchanged_and_a_power_off_loses_no_request() {
    let lab = Lab::up(&NODES);
    lab.ready(&NODES);
    for app in ["simplewebapp1", "simplewebapp2"] {
        let directory = project("vm/apps").join(app);
        assert!(directory.join("hello").exists(), "`make apps` builds it");
        lab.matrix(&["create-image", app, directory.to_str().unwrap(), "--push"]).ok();
    }
    let foreign = "matrix-manager.matrix:5000/cloud/simplewebapp1";
    lab.on("node25", &["docker", "run", "-d", "--restart=always", "--name", "foreign", foreign]).ok();
    let of_foreign = || {
        let format = "{{.Id}} {{.State.Running}} {{.RestartCount}}";
        lab.on("node25", &["docker", "inspect", "-f", format, "foreign"]).ok()
    };
    let untouched = of_foreign();
    assert!(untouched.contains(" true 0"), "{untouched}");

    let plan = project("plans/original.plan");
    let deploy = || lab.matrix(&["deploy", plan.to_str().unwrap()]);
    let said = deploy().ok();
    for instance in ["simplewebapp1.1", "simplewebapp1.2", "simplewebapp2.1", "simplewebapp2.2"] {
        assert!(said.contains(&format!("+ start {instance} on ")), "{said}");
    }
    for path in ["/simplewebapp1/", "/simplewebapp2/"] {
        in_turn(&lab, path);
    }
    let published = lab.on("node25", &["docker", "ps", "--format", "{{.Ports}}"]).ok();
    assert!(published.contains(":5050->8080/tcp") && published.contains(":5051->8080/tcp"), "{published}");

    let before = ours(&lab);
    assert_eq!(before.len(), 4, "{before:?}");
    let again = deploy().ok();
    assert!(again.contains("nothing to change"), "{again}");
    assert_eq!(ours(&lab), before);

    let load = lab.load(&["/simplewebapp1/", "/simplewebapp2/"], 200);
    load.until(Duration::from_secs(5));
    lab.lab(&["poweroff", "node25"]).ok();
    load.until(Duration::from_secs(20));
    let report = load.stop();
    assert!(report.total() >= 3900, "{report}");
    report.none_lost();

    lab.lab(&["boot", "node25"]).ok();
    lab.ready(&NODES);
    lab.matrix(&["status", "--wait", "30"]).ok();
    eventually("the foreign container runs again", 10, || of_foreign() == untouched);
    assert_eq!(ours(&lab), before, "the same containers, no more and no less");
    for path in ["/simplewebapp1/", "/simplewebapp2/"] {
        eventually("the gateway's probe has seen it", 5, || {
            let ask = || request(lab.varnish(), &format!("GET {path} HTTP/1.1")).unwrap();
            ask().instance().map(str::to_owned) != ask().instance().map(str::to_owned)
        });
        in_turn(&lab, path);
    }
    assert!(deploy().ok().contains("nothing to change"));
}
