//! The root file system all nodes share, built once for each recipe and kept.

use std::{
    fs,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::{LabError, lock::Lock, program};

/// All that the result depends on.
const RECIPE: [(&str, &str); 4] = [
    ("rootfs.sh", include_str!("../../vm/provision/rootfs.sh")),
    ("node.sh", include_str!("../../vm/provision/node.sh")),
    ("daemon.json", include_str!("../../templates/daemon.json")),
    ("sshd-node.conf", include_str!("../../templates/sshd-node.conf")),
];

/// Where the root file system of today's recipe is, or will be.
pub fn path(cache: &Path) -> PathBuf {
    let mut hash = Sha256::new();
    // One recipe on another release of the distribution is another file system.
    hash.update(fs::read("/etc/os-release").unwrap_or_default());
    for (name, text) in RECIPE {
        hash.update(format!("{name}\0{}\0{text}", text.len()));
    }
    let digest = hash.finalize();
    let digest = u64::from_be_bytes(std::array::from_fn(|i| digest[i]));
    cache.join(format!("rootfs-{digest:016x}"))
}

/// Whether it is there.
pub fn is_cached(cache: &Path) -> bool {
    path(cache).is_dir()
}

/// Builds it where it is not there, and removes what an interrupted build left.
pub fn ensure(cache: &Path, say: &mut dyn FnMut(&str)) -> Result<PathBuf, LabError> {
    let target = path(cache);
    if target.is_dir() {
        return Ok(target);
    }
    fs::create_dir_all(cache).map_err(LabError::file("create", cache))?;
    let lock = Lock::take(&cache.join("lock"))?;
    if !target.is_dir() {
        say("building the nodes' root file system (once, about 30 s)");
        clean(cache)?;
        let build = cache.join("building");
        let files = build.join("files");
        fs::create_dir_all(&files).map_err(LabError::file("create", &files))?;
        for (name, text) in RECIPE {
            let file = files.join(name);
            fs::write(&file, text).map_err(LabError::file("write", file))?;
        }
        let fresh = build.join("rootfs");
        // In namespaces of its own that end with this process, however it ends: no mount and no process of it stays.
        let mut command = program::command("setpriv");
        command
            .args(["--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child", "sh"])
            .arg(files.join("rootfs.sh"))
            .args([&fresh, &files]);
        program::finish(command)?;
        fs::rename(&fresh, &target).map_err(LabError::file("create", &target))?;
        clean(cache)?;
    }
    drop(lock);
    Ok(target)
}

fn clean(cache: &Path) -> Result<(), LabError> {
    let build = cache.join("building");
    match fs::remove_dir_all(&build) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(LabError::file("remove", build)(error)),
        _ => Ok(()),
    }
}
