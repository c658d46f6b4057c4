//! Cleaning a whole cloud: what no kept release needs goes from nodes and registry, and nothing else.

use std::{collections::BTreeSet, fs, sync::OnceLock, time::Duration};

use serde_json::Value;

use crate::{
    cloud::project,
    load::request,
    rig::{Lab, run},
};

const NODES: [&str; 2] = ["node1", "node2"];
const PLAN: &str = "[apps.shop]\nimage = \"shop\"\nreplicas = 2\n";

/// The lab, with a manager that does not wait an hour until what came is old.
fn lab() -> &'static Lab {
    static LAB: OnceLock<Lab> = OnceLock::new();
    static SET: OnceLock<()> = OnceLock::new();
    let lab = Lab::shared(&LAB, &NODES);
    SET.get_or_init(|| {
        let file = lab.run_dir().join("matrix.toml");
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, text.replace("[gc]\n", "[gc]\ngrace_minutes = 0\n")).unwrap();
        lab.lab(&["service", "restart", "matrix"]).ok();
    });
    lab.ready(&NODES);
    lab
}

/// Pushes an image of its own two megabytes; answers its digest.
fn push(lab: &Lab, name: &str, number: u32) -> String {
    let directory = tempfile::tempdir().unwrap();
    let at = |file: &str| directory.path().join(file);
    fs::copy(project("vm/apps/simplewebapp1/hello"), at("hello")).expect("`make apps` builds it");
    let mut state = u64::from(number) + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33).to_le_bytes()[0]
    };
    fs::write(at("ballast"), (0..2_000_000).map(|_| next()).collect::<Vec<u8>>()).unwrap();
    let toml = format!(
        "base = \"scratch\"\ncommand = [\"/hello\"]\nport = 8080\nfiles = [{{ from = \"hello\", to = \"/hello\", mode = \
         \"0755\" }}, {{ from = \"ballast\", to = \"/ballast\" }}]\n[environment]\nAPP = \"v{number}\"\n"
    );
    fs::write(at("image.toml"), toml).unwrap();
    let made = lab.matrix(&["create-image", name, directory.path().to_str().unwrap(), "--push", "--json"]).ok();
    format!("sha256:{}", &made.split("\"digest\": \"sha256:").nth(1).unwrap()[..64])
}

/// `matrix gc --json`: what it forecasts, and how it ended.
fn gc(lab: &Lab, options: &[&str]) -> (Value, Option<Value>) {
    let said = lab.matrix(&[&["gc", "--json"], options].concat()).ok();
    let lines: Vec<Value> = said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let end = lines.iter().find(|line| line["type"] == "end").cloned();
    (lines[0].clone(), end)
}

/// Names with digests of all images on a node.
fn images(lab: &Lab, node: &str) -> BTreeSet<String> {
    let format = "{{.Repository}}:{{.Tag}}@{{.Digest}}";
    let out = lab.on(node, &["docker", "images", "--digests", "--no-trunc", "--format", format]).ok();
    out.lines().map(str::to_owned).collect()
}

fn has(lab: &Lab, node: &str, digest: &str) -> bool {
    images(lab, node).iter().any(|image| image.contains(digest))
}

fn registry_bytes(lab: &Lab) -> u64 {
    let folder = lab.state_dir().join("registry/docker/registry/v2/blobs");
    let out = run({
        let mut du = std::process::Command::new("du");
        du.args(["-sb", folder.to_str().unwrap()]);
        du
    });
    out.ok().split_whitespace().next().unwrap().parse().unwrap()
}

fn page(lab: &Lab) -> String {
    request(lab.varnish(), "GET /shop/ HTTP/1.1").unwrap().body
}

