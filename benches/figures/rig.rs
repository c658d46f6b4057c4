//! A lab to measure on, the other programs beside ours, and a quiet machine as far as it can be had.

use std::{
    borrow::BorrowMut,
    collections::BTreeSet,
    fmt::Write as _,
    fs::{self, File},
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, setns};
use serde_json::Value;

/// What can go wrong is told, not handled.
pub type Res<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// A lab; removed when dropped.
pub struct Lab {
    pub name: String,
    pub gateway: String,
}

/// The program that is measured, without anything a shell may have set for it.
pub fn matrix() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_matrix"));
    for variable in ["MATRIX_LAB", "MATRIX_MANAGER", "MATRIX_TOKEN", "MATRIX_REGISTRY"] {
        command.env_remove(variable);
    }
    command.stdin(Stdio::null());
    command
}

/// Runs a command to its end; what it printed.
pub fn run(mut command: impl BorrowMut<Command>) -> Res<String> {
    let command = command.borrow_mut();
    let output = command.output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{command:?} ended with {}: {}", output.status, said.trim()).into())
}

/// How long something took, in seconds.
pub fn timed<T>(work: impl FnOnce() -> Res<T>) -> Res<f64> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_secs_f64())
}

impl Lab {
    pub fn up(nodes: usize) -> Res<Self> {
        let mut lab = Self { name: format!("b{}", std::process::id()), gateway: String::new() };
        lab.grow(nodes)?;
        let status: Value = serde_json::from_str(&run(lab.lab(&["status", "--json"]))?)?;
        let varnish = status["varnish"].as_str().ok_or("the lab has no Varnish")?;
        let host = varnish.trim_start_matches("http://").split(':').next().unwrap_or_default();
        host.clone_into(&mut lab.gateway);
        Ok(lab)
    }

    /// Adds what is missing to so many nodes, and waits until the manager has them.
    pub fn grow(&self, nodes: usize) -> Res<()> {
        run(self.lab(&["up", "--nodes", &nodes.to_string()]))?;
        until("the manager has all nodes", 30, || {
            let shown: Value = serde_json::from_str(&run(self.matrix(&["nodes", "--json"]))?)?;
            let ready = shown["nodes"].as_array().map_or(0, |all| all.iter().filter(|n| n["state"] == "ready").count());
            Ok(ready >= nodes)
        })
    }

    /// `matrix lab …`
    pub fn lab(&self, args: &[&str]) -> Command {
        let mut command = matrix();
        command.args(["lab", "--name", &self.name]).args(args);
        command
    }

    /// `matrix …` spoken to this lab's manager.
    pub fn matrix(&self, args: &[&str]) -> Command {
        let mut command = matrix();
        command.arg("--manager").arg(self.run_dir().join("matrix.sock")).args(args);
        command
    }

    pub fn run_dir(&self) -> PathBuf {
        PathBuf::from("/run/matrix-lab").join(&self.name)
    }
    pub fn state_dir(&self) -> PathBuf {
        let base =
            std::env::var_os("MATRIX_LAB_DIR").map_or_else(|| PathBuf::from("/var/lib/matrix-lab"), PathBuf::from);
        base.join(&self.name)
    }

    /// The addresses of the nodes, node1 first.
    pub fn addresses(&self) -> Res<Vec<String>> {
        let status: Value = serde_json::from_str(&run(self.lab(&["status", "--json"]))?)?;
        let nodes = status["nodes"].as_array().ok_or("no nodes")?;
        let mut named: Vec<(usize, String)> = nodes
            .iter()
            .filter_map(|n| {
                Some((n["name"].as_str()?.strip_prefix("node")?.parse().ok()?, n["address"].as_str()?.to_owned()))
            })
            .collect();
        named.sort();
        Ok(named.into_iter().map(|(_, address)| address).collect())
    }

    /// Does something in a machine's network namespace; what it starts lives there too.
    pub fn inside<T: Send>(&self, machine: &str, work: impl FnOnce() -> Res<T> + Send) -> Res<T> {
        let namespace = File::open(format!("/run/netns/matrix.{}.{machine}", self.name))?;
        thread::scope(|scope| {
            let thread = scope.spawn(move || {
                setns(namespace, CloneFlags::CLONE_NEWNET)?;
                work()
            });
            thread.join().unwrap_or_else(|_| Err("a thread ended badly".into()))
        })
    }

