//! A base image from the distribution's own mirror, by mmdebstrap.
//!
//! Needs no hub and no engine. What mmdebstrap makes of the same packages is the same; a newer package is another image.

use std::{fs::File, io::BufReader, path::PathBuf};

use tokio::process::Command;

use super::{
    Created, Error, ImageName, Watch,
    create::{Output, epoch},
    engine,
};
use crate::image::{self, Entry, Kind, LayerWriter, Platform, Settings, compose};

/// What is to be made.
#[derive(Debug, Clone)]
pub struct BaseRequest {
    /// The image's name.
    pub name: ImageName,
    /// The packages beside the smallest system.
    pub packages: Vec<String>,
    /// `bookworm`
    pub suite: String,
    /// The mirror; none: this machine's own sources.
    pub mirror: Option<String>,
    /// The archive to write.
    pub output: PathBuf,
}

/// Makes a base image.
///
/// # Errors
/// No mmdebstrap; packages that are not there; the disk.
pub async fn create_base(request: BaseRequest, watch: std::sync::Arc<dyn Watch>) -> Result<Created, Error> {
    check(&request)?;
    if engine::find_program("mmdebstrap").is_none() {
        return Err(Error::refused("mmdebstrap is not installed", "`apt install mmdebstrap`"));
    }
    let passing = engine::passing_directory()?;
    let tar = passing.path().join("root.tar");
    watch.step(&format!("install {} packages", request.packages.len()), 0);
    let mut command = Command::new("mmdebstrap");
    command.env("SOURCE_DATE_EPOCH", epoch()?.as_second().to_string()).env("LC_ALL", "C.UTF-8");
    command.args(["--quiet", "--variant=minbase", "--format=tar", "--skip=check/empty"]);
    command.arg("--dpkgopt=path-exclude=/usr/share/man/*").arg("--dpkgopt=path-exclude=/usr/share/doc/*");
    command.arg("--dpkgopt=path-include=/usr/share/doc/*/copyright");
    command.arg("--dpkgopt=path-exclude=/usr/share/locale/*").arg("--aptopt=Acquire::Languages \"none\"");
    if !request.packages.is_empty() {
        command.arg(format!("--include={}", request.packages.join(",")));
    }
    // Of the machine that built, of the moment, or of nobody: none of it belongs into an image.
    let clean = "cd \"$1\" && rm -rf var/lib/apt/lists/* var/cache/apt/* var/cache/debconf/*-old var/log/apt var/log/*.log \
                 var/cache/ldconfig/aux-cache etc/machine-id var/lib/dbus/machine-id var/lib/dpkg/*-old etc/*- \
                 run/* tmp/* && : > etc/resolv.conf && : > etc/hostname && : > etc/machine-id";
    command.arg(format!("--customize-hook={clean}"));
    command.arg(&request.suite).arg(&tar);
    if let Some(mirror) = &request.mirror {
        command.arg(mirror);
    }
    engine::run("mmdebstrap", &mut command).await?;
    let work = move || write(&request, &tar, watch.as_ref());
    let created = tokio::task::spawn_blocking(work).await.map_err(|e| Error::refused(e.to_string(), "try again"))?;
    drop(passing);
    created
}

/// mmdebstrap is handed words, never lines: they may not look like options or lists.
fn check(request: &BaseRequest) -> Result<(), Error> {
    let package = |p: &str| {
        p.len() >= 2
            && p.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            && p.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c))
    };
    if let Some(bad) = request.packages.iter().find(|p| !package(p)) {
        return Err(Error::refused(
            format!("{bad:?} is no package's name"),
            "as in --packages nginx-light,ca-certificates",
        ));
    }
    let suite = &request.suite;
    if suite.is_empty()
        || !suite.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        || suite.starts_with('-')
    {
        return Err(Error::refused(format!("{suite:?} is no suite's name"), "as in bookworm"));
    }
    if let Some(mirror) = &request.mirror {
        let scheme = ["http://", "https://", "file://", "copy://"].iter().any(|s| mirror.starts_with(s));
        if !scheme || mirror.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(Error::refused(
                format!("{mirror:?} is no mirror's address"),
                "as in http://deb.debian.org/debian",
            ));
        }
    }
    Ok(())
}

/// mmdebstrap's tar as the one layer of an image, written anew so that its bytes are ours.
fn write(request: &BaseRequest, tar: &std::path::Path, watch: &dyn Watch) -> Result<Created, Error> {
    let wrong = || Error::image(&request.output);
    let mtime = epoch()?;
    let mut sorted = entries(tar)?;
    sorted.sort_by(|a, b| a.0.path.cmp(&b.0.path));
    sorted.dedup_by(|a, b| a.0.path == b.0.path);
    relink(&mut sorted);
    let bytes: u64 = sorted.iter().map(|(e, _)| if let Kind::File(n) = e.kind { n } else { 0 }).sum();
    watch.step(&format!("create {}", request.name), bytes);
    let mut out = Output::begin(&request.output)?;
    let threads = std::thread::available_parallelism().map_or(1, Into::into);
    let sink = out.archive.begin_blob().map_err(wrong())?;
    let mut layer = LayerWriter::new(sink, mtime.as_second().unsigned_abs(), threads).map_err(wrong())?;
    let file = File::open(tar).map_err(Error::file("read", tar))?;
    for (entry, at) in &sorted {
        use std::{io::Read, os::unix::fs::FileExt};
        struct At<'a>(&'a File, u64, u64);
        impl Read for At<'_> {
            fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
                let want = into.len().min(usize::try_from(self.2).unwrap_or(usize::MAX));
                let n = self.0.read_at(&mut into[..want], self.1)?;
                self.1 += n as u64;
                self.2 -= n as u64;
                Ok(n)
            }
        }
        let size = if let Kind::File(size) = entry.kind { size } else { 0 };
        layer.add(entry, &mut At(&file, *at, size)).map_err(wrong())?;
        watch.advance(size);
    }
    let (_, sum) = layer.finish().map_err(wrong())?;
    out.archive.end_blob(&sum.digest, sum.size).map_err(wrong())?;
    let mut settings =
        Settings::parse("image.toml", "base = \"scratch\"\ncommand = [\"/bin/sh\"]").map_err(Error::Input)?;
    settings.labels.insert("matrix.packages".to_owned(), request.packages.join(","));
    settings.labels.insert("matrix.suite".to_owned(), request.suite.clone());
    let image = compose(None, &Platform::here(), &settings, &[sum], mtime).map_err(wrong())?;
    out.finish(&image, &request.name, &request.output)?;
    Ok(Created {
        name: request.name.to_string(),
        digest: Some(image.digest.clone()),
        archive: Some(request.output.clone()),
        unchanged: false,
        size: image.layers.iter().map(|l| l.size).sum(),
        entries: sorted.len(),
        bytes,
        image: Some(image),
        listing: Vec::new(),
    })
}

