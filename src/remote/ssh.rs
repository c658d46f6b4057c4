//! One supervised `ssh` master per node, with the engine's socket forwarded to a local one.
//!
//! Never reconnects by itself, never accepts a key: whoever opens a session brings the pinned one.

mod error;
mod scan;

use std::{
    collections::VecDeque,
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use nix::{sys::signal::Signal, unistd::Pid};
use openssh::{ForwardType, Socket};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader},
    process::{Child, Command},
    sync::{Semaphore, watch},
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    inventory::HostKey,
    model::{NodeName, Port},
};

pub use error::SshError;
pub use scan::{fingerprint, scan};

/// sshd drops unauthenticated connections from the tenth on (`MaxStartups 10:30:100`).
static HANDSHAKES: Semaphore = Semaphore::const_new(8);
/// `ConnectTimeout` ends before the key exchange: a machine that falls silent there must not hold a permit for ever.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// A socket's path has 108 bytes with its end; ssh binds its control socket under a name 17 longer first.
const LONGEST_PATH: usize = 107 - 17;

/// Where a session leads and how it gets in.
#[derive(Debug, Clone)]
pub struct Target {
    /// The node; also what the session's files are called.
    pub node: NodeName,
    /// Its address.
    pub address: IpAddr,
    /// sshd's port.
    pub port: Port,
    /// The user, who may use the engine's socket.
    pub user: String,
    /// The private key.
    pub identity: PathBuf,
    /// The pinned host key; any other is refused.
    pub key: HostKey,
    /// The engine's socket on the node.
    pub engine_socket: PathBuf,
}

/// An open session. Dropping it ends the master and removes its files.
#[derive(Debug)]
pub struct Session {
    node: NodeName,
    socket: PathBuf,
    mux: openssh::Session,
    ended: watch::Receiver<Option<String>>,
    end: CancellationToken,
    _on_drop: DropGuard,
}

impl Session {
    /// Connects, checks the node's key, and forwards the engine's socket to `dir/NODE.sock`. At most eight handshakes
    /// run at once in this process. Dropping the future ends what it began.
    ///
    /// # Errors
    /// Every way a node can be out of reach or not itself, told apart; each has a hint.
    pub async fn open(target: &Target, dir: &Path) -> Result<Self, SshError> {
        let files = Files::new(target, dir)?;
        let permit = HANDSHAKES.acquire().await.ok();
        files.remove();
        files.write_known_hosts(target)?;
        let mut master = files.command(target).spawn().map_err(|e| SshError::local("start ssh", e))?;
        let mut said = Said::follow(master.stderr.take());
        let up = async {
            while !files.control.exists() {
                if let Some(status) = master.try_wait().map_err(|e| SshError::local("wait for ssh", e))? {
                    return Err(SshError::read(target, &said.all().await, status.code()));
                }
                sleep(Duration::from_millis(5)).await;
            }
            Ok(())
        };
        match timeout(HANDSHAKE_WITHIN, up).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                files.remove();
                return Err(error);
            }
            Err(_) => return Err(SshError::Unreachable { node: target.node.clone(), address: target.address }),
        }
        drop(permit);
        let mux = openssh::Session::resume_mux(files.control.clone().into_boxed_path(), None);
        let (tell, ended) = watch::channel(None);
        let end = CancellationToken::new();
        let session = Self {
            node: target.node.clone(),
            socket: files.socket.clone(),
            mux,
            ended,
            _on_drop: end.clone().drop_guard(),
            end: end.clone(),
        };
        tokio::spawn(supervise(master, said, files, end, tell));
        let forward = session.mux.request_port_forward(
            ForwardType::Local,
            Socket::UnixSocket { path: session.socket.as_path().into() },
            Socket::UnixSocket { path: target.engine_socket.as_path().into() },
        );
        forward.await.map_err(|source| SshError::Forward { node: target.node.clone(), source: Box::new(source) })?;
        Ok(session)
    }

    /// The local socket that leads to the engine's.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Returns when the master has ended, with its last words. May be awaited by many.
    pub async fn closed(&self) -> String {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(words) => words.clone().unwrap_or_default(),
            Err(_) => "the session was ended".to_owned(),
        }
    }

    /// Ends the master and returns when it is gone.
    pub async fn close(&self) {
        self.end.cancel();
        self.closed().await;
    }

    /// Free and all bytes of the file system that holds `path` on the node; none where the node does not say.
    pub async fn disk(&self, path: &str) -> Option<(u64, u64)> {
        let mut df = self.mux.command("df");
        df.args(["-Pk", "--", path]).stdin(openssh::Stdio::null()).stderr(openssh::Stdio::null());
        let output = timeout(Duration::from_secs(3), df.output()).await.ok()?.ok()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let fields: Vec<_> = text.lines().nth(1)?.split_whitespace().collect();
        let kib = |at: usize| fields.get(at)?.parse::<u64>().ok()?.checked_mul(1024);
        Some((kib(3)?, kib(1)?))
    }

    /// Whose session this is.
    pub fn node(&self) -> &NodeName {
        &self.node
    }
}

