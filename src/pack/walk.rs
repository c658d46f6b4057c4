//! A directory as the entries of a layer.
//!
//! Follows no symbolic link: what a link leads to is not in the directory, whatever it is.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Read},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{Error, Stop, Watch};
use crate::{
    image::{Entry, FileRule, Ignore, Kind, LayerSum, LayerWriter, Settings, digest_of},
    model::Digest,
};

/// Time stamps of files are this coarse: a file as young as this may change without showing it.
const COARSE: Duration = Duration::from_millis(50);

/// The files of a layer-to-be, by their paths in the image.
#[derive(Debug, Default)]
pub(super) struct Tree {
    entries: BTreeMap<Vec<u8>, Found>,
    /// Bytes of all files.
    pub(super) bytes: u64,
    /// The latest change of anything.
    newest: Duration,
    started: Duration,
}

#[derive(Debug)]
struct Found {
    entry: Entry,
    path: PathBuf,
    /// Device, inode, size, mtime, ctime; nothing of a directory.
    stamp: [i128; 5],
}

/// What is left out of the whole directory besides what `.dockerignore` says.
#[derive(Debug, Default)]
pub(super) struct LeftOut {
    pub(super) names: Vec<&'static str>,
    pub(super) paths: Vec<PathBuf>,
}

struct Walk<'a> {
    root: &'a Path,
    ignore: &'a Ignore,
    left_out: &'a LeftOut,
    stop: &'a Stop,
    tree: Tree,
    refused: Vec<String>,
}

/// Finds what the settings ask for below `root`.
pub(super) fn walk(
    root: &Path,
    settings: &Settings,
    ignore: &Ignore,
    left_out: &LeftOut,
    stop: &Stop,
) -> Result<Tree, Error> {
    let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let tree = Tree { started, ..Tree::default() };
    let mut walk = Walk { root, ignore, left_out, stop, tree, refused: Vec::new() };
    let whole = FileRule { from: ".".to_owned(), to: settings.into.clone(), mode: None, owner: None, line: 0 };
    let rules = if settings.files.is_empty() { std::slice::from_ref(&whole) } else { &settings.files };
    for rule in rules {
        walk.rule(rule, settings.owner)?;
    }
    if !walk.refused.is_empty() {
        let hint = "leave them out with .dockerignore; an engine makes devices, sockets and pipes itself";
        return Err(Error::refused(walk.refused.join("\n"), hint));
    }
    Ok(walk.tree)
}

impl Walk<'_> {
    fn rule(&mut self, rule: &FileRule, owner: (u32, u32)) -> Result<(), Error> {
        let relative: PathBuf = Path::new(&rule.from).components().collect();
        let relative = relative.strip_prefix(".").unwrap_or(&relative).to_owned();
        let mut path = self.root.to_owned();
        for part in relative.components() {
            if path != self.root && path.is_symlink() {
                let message = format!("image.toml:{}: {} is a symbolic link", rule.line, path.display());
                return Err(Error::refused(message, "name what it leads to; links are never followed"));
            }
            path.push(part);
        }
        let meta = match path.symlink_metadata() {
            Ok(meta) => meta,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let message = format!("image.toml:{}: there is no {} in {}", rule.line, rule.from, self.root.display());
                return Err(Error::refused(message, "files are named from the directory of image.toml"));
            }
            Err(error) => return Err(Error::file("read", &path)(error)),
        };
        let mut to = parts(rule.to.as_bytes());
        if !meta.is_dir() && (rule.to.ends_with('/') || to.is_empty()) {
            to.push(path.file_name().unwrap_or_default().as_bytes().to_vec());
        }
        let rule = Applied { mode: rule.mode, owner: rule.owner.unwrap_or(owner) };
        self.add(&path, &relative, &to.join(&b'/'), &meta, &rule)
    }

    fn add(
        &mut self,
        path: &Path,
        relative: &Path,
        to: &[u8],
        meta: &fs::Metadata,
        rule: &Applied,
    ) -> Result<(), Error> {
        self.stop.check().map_err(|_| Error::Interrupted)?;
        let kind = meta.file_type();
        let mut mode = meta.mode() & 0o7777;
        let what = if kind.is_dir() {
            Kind::Directory
        } else if kind.is_symlink() {
            mode = 0o777;
            Kind::Symlink(fs::read_link(path).map_err(Error::file("read", path))?.as_os_str().as_bytes().to_vec())
        } else if kind.is_file() {
            mode = rule.mode.unwrap_or(mode);
            Kind::File(meta.len())
        } else {
            let what = match kind {
                k if k.is_socket() => "a socket",
                k if k.is_fifo() => "a pipe",
                _ => "a device",
            };
            self.refused.push(format!("{} is {what}, which no image can hold", path.display()));
            return Ok(());
        };
        let is_directory = what == Kind::Directory;
        if !to.is_empty() {
            let (uid, gid) = rule.owner;
            self.tree.insert(Entry { path: to.to_vec(), kind: what, mode, uid, gid }, path, meta);
        }
        if is_directory { self.directory(path, relative, to, rule) } else { Ok(()) }
    }

    fn directory(&mut self, path: &Path, relative: &Path, to: &[u8], rule: &Applied) -> Result<(), Error> {
        for child in fs::read_dir(path).map_err(Error::file("read", path))? {
            let child = child.map_err(Error::file("read", path))?;
            let (path, relative) = (child.path(), relative.join(child.file_name()));
            if self.left_out.paths.contains(&path) || self.left_out.names.iter().any(|name| relative == Path::new(name))
            {
                continue;
            }
            let meta = child.metadata().map_err(Error::file("read", &path))?;
            let ignored = self.ignore.ignores(&relative.to_string_lossy());
            let mut to = to.to_vec();
            if !to.is_empty() {
                to.push(b'/');
            }
            to.extend_from_slice(child.file_name().as_bytes());
            if !ignored {
                self.add(&path, &relative, &to, &meta, rule)?;
            } else if meta.is_dir() && self.ignore.takes_back() {
                self.directory(&path, &relative, &to, rule)?;
            }
        }
        Ok(())
    }
}

