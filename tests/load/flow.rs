//! What the gateway's Varnish says of POSTs that got no answer: how far each had come, to the byte.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// How far a POST had come that was answered by 5xx.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fate {
    /// Whether bytes of its body were sent to an instance: it must not be sent again then.
    pub flowed: bool,
    /// The addresses it was sent to.
    pub to: Vec<String>,
}

/// varnishlog, running.
#[derive(Debug)]
pub struct Flow {
    child: Child,
    file: PathBuf,
}

impl Flow {
    /// Writes down failed POSTs of the varnishd of this folder, into this file.
    pub fn start(workdir: &Path, file: PathBuf) -> io::Result<Self> {
        let mut log = Command::new("varnishlog");
        log.arg("-n").arg(workdir).args(["-g", "request", "-q", "RespStatus >= 500 and ReqMethod eq POST"]);
        log.args(["-i", "ReqHeader,BackendOpen,BereqAcct,RespStatus"]);
        let child = log.stdin(Stdio::null()).stdout(File::create(&file)?).stderr(Stdio::null()).spawn()?;
        // It tells what comes after it has begun to listen.
        thread::sleep(Duration::from_millis(300));
        Ok(Self { child, file })
    }

    /// Ends it: failed POSTs by their X-Request-Id.
    pub fn read(mut self) -> BTreeMap<String, Fate> {
        thread::sleep(Duration::from_millis(300));
        self.end();
        parse(&fs::read_to_string(&self.file).unwrap_or_default())
    }

    fn end(&mut self) {
        // Asked, not killed: it writes out what it has.
        _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
        _ = self.child.wait();
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.end();
    }
}

fn parse(text: &str) -> BTreeMap<String, Fate> {
    let mut fates = BTreeMap::new();
    for group in text.split("\n\n") {
        let mut fate = Fate::default();
        let mut id = None;
        for line in group.lines() {
            let words: Vec<_> = line.trim_start_matches(['-', '*', ' ']).split_whitespace().collect();
            match words[..] {
                ["ReqHeader", name, value] if name.eq_ignore_ascii_case("x-request-id:") => id = Some(value.to_owned()),
                // BackendOpen FD NAME ADDRESS PORT …
                ["BackendOpen", _, _, address, ..] => fate.to.push(address.to_owned()),
                // BereqAcct HEAD BODY TOTAL …, as sent
                ["BereqAcct", _, body, ..] => fate.flowed |= body != "0",
                _ => {}
            }
        }
        if let Some(id) = id {
            fates.insert(id, fate);
        }
    }
    fates
}
