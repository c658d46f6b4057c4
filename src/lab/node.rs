//! One node of a lab: on, off, cut off, ready.

use std::{
    ffi::{OsStr, OsString},
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use crate::model::NodeName;

use super::{LabError, LabName, Places, cgroup, cgroup::Cgroups, net, program, services};

/// What a node belongs to.
#[derive(Debug, Clone, Copy)]
pub struct Machine<'a> {
    /// The lab.
    pub lab: &'a LabName,
    /// Its files.
    pub places: &'a Places,
    /// Its control groups.
    pub cgroups: &'a Cgroups,
    /// The node.
    pub node: &'a NodeName,
}

impl Machine<'_> {
    fn supervisor(&self) -> String {
        format!("sup-{}", self.node)
    }

    /// Whether it is switched on.
    pub fn is_on(&self) -> bool {
        !cgroup::processes(&self.cgroups.leaf(self.lab, &self.supervisor())).is_empty()
    }

    /// Switches it on, where it is off.
    pub fn power_on(&self, rootfs: &Path) -> Result<(), LabError> {
        let dir = self.places.node(self.node);
        fs::create_dir_all(&dir).map_err(LabError::file("create", &dir))?;
        if self.is_on() {
            return Ok(());
        }
        _ = fs::remove_file(dir.join("off"));
        let groups = self.cgroups.make_node(self.lab, self.node)?;
        let groups: Vec<_> = groups.iter().map(|g| g.display().to_string()).collect();
        let supervisor = self.cgroups.make_leaf(self.lab, &self.supervisor())?;
        let text = |s: String| OsString::from(s);
        let envs: [(&str, OsString); 13] = [
            ("PATH", text(program::search_path())),
            ("NODE", text(self.node.to_string())),
            ("MAC", text(self.lab.mac(self.node))),
            ("DIR", dir.clone().into()),
            ("ROOTFS", rootfs.into()),
            ("GLUE", self.places.glue().into()),
            ("SWITCH", text(self.lab.switch())),
            ("NETNS", text(self.lab.node(self.node))),
            ("PORT", text(self.lab.port(self.node))),
            ("SUPERVISOR", supervisor.into()),
            ("CGROUP_VERSION", text(self.cgroups.version().to_owned())),
            ("NODE_CGROUPS", text(groups.join(" "))),
            ("HIERARCHIES", text(self.cgroups.hierarchies())),
        ];
        let envs: Vec<(&str, &OsStr)> = envs.iter().map(|(name, value)| (*name, value.as_os_str())).collect();
        program::detach(&self.places.glue().join("machine.sh"), &[], &envs, &dir.join("console.log"))?;
        services::wait(&format!("switching on {}", self.node), 5, &dir.join("console.log"), || self.is_on())
    }

    /// Switches it off as by the power cord: peers see silence, not a refusal.
    pub fn power_off(&self) -> Result<(), LabError> {
        let off = self.places.node(self.node).join("off");
        fs::write(&off, "").map_err(LabError::file("write", off))?;
        self.unplug_and_kill()?;
        // The supervisor sees the file and ends by itself; one that was just starting the node again may not.
        let deadline = Instant::now() + Duration::from_secs(2);
        while self.is_on() {
            if Instant::now() > deadline {
                let supervisor = self.cgroups.leaf(self.lab, &self.supervisor());
                cgroup::kill(self.lab, &[supervisor])?;
            }
            thread::sleep(Duration::from_millis(5));
        }
        cgroup::kill(self.lab, &self.cgroups.node(self.lab, self.node))
    }

    /// As by the reset button: its supervisor switches it on again.
    pub fn reset(&self) -> Result<(), LabError> {
        self.unplug_and_kill()
    }

    fn unplug_and_kill(&self) -> Result<(), LabError> {
        // The link first: a dying machine must not say goodbye.
        _ = net::set_port(self.lab, &self.lab.port(self.node), false);
        cgroup::kill(self.lab, &self.cgroups.node(self.lab, self.node))
    }

    /// Its address, by the lease of its hardware address.
    pub fn address(&self) -> Option<String> {
        let text = fs::read_to_string(self.places.leases()).ok()?;
        lease_of(&text, &self.lab.mac(self.node))
    }

    /// Waits until it has an address, takes ssh, and its engine answers.
    pub fn wait_ready(&self, seconds: u64) -> Result<(), LabError> {
        let dir = self.places.node(self.node);
        let log = dir.join("upper/var/log/docker.log");
        let what = format!("{} to be ready", self.node);
        // Cheap looks first: two processors are shared by all the nodes that boot.
        let listens = || fs::read_to_string(&log).is_ok_and(|text| text.contains("API listen on"));
        services::wait(&what, seconds, &dir.join("upper/var/log/init.log"), || self.address().is_some() && listens())?;
        services::wait(&what, seconds, &dir.join("upper/var/log/sshd.log"), || {
            let Some(address) = self.address() else { return false };
            let mut command = program::command("nsenter");
            command.arg(format!("--net=/run/netns/{}", self.lab.gateway())).arg("ssh").arg("-F");
            command.arg(self.places.ssh_config()).args(["-l", "cloud", &address, "docker", "info"]);
            program::finish(command).is_ok()
        })
    }
}

/// The address of a hardware address in dnsmasq's leases.
fn lease_of(leases: &str, mac: &str) -> Option<String> {
    leases.lines().find_map(|line| match line.split(' ').collect::<Vec<_>>()[..] {
        [_, of, address, ..] if of == mac => Some(address.to_owned()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_found_by_hardware_address() {
        let leases =
            "1763 02:6d:01:02:03:04 10.10.10.77 node1 *\n0 02:6d:01:02:03:05 10.10.10.78 * 01:02\nduid 00:01\n";
        assert_eq!(lease_of(leases, "02:6d:01:02:03:05").as_deref(), Some("10.10.10.78"));
        assert_eq!(lease_of(leases, "02:6d:01:02:03:06"), None);
        assert_eq!(lease_of("", "x"), None);
    }
}