struct Applied {
    mode: Option<u32>,
    owner: (u32, u32),
}

fn parts(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|b| *b == b'/').filter(|p| !p.is_empty()).map(<[u8]>::to_vec).collect()
}

fn stamp(meta: &fs::Metadata) -> [i128; 5] {
    let time = |s: i64, ns: i64| i128::from(s) * 1_000_000_000 + i128::from(ns);
    [
        i128::from(meta.dev()),
        i128::from(meta.ino()),
        i128::from(meta.len()),
        time(meta.mtime(), meta.mtime_nsec()),
        time(meta.ctime(), meta.ctime_nsec()),
    ]
}

impl Tree {
    /// How many entries there are.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The entries' paths and kinds, for people.
    pub(super) fn listing(&self) -> impl Iterator<Item = (String, &Entry)> {
        self.entries.values().map(|f| (format!("/{}", String::from_utf8_lossy(&f.entry.path)), &f.entry))
    }

    fn insert(&mut self, entry: Entry, path: &Path, meta: &fs::Metadata) {
        // Of a directory only what the entry says counts: it is young as soon as the archive is written into it.
        let stamp = if entry.kind == Kind::Directory { [0; 5] } else { stamp(meta) };
        for time in [stamp[3], stamp[4]] {
            let time = Duration::from_nanos(u64::try_from(time.max(0)).unwrap_or(u64::MAX));
            self.newest = self.newest.max(time);
        }
        if let Kind::File(size) = entry.kind {
            self.bytes += size;
        }
        self.entries.insert(entry.path.clone(), Found { entry, path: path.to_owned(), stamp });
    }

    /// Names the directories above the entries, where nothing else does: an engine would make them for root alone.
    pub(super) fn add_parents(&mut self, there: impl Fn(&str) -> bool) {
        let mut missing = BTreeSet::new();
        for path in self.entries.keys() {
            for (at, _) in path.iter().enumerate().filter(|(_, b)| **b == b'/') {
                let parent = &path[..at];
                if !self.entries.contains_key(parent) && !there(&String::from_utf8_lossy(parent)) {
                    missing.insert(parent.to_vec());
                }
            }
        }
        for path in missing {
            let entry = Entry { path: path.clone(), kind: Kind::Directory, mode: 0o755, uid: 0, gid: 0 };
            self.entries.insert(path, Found { entry, path: PathBuf::new(), stamp: [0; 5] });
        }
    }

    /// Turns further names of one file into hard links. Only names with one mode and owner can share a file.
    pub(super) fn link(&mut self) {
        let mut first: BTreeMap<(i128, i128, u32, u32, u32), Vec<u8>> = BTreeMap::new();
        for found in self.entries.values_mut() {
            let Kind::File(size) = found.entry.kind else { continue };
            let entry = &found.entry;
            let key = (found.stamp[0], found.stamp[1], entry.mode, entry.uid, entry.gid);
            match first.get(&key) {
                Some(target) => {
                    found.entry.kind = Kind::Hardlink(target.clone());
                    self.bytes -= size;
                }
                None => _ = first.insert(key, found.entry.path.clone()),
            }
        }
    }

    /// Changes whenever the layer would; none while something is too young to tell.
    pub(super) fn fingerprint(&self, mtime: u64) -> Option<Digest> {
        if self.newest + COARSE >= self.started {
            return None;
        }
        let mut text = format!("{mtime}\n").into_bytes();
        for found in self.entries.values() {
            text.extend_from_slice(format!("{:?} {:?}\n", found.entry, found.stamp).as_bytes());
        }
        Some(digest_of(&text))
    }

