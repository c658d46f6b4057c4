//! The lab itself.

use std::{
    collections::BTreeSet,
    fs,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::rig::{Lab, eventually, run};

/// Everything on this machine a lab of that name could leave behind.
fn traces(name: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let lines = |text: String| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut interfaces = Command::new("ip");
    interfaces.args(["-o", "link", "show"]);
    let mut groups = Command::new("find");
    groups.args(["/sys/fs/cgroup", "-type", "d"]);
    for line in lines(mounts).into_iter().chain(lines(run(interfaces).out)).chain(lines(run(groups).out)) {
        if line.contains(&format!("matrix.{name}."))
            || line.contains(&format!("mx-{name}"))
            || line.contains(&format!("matrix-lab/{name}"))
        {
            found.insert(line);
        }
    }
    let state = std::env::var("MATRIX_LAB_DIR").unwrap_or_else(|_| "/var/lib/matrix-lab".to_owned());
    for directory in ["/run/netns", "/etc/netns", "/run/matrix-lab", &state] {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let file = entry.file_name().to_string_lossy().into_owned();
            if file == name || file.starts_with(&format!("matrix.{name}.")) || file == format!(".{name}.lock") {
                found.insert(format!("{directory}/{file}"));
            }
        }
    }
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let group = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words).replace('\0', " ");
        if group.contains(&format!("/matrix-lab/{name}/")) || words.contains(&format!("matrix-lab/{name}/")) {
            found.insert(format!("process {words}"));
        }
    }
    found
}

#[track_caller]
fn no_traces(name: &str) {
    assert_eq!(traces(name), BTreeSet::new());
}

