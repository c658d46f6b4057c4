//! A cloud on this one Linux machine: real dnsmasq, sshd, dockerd, registry, Varnish and manager, each machine of it made of
//! namespaces. No hypervisor, no engine of this machine, nothing another room depends on.
//!
//! ```text
//!   this machine ── mx-NAME 10.10.9.1/30
//!        │
//!   gateway (matrix-manager) ── eth0 10.10.9.2 (host leg), eth1 10.10.10.1: dnsmasq, registry :5000, Varnish :6081, manager :8080
//!        │
//!   switch (bridge) ── client 10.10.10.2 (no node: for load and probes)
//!        ├── node1  10.10.10.x by DHCP, sshd, dockerd
//!        └── node2 …
//! ```
//! A second lab's leg is 10.10.8.0/30, and on; inside, all labs look alike. Everything below needs root.
//!
//! Commands (`--name lab` is the default):
//! - `matrix lab up [--nodes N | --names a,b] [--no-serve]`, `down`, `status --json`, `poweroff|boot|reboot|cut|heal NODE`
//! - `matrix lab shell gateway -- CMD…`, `shell client -- CMD…`, `shell NODE [--user cloud] -- CMD…`: exit code passed on.
//!   Inside `gateway` and `client` node names resolve, and the files of this machine are seen.
//! - `matrix lab service start|stop|restart|crash SERVICE` (dnsmasq, registry, varnish, matrix); one that dies is started
//!   again. Use `crash`, not `pkill` in the gateway: it shares its process ids with this machine and all other labs.
//! - `eval "$(matrix lab env)"` sets MATRIX_MANAGER for `matrix nodes`, `deploy`, …
//!
//! Files:
//! - `/run/matrix-lab/NAME/`: `matrix.sock` (the manager), `matrix.toml` (its configuration), `ssh_config`
//!   (`ssh -F … root@node1` in the gateway), `dnsmasq.conf`, `registry.yml`, `resolv.conf`
//! - `/var/lib/matrix-lab/NAME/`: `leases/dnsmasq.leases`, `id_ed25519` (key for `root` and `cloud` on every node), `varnish/`
//!   (`varnishadm -n` it), `registry/`, `matrix/` (the manager's state), `log/SERVICE.log`, `nodes/NODE/` (`console.log`,
//!   `upper/` = what the node changed in its root, logs in `upper/var/log`, `docker/` = its /var/lib/docker)
//! - network namespaces `matrix.NAME.gateway`, `.switch`, `.client`, `.node-NODE`; control groups `matrix-lab/NAME/…`
//! - root file systems by recipe in `/var/cache/matrix-lab`
//!
//! `MATRIX_LAB_DIR=DIR` puts a lab's state below DIR instead: a tmpfs makes pulls and `down` fast where the disk is slow.

mod cgroup;
mod error;
mod lock;
mod mounts;
mod name;
mod needs;
mod net;
mod node;
mod places;
mod program;
mod rootfs;
mod services;
mod shell;
mod status;
mod subnet;

use std::{fs, io, path::PathBuf, thread};

use cgroup::Cgroups;
use lock::Lock;
use node::Machine;

use crate::model::NodeName;

pub use error::LabError;
pub use name::{LabName, numbered};
pub use places::Places;
pub use services::SERVICES;
pub use shell::Target;
pub use status::{NodeStatus, ServiceStatus, Status};
pub use subnet::Leg;

/// A lab, there or not.
#[derive(Debug)]
pub struct Lab {
    name: LabName,
    places: Places,
    cgroups: Cgroups,
}

/// What is done to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Power {
    /// Switched off as by the power cord.
    Off,
    /// Switched on.
    On,
    /// Reset.
    Reset,
    /// Its link pulled; it lives on.
    Cut,
    /// Its link plugged in.
    Heal,
}

impl Lab {
    /// The lab of that name; `directory` is MATRIX_LAB_DIR.
    pub fn new(name: LabName, directory: Option<&str>) -> Result<Self, LabError> {
        needs::root()?;
        let places = Places::new(&name, directory)?;
        Ok(Self { cgroups: Cgroups::here()?, name, places })
    }

