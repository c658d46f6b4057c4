//! What breaks, for how long, and what may be lost by it.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{Cloud, NODES, SMALL, dice::Dice, rig::Lab, skewed_engine::SkewedEngine};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    InstanceKilled,
    ProcessKilled,
    InstanceFrozen,
    EngineRestarted,
    EngineKilled,
    EngineFrozen,
    SshKilled,
    SshFrozen,
    LinkCut,
    AllLinksCut,
    NodeOff,
    NodeReset,
    VarnishKilled,
    VarnishFrozen,
    DnsmasqKilled,
    RegistryDown,
    ManagerKilled,
    ManagerFrozen,
    DiskFull,
    ClockAhead,
    ClockBehind,
}

/// What a fault may cost. What is lost at any other time is a failure.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// Any request that is due within so long, or in flight when it strikes.
    pub any: Duration,
    /// The same for POSTs.
    pub posts: Duration,
    /// Whether websockets may break.
    pub sockets: bool,
    /// Why.
    pub because: &'static str,
}

/// A replacement at a fixed port: what is in flight ends, the old one stops, the new one starts and answers.
pub const REPLACED: Duration = Duration::from_secs(6);
const NOTHING: Cost = Cost { any: Duration::ZERO, posts: Duration::ZERO, sockets: false, because: "" };

fn posts(seconds: u64, because: &'static str) -> Cost {
    Cost { posts: Duration::from_secs(seconds), sockets: true, because, ..NOTHING }
}

type Mend = Box<dyn FnOnce(&Cloud)>;