    /// The manager's process.
    pub fn manager(&self) -> Res<i32> {
        let wanted = self.run_dir().join("matrix.toml");
        for (pid, words) in processes() {
            if words.get(1).is_some_and(|w| w == "serve") && words.iter().any(|w| Path::new(w) == wanted) {
                return Ok(pid);
            }
        }
        Err("the manager does not run".into())
    }

    /// Keeps the manager from using the processor while others are measured.
    pub fn paused<T>(&self, work: impl FnOnce() -> Res<T>) -> Res<T> {
        use nix::{sys::signal, unistd::Pid};
        let manager = Pid::from_raw(self.manager()?);
        signal::kill(manager, signal::Signal::SIGSTOP)?;
        let result = work();
        signal::kill(manager, signal::Signal::SIGCONT)?;
        result
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        _ = self.lab(&["down"]).stdout(Stdio::null()).status();
    }
}

/// Every process's id and words.
pub fn processes() -> Vec<(i32, Vec<String>)> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            Some((pid, line.split(|b| *b == 0).map(|w| String::from_utf8_lossy(w).into_owned()).collect()))
        })
        .collect()
}

/// What a process keeps in memory, in MB.
pub fn resident(pid: i32) -> Res<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    let kilobytes: f64 = line.trim().trim_end_matches(" kB").trim().parse()?;
    Ok(kilobytes / 1024.0)
}

/// Open ssh connections to all nodes, the way a careful script has them.
pub struct Masters {
    directory: PathBuf,
    pub nodes: usize,
}

impl Masters {
    pub fn open(lab: &Lab) -> Res<Self> {
        let directory = lab.run_dir().join("bench-ssh");
        fs::create_dir_all(&directory)?;
        let addresses = lab.addresses()?;
        let masters = Self { directory, nodes: addresses.len() };
        lab.inside("gateway", || {
            for (node, address) in addresses.iter().enumerate() {
                let mut ssh = Command::new("ssh");
                ssh.arg("-F").arg(lab.run_dir().join("ssh_config")).args(["-M", "-f", "-N", "-S"]);
                run(ssh
                    .arg(masters.socket(node))
                    .args(["-l", "root", address])
                    .stdin(Stdio::null())
                    .stderr(Stdio::null()))?;
            }
            Ok(())
        })?;
        Ok(masters)
    }

    fn socket(&self, node: usize) -> PathBuf {
        self.directory.join(node.to_string())
    }

    /// A command on a node.
    pub fn on(&self, node: usize, command: &str) -> Command {
        let mut ssh = Command::new("ssh");
        ssh.args(["-F", "none", "-S"]).arg(self.socket(node)).args(["node", command]).stdin(Stdio::null());
        ssh
    }

    /// The same command on all nodes at once.
    pub fn everywhere(&self, command: &str) -> Res<()> {
        let quiet = |node| self.on(node, command).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let children = (0..self.nodes).map(quiet).collect::<Result<Vec<Child>, _>>()?;
        for mut child in children {
            if !child.wait()?.success() {
                return Err(format!("{command} failed on a node").into());
            }
        }
        Ok(())
    }
}

impl Drop for Masters {
    fn drop(&mut self) {
        for node in 0..self.nodes {
            let mut ssh = Command::new("ssh");
            ssh.args(["-F", "none", "-S"]).arg(self.socket(node)).args(["-O", "exit", "node"]);
            _ = ssh.stderr(Stdio::null()).status();
        }
    }
}

/// A varnishd of somebody else's hand on the gateway, with the same parameters as the lab's own.
pub struct Varnish<'a> {
    lab: &'a Lab,
    child: Child,
    workdir: PathBuf,
}

impl<'a> Varnish<'a> {
    /// With the parameters a gateway has.
    pub fn start(lab: &'a Lab, port: u16) -> Res<Self> {
        Self::with(lab, port, &matrix::routing::vcl::varnishd_parameters().collect::<Vec<_>>())
    }

    /// As Debian starts it.
    pub fn plain(lab: &'a Lab, port: u16) -> Res<Self> {
        Self::with(lab, port, &[])
    }

