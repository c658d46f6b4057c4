//! A real sshd on a loopback port, run by this user with keys made here, in front of an engine that is no engine: a
//! fake that answers the few calls a session's test needs.

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use axum::{Json, Router, routing::get};
use matrix::{
    inventory::HostKey,
    model::Port,
    remote::ssh::{Target, fingerprint},
};

/// sshd, its keys and its folder; ended with this value.
pub struct Sshd {
    pub dir: tempfile::TempDir,
    pub address: &'static str,
    pub port: Port,
    pub key: HostKey,
    child: Child,
}

/// Makes a key pair in `file` and returns the public one.
pub fn keygen(file: &Path) -> HostKey {
    let done = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(file).status().unwrap();
    assert!(done.success());
    let public = fs::read_to_string(file.with_extension("pub")).unwrap();
    let key = public.split(' ').nth(1).unwrap().to_owned();
    HostKey { algorithm: "ssh-ed25519".into(), fingerprint: fingerprint(&key).unwrap(), key }
}

pub fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

pub fn user() -> String {
    let name = Command::new("id").arg("-un").output().unwrap().stdout;
    String::from_utf8(name).unwrap().trim().to_owned()
}

impl Sshd {
    pub fn start(more: &str) -> Self {
        Self::start_at("127.0.0.1", free_port(), more)
    }

    /// On this loopback address and port, as a node of its own.
    pub fn start_at(address: &'static str, port: u16, more: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("mx").tempdir_in("/tmp").unwrap();
        let file = |name: &str| dir.path().join(name);
        let key = keygen(&file("host"));
        keygen(&file("id"));
        fs::copy(file("id.pub"), file("authorized")).unwrap();
        fs::create_dir(file("run")).unwrap();
        if user() == "root" {
            // Debian's sshd wants it; it is a unit's work to make it.
            fs::create_dir_all("/run/sshd").unwrap();
        }
        let config = format!(
            "ListenAddress {address}\nPort {port}\nHostKey {host}\nPidFile none\nUsePAM no\nStrictModes no\n\
             AuthorizedKeysFile {authorized}\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
             PermitRootLogin prohibit-password\nLogLevel VERBOSE\n{more}\n",
            host = file("host").display(),
            authorized = file("authorized").display(),
        );
        fs::write(file("sshd_config"), config).unwrap();
        let child = Self::spawn(&dir);
        let sshd = Self { dir, address, port: Port::new(port).unwrap(), key, child };
        sshd.wait();
        sshd
    }

    fn spawn(dir: &tempfile::TempDir) -> Child {
        let file = |name: &str| dir.path().join(name);
        Command::new("/usr/sbin/sshd")
            .args(["-D", "-E"])
            .arg(file("sshd.log"))
            .arg("-f")
            .arg(file("sshd_config"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    fn wait(&self) {
        let start = Instant::now();
        while std::net::TcpStream::connect((self.address, self.port.get())).is_err() {
            assert!(start.elapsed() < Duration::from_secs(5), "sshd does not come up: {}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Off: nobody listens, no connection is left.
    pub fn stop(&mut self) {
        self.kill_connections();
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// On again.
    pub fn again(&mut self) {
        self.child = Self::spawn(&self.dir);
        self.wait();
    }

    /// On again as a machine that was installed anew.
    pub fn again_with_another_key(&mut self) {
        let host = self.dir.path().join("host");
        fs::remove_file(&host).unwrap();
        self.key = keygen(&host);
        self.again();
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("sshd.log")).unwrap_or_default()
    }

    pub fn run(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    pub fn target(&self, node: &str) -> Target {
        Target {
            node: node.parse().unwrap(),
            address: self.address.parse().unwrap(),
            port: self.port,
            user: user(),
            identity: self.dir.path().join("id"),
            key: self.key.clone(),
            engine_socket: self.dir.path().join("engine.sock"),
        }
    }

    /// The processes that serve connections, as a node's power-off ends them.
    pub fn kill_connections(&self) {
        let mine = self.child.id().to_string();
        let children = Command::new("pgrep").args(["-P", &mine]).output().unwrap().stdout;
        for child in String::from_utf8(children).unwrap().split_whitespace() {
            // Privilege separation: the one that holds the connection may be a child of it.
            Command::new("pkill").args(["-KILL", "-P", child]).status().unwrap();
            Command::new("kill").args(["-KILL", child]).status().unwrap();
        }
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.kill_connections();
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// A fake engine on `socket`: no containers, and it lives.
pub fn fake_engine(socket: &Path, id: &'static str) -> tokio::task::JoinHandle<()> {
    let info = serde_json::json!({ "ID": id, "ServerVersion": "20.10.24", "NCPU": 2, "MemTotal": 1 << 30,
        "OSType": "linux", "Architecture": "x86_64", "DockerRootDir": "/" });
    let app = Router::new()
        .route("/_ping", get(async || "OK"))
        .route("/info", get(async move || Json(info)))
        .route("/containers/json", get(async || Json(serde_json::json!([]))))
        .route("/events", get(async || std::future::pending::<()>().await));
    let listener = tokio::net::UnixListener::bind(socket).unwrap();
    fs::set_permissions(socket, fs::Permissions::from_mode(0o666)).unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() })
}