impl Fault {
    pub const ALL: [Self; 21] = [
        Self::InstanceKilled,
        Self::ProcessKilled,
        Self::InstanceFrozen,
        Self::EngineRestarted,
        Self::EngineKilled,
        Self::EngineFrozen,
        Self::SshKilled,
        Self::SshFrozen,
        Self::LinkCut,
        Self::AllLinksCut,
        Self::NodeOff,
        Self::NodeReset,
        Self::VarnishKilled,
        Self::VarnishFrozen,
        Self::DnsmasqKilled,
        Self::RegistryDown,
        Self::ManagerKilled,
        Self::ManagerFrozen,
        Self::DiskFull,
        Self::ClockAhead,
        Self::ClockBehind,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::InstanceKilled => "instance killed (docker kill)",
            Self::ProcessKilled => "instance's process killed",
            Self::InstanceFrozen => "instance frozen",
            Self::EngineRestarted => "engine restarted",
            Self::EngineKilled => "engine killed",
            Self::EngineFrozen => "engine frozen",
            Self::SshKilled => "ssh sessions killed",
            Self::SshFrozen => "sshd frozen",
            Self::LinkCut => "link cut",
            Self::AllLinksCut => "all links cut",
            Self::NodeOff => "node switched off",
            Self::NodeReset => "node reset",
            Self::VarnishKilled => "Varnish killed",
            Self::VarnishFrozen => "Varnish frozen",
            Self::DnsmasqKilled => "dnsmasq killed",
            Self::RegistryDown => "registry down",
            Self::ManagerKilled => "manager killed",
            Self::ManagerFrozen => "manager frozen",
            Self::DiskFull => "disk full",
            Self::ClockAhead => "clock two hours ahead",
            Self::ClockBehind => "clock two hours behind",
        }
    }

    /// How long it lasts, where that is not its own matter: from, to, in milliseconds.
    fn lasts(self) -> (u64, u64) {
        match self {
            Self::InstanceFrozen => (3000, 8000),
            Self::EngineFrozen | Self::SshFrozen | Self::ClockAhead | Self::ClockBehind => (4000, 12000),
            Self::LinkCut => (2000, 12000),
            Self::AllLinksCut => (2000, 10000),
            Self::NodeOff => (3000, 14000),
            Self::VarnishFrozen => (300, 2000),
            Self::RegistryDown | Self::ManagerFrozen | Self::DiskFull => (2000, 7000),
            _ => (500, 2000),
        }
    }

    pub fn hold(self, dice: &mut Dice) -> Duration {
        let (low, high) = self.lasts();
        Duration::from_millis(dice.between(low, high))
    }

    /// What it may cost when it lasts so long.
    pub fn cost(self, held: Duration) -> Cost {
        match self {
            Self::InstanceKilled | Self::ProcessKilled => posts(1, "a POST whose body had begun to flow to it"),
            Self::InstanceFrozen => posts(5, "a POST whose body had begun to flow to it"),
            Self::EngineRestarted | Self::EngineKilled => {
                posts(5, "a POST whose body had begun to flow to its instances")
            }
            Self::LinkCut | Self::NodeOff | Self::NodeReset => {
                posts(6, "a POST whose body had begun to flow to that node")
            }
            Self::AllLinksCut => {
                let any = held + Duration::from_secs(6);
                Cost { any, posts: any, sockets: true, because: "no instance can be reached" }
            }
            Self::VarnishKilled => {
                let any = Duration::from_secs(4);
                Cost { any, posts: any, sockets: true, because: "nothing answers until it is back with its routes" }
            }
            Self::EngineFrozen
            | Self::SshKilled
            | Self::SshFrozen
            | Self::VarnishFrozen
            | Self::DnsmasqKilled
            | Self::RegistryDown
            | Self::ManagerKilled
            | Self::ManagerFrozen
            | Self::DiskFull
            | Self::ClockAhead
            | Self::ClockBehind => NOTHING,
        }
    }

    /// Whether instances are gone by it.
    pub fn takes_instances(self) -> bool {
        matches!(
            self,
            Self::InstanceKilled
                | Self::ProcessKilled
                | Self::InstanceFrozen
                | Self::EngineRestarted
                | Self::EngineKilled
                | Self::LinkCut
                | Self::NodeOff
                | Self::NodeReset
        )
    }

    /// Whether a release that goes out meanwhile may fail by it, naming it.
    pub fn may_fail_releases(self) -> bool {
        !matches!(self, Self::DnsmasqKilled | Self::VarnishFrozen | Self::ClockAhead | Self::ClockBehind)
    }

    /// Breaks it; what is given mends it.
    pub fn strike(self, cloud: &Cloud, dice: &mut Dice) -> (String, Mend) {
        let lab = &cloud.lab;
        let node = *dice.pick(&NODES);
        let nothing: Mend = Box::new(|_| ());
        let on_node = |comm: &'static str| (node.to_owned(), processes(lab, &format!("node-{node}"), comm));
        match self {
            Self::InstanceKilled => {
                let (node, name, _) = instance(cloud, dice);
                lab.on(&node, &["docker", "kill", &name]);
                (format!("{name} on {node}"), nothing)
            }
            Self::ProcessKilled => {
                let (node, name, id) = instance(cloud, dice);
                send(&of_container(lab, &node, &id), Signal::SIGKILL);
                (format!("{name} on {node}"), nothing)
            }
            Self::InstanceFrozen => {
                let (node, name, id) = instance(cloud, dice);
                freeze((format!("{name} on {node}"), of_container(lab, &node, &id)))
            }
            Self::EngineRestarted | Self::EngineKilled => {
                let (what, engine) = on_node("dockerd");
                send(&engine, if self == Self::EngineKilled { Signal::SIGKILL } else { Signal::SIGTERM });
                (what, nothing)
            }
            Self::EngineFrozen => freeze(on_node("dockerd")),
            Self::SshKilled => {
                let (what, all) = on_node("sshd");
                // The one that listens was started by the node's init.
                let sessions: Vec<_> = all.iter().copied().filter(|pid| all.contains(&parent(*pid))).collect();
                send(&sessions, Signal::SIGKILL);
                (what, nothing)
            }
            Self::SshFrozen => freeze(on_node("sshd")),
            Self::LinkCut => {
                lab.lab(&["cut", node]).ok();
                (node.to_owned(), Box::new(move |cloud: &Cloud| _ = cloud.lab.lab(&["heal", node]).ok()))
            }
            Self::AllLinksCut => {
                let all = |lab: &Lab, what: &str| {
                    for node in NODES {
                        lab.lab(&[what, node]).ok();
                    }
                };
                all(lab, "cut");
                ("all nodes".to_owned(), Box::new(move |cloud: &Cloud| all(&cloud.lab, "heal")))
            }
            Self::NodeOff => {
                lab.lab(&["poweroff", node]).ok();
                (node.to_owned(), Box::new(move |cloud: &Cloud| _ = cloud.lab.lab(&["boot", node]).ok()))
            }
            Self::NodeReset => {
                lab.lab(&["reboot", "--no-wait", node]).ok();
                (node.to_owned(), nothing)
            }
            Self::VarnishKilled => crash(lab, "varnish"),
            Self::DnsmasqKilled => crash(lab, "dnsmasq"),
            Self::ManagerKilled => crash(lab, "matrix"),
            Self::RegistryDown => {
                lab.lab(&["service", "stop", "registry"]).ok();
                let start = |cloud: &Cloud| _ = cloud.lab.lab(&["service", "start", "registry"]).ok();
                ("registry".to_owned(), Box::new(start))
            }
            Self::VarnishFrozen => {
                let both = ["varnishd", "cache-main"].map(|comm| processes(lab, "svc-varnish", comm)).concat();
                freeze(("varnish".to_owned(), both))
            }
            Self::ManagerFrozen => freeze(("manager".to_owned(), processes(lab, "svc-matrix", "matrix"))),
            Self::DiskFull => {
                let file = filler(lab);
                // As much as there is room for: the last write fails.
                _ = fs::write(&file, vec![0; 600 << 20]);
                (SMALL.to_owned(), Box::new(|cloud: &Cloud| _ = fs::remove_file(filler(&cloud.lab))))
            }
            Self::ClockAhead | Self::ClockBehind => {
                let seconds = if self == Self::ClockAhead { 7200 } else { -7200 };
                let engine = SkewedEngine::on(lab, node, seconds);
                (node.to_owned(), Box::new(move |_| drop(engine)))
            }
        }
    }
}

