//! Control groups: how a lab knows every process it ever started, also after a crash, and how a node gets its own.
//!
//! Holds no lists of process ids: what is in a group is asked of the kernel.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};

use crate::model::NodeName;

use super::{LabError, LabName};

const ROOT: &str = "/sys/fs/cgroup";
/// Those a node's engine uses; others (misc, rdma) are left alone.
const DELEGATED: [&str; 6] = ["cpu", "cpuset", "hugetlb", "io", "memory", "pids"];

/// One mounted hierarchy of version 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    mount: PathBuf,
    options: String,
}

/// How this machine's control groups are mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cgroups {
    /// One tree a controller.
    V1(Vec<Hierarchy>),
    /// One tree.
    V2,
}

impl Cgroups {
    /// Reads the text of /proc/self/mounts.
    pub fn parse(mounts: &str) -> Option<Self> {
        let mut hierarchies = Vec::new();
        for line in mounts.lines() {
            let fields: Vec<_> = line.split(' ').collect();
            let [_, mount, kind, options, ..] = fields[..] else { continue };
            match kind {
                "cgroup2" if mount == ROOT => return Some(Self::V2),
                "cgroup" if Path::new(mount).parent() == Some(Path::new(ROOT)) => {
                    let general =
                        ["rw", "ro", "nosuid", "nodev", "noexec", "relatime", "noatime", "xattr", "clone_children"];
                    let own: Vec<_> = options
                        .split(',')
                        .filter(|o| {
                            !general.contains(o) && !o.starts_with("release_agent") && !o.starts_with("seclabel")
                        })
                        .collect();
                    hierarchies.push(Hierarchy { mount: mount.into(), options: own.join(",") });
                }
                _ => {}
            }
        }
        (!hierarchies.is_empty()).then_some(Self::V1(hierarchies))
    }

    /// This machine's.
    pub fn here() -> Result<Self, LabError> {
        let mounts = fs::read_to_string("/proc/self/mounts").map_err(LabError::file("read", "/proc/self/mounts"))?;
        Self::parse(&mounts).ok_or(LabError::NoCgroups)
    }

    /// 1 or 2.
    pub fn version(&self) -> &'static str {
        if matches!(self, Self::V1(_)) { "1" } else { "2" }
    }

    /// What a node mounts: `NAME:OPTIONS`, one a hierarchy; empty for version 2.
    pub fn hierarchies(&self) -> String {
        let Self::V1(all) = self else { return String::new() };
        let words = all.iter().filter_map(|h| Some(format!("{}:{}", h.mount.file_name()?.to_str()?, h.options)));
        words.collect::<Vec<_>>().join(" ")
    }

    fn trees(&self) -> Vec<PathBuf> {
        match self {
            Self::V1(all) => all.iter().map(|h| h.mount.clone()).collect(),
            Self::V2 => vec![ROOT.into()],
        }
    }

    /// The tree in which every process of a lab is found.
    fn tracking(&self) -> PathBuf {
        let trees = self.trees();
        let named = |name: &str| trees.iter().find(|t| t.ends_with(name)).cloned();
        named("pids").or_else(|| named("freezer")).unwrap_or_else(|| trees[0].clone())
    }

    /// A group of the lab for processes of this machine: `svc-varnish`, `sup-node1`.
    pub fn leaf(&self, lab: &LabName, leaf: &str) -> PathBuf {
        self.tracking().join("matrix-lab").join(lab.as_str()).join(leaf)
    }

    /// Makes such a group.
    pub fn make_leaf(&self, lab: &LabName, leaf: &str) -> Result<PathBuf, LabError> {
        let path = self.leaf(lab, leaf);
        fs::create_dir_all(&path).map_err(LabError::file("create", &path))?;
        Ok(path)
    }

    /// The groups of a node, one a tree.
    pub fn node(&self, lab: &LabName, node: &NodeName) -> Vec<PathBuf> {
        let leaf = format!("node-{node}");
        self.trees().into_iter().map(|tree| tree.join("matrix-lab").join(lab.as_str()).join(&leaf)).collect()
    }

    /// Makes the groups of a node.
    pub fn make_node(&self, lab: &LabName, node: &NodeName) -> Result<Vec<PathBuf>, LabError> {
        let paths = self.node(lab, node);
        for path in &paths {
            fs::create_dir_all(path).map_err(LabError::file("create", path))?;
            match self {
                Self::V1(_) => inherit_cpuset(path)?,
                Self::V2 => hand_down(path)?,
            }
            weigh(path);
        }
        Ok(paths)
    }

    /// All groups of a lab.
    pub fn all(&self, lab: &LabName) -> Vec<PathBuf> {
        self.trees().into_iter().map(|tree| tree.join("matrix-lab").join(lab.as_str())).collect()
    }
}

/// Asks what is in a group to end, and kills what has not after three seconds.
pub fn end(lab: &LabName, group: &Path) -> Result<(), LabError> {
    send(processes(group), Signal::SIGTERM);
    let deadline = Instant::now() + Duration::from_secs(3);
    while !processes(group).is_empty() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(10));
    }
    kill(lab, &[group.to_owned()])
}

/// Kills everything in some groups and below, until nothing is left.
pub fn kill(lab: &LabName, groups: &[PathBuf]) -> Result<(), LabError> {
    let deadline = Instant::now() + Duration::from_secs(15);
    loop {
        for group in groups {
            // A paused container of version 1 does not even take SIGKILL.
            visit(group, &mut |dir| _ = fs::write(dir.join("freezer.state"), "THAWED"));
        }
        let left: BTreeSet<i32> = groups.iter().flat_map(|group| processes(group)).collect();
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            let pids = left.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            return Err(LabError::Undead { lab: lab.to_string(), pids });
        }
        kill_each(left);
        thread::sleep(Duration::from_millis(5));
    }
}

