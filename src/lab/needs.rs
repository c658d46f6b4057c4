//! What a lab needs of this machine. Installs nothing: says what is missing, and from which package it comes.

use std::{collections::BTreeSet, fs, path::Path};

use nix::{sys::statfs, unistd::Uid};

use super::{LabError, program};

const PROGRAMS: [(&str, &str); 13] = [
    ("pgrep", "procps"),
    ("ip", "iproute2"),
    ("nsenter", "util-linux"),
    ("unshare", "util-linux"),
    ("setpriv", "util-linux"),
    ("mount", "mount"),
    ("find", "findutils"),
    ("ssh", "openssh-client"),
    ("ssh-keygen", "openssh-client"),
    ("dnsmasq", "dnsmasq-base"),
    ("docker-registry", "docker-registry"),
    ("varnishd", "varnish"),
    ("varnishadm", "varnish"),
];

/// Root, which every lab command needs.
pub fn root() -> Result<(), LabError> {
    if Uid::effective().is_root() { Ok(()) } else { Err(LabError::NotRoot) }
}

/// The programs a lab runs with; `rootfs` where the nodes' root file system must be built first.
pub fn programs(rootfs: bool) -> Result<(), LabError> {
    let builder = rootfs.then_some(("mmdebstrap", "mmdebstrap"));
    missing(PROGRAMS.into_iter().chain(builder), program::is_there)
}

fn missing<'a>(
    needed: impl Iterator<Item = (&'a str, &'a str)>,
    is_there: impl Fn(&str) -> bool,
) -> Result<(), LabError> {
    let absent: Vec<_> = needed.filter(|(program, _)| !is_there(program)).collect();
    if absent.is_empty() {
        return Ok(());
    }
    let packages: BTreeSet<_> = absent.iter().map(|(_, package)| *package).collect();
    Err(LabError::Missing {
        programs: absent.iter().map(|(program, _)| *program).collect::<Vec<_>>().join(", "),
        packages: packages.into_iter().collect::<Vec<_>>().join(" "),
    })
}

/// A file system that can hold an overlay's upper directory.
pub fn real_file_system(path: &Path) -> Result<(), LabError> {
    fs::create_dir_all(path).map_err(LabError::file("create", path))?;
    let kind = statfs::statfs(path).map_err(|errno| LabError::File {
        what: "look at",
        path: path.to_owned(),
        source: errno.into(),
    })?;
    if kind.filesystem_type() == statfs::OVERLAYFS_SUPER_MAGIC {
        return Err(LabError::Overlay { path: path.to_owned() });
    }
    Ok(())
}

/// A node cannot load modules: those its engine uses are loaded here. A kernel with all built in has no modprobe.
pub fn modules() {
    if program::is_there("modprobe") {
        let names = ["overlay", "bridge", "br_netfilter", "veth", "ip_tables", "iptable_nat", "iptable_filter"];
        let more =
            ["nf_nat", "nf_conntrack", "xt_conntrack", "xt_MASQUERADE", "xt_addrtype", "nf_tables", "nft_compat"];
        _ = program::run("modprobe", ["-a", "-q"].into_iter().chain(names).chain(more));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_its_package() {
        let error =
            missing(PROGRAMS.into_iter(), |program| program != "varnishd" && program != "ip").expect_err("missing");
        assert_eq!(error.to_string(), "a lab needs ip, varnishd");
        assert_eq!(error.hint().as_deref(), Some("apt-get install -y --no-install-recommends iproute2 varnish"));
        assert!(missing(PROGRAMS.into_iter(), |_| true).is_ok());
    }
}