#[test]
fn what_no_kept_release_needs_goes_and_every_way_back_stays() {
    let lab = lab();
    let first = lab.cloud()["release"]["number"].as_u64().unwrap_or(0);
    let mut digests = vec![String::new()];
    let operators = push(lab, "tool:v1", 99);
    for number in 1..=8 {
        digests.push(push(lab, "shop", number));
        lab.deploy(PLAN).ok();
        if number == 2 {
            let image = format!("matrix-manager.matrix:5000/cloud/shop@{}", digests[1]);
            // Somebody else's container of our first image, and somebody else's name for our second.
            lab.on("node1", &["docker", "run", "-d", "--name", "foreign", &image]).ok();
            let image = format!("matrix-manager.matrix:5000/cloud/shop@{}", digests[2]);
            lab.on("node1", &["docker", "tag", &image, "mine:v2"]).ok();
        }
    }
    let release = lab.cloud()["release"]["number"].clone();
    let before = NODES.map(|node| images(lab, node));
    let registry = registry_bytes(lab);

    let (forecast, none) = gc(lab, &["--dry-run"]);
    assert!(none.is_none());
    assert_eq!(NODES.map(|node| images(lab, node)), before, "--dry-run changes nothing");
    assert_eq!((registry_bytes(lab), &lab.cloud()["release"]["number"]), (registry, &release));
    let kept: Vec<u64> = serde_json::from_value(forecast["kept"].clone()).unwrap();
    assert_eq!(kept, [4, 5, 6, 7, 8].map(|number| first + number), "{forecast}");
    let items = forecast["items"].as_array().unwrap().iter();
    let outdated: Vec<u64> = items.filter_map(|item| item["number"].as_u64()).filter(|n| *n > first).collect();
    assert_eq!(outdated, [1, 2, 3].map(|number| first + number), "{forecast}");
    assert!(lab.matrix(&["diff", &(first + 1).to_string()]).code == 0, "--dry-run forgets nothing");

    let (_, end) = gc(lab, &[]);
    let end = end.unwrap();
    println!("cleaned: {end}");
    assert_eq!(end["errors"].as_array().map(Vec::len), Some(0), "{end}");
    let freed = registry - registry_bytes(lab);
    println!("the registry: {registry} bytes before, {freed} freed");
    assert!(freed >= 6_000_000, "three images of two megabytes: {freed}");
    let all = forecast["items"].as_array().unwrap().iter().map(|item| item["bytes"].as_u64().unwrap()).sum::<u64>();
    assert_eq!(end["freed"].as_u64().unwrap(), all, "what was forecast is freed");
    for node in NODES {
        assert_eq!((4..=8).filter(|n| has(lab, node, &digests[*n])).count(), 5, "{node}: {:?}", images(lab, node));
        assert!(!has(lab, node, &digests[3]), "{node}");
    }
    assert!(!has(lab, "node2", &digests[1]) && !has(lab, "node2", &digests[2]));
    assert!(has(lab, "node1", &digests[1]), "the image of somebody's container stays");
    assert!(images(lab, "node1").iter().any(|image| image.starts_with("mine:v2@")), "somebody's own name stays");
    let running = lab.on("node1", &["docker", "inspect", "-f", "{{.State.Running}}", "foreign"]).ok();
    assert_eq!(running.trim(), "true");
    let tool = format!("http://10.10.10.1:5000/v2/cloud/tool/manifests/{operators}");
    assert_eq!(lab.get_url(&tool, &["Accept: application/vnd.oci.image.manifest.v1+json"]).0, 200);

    let (again, _) = gc(lab, &[]);
    assert_eq!(again["items"].as_array().map(Vec::len), Some(0), "a second one finds nothing: {again}");

    // A node that lost all images pulls them anew: what a kept release names is in the registry, whole.
    for number in [7, 6, 5, 4] {
        let digest = &digests[number];
        let image = format!("matrix-manager.matrix:5000/cloud/shop@{digest}");
        for node in NODES {
            lab.on(node, &["docker", "rmi", &image]).ok();
        }
        lab.matrix(&["rollback", &(first + number as u64).to_string()]).ok();
        assert!(page(lab).contains(&format!("<h1>v{number}</h1>")), "release {number}: {}", page(lab));
        assert!(NODES.iter().all(|node| has(lab, node, digest)), "pulled anew");
    }
    // What cannot be gone back to is not listed, and whoever asks for it is told.
    let view = lab.matrix(&["releases", "--json"]).json();
    let listed: Vec<u64> = view["releases"].as_array().unwrap().iter().map(|r| r["number"].as_u64().unwrap()).collect();
    assert_eq!(listed, (4..=12).map(|number| first + number).collect::<Vec<_>>());
    let gone = (first + 1).to_string();
    for args in [&["rollback", &gone][..], &["rollback", &gone, "--dry-run"], &["diff", &gone]] {
        let ran = lab.matrix(args);
        assert_eq!(ran.code, 2, "{args:?} {}{}", ran.out, ran.err);
        assert!(ran.err.contains(&format!("release {gone} is not kept any more")), "{}", ran.err);
        assert!(ran.err.contains("keep_releases"), "{}", ran.err);
    }
    lab.on("node1", &["docker", "rm", "-f", "foreign"]).ok();
}

