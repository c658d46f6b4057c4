//! What somebody mounted among a lab's files. It is not the lab's: it is taken off before they are removed, not emptied.

use std::{
    ffi::OsString,
    fs,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

use nix::mount::{MntFlags, umount2};

use super::LabError;

/// Takes off whatever is mounted at or under a directory, also what is in use.
pub fn take_off(directory: &Path) -> Result<(), LabError> {
    // A path of this machine, as the kernel shows it.
    let Ok(directory) = fs::canonicalize(directory) else { return Ok(()) };
    let mounts = fs::read("/proc/self/mounts").map_err(LabError::file("read", "/proc/self/mounts"))?;
    for point in under(&mounts, &directory) {
        umount2(&point, MntFlags::MNT_DETACH).map_err(|errno| LabError::file("unmount", &point)(errno.into()))?;
    }
    Ok(())
}

/// The mount points at or under a directory, the last mounted first; of the text of /proc/self/mounts (proc(5), fstab(5)).
fn under(mounts: &[u8], directory: &Path) -> Vec<PathBuf> {
    let points = mounts.split(|b| *b == b'\n').filter_map(|line| line.split(|b| *b == b' ').nth(1));
    let mut points: Vec<PathBuf> = points.map(unescaped).filter(|point| point.starts_with(directory)).collect();
    points.reverse();
    points
}

/// Spaces and the like are written as a backslash and three octal digits.
fn unescaped(field: &[u8]) -> PathBuf {
    let mut path = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let code = after.get(..3).and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match code.filter(|_| *first == b'\\') {
            Some(byte) => (path.push(byte), rest = &after[3..]),
            None => (path.push(*first), rest = after),
        };
    }
    OsString::from_vec(path).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_under_the_directory_and_the_last_first() {
        let mounts = b"proc /proc proc rw 0 0\n\
            tmpfs /var/lib/matrix-lab/t1/nodes/node1/docker tmpfs rw 0 0\n\
            tmpfs /var/lib/matrix-lab/t10/x tmpfs rw 0 0\n\
            /dev/sdb /var/lib/matrix-lab/t1/nodes/node1/docker/a\\040b\\134c ext4 rw 0 0\n\n";
        let found = under(mounts, Path::new("/var/lib/matrix-lab/t1"));
        let docker = Path::new("/var/lib/matrix-lab/t1/nodes/node1/docker");
        assert_eq!(found, [docker.join("a b\\c"), docker.to_owned()]);
    }
}