    fn with(lab: &'a Lab, port: u16, parameters: &[&str]) -> Res<Self> {
        let directory = lab.state_dir().join(format!("bench-varnish-{port}"));
        fs::create_dir_all(&directory)?;
        let workdir = directory.join("workdir");
        let child = lab.inside("gateway", || {
            // In a session of its own, like the lab's: the kernel shares out the processor by session.
            let mut varnishd = Command::new("setsid");
            varnishd
                .args(["varnishd", "-F", "-s", "malloc,64m", "-f", "", "-a", &format!(":{port}"), "-n"])
                .arg(&workdir);
            varnishd.args(parameters);
            Ok(varnishd.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?)
        })?;
        let varnish = Self { lab, child, workdir };
        until("the other varnishd answers", 10, || Ok(varnish.admin(&["ping"]).is_ok()))?;
        Ok(varnish)
    }

    pub fn admin(&self, args: &[&str]) -> Res<String> {
        let mut varnishadm = Command::new("varnishadm");
        varnishadm.args(["-t", "60", "-n"]).arg(&self.workdir).args(args);
        self.lab.inside("gateway", || run(varnishadm))
    }

    /// Loads and uses a VCL, and forgets the one before.
    pub fn load(&self, name: &str, vcl: &str, before: Option<&str>) -> Res<()> {
        let file = self.workdir.with_file_name(format!("{name}.vcl"));
        fs::write(&file, vcl)?;
        self.admin(&["vcl.load", name, &file.display().to_string()])?;
        self.admin(&["vcl.use", name])?;
        _ = self.admin(&["start"]);
        if let Some(before) = before {
            self.admin(&["vcl.discard", before])?;
        }
        Ok(())
    }
}

impl Drop for Varnish<'_> {
    fn drop(&mut self) {
        let id = self.child.id().cast_signed();
        _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), nix::sys::signal::Signal::SIGTERM);
        _ = self.child.wait();
    }
}

/// The VCL somebody writes by hand: each application's backends in turn, chosen by path, nothing cached.
pub fn hand_written(apps: &[(String, Vec<(String, u16)>)]) -> String {
    let mut text = "vcl 4.1;\nimport directors;\n".to_owned();
    let (mut init, mut recv) = (String::new(), String::new());
    for (app, (name, backends)) in apps.iter().enumerate() {
        _ = writeln!(init, "    new app{app} = directors.round_robin();");
        for (at, (host, port)) in backends.iter().enumerate() {
            _ = writeln!(text, "backend b{app}_{at} {{ .host = \"{host}\"; .port = \"{port}\"; }}");
            _ = writeln!(init, "    app{app}.add_backend(b{app}_{at});");
        }
        _ = write!(
            recv,
            "    if (req.url ~ \"^/{name}/\") {{\n        set req.backend_hint = app{app}.backend();\n        \
             return (pass);\n    }}\n"
        );
    }
    text + &format!("sub vcl_init {{\n{init}}}\nsub vcl_recv {{\n{recv}    return (synth(404));\n}}\n")
}

/// One GET: status and body.
pub fn get(address: &str, path: &str) -> Res<(u16, String)> {
    let address: SocketAddr = address.parse()?;
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: cloud\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let status = text.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    Ok((status, text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()))
}

/// Asks again and again until so many different instances have answered.
pub fn all_answer(address: &str, path: &str, count: usize) -> Res<()> {
    let mut seen = BTreeSet::new();
    until(&format!("{count} answer at {address}{path}"), 30, || {
        match get(address, path) {
            Ok((200, body)) => _ = seen.insert(body),
            _ => thread::sleep(Duration::from_millis(5)),
        }
        Ok(seen.len() >= count)
    })
}

/// Waits for something.
pub fn until(what: &str, seconds: u64, mut holds: impl FnMut() -> Res<bool>) -> Res<()> {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    while !holds()? {
        if Instant::now() > deadline {
            return Err(format!("{what}: not within {seconds} s").into());
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Waits until this machine has little to do, for a while; true where it has not: a round to doubt.
pub fn noisy() -> bool {
    let patience = Instant::now() + Duration::from_secs(2);
    loop {
        let before = idle_and_all();
        thread::sleep(Duration::from_millis(250));
        let after = idle_and_all();
        let (idle, all) = (after.0 - before.0, after.1 - before.1);
        if idle >= 0.85 * all {
            return false;
        }
        if Instant::now() > patience {
            return true;
        }
    }
}

fn idle_and_all() -> (f64, f64) {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = stat.lines().next().unwrap_or_default();
    let ticks: Vec<f64> = line.split_whitespace().skip(1).take(8).filter_map(|t| t.parse().ok()).collect();
    (ticks.get(3).copied().unwrap_or(0.0) + ticks.get(4).copied().unwrap_or(0.0), ticks.iter().sum())
}