#[test]
fn up_power_and_down() {
    let lab = Lab::up_without_manager(&["node25", "node108"]);
    assert!(!traces(&lab.name).is_empty(), "the look for traces sees a living lab");

    let leases = fs::read_to_string(lab.state_dir().join("leases/dnsmasq.leases")).unwrap();
    for node in ["node25", "node108"] {
        let entry = lab.node(node);
        let address = entry["address"].as_str().unwrap().to_owned();
        assert!(leases.lines().any(|l| l.contains(&format!(" {address} {node} "))), "{leases}");
        assert_eq!(lab.on(node, &["docker", "info", "-f", "{{.Name}}"]).ok().trim(), node);
        assert_eq!(lab.gateway(&["getent", "hosts", node]).ok().split_whitespace().next(), Some(&*address));
    }
    let of = |node: &str, file: &str| lab.on(node, &["cat", file]).ok();
    for file in ["/etc/machine-id", "/etc/ssh/ssh_host_ed25519_key.pub"] {
        assert_ne!(of("node25", file), of("node108", file), "{file}");
        assert!(!of("node25", file).trim().is_empty());
    }
    assert_eq!(lab.get("/").0, 503, "Varnish answers before there is a route");
    assert_eq!(lab.get_url("http://matrix-manager.matrix:5000/v2/", &[]).0, 200);
    assert_eq!(lab.on("node25", &["sh", "-c", "exit 7"]).code, 7);
    assert_eq!(lab.gateway(&["sh", "-c", "exit 8"]).code, 8);

    // off: silence, not a refusal; then on again, the same machine
    let key = of("node25", "/etc/ssh/ssh_host_ed25519_key.pub");
    let before = lab.node("node25")["address"].clone();
    let mut session =
        lab.command_on("node25", &["sleep", "60"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let connections = || {
        let peer = before.as_str().unwrap();
        lab.gateway(&["ss", "-Htn", "state", "established", "dst", peer, "dport", "=", ":22"]).ok()
    };
    eventually("a session to the node", 5, || !connections().is_empty());
    lab.lab(&["poweroff", "node25"]).ok();
    thread::sleep(Duration::from_millis(300));
    assert_ne!(connections(), "", "a machine without power says no goodbye");
    session.kill().unwrap();
    session.wait().unwrap();
    assert_eq!(
        (lab.node("node25")["power"].as_str(), lab.node("node25")["link"].as_str()),
        (Some("off"), Some("none"))
    );
    let silent = lab.on("client", &["curl", "-s", "-m", "1", &format!("http://{}:22/", before.as_str().unwrap())]);
    assert_eq!(silent.code, 28, "a timeout");
    assert_eq!(lab.on("node25", &["true"]).code, 2, "a command for a node that is off");
    lab.lab(&["boot", "node25"]).ok();
    assert_eq!(of("node25", "/etc/ssh/ssh_host_ed25519_key.pub"), key);
    assert_eq!(lab.node("node25")["address"], before);

    // a pulled cable: the node lives on
    let uptime = || lab.on("node108", &["stat", "-c", "%Y", "/proc/1"]).out;
    let since = uptime();
    lab.lab(&["cut", "node108"]).ok();
    assert_eq!(lab.node("node108")["link"], "cut");
    assert_eq!(lab.on("node108", &["true"]).code, 255);
    lab.lab(&["heal", "node108"]).ok();
    eventually("ssh after heal", 10, || lab.on("node108", &["true"]).code == 0);
    assert_eq!(uptime(), since);

    // by the reset button, and from inside
    let boots =
        || fs::read_to_string(lab.state_dir().join("nodes/node108/console.log")).unwrap().matches("power on").count();
    lab.lab(&["reboot", "node108"]).ok();
    assert_eq!(boots(), 2);
    lab.on("node108", &["reboot"]);
    eventually("the node comes back by itself", 15, || {
        boots() == 3 && lab.on("node108", &["docker", "info"]).code == 0
    });
    lab.on("node108", &["poweroff"]);
    eventually("the node is off", 15, || lab.node("node108")["power"] == "off");

    // again: what is there stays, what is missing comes, what was switched off stays off
    lab.lab(&["up", "--no-serve", "--names", "node25,extra"]).ok();
    assert_eq!(lab.node("extra")["power"], "on");
    assert_eq!(lab.node("node108")["power"], "off");
    assert_eq!(of("node25", "/etc/ssh/ssh_host_ed25519_key.pub"), key);

    assert_eq!(lab.lab(&["poweroff", "nosuch"]).code, 2);
    lab.lab(&["down"]).ok();
    no_traces(&lab.name);
    lab.lab(&["down"]).ok();
}

#[test]
fn services_come_back() {
    let lab = Lab::up_without_manager(&["node1"]);
    let workdir = lab.state_dir().join("varnish").display().to_string();
    let pid = || lab.gateway(&["varnishadm", "-n", &workdir, "pid"]).out;
    let before = pid();
    lab.lab(&["service", "crash", "varnish"]).ok();
    eventually("Varnish is back", 5, || {
        let now = pid();
        now.contains("Master") && now != before && lab.get("/").0 == 503
    });
    lab.lab(&["service", "stop", "registry"]).ok();
    assert_eq!(lab.get_url("http://10.10.10.1:5000/v2/", &[]).0, 0);
    lab.lab(&["service", "start", "registry"]).ok();
    eventually("the registry is back", 5, || lab.get_url("http://10.10.10.1:5000/v2/", &[]).0 == 200);
}

#[test]
fn labs_side_by_side() {
    let one = Lab::up_without_manager(&["node1"]);
    let two = Lab::up_without_manager(&["node1"]);
    assert_ne!(one.status()["varnish"], two.status()["varnish"]);
    for lab in [&one, &two] {
        let url = lab.status()["varnish"].as_str().unwrap().to_owned();
        let mut curl = Command::new("curl");
        curl.args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "-m", "5", &url]);
        assert_eq!(run(curl).out, "503", "{url} from this machine");
    }
    let name = one.name.clone();
    drop(one);
    no_traces(&name);
    assert_eq!(two.on("node1", &["docker", "info", "-f", "{{.Name}}"]).ok().trim(), "node1");
}

