//! What tests say of a lab's applications: images, plans, instances.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use serde_json::Value;

use crate::{
    load::Load,
    rig::{Lab, Ran, eventually, matrix, run},
};

/// The project's folder.
pub fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// An instance as `matrix status --json` shows it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instance {
    pub app: String,
    pub name: String,
    pub node: String,
    pub container: String,
    pub state: String,
    pub why: String,
}

impl Lab {
    /// A lab that tests of one file use one after another; it goes when the test program ends, however it ends.
    pub fn shared(cell: &'static OnceLock<Lab>, nodes: &[&str]) -> &'static Lab {
        let lab = cell.get_or_init(|| {
            let lab = Lab::up(nodes);
            if std::env::var_os("MATRIX_KEEP_LAB").is_none() {
                // Reads until this process has ended, then takes the lab down.
                let mut reaper = Command::new("sh");
                reaper.args(["-c", "cat >/dev/null; exec \"$@\"", "reaper"]);
                reaper.arg(matrix().get_program()).args(["lab", "--name", &lab.name, "down"]);
                let reaper = reaper.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
                std::mem::forget(reaper);
            }
            lab
        });
        lab.ready(nodes);
        lab
    }
    /// Waits until the manager uses these nodes.
    #[track_caller]
    pub fn ready(&self, nodes: &[&str]) {
        eventually("the nodes are ready", 20, || {
            let view = self.matrix(&["nodes", "--json"]).json();
            let all = view["nodes"].as_array().cloned().unwrap_or_default();
            nodes.iter().all(|name| all.iter().any(|n| n["name"] == *name && n["state"] == "ready"))
        });
    }
    /// Makes the hello program (and a shell) an image of this name with this environment, and puts it into the registry.
    #[track_caller]
    pub fn hello(&self, name: &str, environment: &[(&str, &str)]) {
        let program = project("vm/apps/simplewebapp1/hello");
        assert!(program.exists(), "`make apps` builds {}", program.display());
        let directory = tempfile::tempdir().unwrap();
        fs::copy(&program, directory.path().join("hello")).unwrap();
        fs::copy("/bin/busybox", directory.path().join("sh")).unwrap();
        let mut toml = "base = \"scratch\"\ncommand = [\"/hello\"]\nport = 8080\n[environment]\n".to_owned();
        for (key, value) in environment {
            toml += &format!("{key} = {value:?}\n");
        }
        fs::write(
            directory.path().join("image.toml"),
            format!(
                "files = [{{ from = \"hello\", to = \"/hello\", mode = \"0755\" }}, \
                 {{ from = \"sh\", to = \"/bin/sh\", mode = \"0755\" }}]\n{toml}"
            ),
        )
        .unwrap();
        self.matrix(&["create-image", name, directory.path().to_str().unwrap(), "--push"]).ok();
    }
    /// `matrix deploy` of this text.
    #[track_caller]
    pub fn deploy(&self, plan: &str) -> Ran {
        self.deploy_with(plan, &[])
    }
    #[track_caller]
    pub fn deploy_with(&self, plan: &str, options: &[&str]) -> Ran {
        let file = written(plan);
        let mut args = vec!["deploy", file.path().to_str().unwrap()];
        args.extend(options);
        self.matrix(&args)
    }
    /// `matrix status --json`
    #[track_caller]
    pub fn cloud(&self) -> Value {
        self.matrix(&["status", "--json"]).json()
    }
    /// All instances, by application and name.
    #[track_caller]
    pub fn instances(&self) -> Vec<Instance> {
        let status = self.cloud();
        let mut found = Vec::new();
        for (app, view) in status["applications"].as_object().into_iter().flatten() {
            for instance in view["instances"].as_array().into_iter().flatten() {
                let text = |key: &str| instance[key].as_str().unwrap_or_default().to_owned();
                found.push(Instance {
                    app: app.clone(),
                    name: text("instance"),
                    node: text("node"),
                    container: text("container"),
                    state: text("state"),
                    why: text("why"),
                });
            }
        }
        found.sort();
        found
    }
    /// The engine's own word: names and ids of this cloud's containers on a node, running or not.
    #[track_caller]
    pub fn containers(&self, node: &str) -> BTreeMap<String, String> {
        let filter = format!("label=matrix.cloud={}", self.name);
        let format = "{{.Names}} {{.ID}}";
        let out = self.on(node, &["docker", "ps", "-a", "--no-trunc", "--filter", &filter, "--format", format]).ok();
        out.lines().filter_map(|l| l.split_once(' ')).map(|(n, id)| (n.to_owned(), id.to_owned())).collect()
    }
    /// Names of an application's containers on these nodes.
    #[track_caller]
    pub fn containers_of(&self, app: &str, nodes: &[&str]) -> BTreeSet<String> {
        let all = nodes.iter().flat_map(|node| self.containers(node)).map(|(name, _)| name);
        all.filter(|name| name.starts_with(&format!("{app}.")) || name.starts_with(&format!("{app}-"))).collect()
    }
    /// Varnish on the host's leg.
    pub fn varnish(&self) -> SocketAddr {
        let status = self.status();
        status["varnish"].as_str().unwrap().trim_start_matches("http://").trim_end_matches('/').parse().unwrap()
    }
    /// GETs through Varnish, from this machine.
    pub fn load(&self, paths: &[&str], rate: u32) -> Load {
        Load::start(self.varnish(), paths, rate)
    }
}

/// A file with this text, for as long as it is held.
pub fn written(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::Builder::new().suffix(".plan").tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

/// A small file system where a node keeps its images.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    #[track_caller]
    pub fn under(lab: &Lab, node: &str, size: &str) -> Self {
        lab.lab(&["poweroff", node]).ok();
        let folder = lab.state_dir().join("nodes").join(node).join("docker");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(&folder);
        run(mount).ok();
        let disk = Self(folder);
        lab.lab(&["boot", node]).ok();
        disk
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let mut umount = Command::new("umount");
        umount.arg("-l").arg(&self.0);
        run(umount);
    }
}