    /// Writes the layer. Fails where a file is not what it was when it was found.
    pub(super) fn write<W: io::Write>(
        &self,
        sink: W,
        mtime: u64,
        threads: usize,
        watch: &dyn Watch,
        stop: &Stop,
    ) -> Result<LayerSum, Error> {
        let wrong = |path: &Path| {
            let path = path.to_owned();
            move |e| Error::image(&path)(e)
        };
        let mut layer = LayerWriter::new(sink, mtime, threads).map_err(wrong(Path::new("the archive")))?;
        for found in self.entries.values() {
            if !matches!(found.entry.kind, Kind::File(_)) {
                layer.add(&found.entry, &mut io::empty()).map_err(wrong(&found.path))?;
                continue;
            }
            let path = &found.path;
            let flags = nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_NONBLOCK;
            let mut options = fs::OpenOptions::new();
            let mut file =
                options.read(true).custom_flags(flags.bits()).open(path).map_err(Error::file("read", path))?;
            let same = |file: &fs::File| {
                let now = file.metadata().map_err(Error::file("read", path))?;
                if stamp(&now) == found.stamp {
                    return Ok(());
                }
                let message = format!("{} changed while it was read", path.display());
                Err(Error::refused(message, "try again when nothing writes to it"))
            };
            same(&file)?;
            layer.add(&found.entry, &mut Watched { file: &mut file, watch, stop }).map_err(wrong(path))?;
            same(&file)?;
        }
        let (_, sum) = layer.finish().map_err(wrong(Path::new("the archive")))?;
        Ok(sum)
    }
}

struct Watched<'a> {
    file: &'a mut fs::File,
    watch: &'a dyn Watch,
    stop: &'a Stop,
}
impl Read for Watched<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.stop.check()?;
        let n = self.file.read(into)?;
        self.watch.advance(n as u64);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack::Unwatched;
    use std::os::unix::fs::{PermissionsExt, symlink};

    /// The tree that this image.toml makes of a directory with `a` (0640), its hard link `b`, `d/c` and a link `l` to `d`.
    fn tree(text: &str) -> (tempfile::TempDir, Result<Tree, Error>) {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("d")).expect("d");
        for (name, mode) in [("a", 0o640), ("d/c", 0o755)] {
            fs::write(at(name), name).expect("a file");
            fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).expect("its mode");
        }
        fs::hard_link(at("a"), at("b")).expect("b");
        symlink("d", at("l")).expect("l");
        let settings = Settings::parse("image.toml", text).expect("settings");
        let tree = walk(dir.path(), &settings, &Ignore::default(), &LeftOut::default(), &Stop::default());
        (dir, tree)
    }

    fn listed(tree: &Tree) -> Vec<String> {
        let kind = |entry: &Entry| match &entry.kind {
            Kind::Hardlink(to) | Kind::Symlink(to) => format!("-> {}", String::from_utf8_lossy(to)),
            Kind::Directory => "directory".to_owned(),
            Kind::File(_) => "file".to_owned(),
        };
        let line = |(path, e): (String, &Entry)| format!("{path} {:o} {}:{} {}", e.mode, e.uid, e.gid, kind(e));
        tree.listing().map(line).collect()
    }

    #[test]
    fn modes_and_owners_are_the_rules_and_never_the_disks() {
        let text = "base = \"scratch\"\nfiles = [\n{ from = \"a\", to = \"/a\" },\n{ from = \"b\", to = \"/b\" },\n\
                    { from = \"a\", to = \"/x/\", mode = \"0600\", owner = \"7:8\" },\n{ from = \"l\", to = \"/l\" },\n]";
        let (_dir, tree) = tree(text);
        let mut tree = tree.expect("a tree");
        tree.link();
        tree.add_parents(|_| false);
        // Two names of one file share it, but where their modes or owners differ.
        let wanted =
            ["/a 640 0:0 file", "/b 640 0:0 -> a", "/l 777 0:0 -> d", "/x 755 0:0 directory", "/x/a 600 7:8 file"];
        assert_eq!(listed(&tree), wanted);
        assert_eq!(tree.bytes, 2, "what is linked counts once");
    }

    #[test]
    fn no_rule_leads_through_a_link() {
        let (_dir, tree) = tree("base = \"scratch\"\nfiles = [{ from = \"l/c\", to = \"/c\" }]");
        assert!(tree.is_err_and(|e| e.to_string().contains("symbolic link")));
    }

    #[test]
    fn a_file_that_changes_after_it_was_found_is_refused() {
        let (dir, tree) = tree("base = \"scratch\"\nfiles = [{ from = \"a\", to = \"/a\" }]");
        let tree = tree.expect("a tree");
        assert!(tree.fingerprint(0).is_none(), "what is that young may still change without showing it");
        let write = || tree.write(Vec::new(), 0, 1, &Unwatched, &Stop::default());
        write().expect("nothing changed");
        fs::write(dir.path().join("a"), "b").expect("another text of the same length");
        assert!(write().is_err_and(|e| e.to_string().contains("changed")));
        fs::remove_file(dir.path().join("a")).expect("gone");
        symlink("/etc/passwd", dir.path().join("a")).expect("a link in its place");
        assert!(write().is_err(), "no link is followed");
    }
}