/// Waits for the master's end, or brings it about; then removes its files and says so.
async fn supervise(
    mut master: Child,
    mut said: Said,
    files: Files,
    end: CancellationToken,
    tell: watch::Sender<Option<String>>,
) {
    tokio::select! {
        _ = master.wait() => {}
        () = end.cancelled() => {
            if let Some(id) = master.id().and_then(|id| i32::try_from(id).ok()) {
                _ = nix::sys::signal::kill(Pid::from_raw(id), Signal::SIGTERM);
            }
            if timeout(Duration::from_millis(500), master.wait()).await.is_err() {
                _ = master.kill().await;
            }
        }
    }
    files.remove();
    let words = said.all().await;
    let last = words.lines().rev().map(str::trim).find(|l| !l.is_empty()).unwrap_or("the session ended").to_owned();
    tell.send_replace(Some(last));
}

/// A session's files.
#[derive(Debug)]
struct Files {
    control: PathBuf,
    socket: PathBuf,
    known_hosts: PathBuf,
}

impl Files {
    fn new(target: &Target, dir: &Path) -> Result<Self, SshError> {
        let file = |end: &str| dir.join(format!("{}.{end}", target.node));
        let files = Self { control: file("ctl"), socket: file("sock"), known_hosts: file("known") };
        if files.socket.as_os_str().len() > LONGEST_PATH {
            return Err(SshError::PathTooLong { path: files.socket });
        }
        Ok(files)
    }

    fn write_known_hosts(&self, target: &Target) -> Result<(), SshError> {
        let line = format!("{} {} {}\n", target.node, target.key.algorithm, target.key.key);
        fs::write(&self.known_hosts, line)
            .map_err(|e| SshError::local(format!("write {}", self.known_hosts.display()), e))
    }

    fn remove(&self) {
        for file in [&self.control, &self.socket, &self.known_hosts] {
            _ = fs::remove_file(file);
        }
    }

    fn command(&self, target: &Target) -> Command {
        let mut ssh = Command::new("ssh");
        // -S stays first: `clean` knows a leftover master by it.
        ssh.arg("-S").arg(&self.control).args(["-F", "none", "-M", "-N", "-T", "-x"]);
        for option in [
            "BatchMode=yes",
            "ClearAllForwardings=no",
            "ConnectTimeout=3",
            "ControlPersist=no",
            "ExitOnForwardFailure=no",
            "ForwardAgent=no",
            "GSSAPIAuthentication=no",
            "IdentitiesOnly=yes",
            "IdentityAgent=none",
            "LogLevel=INFO",
            "PreferredAuthentications=publickey",
            "ServerAliveCountMax=2",
            "ServerAliveInterval=2",
            "StreamLocalBindUnlink=yes",
            "StrictHostKeyChecking=yes",
            "GlobalKnownHostsFile=/dev/null",
            "UpdateHostKeys=no",
            "CheckHostIP=no",
            "VerifyHostKeyDNS=no",
        ] {
            ssh.args(["-o", option]);
        }
        // The alias: an address may change hands, the key may not.
        ssh.args(["-o", &format!("HostKeyAlias={}", target.node)])
            .args(["-o", &format!("HostKeyAlgorithms={}", target.key.algorithm)])
            .args(["-o", &format!("UserKnownHostsFile={}", self.known_hosts.display())])
            .arg("-i")
            .arg(&target.identity)
            .args(["-l", &target.user, "-p", &target.port.to_string(), "--", &target.address.to_string()])
            .env_remove("SSH_AUTH_SOCK")
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // Its own group: a Ctrl-C for the manager must not end the sessions before the manager does.
            .process_group(0)
            .kill_on_drop(true);
        ssh
    }
}

