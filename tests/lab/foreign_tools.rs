//! What others make of our images: a Debian server on a node, docker and skopeo as second opinions.

use std::{
    fs,
    process::{Command, Stdio},
};

use crate::{
    cloud::project,
    load::request,
    rig::{Lab, run},
};

/// The base is made once a day's work, not once a test: kept below target/.
fn nginx_base(lab: &Lab) -> std::path::PathBuf {
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
