//! The gateway's varnishd, spoken to through its own tools: `varnishadm` and `varnishstat`.
//!
//! Nothing here decides or retries. Arguments and words only, never a shell.

mod cli;

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use serde::Deserialize;
use tokio::process::Command;

use cli::{Cli, Silent};

/// A varnishd, by its working directory (`-n`). Clones share one connection to it.
#[derive(Debug, Clone)]
pub struct Varnish {
    workdir: PathBuf,
    cli: Cli,
}

/// Why varnishd did not do it.
#[derive(Debug, thiserror::Error)]
pub enum VarnishError {
    /// The tool is not there.
    #[error("cannot run {tool}")]
    Tool {
        /// `varnishadm` or `varnishstat`.
        tool: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// varnishd itself does not answer.
    #[error("varnishd in {} does not answer", workdir.display())]
    Down {
        /// Its working directory.
        workdir: PathBuf,
    },
    /// It answered no; the words are its own.
    #[error("varnishd refused {command}: {message}")]
    Refused {
        /// `vcl.load matrix_root_…`
        command: String,
        /// What it said: for a load, the compiler's message.
        message: String,
    },
    /// It took too long.
    #[error("varnishd has not answered {command} for {} s", after.as_secs())]
    Slow {
        /// The command.
        command: String,
        /// How long it was waited for.
        after: Duration,
    },
    /// It said what nobody understands.
    #[error("cannot read varnishd's answer to {command}")]
    Answer {
        /// The command.
        command: String,
        /// Why.
        source: serde_json::Error,
    },
}

/// A VCL or a label that varnishd has loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// Its name.
    pub name: String,
    /// Whether requests begin in it.
    pub active: bool,
    /// Whether it was loaded for later: it probes nobody, and cannot be labelled until it is warmed.
    pub cold: bool,
    /// For a label: the VCL it stands for.
    pub label_of: Option<String>,
}

/// A line of what varnishd says it has loaded.
#[derive(Deserialize)]
struct Entry {
    name: String,
    status: String,
    state: String,
    label: Option<Label>,
}

#[derive(Deserialize)]
struct Label {
    name: String,
}

/// What the administrator says of a backend's health, above its probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Gets no requests.
    Sick,
    /// Gets requests whatever its probe says.
    Healthy,
    /// As its probe says.
    Auto,
}

/// A backend as varnishd sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendHealth {
    /// Whether it gets requests.
    pub healthy: bool,
    /// Whether its probe was overruled.
    pub overruled: bool,
    /// What its probe says by itself; none: it has none.
    pub probe: Option<bool>,
    /// Whether one of the last probes got no good answer.
    pub missed: bool,
}

/// Longer than any load that ends by itself; the tool's own five seconds are too few for big ones.
const LOADING: Duration = Duration::from_secs(120);
/// For all else.
const ASKING: Duration = Duration::from_secs(10);

impl Varnish {
    /// The varnishd of this working directory, an absolute path.
    pub fn new(workdir: impl Into<PathBuf>) -> Self {
        Self { workdir: workdir.into(), cli: Cli::default() }
    }

    /// Its working directory.
    pub fn workdir(&self) -> &Path {
        &self.workdir
    }

    /// The manager process, where it lives. Two small files: cheap enough to ask ten times a second.
    pub fn process(&self) -> Option<u32> {
        let pid: u32 = std::fs::read_to_string(self.workdir.join("_.pid")).ok()?.trim().parse().ok()?;
        Path::new("/proc").join(pid.to_string()).exists().then_some(pid)
    }

    /// Whether the child that serves requests runs. An error: varnishd itself does not.
    pub async fn running(&self) -> Result<bool, VarnishError> {
        Ok(self.admin(["status"]).await?.contains("state running"))
    }

    /// Starts the child. It needs a VCL to begin in.
    pub async fn start(&self) -> Result<(), VarnishError> {
        self.admin(["start"]).await.map(drop)
    }

    /// What is loaded.
    pub async fn list(&self) -> Result<Vec<Loaded>, VarnishError> {
        let loaded = |entry: Entry| {
            (entry.status != "discarded").then(|| Loaded {
                name: entry.name,
                active: entry.status == "active",
                cold: entry.state == "cold",
                label_of: entry.label.map(|l| l.name),
            })
        };
        Ok(self.entries().await?.into_iter().filter_map(loaded).collect())
    }

    /// Whether something that was discarded is in use still: it is forgotten, with its backends, when it is not.
    ///
    /// # Errors
    /// As [`Varnish::list`].
    pub async fn forgets(&self) -> Result<bool, VarnishError> {
        Ok(self.entries().await?.iter().any(|entry| entry.status == "discarded"))
    }

    async fn entries(&self) -> Result<Vec<Entry>, VarnishError> {
        let command = "vcl.list -j";
        let values = parse::<Vec<serde_json::Value>>(command, &self.admin(["vcl.list", "-j"]).await?)?;
        // The answer begins with a version, the command and a time.
        let entries = values.into_iter().skip(3).map(serde_json::from_value);
        entries.collect::<Result<_, _>>().map_err(|source| VarnishError::Answer { command: command.to_owned(), source })
    }

    /// Compiles and loads a file, which varnishd's compiler must be able to read.
    pub async fn load(&self, name: &str, file: &Path) -> Result<(), VarnishError> {
        self.load_as(name, file, "auto").await
    }

    /// The same for later: its backends are not probed before it is warmed.
    pub async fn load_cold(&self, name: &str, file: &Path) -> Result<(), VarnishError> {
        self.load_as(name, file, "cold").await
    }

    async fn load_as(&self, name: &str, file: &Path, state: &str) -> Result<(), VarnishError> {
        self.admin(["vcl.load", name, &file.display().to_string(), state]).await.map(drop)
    }