fn filler(lab: &Lab) -> PathBuf {
    lab.state_dir().join("nodes").join(SMALL).join("docker/filler")
}

fn crash(lab: &Lab, service: &str) -> (String, Mend) {
    lab.lab(&["service", "crash", service]).ok();
    (service.to_owned(), Box::new(|_| ()))
}

fn freeze((what, pids): (String, Vec<i32>)) -> (String, Mend) {
    send(&pids, Signal::SIGSTOP);
    (what, Box::new(move |_| send(&pids, Signal::SIGCONT)))
}

/// One of the instances: its node, its container's name and id.
fn instance(cloud: &Cloud, dice: &mut Dice) -> (String, String, String) {
    let of =
        |node: &'static str| cloud.lab.containers(node).into_iter().map(move |(name, id)| (node.to_owned(), name, id));
    let all: Vec<_> = NODES.into_iter().flat_map(of).collect();
    dice.pick(&all).clone()
}

fn send(pids: &[i32], signal: Signal) {
    for pid in pids {
        _ = kill(Pid::from_raw(*pid), signal);
    }
}

fn parent(pid: i32) -> i32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
    parent.unwrap_or(0)
}

/// This machine's ids of processes of that name in one of the lab's control groups: nobody else's can be meant.
pub fn processes(lab: &Lab, group: &str, comm: &str) -> Vec<i32> {
    let named = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == comm);
    group_of(&lab.name, group).into_iter().filter(named).collect()
}

fn of_container(lab: &Lab, node: &str, id: &str) -> Vec<i32> {
    let inside = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|text| text.contains(id));
    group_of(&lab.name, &format!("node-{node}")).into_iter().filter(inside).collect()
}

fn group_of(lab: &str, group: &str) -> Vec<i32> {
    let mut found = Vec::new();
    for tree in ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"] {
        visit(&Path::new(tree).join("matrix-lab").join(lab).join(group), &mut found);
    }
    found.sort_unstable();
    found.dedup();
    found
}

fn visit(folder: &Path, found: &mut Vec<i32>) {
    let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            visit(&entry.path(), found);
        }
    }
}

/// Everything frozen goes on, also after a panic: a frozen process could not be ended.
pub struct Thaw(pub String);

impl Drop for Thaw {
    fn drop(&mut self) {
        let groups = NODES.iter().map(|node| format!("node-{node}")).chain(["svc-varnish".into(), "svc-matrix".into()]);
        groups.for_each(|group| send(&group_of(&self.0, &group), Signal::SIGCONT));
        thread::sleep(Duration::from_millis(1));
    }
}
