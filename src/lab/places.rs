//! Where a lab keeps its files. Makes none of them.

use std::path::{Path, PathBuf};

use crate::model::NodeName;

use super::{LabError, LabName};

/// A lab's directories. `state` is on a real file system; paths under `run` are short, as socket paths end at 108 bytes.
#[derive(Debug, Clone)]
pub struct Places {
    /// All labs' states: `/var/lib/matrix-lab`.
    pub base: PathBuf,
    /// Root file systems by their recipe's hash: `/var/cache/matrix-lab`.
    pub cache: PathBuf,
    /// This lab's state: `/var/lib/matrix-lab/NAME`.
    pub state: PathBuf,
    /// This lab's sockets and configuration: `/run/matrix-lab/NAME`.
    pub run: PathBuf,
}

/// Where all labs' run files are.
pub const RUN: &str = "/run/matrix-lab";

impl Places {
    /// The places of a lab, its state under `directory` (MATRIX_LAB_DIR) where one is given.
    pub fn new(name: &LabName, directory: Option<&str>) -> Result<Self, LabError> {
        let base = match directory {
            None => PathBuf::from("/var/lib/matrix-lab"),
            Some(text) => {
                // Goes into mount options and configuration files unquoted.
                let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
                if !text.starts_with('/') || text.contains("/..") || !text.chars().all(plain) {
                    return Err(LabError::Invalid {
                        what: "MATRIX_LAB_DIR",
                        value: text.to_owned(),
                        rule: "is an absolute path of letters, digits, '.', '_' and '-'",
                    });
                }
                PathBuf::from(text)
            }
        };
        let state = base.join(name.as_str());
        Ok(Self { base, cache: "/var/cache/matrix-lab".into(), state, run: Path::new(RUN).join(name.as_str()) })
    }
    /// A node's files.
    pub fn node(&self, node: &NodeName) -> PathBuf {
        self.state.join("nodes").join(node.as_str())
    }
    /// The scripts nodes and services are started with.
    pub fn glue(&self) -> PathBuf {
        self.state.join("glue")
    }
    /// The key the manager and `matrix lab shell` speak to nodes with.
    pub fn identity(&self) -> PathBuf {
        self.state.join("id_ed25519")
    }
    /// dnsmasq's leases file, in a folder of its own.
    pub fn leases(&self) -> PathBuf {
        self.state.join("leases/dnsmasq.leases")
    }
    /// varnishd's working directory. Not under /run: that may forbid to run what varnishd compiles.
    pub fn varnish(&self) -> PathBuf {
        self.state.join("varnish")
    }
    /// A service's log.
    pub fn log(&self, service: &str) -> PathBuf {
        self.state.join("log").join(format!("{service}.log"))
    }
    /// The manager's socket.
    pub fn socket(&self) -> PathBuf {
        self.run.join("matrix.sock")
    }
    /// What ssh is told to reach nodes.
    pub fn ssh_config(&self) -> PathBuf {
        self.run.join("ssh_config")
    }
    /// The resolver of machines on the inside network.
    pub fn resolv_conf(&self) -> PathBuf {
        self.run.join("resolv.conf")
    }
    /// The manager's configuration.
    pub fn config(&self) -> PathBuf {
        self.run.join("matrix.toml")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_ones_own() {
        let name: LabName = "t1".parse().expect("a name");
        let places = Places::new(&name, Some("/mnt/x")).expect("places");
        assert_eq!(places.state, Path::new("/mnt/x/t1"));
        assert_eq!(places.cache, Path::new("/var/cache/matrix-lab"));
        assert_eq!(places.socket(), Path::new("/run/matrix-lab/t1/matrix.sock"));
        for bad in ["relative", "/a b", "/a,b", "/a/../b", "/a\"b"] {
            assert!(Places::new(&name, Some(bad)).is_err(), "{bad}");
        }
    }
}