    /// Lets a VCL that was loaded for later be used.
    pub async fn warm(&self, name: &str) -> Result<(), VarnishError> {
        self.admin(["vcl.state", name, "auto"]).await.map(drop)
    }

    /// Lets a label stand for a VCL; from now on, requests that come to the label go there.
    pub async fn label(&self, label: &str, name: &str) -> Result<(), VarnishError> {
        self.admin(["vcl.label", label, name]).await.map(drop)
    }

    /// Lets requests begin in a VCL.
    pub async fn use_vcl(&self, name: &str) -> Result<(), VarnishError> {
        self.admin(["vcl.use", name]).await.map(drop)
    }

    /// Forgets a VCL or a label; requests in flight end in it.
    pub async fn discard(&self, names: &[String]) -> Result<(), VarnishError> {
        if names.is_empty() {
            return Ok(());
        }
        self.admin(std::iter::once("vcl.discard").chain(names.iter().map(String::as_str))).await.map(drop)
    }

    /// Overrules a backend's probe. `pattern` is `VCL.BACKEND`, and is lost when the VCL is.
    pub async fn set_health(&self, pattern: &str, health: Health) -> Result<(), VarnishError> {
        let health = match health {
            Health::Sick => "sick",
            Health::Healthy => "healthy",
            Health::Auto => "auto",
        };
        self.admin(["backend.set_health", pattern, health]).await.map(drop)
    }

    /// The backends of every VCL, by `VCL.BACKEND`.
    pub async fn backends(&self) -> Result<BTreeMap<String, BackendHealth>, VarnishError> {
        #[derive(Deserialize)]
        struct Entry {
            admin_health: String,
            probe_message: serde_json::Value,
        }
        let command = "backend.list -j *.*";
        let values = parse::<Vec<serde_json::Value>>(command, &self.admin(["backend.list", "-j", "*.*"]).await?)?;
        let Some(list) = values.into_iter().nth(3) else { return Ok(BTreeMap::new()) };
        let list: BTreeMap<String, serde_json::Value> = serde_json::from_value(list)
            .map_err(|source| VarnishError::Answer { command: command.to_owned(), source })?;
        let read = |(name, value)| {
            let entry: Entry = serde_json::from_value(value).ok()?;
            // Good answers, of how many, and what follows: [3, 3, "healthy"].
            let message = entry.probe_message.as_array();
            let probe = message.and_then(|m| m.last()?.as_str().map(|s| s == "healthy"));
            let count = |at: usize| message.and_then(|m| m.get(at)?.as_u64());
            let healthy = match entry.admin_health.as_str() {
                "sick" => false,
                "healthy" => true,
                _ => probe.unwrap_or(true),
            };
            let missed = probe.is_some() && count(0) < count(1);
            Some((name, BackendHealth { healthy, overruled: entry.admin_health != "probe", probe, missed }))
        };
        Ok(list.into_iter().filter_map(read).collect())
    }

    /// How many requests are in flight to each backend, by `VCL.BACKEND`.
    pub async fn in_flight(&self) -> Result<BTreeMap<String, u64>, VarnishError> {
        #[derive(Deserialize)]
        struct Stat {
            counters: BTreeMap<String, Counter>,
        }
        #[derive(Deserialize)]
        struct Counter {
            value: u64,
        }
        let answer = self.stat(["-j", "-1", "-f", "VBE.*.conn"]).await?;
        // Without a single backend it prints nothing but braces.
        let stat: Stat = parse("varnishstat", &answer)?;
        let name = |key: &str| Some(key.strip_prefix("VBE.")?.strip_suffix(".conn")?.to_owned());
        Ok(stat.counters.into_iter().filter_map(|(key, counter)| Some((name(&key)?, counter.value))).collect())
    }

    async fn admin<A: AsRef<str>>(&self, words: impl IntoIterator<Item = A>) -> Result<String, VarnishError> {
        let words: Vec<_> = words.into_iter().map(|word| word.as_ref().to_owned()).collect();
        let command = words.iter().take(2).map(String::as_str).collect::<Vec<_>>().join(" ");
        let after = if command.starts_with("vcl.load") { LOADING } else { ASKING };
        let down = || VarnishError::Down { workdir: self.workdir.clone() };
        // Whoever speaks to one that is not there waits for it.
        let process = self.process().ok_or_else(down)?;
        match self.cli.say(&self.workdir, process, &words, after).await {
            Ok(said) if said.status == 200 => Ok(said.text),
            Ok(said) => Err(VarnishError::Refused { command, message: said.text.trim().to_owned() }),
            Err(Silent::Tool(source)) => Err(VarnishError::Tool { tool: "varnishadm", source }),
            Err(Silent::Slow) => Err(VarnishError::Slow { command, after }),
            Err(Silent::Ended) => Err(down()),
        }
    }

    /// What varnishstat prints.
    async fn stat<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Result<String, VarnishError> {
        let (tool, down) = ("varnishstat", || VarnishError::Down { workdir: self.workdir.clone() });
        self.process().ok_or_else(down)?;
        let child =
            Command::new(tool).arg("-n").arg(&self.workdir).args(args).stdin(Stdio::null()).kill_on_drop(true).output();
        let output = match tokio::time::timeout(ASKING, child).await {
            Err(_) => return Err(VarnishError::Slow { command: tool.to_owned(), after: ASKING }),
            Ok(Err(source)) => return Err(VarnishError::Tool { tool, source }),
            Ok(Ok(output)) => output,
        };
        if !output.status.success() {
            return Err(down());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

fn parse<T: serde::de::DeserializeOwned>(command: &str, text: &str) -> Result<T, VarnishError> {
    serde_json::from_str(text).map_err(|source| VarnishError::Answer { command: command.to_owned(), source })
}
