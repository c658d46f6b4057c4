//! The manager's configuration: `/etc/matrix/matrix.toml`.
//!
//! ```toml
//! cloud = "matrix"
//! state = "/var/lib/matrix"
//! run = "/run/matrix"
//! ```
//! `templates/matrix-reference.toml` shows every key with its default.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use serde::Deserialize;

use crate::model::{CloudId, MacAddr, NodeName, Port};

/// The whole file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// This cloud's id, carried by every container's label.
    pub cloud: CloudId,
    /// Where state is kept: `matrix.db`.
    pub state: PathBuf,
    /// Where sockets live: `matrix.sock`, `ssh/`, `vcl/`. Short: socket paths end at 108 bytes.
    pub run: PathBuf,
    /// Addresses where the page and the read-only API are served.
    pub listen: Vec<SocketAddr>,
    /// A file with the token that lets a TCP client steer; none: only the unix socket steers.
    pub token_file: Option<PathBuf>,
    /// dnsmasq's leases file; none: static nodes only.
    pub leases: Option<PathBuf>,
    /// How nodes are spoken to.
    pub ssh: Ssh,
    /// Which candidates become nodes without being asked.
    pub admission: AdmissionPolicy,
    /// Nodes that have no lease.
    pub nodes: Vec<StaticNode>,
    /// The private registry.
    pub registry: Registry,
    /// Host ports the manager may allot on a node, first and last.
    pub ports: [u16; 2],
    /// Nothing new is placed on a node whose disk is as full as this, in percent.
    pub disk_limit: u8,
    /// Cleaning.
    pub gc: Gc,
    /// Whether replicas move to a node that came back.
    pub rebalance: Rebalance,
    /// How long all is at rest before a replica moves, and between two moves.
    pub rebalance_pause: Time,
    /// The gateway's Varnish; none: nothing is routed.
    pub varnish: Option<Varnish>,
    /// The plan that is read at the start, when no release is there yet.
    pub plan: Option<PlanFile>,
    /// When nodes and instances are given up.
    pub healing: Healing,
}

/// When nodes and instances are given up, and when nothing is.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Healing {
    /// For how long a node is silent before it counts as lost. One whose machine answers has three times that.
    #[serde(deserialize_with = "duration")]
    pub lost_after: Duration,
    /// How long instances of a lost node wait for it before they are placed elsewhere.
    #[serde(deserialize_with = "duration")]
    pub move_after: Duration,
    /// When more than this share of the nodes are silent at once, nothing is moved.
    pub freeze_share: f64,
}

/// As plans write it: `4s`, `500ms`, `1m30s`.
fn duration<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let text = <std::borrow::Cow<'_, str>>::deserialize(from)?;
    let millis = crate::plan::value::milliseconds(&text);
    millis.map(Duration::from_millis).ok_or_else(|| {
        serde::de::Error::custom(format!("{text:?} is not numbers with units h, m, s or ms, as in \"4s\" or \"1m30s\""))
    })
}

/// How nodes are spoken to.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ssh {
    /// The user, who may use the engine's socket.
    pub user: String,
    /// The private key.
    pub identity: PathBuf,
    /// sshd's port.
    pub port: u16,
    /// The engine's socket on a node.
    pub engine_socket: PathBuf,
}

/// Which candidates become nodes without being asked.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "policy", deny_unknown_fields)]
pub enum AdmissionPolicy {
    /// None: `matrix nodes admit`.
    Ask,
    /// Those with one of these hardware addresses.
    Mac {
        /// The addresses.
        macs: Vec<MacAddr>,
    },
    /// Any, with the key it shows first.
    FirstUse,
}

/// Whether replicas move to a node that came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rebalance {
    /// They stay where they are.
    Off,
    /// One after another, while all is well.
    Gentle,
}

/// A time as plans write it: `10s`, `1m30s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Time(pub Duration);
impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        duration(from).map(Self)
    }
}

/// A node without a lease.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StaticNode {
    /// Its name.
    pub name: NodeName,
    /// Its address.
    pub address: IpAddr,
}