/// The tar's entries and where their contents lie. Devices stay behind: an engine makes its own.
fn entries(tar: &std::path::Path) -> Result<Vec<(Entry, u64)>, Error> {
    let read = || Error::file("read", tar);
    let mut archive = tar::Archive::new(BufReader::new(File::open(tar).map_err(read())?));
    let mut all = Vec::new();
    for entry in archive.entries_with_seek().map_err(read())? {
        let entry = entry.map_err(read())?;
        let header = entry.header();
        let path = entry.path_bytes();
        let path: Vec<u8> = path.strip_prefix(b"./").unwrap_or(&path).to_vec();
        let path = path.strip_suffix(b"/").unwrap_or(&path).to_vec();
        let link = || entry.link_name_bytes().unwrap_or_default().into_owned();
        let kind = match header.entry_type() {
            tar::EntryType::Regular => Kind::File(entry.size()),
            tar::EntryType::Directory => Kind::Directory,
            tar::EntryType::Symlink => Kind::Symlink(link()),
            tar::EntryType::Link => {
                let to = link();
                Kind::Hardlink(to.strip_prefix(b"./").unwrap_or(&to).to_vec())
            }
            _ => continue,
        };
        if path.is_empty() || path == b"." {
            continue;
        }
        let number = |n: std::io::Result<u64>| n.map(|n| u32::try_from(n).unwrap_or(0)).map_err(read());
        let (uid, gid) = (number(header.uid())?, number(header.gid())?);
        let mode = header.mode().map_err(read())? & 0o7777;
        all.push((Entry { path, kind, mode, uid, gid }, entry.raw_file_position()));
    }
    Ok(all)
}

/// In sorted order a link may come before the file it names: then the first name holds the file.
fn relink(sorted: &mut [(Entry, u64)]) {
    for at in 0..sorted.len() {
        let Kind::Hardlink(target) = sorted[at].0.kind.clone() else { continue };
        let Ok(found) = sorted.binary_search_by(|(e, _)| e.path.cmp(&target)) else { continue };
        if found > at {
            let name = sorted[at].0.path.clone();
            let (kind, place) = (sorted[found].0.kind.clone(), sorted[found].1);
            (sorted[at].0.kind, sorted[at].1) = (kind, place);
            for (entry, _) in sorted.iter_mut() {
                if entry.path == target || entry.kind == Kind::Hardlink(target.clone()) {
                    entry.kind = Kind::Hardlink(name.clone());
                }
            }
        }
    }
}

/// The archive of a Dockerfile's build under the name that was wanted.
///
/// # Errors
/// As [`super::Source::open`]; the disk.
pub(super) fn rewrite(source: &super::Source, name: &ImageName, output: &std::path::Path) -> Result<(), Error> {
    let mut out = Output::begin(output)?;
    for layer in &source.image.layers {
        out.archive.blob(layer, &mut source.reader(&layer.digest)?).map_err(Error::image(output))?;
    }
    if source.media_type != image::MANIFEST {
        return Err(Error::refused("the builder made no OCI image", "podman and buildah do, with --format oci"));
    }
    out.finish(&source.image, name, output)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(package: &str, suite: &str, mirror: Option<&str>) -> bool {
        let request = BaseRequest {
            name: "web-base".parse().expect("a name"),
            packages: vec!["nginx-light".to_owned(), package.to_owned()],
            suite: suite.to_owned(),
            mirror: mirror.map(str::to_owned),
            output: PathBuf::new(),
        };
        check(&request).is_ok()
    }

    #[test]
    fn mmdebstrap_gets_no_word_that_is_more_than_a_name() {
        let good = "ca-certificates";
        for package in [good, "libstdc++6", "python3.11", "0ad"] {
            assert!(checked(package, "bookworm", Some("https://mirror.example/debian")), "{package}");
        }
        for package in ["", "a", "--hook", "-x", "a,b", "a b", "a;id", "$(id)", "A", "a/bookworm", "?essential", "a\n"]
        {
            assert!(!checked(package, "bookworm", None), "{package:?}");
        }
        for suite in ["", "-x", "--customize-hook=id", "book worm", "a/b", "a;id", "Bookworm", "a\nb"] {
            assert!(!checked(good, suite, None), "{suite:?}");
        }
        assert!(checked(good, "bookworm", None) && checked(good, "stable-backports", None));
        for mirror in
            ["", "-x", "--hook=id", "/etc/passwd", "deb.example/debian", "http://a b", "http://a\nb", "ssh://a"]
        {
            assert!(!checked(good, "bookworm", Some(mirror)), "{mirror:?}");
        }
    }
}