#[test]
fn a_push_and_a_deploy_while_all_is_cleaned_lose_nothing() {
    let lab = lab();
    for number in 20..23 {
        push(lab, "busy", number);
    }
    push(lab, "shop", 30);
    lab.deploy(PLAN).ok();
    let load = lab.load(&["/shop/"], 100);
    load.until(Duration::from_secs(1));
    let mut cleaning = {
        let mut command = crate::rig::matrix();
        command.arg("--manager").arg(lab.socket()).arg("gc");
        command.stdout(std::process::Stdio::null()).spawn().unwrap()
    };
    let digest = push(lab, "shop", 31);
    lab.deploy(PLAN).ok();
    assert!(cleaning.wait().unwrap().success());
    assert!(page(lab).contains("<h1>v31</h1>"), "{}", page(lab));
    load.stop().none_lost();
    let manifest = format!("http://10.10.10.1:5000/v2/cloud/shop/manifests/{digest}");
    assert_eq!(lab.get_url(&manifest, &["Accept: application/vnd.oci.image.manifest.v1+json"]).0, 200);
}

#[test]
fn a_node_whose_disk_cannot_hold_the_images_is_named_before_anything_starts() {
    const TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
    let lab = lab();
    push(lab, "huge:v1", 50);
    let url = |tag: &str| format!("http://10.10.10.1:5000/v2/cloud/huge/manifests/{tag}");
    let manifest = lab.get_url(&url("v1"), &[&format!("Accept: {TYPE}")]).1;
    let put = |tag: &str, size: u64| {
        let mut changed: Value = serde_json::from_str(&manifest).unwrap();
        changed["layers"][0]["size"] = size.into();
        let header = format!("Content-Type: {TYPE}");
        let said = ["curl", "-s", "-f", "-X", "PUT", "-H", &header, "-d", &changed.to_string(), &url(tag)];
        lab.on("client", &said).ok();
    };
    let free = lab.matrix(&["nodes", "--json"]).json()["nodes"][0]["engine"]["disk_free"].as_u64().unwrap();
    put("hopeless", free * 4);
    put("tight", free / 2);
    let plan = |tag: &str| format!("[apps.huge]\nimage = \"huge:{tag}\"\n");
    let before = lab.cloud()["release"].clone();
    let ran = lab.deploy(&plan("hopeless"));
    assert_eq!(ran.code, 2, "{}{}", ran.out, ran.err);
    assert!(ran.err.contains("node") && ran.err.contains("free"), "{}", ran.err);
    assert_eq!(lab.cloud()["release"], before);
    let ran = lab.deploy_with(&plan("tight"), &["--dry-run"]);
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    assert!(ran.err.contains("unpacked about"), "{}{}", ran.out, ran.err);
    let ran = lab.deploy_with(&plan("v1"), &["--dry-run"]);
    assert!(!ran.err.contains("free"), "there is room for that: {}", ran.err);
}
