//! A lab for a test: started when made, removed when dropped. Used through the built program, as a user uses it.

use std::{
    ffi::OsStr,
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

/// What a command did.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    /// The output of a command that must have succeeded.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{}{}", self.out, self.err);
        self.out
    }
    /// The output as JSON.
    #[track_caller]
    pub fn json(self) -> serde_json::Value {
        let out = self.ok();
        serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e} in {out}"))
    }
}

/// Runs a command to its end.
#[track_caller]
pub fn run(mut command: Command) -> Ran {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    Ran {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// The built program, without anything a developer's shell may have set for it.
pub fn matrix() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_matrix"));
    command.env_remove("MATRIX_LAB").env_remove("MATRIX_MANAGER").env_remove("MATRIX_TOKEN").stdin(Stdio::null());
    command
}

/// A lab of its own name. `MATRIX_KEEP_LAB=1` leaves it up, to look into.
#[derive(Debug)]
pub struct Lab {
    pub name: String,
}

impl Lab {
    /// A name nobody else uses; nothing is started.
    pub fn named_only() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        Self { name: format!("t{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)) }
    }
    /// Gateway, nodes and the manager.
    #[track_caller]
    pub fn up(nodes: &[&str]) -> Self {
        let lab = Self::named_only();
        lab.lab(&["up", "--names", &nodes.join(",")]).ok();
        lab
    }
    /// Gateway and nodes, no manager.
    #[track_caller]
    pub fn up_without_manager(nodes: &[&str]) -> Self {
        let lab = Self::named_only();
        lab.lab(&["up", "--no-serve", "--names", &nodes.join(",")]).ok();
        lab
    }
    /// `matrix lab …` for this lab.
    #[track_caller]
    pub fn lab(&self, args: &[&str]) -> Ran {
        run(self.lab_command(args))
    }
    /// The same, not yet run.
    pub fn lab_command(&self, args: &[&str]) -> Command {
        let mut command = matrix();
        command.args(["lab", "--name", &self.name]).args(args);
        command
    }
    /// `matrix …` spoken to this lab's manager: `lab.matrix(&["deploy", "x.plan"])`.
    #[track_caller]
    pub fn matrix(&self, args: &[&str]) -> Ran {
        let mut command = matrix();
        command.arg("--manager").arg(self.socket()).args(args);
        run(command)
    }
    /// A command on the gateway.
    #[track_caller]
    pub fn gateway<S: AsRef<OsStr>>(&self, command: &[S]) -> Ran {
        self.on("gateway", command)
    }
    /// A command on a machine: gateway, client, or a node (as root).
    #[track_caller]
    pub fn on<S: AsRef<OsStr>>(&self, machine: &str, command: &[S]) -> Ran {
        run(self.command_on(machine, command))
    }
    /// The same, not yet run: for load that goes on while the test does something else.
    pub fn command_on<S: AsRef<OsStr>>(&self, machine: &str, command: &[S]) -> Command {
        let mut run = self.lab_command(&["shell", machine, "--"]);
        run.args(command);
        run
    }
    /// GET through Varnish, from the client: status (0: no answer) and body.
    #[track_caller]
    pub fn get(&self, path: &str) -> (u16, String) {
        self.get_url(&format!("http://10.10.10.1:6081{path}"), &[])
    }
    /// GET any URL from the client, with header lines.
    #[track_caller]
    pub fn get_url(&self, url: &str, headers: &[&str]) -> (u16, String) {
        let mut words = vec!["curl", "-s", "-m", "10", "-w", "\n%{http_code}", "-o", "-"];
        for header in headers {
            words.extend(["-H", header]);
        }
        words.extend(["--", url]);
        let ran = self.on("client", &words);
        let (body, code) = ran.out.rsplit_once('\n').unwrap_or(("", "0"));
        (code.trim().parse().unwrap_or(0), body.to_owned())
    }
    /// `matrix lab status --json`.
    #[track_caller]
    pub fn status(&self) -> serde_json::Value {
        self.lab(&["status", "--json"]).json()
    }
    /// A node's entry there.
    #[track_caller]
    pub fn node(&self, name: &str) -> serde_json::Value {
        let status = self.status();
        let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
        nodes.into_iter().find(|n| n["name"] == name).unwrap_or_else(|| panic!("no {name} in {status}"))
    }
    /// The manager's socket.
    pub fn socket(&self) -> PathBuf {
        self.run_dir().join("matrix.sock")
    }
    /// /run/matrix-lab/NAME
    pub fn run_dir(&self) -> PathBuf {
        PathBuf::from("/run/matrix-lab").join(&self.name)
    }
    /// Its state: below MATRIX_LAB_DIR, or /var/lib/matrix-lab
    pub fn state_dir(&self) -> PathBuf {
        let base = std::env::var_os("MATRIX_LAB_DIR").unwrap_or_else(|| "/var/lib/matrix-lab".into());
        PathBuf::from(base).join(&self.name)
    }
    /// A service's log: dnsmasq, registry, varnish, matrix.
    pub fn log(&self, service: &str) -> String {
        std::fs::read_to_string(self.state_dir().join("log").join(format!("{service}.log"))).unwrap_or_default()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::env::var_os("MATRIX_KEEP_LAB").is_some() {
            _ = writeln!(std::io::stderr(), "lab {} is left up", self.name);
            return;
        }
        if std::thread::panicking() {
            let log = self.log("matrix");
            let last: Vec<_> = log.lines().rev().take(60).collect();
            let last: Vec<_> = last.into_iter().rev().collect();
            eprintln!("the manager's last words:\n{}", last.join("\n"));
        }
        let ran = self.lab(&["down"]);
        if !std::thread::panicking() {
            assert_eq!(ran.code, 0, "{}", ran.err);
        }
    }
}

/// Waits until something holds; says what it waited for in vain.
#[track_caller]
pub fn eventually(what: &str, seconds: u64, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not within {seconds} s");
        std::thread::sleep(Duration::from_millis(50));
    }
}