#[test]
fn a_killed_up_or_down_leaves_nothing_after_down() {
    let lab = Lab::named_only();
    // a whole `up` of two nodes takes about two seconds: killed at many points of it
    for after in [5, 20, 40, 60, 90, 130, 200, 350, 600, 1200] {
        let mut up = lab.lab_command(&["up", "--no-serve", "--nodes", "2"]);
        let mut child = up.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        thread::sleep(Duration::from_millis(after));
        child.kill().unwrap();
        child.wait().unwrap();
        lab.lab(&["down"]).ok();
        no_traces(&lab.name);
    }
    for after in [1, 5, 15, 40, 100] {
        lab.lab(&["up", "--no-serve", "--nodes", "1"]).ok();
        let mut child = lab.lab_command(&["down"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        thread::sleep(Duration::from_millis(after));
        child.kill().unwrap();
        child.wait().unwrap();
        lab.lab(&["down"]).ok();
        no_traces(&lab.name);
    }
    // and one that is completed instead
    let mut child = lab.lab_command(&["up", "--no-serve", "--nodes", "2"]).stdout(Stdio::null()).spawn().unwrap();
    thread::sleep(Duration::from_millis(80));
    child.kill().unwrap();
    child.wait().unwrap();
    lab.lab(&["up", "--no-serve", "--nodes", "2"]).ok();
    assert_eq!(lab.on("node2", &["docker", "info", "-f", "{{.Name}}"]).ok().trim(), "node2");
}

#[test]
fn what_somebody_mounted_among_a_labs_files_is_taken_off_and_keeps_its_content() {
    let lab = Lab::named_only();
    lab.lab(&["up", "--no-serve", "--nodes", "1"]).ok();
    let mine = tempfile::tempdir().unwrap();
    std::fs::write(mine.path().join("dear"), "to me").unwrap();
    let point = lab.state_dir().join("nodes/node1/a b");
    std::fs::create_dir(&point).unwrap();
    assert!(Command::new("mount").arg("--bind").arg(mine.path()).arg(&point).status().unwrap().success());
    lab.lab(&["down"]).ok();
    no_traces(&lab.name);
    assert_eq!(std::fs::read_to_string(mine.path().join("dear")).unwrap(), "to me");
}

#[test]
fn three_nodes_are_ready_soon() {
    let warm = Lab::up_without_manager(&["node1"]);
    drop(warm);
    let started = Instant::now();
    let lab = Lab::up_without_manager(&["node1", "node2", "node3"]);
    let took = started.elapsed();
    assert!(took < Duration::from_secs(15), "{took:?}");
    assert_eq!(lab.status()["nodes"].as_array().map(Vec::len), Some(3));
}

#[test]
fn names_that_cannot_be_used_are_refused() {
    for (args, word) in [
        (["lab", "--name", "Bad Name", "status"], "lab name"),
        (["lab", "--name", "much-too-long-a-name", "down"], "lab name"),
        (["lab", "up", "--names", "a;b"], "node name"),
    ] {
        let mut command = crate::rig::matrix();
        command.args(args);
        let ran = run(command);
        assert_eq!(ran.code, 2, "{args:?}: {}", ran.err);
        assert!(ran.err.contains(word), "{}", ran.err);
    }
}

/// The program run by a shell line, in namespaces of its own.
fn unshared(flags: &[&str], script: &str) -> crate::rig::Ran {
    let mut command = Command::new("unshare");
    command.args(flags).args(["sh", "-c", script, "sh", env!("CARGO_BIN_EXE_matrix")]).stdin(Stdio::null());
    run(command)
}

#[test]
fn without_root_it_refuses() {
    let ran = unshared(&["--user"], "exec \"$1\" lab up");
    assert_eq!(ran.code, 1);
    assert_eq!(ran.err, "error: a lab needs root\n  hint: run it as root: sudo matrix lab …\n");
}

#[test]
fn a_directory_that_cannot_hold_nodes_is_refused() {
    let lab = Lab::named_only();
    let script = format!(
        "mount -t tmpfs t /mnt && mkdir /mnt/l /mnt/u /mnt/w /mnt/o && \
         mount -t overlay o -o lowerdir=/mnt/l,upperdir=/mnt/u,workdir=/mnt/w /mnt/o && \
         MATRIX_LAB_DIR=/mnt/o exec \"$1\" lab --name {} up --no-serve",
        lab.name
    );
    let ran = unshared(&["--mount"], &script);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("/mnt/o is on an overlay file system"), "{}", ran.err);
    assert!(ran.err.contains("hint: set MATRIX_LAB_DIR"), "{}", ran.err);
    no_traces(&lab.name);
}

#[test]
fn the_manager_answers_in_the_lab_and_outside() {
    let lab = Lab::up(&["node1"]);
    let page = lab.status()["page"].as_str().unwrap().to_owned();
    let mut curl = Command::new("curl");
    curl.args(["-s", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", &page]);
    assert_ne!(run(curl).out, "000", "{page} answers this machine");
    eventually("the node is ready for the manager", 10, || {
        lab.matrix(&["nodes", "--json"]).json().to_string().contains("ready")
    });
    lab.lab(&["service", "crash", "matrix"]).ok();
    eventually("a killed manager is back", 10, || lab.matrix(&["nodes"]).code == 0);
    lab.lab(&["service", "stop", "matrix"]).ok();
    assert_eq!(lab.matrix(&["nodes"]).code, 3);
    lab.lab(&["service", "start", "matrix"]).ok();
    lab.matrix(&["nodes"]).ok();
}
