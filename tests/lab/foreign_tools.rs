//! What others make of our images: a Debian server on a node, docker and skopeo as second opinions.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{
    cloud::project,
    load::request,
    rig::{Lab, run},
};

/// The base is made once a day's work, not once a test: kept below target/.
fn nginx_base(lab: &Lab) -> PathBuf {
    let base = project("target/apps/web-base.tar");
    if !base.exists() {
        fs::create_dir_all(base.parent().unwrap()).unwrap();
        let made = base.with_extension("part.tar");
        let file = made.to_str().unwrap();
        lab.matrix(&["create-base", "web-base", "--packages", "nginx-light", "--output", file]).ok();
        fs::rename(&made, &base).unwrap();
    }
    base
}

#[test]
fn debians_nginx_in_an_image_made_without_an_engine_serves_its_page_through_varnish() {
    let lab = Lab::up(&["node1"]);
    lab.ready(&["node1"]);
    let base = nginx_base(&lab);
    let directory = project("vm/apps/nginx-site");
    let mut create = crate::rig::matrix();
    create.arg("--manager").arg(lab.socket());
    create.args(["create-image", "nginx-site"]).arg(&directory).arg("--base").arg(&base).arg("--push");
    // No engine of this machine can have helped.
    create.env("DOCKER_HOST", "unix:///nonexistent").env("CONTAINER_HOST", "unix:///nonexistent");
    run(create).ok();
    lab.deploy("[apps.site]\nimage = \"nginx-site\"\npath = \"/site\"\nstrip_path = true\n").ok();
    let answer = request(lab.varnish(), "GET /site/ HTTP/1.1").unwrap();
    assert_eq!(answer.status, 200);
    assert_eq!(answer.body, fs::read_to_string(directory.join("site/index.html")).unwrap());
    let container = lab.containers_of("site", &["node1"]).first().unwrap().clone();
    let version = lab.on("node1", &["docker", "exec", &container, "nginx", "-v"]);
    assert!(version.err.contains("nginx/"), "{}", version.err);
}

#[test]
fn docker_reads_the_archive_and_skopeo_the_registry() {
    let lab = Lab::up(&["node1"]);
    lab.ready(&["node1"]);
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("simplewebapp1.tar");
    let file = archive.to_str().unwrap();
    let directory = project("vm/apps/simplewebapp1");
    let created =
        lab.matrix(&["create-image", "simplewebapp1", directory.to_str().unwrap(), "--output", file, "--json"]).json();
    let digest = created["digest"].as_str().unwrap().to_owned();

    let mut load = lab.command_on("node1", &["docker", "load"]);
    load.stdin(Stdio::from(fs::File::open(&archive).unwrap()));
    let said = run(load).ok();
    let image =
        said.lines().find_map(|l| l.split_once("Loaded image: ").or(l.split_once("Loaded image ID: "))).unwrap().1;
    let ran = lab.on("node1", &["docker", "run", "-d", "--name", "loaded", "-p", "5050:8080", image.trim()]);
    ran.ok();
    let address = lab.node("node1")["address"].as_str().unwrap().to_owned();
    crate::rig::eventually("it answers", 5, || lab.get_url(&format!("http://{address}:5050/"), &[]).0 == 200);

    lab.matrix(&["install-image", file]).ok();
    let registry = lab.status()["registry"].as_str().unwrap().trim_start_matches("http://").to_owned();
    let skopeo = |source: &str| {
        let mut inspect = Command::new("skopeo");
        inspect.args(["inspect", "--tls-verify=false", source]);
        run(inspect).json()
    };
    let there = skopeo(&format!("docker://{registry}/cloud/simplewebapp1:latest"));
    assert_eq!(there["Digest"], digest.as_str());
    assert_eq!(skopeo(&format!("oci-archive:{file}"))["Digest"], digest.as_str());
    let copy = folder.path().join("copy");
    let mut pull = Command::new("skopeo");
    pull.args(["copy", "-q", "--src-tls-verify=false", &format!("docker://{registry}/cloud/simplewebapp1:latest")]);
    pull.arg(format!("dir:{}", copy.display()));
    run(pull).ok();
    lab.on("node1", &["docker", "pull", "matrix-manager.matrix:5000/cloud/simplewebapp1"]).ok();
}

/// A directory whose Dockerfile needs nothing from anywhere.
fn dockerfile() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::copy(project("vm/apps/simplewebapp1/hello"), directory.path().join("hello")).unwrap();
    let text =
        "FROM scratch\nCOPY hello /hello\nENV APP=by-dockerfile\nEXPOSE 8080\nUSER 65534:65534\nCMD [\"/hello\"]\n";
    fs::write(directory.path().join("Dockerfile"), text).unwrap();
    directory
}