/// What a master wrote to standard error: read all the time, since a full pipe would stop it; the last lines are kept.
#[derive(Debug)]
struct Said {
    lines: Arc<Mutex<VecDeque<String>>>,
    reader: JoinHandle<()>,
}

impl Said {
    const KEPT: usize = 20;

    fn follow(stderr: Option<impl AsyncRead + Unpin + Send + 'static>) -> Self {
        let lines = Arc::new(Mutex::new(VecDeque::new()));
        let kept = Arc::clone(&lines);
        let reader = tokio::spawn(async move {
            let Some(stderr) = stderr else { return };
            let mut stderr = BufReader::new(stderr);
            let mut line = Vec::new();
            while let Ok(1..) = (&mut stderr).take(4096).read_until(b'\n', &mut line).await {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                line.clear();
                tracing::trace!(target: "ssh", "{text}");
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                if kept.len() == Self::KEPT {
                    kept.pop_front();
                }
                kept.push_back(text);
            }
        });
        Self { lines, reader }
    }

    /// Everything kept, after the writer's end.
    async fn all(&mut self) -> String {
        // A grandchild may hold the pipe open.
        if timeout(Duration::from_millis(200), &mut self.reader).await.is_err() {
            self.reader.abort();
        }
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).make_contiguous().join("\n")
    }
}

/// Makes the sessions' folder, for this user only, and ends what a killed manager left in it: masters and files.
///
/// # Errors
/// When the folder cannot be made or read.
pub fn clean(dir: &Path) -> Result<(), SshError> {
    use std::os::unix::fs::DirBuilderExt as _;
    let wrap = |e| SshError::local(format!("prepare {}", dir.display()), e);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(wrap)?;
    end_leftover_masters(dir).map_err(wrap)?;
    for entry in fs::read_dir(dir).map_err(wrap)? {
        let path = entry.map_err(wrap)?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if [".sock", ".known"].iter().any(|end| name.ends_with(end)) || name.contains(".ctl") {
            _ = fs::remove_file(&path);
        }
    }
    Ok(())
}

fn end_leftover_masters(dir: &Path) -> io::Result<()> {
    for process in fs::read_dir("/proc")? {
        let Ok(process) = process else { continue };
        let Some(id) = process.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
        // Gone meanwhile, or not ours to read.
        let Ok(arguments) = fs::read(process.path().join("cmdline")) else { continue };
        if is_master_in(dir, &arguments) {
            tracing::info!(id, "ending an ssh master that an earlier manager left");
            _ = nix::sys::signal::kill(Pid::from_raw(id), Signal::SIGTERM);
        }
    }
    Ok(())
}

/// Whether these arguments, each ended by a zero byte, are those of a master whose control socket is in `dir`.
///
/// ssh rewrites its title to `ssh: CONTROL [mux]` only when it goes to the background, which ours do not.
fn is_master_in(dir: &Path, arguments: &[u8]) -> bool {
    use std::os::unix::ffi::OsStrExt as _;
    let mut arguments = arguments.split(|b| *b == 0);
    let program = arguments.next().unwrap_or_default();
    (program == b"ssh" || program.ends_with(b"/ssh"))
        && arguments.next() == Some(b"-S")
        && arguments.next().is_some_and(|path| Path::new(std::ffi::OsStr::from_bytes(path)).parent() == Some(dir))
}