    /// Its name.
    pub fn name(&self) -> &LabName {
        &self.name
    }

    /// Where its files are.
    pub fn places(&self) -> &Places {
        &self.places
    }

    fn lock(&self) -> Result<Lock, LabError> {
        Lock::take(&PathBuf::from(places::RUN).join(format!(".{}.lock", self.name)))
    }

    fn machine<'a>(&'a self, node: &'a NodeName) -> Machine<'a> {
        Machine { lab: &self.name, places: &self.places, cgroups: &self.cgroups, node }
    }

    /// Its nodes, by name.
    pub fn nodes(&self) -> Vec<NodeName> {
        let entries = fs::read_dir(self.places.state.join("nodes")).into_iter().flatten().flatten();
        let mut nodes: Vec<_> = entries.filter_map(|e| NodeName::try_from(e.file_name().to_str()?).ok()).collect();
        nodes.sort();
        nodes
    }

    /// Whether `up` made it and no `down` removed it.
    pub fn exists(&self) -> bool {
        self.places.run.is_dir()
    }

    fn must_exist(&self) -> Result<(), LabError> {
        if self.exists() { Ok(()) } else { Err(LabError::NoLab(self.name.to_string())) }
    }

    fn must_have(&self, node: &NodeName) -> Result<(), LabError> {
        self.must_exist()?;
        if self.places.node(node).is_dir() {
            Ok(())
        } else {
            Err(LabError::NoNode { lab: self.name.to_string(), node: node.to_string() })
        }
    }

    /// Makes the lab, or completes it: what is there stays as it is, what is missing is started.
    pub fn up(&self, nodes: &[NodeName], serve: bool, say: &mut dyn FnMut(&str)) -> Result<Status, LabError> {
        needs::programs(!rootfs::is_cached(&self.places.cache))?;
        needs::real_file_system(&self.places.base)?;
        let lock = self.lock()?;
        // Whatever this process starts is born in the lab's groups: a `down` finds it, even if this process is killed.
        let own = self.cgroups.make_leaf(&self.name, "up")?;
        let procs = own.join("cgroup.procs");
        fs::write(&procs, std::process::id().to_string()).map_err(LabError::file("write", procs))?;

        needs::modules();
        let rootfs = rootfs::ensure(&self.places.cache, say)?;
        for directory in [&self.places.state, &self.places.run] {
            fs::create_dir_all(directory).map_err(LabError::file("create", directory))?;
        }
        let leg = net::make(&self.name, &self.places)?;
        let binary = this_binary()?;
        services::write_files(&self.name, &self.places, leg, &binary)?;
        let start = |service| services::start(&self.name, &self.places, &self.cgroups, service, &binary);
        say("starting the gateway: dnsmasq, registry, Varnish");
        for service in ["dnsmasq", "registry", "varnish"] {
            start(service)?;
        }
        services::wait_for_dnsmasq(&self.places)?;
        // What was switched off on purpose stays off; what was on before this machine's restart comes back.
        let mut wanted: Vec<_> =
            self.nodes().into_iter().filter(|n| !self.places.node(n).join("off").exists()).collect();
        wanted.extend(nodes.iter().filter(|n| !self.places.node(n).is_dir()).cloned());
        wanted.sort();
        wanted.dedup();
        let off: Vec<_> = wanted.iter().filter(|n| !self.machine(n).is_on()).map(NodeName::as_str).collect();
        if !off.is_empty() {
            let list = off.join(", ");
            say(&format!("switching on {list}"));
        }
        for node in &wanted {
            self.machine(node).power_on(&rootfs)?;
        }
        if serve {
            say("starting the manager");
            start("matrix")?;
        }
        self.wait_ready(&wanted)?;
        if serve {
            services::wait_for_manager(&self.places)?;
        }
        drop(lock);
        Ok(self.status())
    }