/// The socket of a node's own dockerd, as this machine reaches it.
fn engine_of(node: &str) -> PathBuf {
    let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let is = |process: &Path| {
        let says = |file: &str| fs::read_to_string(process.join(file)).unwrap_or_default().trim().to_owned();
        says("comm") == "dockerd" && says("root/etc/hostname") == node
    };
    processes.into_iter().find(|p| is(p)).expect("the node runs a dockerd").join("root/run/docker.sock")
}

/// A folder of programs with only these of this machine's in it.
fn only(programs: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for program in programs {
        let path = std::env::var_os("PATH").unwrap();
        let found = std::env::split_paths(&path).map(|d| d.join(program)).find(|p| p.is_file());
        let found = found.unwrap_or_else(|| panic!("{program} is not installed"));
        std::os::unix::fs::symlink(found, folder.path().join(program)).unwrap();
    }
    folder
}

/// Builds with one engine, pushes, installs what the engine holds under another name, and asks both through Varnish.
#[track_caller]
fn built_and_served(lab: &Lab, engine: &str, run_engine: impl Fn(&[&str]) -> Command, environment: &[(&str, &str)]) {
    let directory = dockerfile();
    let programs = only(&[engine]);
    let matrix = |args: &[&str]| {
        let mut command = crate::rig::matrix();
        command.arg("--manager").arg(lab.socket()).args(args).current_dir(programs.path());
        command.env("PATH", programs.path()).envs(environment.iter().copied());
        run(command)
    };
    let app = format!("by-{engine}");
    let built = matrix(&["create-image", &app, directory.path().to_str().unwrap(), "--push", "--json"]).json();
    let digest = built["digest"].as_str().unwrap();
    assert_eq!(built["installed"]["digest"], digest);

    let own = format!("own-{engine}");
    run(run_engine(&["build", "-t", &own, directory.path().to_str().unwrap()])).ok();
    let installed = matrix(&["install-image", &own, "--json"]).json();
    assert_eq!(installed["name"], format!("cloud/{own}:latest"));
    let again = matrix(&["install-image", &own, "--json"]).json();
    assert_eq!((&again["unchanged"], &again["digest"]), (&true.into(), &installed["digest"]), "{again}");

    let registry = lab.status()["registry"].as_str().unwrap().trim_start_matches("http://").to_owned();
    for (name, digest) in [(&app, digest), (&own, installed["digest"].as_str().unwrap())] {
        let mut inspect = Command::new("skopeo");
        inspect.args(["inspect", "--tls-verify=false", &format!("docker://{registry}/cloud/{name}:latest")]);
        assert_eq!(run(inspect).json()["Digest"], digest, "{name}");
    }
    lab.deploy(&format!("[apps.{app}]\npath = \"/built\"\n\n[apps.{own}]\npath = \"/own\"\n")).ok();
    for path in ["/built", "/own"] {
        let (status, body) = lab.get(path);
        assert!(status == 200 && body.contains("by-dockerfile"), "{path}: {status} {body}");
    }
    let missing = matrix(&["install-image", "nobodys", "--json"]);
    assert_eq!(missing.code, 2, "{}", missing.err);
    assert!(
        missing.err.contains(&format!("{engine} failed")) && missing.err.contains("create-image"),
        "{}",
        missing.err
    );
    run(run_engine(&["rmi", "-f", &own, &format!("cloud/{app}")])).ok();
}

#[test]
fn docker_builds_a_dockerfile_and_gives_what_it_holds() {
    if Command::new("docker").arg("--version").output().is_err() {
        eprintln!("skipped: no docker client is installed here");
        return;
    }
    let lab = Lab::up(&["builder"]);
    lab.ready(&["builder"]);
    let host = format!("unix://{}", engine_of("builder").display());
    let docker = |args: &[&str]| {
        let mut command = Command::new("docker");
        command.env("DOCKER_HOST", &host).args(args);
        command
    };
    built_and_served(&lab, "docker", docker, &[("DOCKER_HOST", &host)]);
}

#[test]
fn podman_builds_a_dockerfile_and_gives_what_it_holds() {
    if Command::new("podman").arg("--version").output().is_err() {
        eprintln!("skipped: podman is not installed here");
        return;
    }
    let lab = Lab::up(&["node1"]);
    lab.ready(&["node1"]);
    let podman = |args: &[&str]| {
        let mut command = Command::new("podman");
        command.args(args);
        command
    };
    built_and_served(&lab, "podman", podman, &[]);
}