/// The private registry.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Registry {
    /// Its name as nodes know it; the registry part of every image reference.
    pub name: String,
    /// Its address as the manager reaches it: `http://127.0.0.1:5000`.
    pub endpoint: String,
    /// Where an application's image lives: `cloud/NAME`.
    pub namespace: String,
}

/// How many good releases of each application are kept at least.
pub const FEWEST_RELEASES: usize = 5;

/// Cleaning.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gc {
    /// When each day.
    pub at: At,
    /// How many releases of each application one can go back to, and how many that failed are still listed.
    pub keep_releases: usize,
    /// What came to the registry within so many minutes may be part of a push under way.
    pub grace_minutes: u32,
    /// How many tags of a repository stay, the newest; none: all.
    pub tags: Option<usize>,
    /// The registry's own folder (its `rootdirectory`) on this machine; none: nothing goes from the registry.
    pub storage: Option<PathBuf>,
    /// The registry's own collector; empty: blobs stay.
    pub collect: Vec<String>,
    /// What starts the registry anew, and returns when the old one has ended. It is to read `RUN/registry.env`.
    pub restart: Vec<String>,
}

/// A time of day, or never.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct At(pub Option<jiff::civil::Time>);
impl TryFrom<String> for At {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let digits = |part: &str| part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit());
        let parts = text.split_once(':').filter(|(hour, minute)| digits(hour) && digits(minute));
        let time = parts
            .and_then(|(hour, minute)| jiff::civil::Time::new(hour.parse().ok()?, minute.parse().ok()?, 0, 0).ok());
        match time {
            _ if text == "off" => Ok(Self(None)),
            Some(time) => Ok(Self(Some(time))),
            None => Err(format!("{text:?} is neither HH:MM nor off")),
        }
    }
}

/// The gateway's Varnish.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Varnish {
    /// varnishd's working directory (`-n`): how `varnishadm` and `varnishstat` find it.
    pub workdir: PathBuf,
    /// Where it answers people; the page's links lead there. None: routes are shown without links.
    #[serde(default)]
    pub port: Option<Port>,
}

/// The plan that is read at the start.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanFile {
    /// The file.
    pub file: PathBuf,
    /// Whether its changes are followed.
    #[serde(default)]
    pub watch: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            cloud: CloudId::try_from("matrix").unwrap_or_else(|_| unreachable!("a label")),
            state: "/var/lib/matrix".into(),
            run: "/run/matrix".into(),
            listen: Vec::new(),
            token_file: None,
            leases: Some("/var/lib/misc/dnsmasq.leases".into()),
            ssh: Ssh::default(),
            admission: AdmissionPolicy::Ask,
            nodes: Vec::new(),
            registry: Registry::default(),
            ports: [20000, 29999],
            disk_limit: 90,
            gc: Gc::default(),
            rebalance: Rebalance::Gentle,
            rebalance_pause: Time(Duration::from_secs(10)),
            varnish: None,
            plan: None,
            healing: Healing::default(),
        }
    }
}
impl Default for Gc {
    fn default() -> Self {
        Self {
            at: At(Some(jiff::civil::time(3, 0, 0, 0))),
            keep_releases: FEWEST_RELEASES,
            grace_minutes: 60,
            tags: None,
            storage: None,
            collect: Vec::new(),
            restart: Vec::new(),
        }
    }
}
impl Default for Ssh {
    fn default() -> Self {
        Self {
            user: "cloud".into(),
            identity: "/etc/matrix/id_ed25519".into(),
            port: 22,
            engine_socket: "/var/run/docker.sock".into(),
        }
    }
}
impl Default for Healing {
    fn default() -> Self {
        Self { lost_after: Duration::from_secs(4), move_after: Duration::ZERO, freeze_share: 0.5 }
    }
}
impl Default for Registry {
    fn default() -> Self {
        Self {
            name: "matrix-manager.matrix:5000".into(),
            endpoint: "http://127.0.0.1:5000".into(),
            namespace: "cloud".into(),
        }
    }
}
