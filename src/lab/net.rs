//! The lab's cables: a switch, the gateway and the client on it, a leg from the gateway to this machine.
//!
//! Every step may have been done already: a lab half made is completed.

use std::{fs, os::unix::fs::MetadataExt, path::PathBuf};

use super::{LabError, LabName, Leg, Places, cgroup, lock::Lock, places::RUN, program, subnet};

fn ip(args: &[&str]) -> Result<String, LabError> {
    program::run("ip", args)
}

fn netns_file(netns: &str) -> PathBuf {
    PathBuf::from("/run/netns").join(netns)
}

/// Whether the namespace is there, not only its file: an interrupted `ip netns add` leaves an empty one.
fn is_netns(netns: &str) -> bool {
    ip(&["-n", netns, "link", "show", "lo"]).is_ok()
}

fn add_netns(netns: &str) -> Result<(), LabError> {
    if is_netns(netns) {
        return Ok(());
    }
    if netns_file(netns).exists() {
        _ = ip(&["netns", "del", netns]);
    }
    ip(&["netns", "add", netns])?;
    ip(&["-n", netns, "link", "set", "lo", "up"]).map(drop)
}

fn has_link(netns: &str, link: &str) -> bool {
    ip(&["-n", netns, "link", "show", link]).is_ok()
}

/// Plugs a machine into the switch with an address of its own.
fn plug(switch: &str, port: &str, netns: &str, interface: &str, address: &str) -> Result<(), LabError> {
    if !has_link(netns, interface) {
        ip(&["link", "add", port, "netns", switch, "type", "veth", "peer", "name", interface, "netns", netns])?;
    }
    ip(&["-n", switch, "link", "set", port, "master", "br0", "up"])?;
    ip(&["-n", netns, "addr", "replace", address, "dev", interface])?;
    ip(&["-n", netns, "link", "set", interface, "up"]).map(drop)
}

/// Makes switch, gateway and client, and returns the leg to this machine.
pub fn make(name: &LabName, places: &Places) -> Result<Leg, LabError> {
    let (switch, gateway, client) = (name.switch(), name.gateway(), name.client());
    for netns in [&switch, &gateway, &client] {
        add_netns(netns)?;
    }
    if !has_link(&switch, "br0") {
        ip(&["-n", &switch, "link", "add", "br0", "type", "bridge", "stp_state", "0", "forward_delay", "0"])?;
    }
    ip(&["-n", &switch, "link", "set", "br0", "up"])?;
    plug(&switch, "gateway", &gateway, "eth1", "10.10.10.1/24")?;
    plug(&switch, "client", &client, "eth0", "10.10.10.2/24")?;
    let leg = host_leg(name, places)?;
    ip(&["-n", &client, "route", "replace", &leg.to_string(), "via", "10.10.10.1"])?;
    Ok(leg)
}

/// The leg between this machine and the gateway; the one it has, or a free one.
fn host_leg(name: &LabName, places: &Places) -> Result<Leg, LabError> {
    let interface = name.host_interface();
    let kept = fs::read_to_string(places.state.join("leg")).ok().and_then(|text| text.trim().parse::<Leg>().ok());
    if let Some(leg) = kept
        && ip(&["-o", "-4", "addr", "show", "dev", &interface])
            .is_ok_and(|text| text.contains(&format!(" {}/", leg.host())))
        && ip(&["-n", &name.gateway(), "-o", "-4", "addr", "show", "dev", "eth0"])
            .is_ok_and(|text| text.contains(&format!(" {}/", leg.gateway())))
    {
        return Ok(leg);
    }
    // Two labs that start together must not choose the same.
    let _lock = Lock::take(&PathBuf::from(RUN).join(".addresses.lock"))?;
    let taken = ip(&["-o", "-4", "addr", "show"])? + &ip(&["-4", "route", "show"])?;
    let leg = Leg::choose(&subnet::taken(&taken)).ok_or(LabError::NoSubnet)?;
    _ = ip(&["link", "del", &interface]);
    ip(&["link", "add", &interface, "type", "veth", "peer", "name", "eth0", "netns", &name.gateway()])?;
    ip(&["addr", "add", &format!("{}/30", leg.host()), "dev", &interface])?;
    ip(&["link", "set", &interface, "up"])?;
    ip(&["-n", &name.gateway(), "addr", "add", &format!("{}/30", leg.gateway()), "dev", "eth0"])?;
    ip(&["-n", &name.gateway(), "link", "set", "eth0", "up"])?;
    let file = places.state.join("leg");
    fs::write(&file, leg.to_string()).map_err(LabError::file("write", file))?;
    Ok(leg)
}

/// Lets a node's port on the switch carry, or not: a pulled cable, the node lives on.
pub fn set_port(name: &LabName, port: &str, up: bool) -> Result<(), LabError> {
    ip(&["-n", &name.switch(), "link", "set", port, if up { "up" } else { "down" }]).map(drop)
}

/// The ports that are there and carry.
pub fn ports_up(name: &LabName) -> Vec<String> {
    let listing = ip(&["-n", &name.switch(), "-o", "link", "show", "up"]).unwrap_or_default();
    let names = listing.lines().filter_map(|line| line.split_whitespace().nth(1));
    names.map(|word| word.split(['@', ':']).next().unwrap_or(word).to_owned()).collect()
}

/// The lab's network namespaces.
fn namespaces(name: &LabName) -> Vec<String> {
    let entries = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|netns| netns.starts_with(&name.netns_prefix())).collect()
}

/// Removes all of it. Processes somebody put into the lab's namespaces end with them.
pub fn remove(name: &LabName) -> Result<(), LabError> {
    let all = namespaces(name);
    let inodes: Vec<u64> = all.iter().filter_map(|n| fs::metadata(netns_file(n)).ok()).map(|m| m.ino()).collect();
    let inside = |pid: &i32| {
        let link = fs::read_link(format!("/proc/{pid}/ns/net")).unwrap_or_default();
        inodes.iter().any(|inode| link.to_str() == Some(&format!("net:[{inode}]")))
    };
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    cgroup::kill_each(pids.filter(inside));
    let interface = name.host_interface();
    if fs::exists(format!("/sys/class/net/{interface}")).unwrap_or(false) {
        ip(&["link", "del", &interface])?;
    }
    if has_link(&name.switch(), "br0") {
        // Removed now; those of a dying namespace would linger until the kernel comes to it.
        let listing = ip(&["-n", &name.switch(), "-o", "link", "show", "type", "veth"]).unwrap_or_default();
        for port in listing.lines().filter_map(|l| l.split_whitespace().nth(1)?.split('@').next()) {
            _ = ip(&["-n", &name.switch(), "link", "del", port]);
        }
    }
    for netns in all {
        ip(&["netns", "del", &netns])?;
    }
    // `ip netns` mounts its directory on itself when it makes the first; nobody unmounts it after the last.
    if fs::read_dir("/run/netns").is_ok_and(|mut entries| entries.next().is_none()) {
        _ = program::run("umount", ["/run/netns"]);
        _ = fs::remove_dir("/run/netns");
    }
    Ok(())
}
