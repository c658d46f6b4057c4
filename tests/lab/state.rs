//! A damaged state file: the manager refuses to act, and nodes and gateway go on.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::Connection;

use crate::rig::{Lab, Ran, eventually, run};

const NODES: [&str; 2] = ["node1", "node2"];

/// Removes what SQLite keeps beside the file: it belongs to the file that was there.
fn put(file: &Path, bytes: &[u8]) {
    for beside in ["-wal", "-shm"] {
        _ = fs::remove_file(PathBuf::from(format!("{}{beside}", file.display())));
    }
    fs::write(file, bytes).unwrap();
}

/// `matrix serve` by hand, which is to refuse.
fn serve(lab: &Lab) -> Ran {
    let mut command = lab.command_on("gateway", &["timeout", "20", env!("CARGO_BIN_EXE_matrix"), "serve", "--config"]);
    command.arg(lab.run_dir().join("matrix.toml"));
    run(command)
}

fn containers(lab: &Lab) -> BTreeMap<String, String> {
    NODES.iter().flat_map(|node| lab.containers(node)).collect()
}

#[test]
fn a_manager_whose_state_is_damaged_refuses_to_act_and_everything_goes_on() {
    let lab = Lab::up(&NODES);
    lab.ready(&NODES);
    lab.hello("hello:v1", &[("APP", "v1")]);
    let plan = "[apps.hello]\nimage = \"hello:v1\"\nreplicas = 2\n";
    lab.deploy(plan).ok();
    let before = containers(&lab);
    assert_eq!(before.len(), 2);

    let file = lab.state_dir().join("matrix/matrix.db");
    let copy = tempfile::tempdir().unwrap();
    let backup = copy.path().join("backup.db");
    // While it runs, as people are told to.
    Connection::open(&file).unwrap().execute("VACUUM INTO ?1", [backup.to_str().unwrap()]).unwrap();
    let good = fs::read(&backup).unwrap();
    let load = lab.load(&["/hello/"], 100);
    load.until(Duration::from_secs(1));
    lab.lab(&["service", "stop", "matrix"]).ok();

    let garbage = |from: usize, to: usize| {
        let mut bytes = good.clone();
        bytes[from..to].fill(0xa5);
        bytes
    };
    let with = |change: &str| {
        let file = copy.path().join("changed.db");
        fs::write(&file, &good).unwrap();
        assert!(Connection::open(&file).unwrap().execute(change, []).unwrap() > 0, "{change}");
        fs::read(&file).unwrap()
    };
    let cut = "UPDATE entries SET value = substr(value, 1, length(value) / 2) WHERE key LIKE";
    let cases = [
        ("cut off", good[..good.len() / 2].to_vec()),
        ("emptied", Vec::new()),
        ("a header of garbage", garbage(0, 100)),
        ("a page of garbage", garbage(good.len() - 4096, good.len())),
        ("a damaged release", with(&format!("{cut} 'release/%'"))),
        ("damaged places", with(&format!("{cut} 'assignments'"))),
        ("a damaged host key", with(&format!("{cut} 'node/%'"))),
        ("a release that is missing", with("DELETE FROM entries WHERE key LIKE 'release/%'")),
    ];
    for (what, bytes) in cases {
        put(&file, &bytes);
        let ran = serve(&lab);
        assert_eq!(ran.code, 1, "{what}: {}{}", ran.out, ran.err);
        for said in [file.to_str().unwrap(), "nothing was touched", "hint: put a backup in its place"] {
            assert!(ran.err.contains(said), "{what}: no {said:?} in {}", ran.err);
        }
        assert_eq!(containers(&lab), before, "{what}");
    }

    put(&file, &good);
    lab.lab(&["service", "start", "matrix"]).ok();
    lab.ready(&NODES);
    eventually("all is as before", 20, || lab.matrix(&["status", "--wait", "1"]).code == 0);
    assert!(lab.deploy(plan).ok().contains("nothing to change"));
    assert_eq!(containers(&lab), before);
    load.stop().none_lost();
}