    fn wait_ready(&self, nodes: &[NodeName]) -> Result<(), LabError> {
        thread::scope(|scope| {
            let waits: Vec<_> =
                nodes.iter().map(|node| scope.spawn(move || self.machine(node).wait_ready(60))).collect();
            let ended = waits.into_iter().map(|wait| wait.join().unwrap_or(Ok(())));
            ended.collect::<Result<Vec<()>, _>>().map(drop)
        })
    }

    /// Removes the lab, whatever state it is in; fine where there is none.
    pub fn down(&self) -> Result<bool, LabError> {
        let lock = self.lock()?;
        let there =
            self.exists() || self.places.state.exists() || self.cgroups.all(&self.name).iter().any(|g| g.exists());
        let groups = self.cgroups.all(&self.name);
        cgroup::kill(&self.name, &groups)?;
        net::remove(&self.name)?;
        cgroup::remove(&groups)?;
        for directory in [&self.places.state, &self.places.run] {
            mounts::take_off(directory)?;
        }
        // Some disks take milliseconds a file: the nodes' images go side by side.
        thread::scope(|scope| {
            for node in self.nodes() {
                let dir = self.places.node(&node);
                scope.spawn(|| fs::remove_dir_all(dir));
            }
        });
        for directory in [&self.places.state, &self.places.run] {
            match fs::remove_dir_all(directory) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(LabError::file("remove", directory)(error));
                }
                _ => {}
            }
        }
        _ = fs::remove_dir(&self.places.base);
        lock.remove();
        self.remove_common();
        Ok(there)
    }

    /// The last lab takes the common directory with it.
    fn remove_common(&self) {
        let run = PathBuf::from(places::RUN);
        let only_addresses = fs::read_dir(&run)
            .is_ok_and(|mut entries| entries.all(|e| e.is_ok_and(|e| e.file_name() == ".addresses.lock")));
        if only_addresses && !self.places.base.exists() {
            if let Ok(lock) = Lock::take(&run.join(".addresses.lock")) {
                lock.remove();
            }
            _ = fs::remove_dir(&run);
        }
    }

    /// Does something to a node; with `wait`, returns when a node switched on is ready.
    pub fn power(&self, node: &NodeName, what: Power, wait: bool) -> Result<(), LabError> {
        let lock = self.lock()?;
        self.must_have(node)?;
        let machine = self.machine(node);
        match what {
            Power::Off => return machine.power_off(),
            Power::Cut | Power::Heal if !machine.is_on() => return Err(LabError::Off(node.to_string())),
            Power::Cut | Power::Heal => return net::set_port(&self.name, &self.name.port(node), what == Power::Heal),
            Power::On => machine.power_on(&rootfs::ensure(&self.places.cache, &mut |_| ())?)?,
            Power::Reset if machine.is_on() => machine.reset()?,
            Power::Reset => return Err(LabError::Off(node.to_string())),
        }
        // Others may go on with other nodes meanwhile.
        drop(lock);
        if wait { machine.wait_ready(60) } else { Ok(()) }
    }

    /// Starts a service of the gateway.
    pub fn start_service(&self, service: &str) -> Result<(), LabError> {
        self.must_exist()?;
        services::start(&self.name, &self.places, &self.cgroups, service, &this_binary()?)?;
        if service == "matrix" { services::wait_for_manager(&self.places) } else { Ok(()) }
    }

    /// Kills a service of the gateway, as a crash would; it comes back by itself.
    pub fn crash_service(&self, service: &str) -> Result<(), LabError> {
        self.must_exist()?;
        services::crash(&self.name, &self.cgroups, service);
        Ok(())
    }

    /// Stops a service of the gateway, with its supervisor.
    pub fn stop_service(&self, service: &str) -> Result<(), LabError> {
        self.must_exist()?;
        services::stop(&self.name, &self.cgroups, service)
    }
}

/// This program, also when it was built again meanwhile.
fn this_binary() -> Result<PathBuf, LabError> {
    let path = std::env::current_exe().map_err(LabError::file("find", "matrix"))?;
    let text = path.to_string_lossy();
    Ok(text.strip_suffix(" (deleted)").map_or_else(|| path.clone(), PathBuf::from))
}