/// Removes groups and what is below; they hold no process any more.
pub fn remove(groups: &[PathBuf]) -> Result<(), LabError> {
    for group in groups {
        let deadline = Instant::now() + Duration::from_secs(5);
        while let Err(source) = remove_tree(group) {
            // A process that is just being reaped still counts.
            if Instant::now() > deadline {
                return Err(LabError::File { what: "remove", path: group.clone(), source });
            }
            thread::sleep(Duration::from_millis(5));
        }
        if let Some(parent) = group.parent().filter(|p| p.ends_with("matrix-lab")) {
            // Others' labs may be in it.
            _ = fs::remove_dir(parent);
        }
    }
    Ok(())
}

/// The processes in a group and below.
pub fn processes(group: &Path) -> Vec<i32> {
    let mut found = Vec::new();
    visit(group, &mut |dir| {
        let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    });
    found
}

/// Kills what a group's first process started, and leaves that: a crash of what it supervises.
pub fn crash(group: &Path) {
    let all = processes(group);
    let parent = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The name, in brackets, may hold anything.
        stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse::<i32>().ok())
    };
    let started: Vec<_> = all.iter().copied().filter(|pid| parent(pid).is_some_and(|p| all.contains(&p))).collect();
    kill_each(started);
}

/// Kills processes, but for this one.
pub fn kill_each(processes: impl IntoIterator<Item = i32>) {
    send(processes, Signal::SIGKILL);
}

fn send(processes: impl IntoIterator<Item = i32>, what: Signal) {
    // 0 would be a process outside of our PID namespace, and to kill(2) our own group.
    for pid in processes.into_iter().filter(|pid| *pid > 1 && *pid != Pid::this().as_raw()) {
        _ = signal::kill(Pid::from_raw(pid), what);
    }
}

fn visit(dir: &Path, look: &mut dyn FnMut(&Path)) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    look(dir);
    for entry in entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
        visit(&entry.path(), look);
    }
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
        remove_tree(&entry.path())?;
    }
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A new cpuset of version 1 is empty, and takes no process until it names processors and memory.
fn inherit_cpuset(path: &Path) -> Result<(), LabError> {
    let chain = [path.parent().and_then(Path::parent), path.parent(), Some(path)];
    for dir in chain.into_iter().flatten() {
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let own = dir.join(file);
            if fs::read_to_string(&own).is_ok_and(|text| text.trim().is_empty()) {
                let above = dir.parent().map(|p| p.join(file)).unwrap_or_default();
                let text = fs::read_to_string(&above).map_err(LabError::file("read", above))?;
                fs::write(&own, text.trim()).map_err(LabError::file("write", own))?;
            }
        }
    }
    Ok(())
}

/// Version 2 gives a group only the controllers its parents hand down.
fn hand_down(path: &Path) -> Result<(), LabError> {
    let lab = path.parent().unwrap_or(path);
    let labs = lab.parent().unwrap_or(lab);
    for dir in [Path::new(ROOT), labs, lab] {
        let file = dir.join("cgroup.controllers");
        let there = fs::read_to_string(&file).map_err(LabError::file("read", file))?;
        let wanted: Vec<_> =
            there.split_whitespace().filter(|c| DELEGATED.contains(c)).map(|c| format!("+{c}")).collect();
        let file = dir.join("cgroup.subtree_control");
        fs::write(&file, wanted.join(" ")).map_err(LabError::file("write", file))?;
    }
    Ok(())
}

/// Under load, a node gets as much of the processors as any process beside the lab, as a virtual machine with one of its
/// own would: the groups above it weigh what is in them. One by one, since nodes start at once.
fn weigh(node: &Path) {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(lab) = node.parent() else { return };
    let Some(labs) = lab.parent() else { return };
    let all = fs::read_dir(labs).into_iter().flatten().flatten().map(|lab| nodes_in(&lab.path())).sum();
    for (group, nodes) in [(lab, nodes_in(lab)), (labs, all)] {
        for (file, one, most) in [("cpu.shares", 1024, 262_144), ("cpu.weight", 100, 10_000)] {
            let file = group.join(file);
            if file.exists() {
                // Without it the lab is slower under load, and whole.
                _ = fs::write(file, (one * nodes).clamp(one, most).to_string());
            }
        }
    }
}

fn nodes_in(lab: &Path) -> usize {
    let is_node = |e: &fs::DirEntry| e.file_name().to_str().is_some_and(|name| name.starts_with("node-"));
    fs::read_dir(lab).into_iter().flatten().flatten().filter(is_node).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_told_apart() {
        let unified = "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid,nodev,noexec,relatime,nsdelegate 0 0\n";
        assert_eq!(Cgroups::parse(unified), Some(Cgroups::V2));
        let hybrid = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
            cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,nosuid,nodev,noexec,relatime,cpu,cpuacct 0 0\n\
            cgroup /sys/fs/cgroup/pids cgroup rw,relatime,pids 0 0\n\
            cgroup /sys/fs/cgroup/systemd cgroup rw,xattr,release_agent=/x,name=systemd 0 0\n\
            cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0\n";
        let found = Cgroups::parse(hybrid).expect("version 1");
        assert_eq!(found.hierarchies(), "cpu,cpuacct:cpu,cpuacct pids:pids systemd:name=systemd");
        assert_eq!(found.tracking(), Path::new("/sys/fs/cgroup/pids"));
        assert_eq!(Cgroups::parse("proc /proc proc rw 0 0\n"), None);
    }
}
