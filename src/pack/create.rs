//! A directory becomes an OCI archive.
//!
//! Holds no file in memory, and leaves no half-written archive under the name the user gave.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{BufWriter, Seek, Write},
    path::{Path, PathBuf},
};

use super::{
    Error, ImageName, Source, Stop, Watch, cache,
    walk::{self, LeftOut},
};
use crate::{
    image::{ArchiveWriter, Base, Composed, Ignore, LayerSum, Part, Platform, Settings, compose},
    model::{Digest, ImageRef, Timestamp},
};

/// What is to be made.
#[derive(Debug, Clone)]
pub struct Request {
    /// The image's name.
    pub name: ImageName,
    /// The application's directory.
    pub directory: PathBuf,
    /// The archive to write.
    pub output: PathBuf,
    /// Instead of the base in `image.toml`.
    pub base: Option<String>,
    /// Only say what would be made.
    pub dry_run: bool,
}

/// What was made.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Created {
    /// `cloud/shop:v2`
    pub name: String,
    /// The image's digest; none where nothing was built.
    pub digest: Option<Digest>,
    /// The archive; none where none was written.
    pub archive: Option<PathBuf>,
    /// Whether the archive held exactly this image already.
    pub unchanged: bool,
    /// Compressed bytes of all layers.
    pub size: u64,
    /// Files, directories and links of the new layer.
    pub entries: usize,
    /// Their bytes.
    pub bytes: u64,
    /// The image itself, where one was made.
    #[serde(skip)]
    pub image: Option<Composed>,
    /// The paths in the image, where only that was wanted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub listing: Vec<String>,
}

/// Directories that every distribution's base has, some of them as links that no layer may replace.
const OF_A_BASE: &[&str] = &[
    "bin",
    "boot",
    "dev",
    "etc",
    "home",
    "lib",
    "lib32",
    "lib64",
    "libx32",
    "media",
    "mnt",
    "opt",
    "proc",
    "root",
    "run",
    "sbin",
    "srv",
    "sys",
    "tmp",
    "usr",
    "usr/bin",
    "usr/include",
    "usr/lib",
    "usr/lib64",
    "usr/libexec",
    "usr/local",
    "usr/local/bin",
    "usr/local/etc",
    "usr/local/lib",
    "usr/local/sbin",
    "usr/local/share",
    "usr/sbin",
    "usr/share",
    "usr/src",
    "var",
    "var/cache",
    "var/lib",
    "var/local",
    "var/lock",
    "var/log",
    "var/mail",
    "var/opt",
    "var/run",
    "var/spool",
    "var/tmp",
];

/// What only a network can tell.
pub trait Outside {
    /// A base in a registry.
    ///
    /// # Errors
    /// The registry's.
    fn base(&self, image: &ImageRef) -> Result<Source, Error>;
    /// Whether this image is already where it is wanted, so that no archive need be written.
    fn has(&self, image: &Composed) -> bool;
}

/// Makes the image of a directory that has an `image.toml`.
///
/// # Errors
/// Everything that is wrong with the directory's files; the base; the disk.
pub fn create(request: &Request, outside: &dyn Outside, watch: &dyn Watch, stop: &Stop) -> Result<Created, Error> {
    let root = &request.directory;
    let (settings, ignore) = read(root)?;
    let base = match &request.base {
        Some(text) => Base::parse(text).map_err(|e| Error::Refused { message: e.to_string(), hint: None })?,
        None => settings.base.clone(),
    };
    let base_file = match &base {
        Base::Archive(path) => Some(find_base(root, path)?),
        Base::Scratch | Base::Image(_) => None,
    };
    let left_out = LeftOut {
        names: vec!["image.toml", ".dockerignore"],
        paths: [Some(request.output.as_path()), base_file.as_deref()]
            .into_iter()
            .flatten()
            .map(|p| inside(root, p))
            .collect(),
    };
    let mut tree = walk::walk(root, &settings, &ignore, &left_out, stop)?;
    tree.add_parents(|path| base != Base::Scratch && OF_A_BASE.contains(&path));
    tree.link();
    if tree.len() == 0 && base == Base::Scratch {
        let message = format!("there is nothing in {} to make an image of", root.display());
        return Err(Error::refused(message, "put files there, or look at its .dockerignore"));
    }
    let mut created = Created {
        name: request.name.to_string(),
        digest: None,
        archive: None,
        unchanged: false,
        size: 0,
        entries: tree.len(),
        bytes: tree.bytes,
        image: None,
        listing: Vec::new(),
    };
    if request.dry_run {
        created.listing = tree.listing().map(|(path, _)| path).collect();
        return Ok(created);
    }
    let source = match (&base, base_file) {
        (Base::Image(image), _) => Some(outside.base(image)?),
        (_, Some(path)) => Some(Source::open(&path, None, watch)?),
        (_, None) => None,
    };
    let part = source.as_ref().map(Source::part).transpose()?;
    let mtime = epoch()?;
    let fingerprint = tree.fingerprint(mtime.as_second().unsigned_abs());
    let known = fingerprint.as_ref().and_then(|key| cache::get("layers", key));
    let make = |sum: &LayerSum| {
        compose(part.as_ref(), &Platform::here(), &settings, std::slice::from_ref(sum), mtime)
            .map_err(Error::image(root))
    };
    if let Some(sum) = &known {
        let image = make(sum)?;
        if outside.has(&image) {
            return Ok(Created { unchanged: true, archive: None, ..done(created, request, image) });
        }
        if holds(&request.output, &image, &request.name) {
            return Ok(Created { unchanged: true, ..done(created, request, image) });
        }
    }
    let mut out = Output::begin(&request.output)?;
    watch.step(&format!("create {}", request.name), tree.bytes);
    copy_base(&mut out.archive, part.as_ref(), source.as_ref(), root)?;
    let wrong = || Error::image(&request.output);
    let threads = std::thread::available_parallelism().map_or(1, Into::into);
    let sink = out.archive.begin_blob().map_err(wrong())?;
    let sum = tree.write(sink, mtime.as_second().unsigned_abs(), threads, watch, stop)?;
    out.archive.end_blob(&sum.digest, sum.size).map_err(wrong())?;
    let image = make(&sum)?;
    out.finish(&image, &request.name, &request.output)?;
    if let Some(key) = &fingerprint {
        cache::put("layers", key, &sum);
    }
    Ok(done(created, request, image))
}

fn done(created: Created, request: &Request, image: Composed) -> Created {
    Created {
        digest: Some(image.digest.clone()),
        archive: Some(request.output.clone()),
        size: image.layers.iter().map(|l| l.size).sum(),
        image: Some(image),
        ..created
    }
}

/// `image.toml` and `.dockerignore`, or everything that is wrong with them.
fn read(root: &Path) -> Result<(Settings, Ignore), Error> {
    if !root.is_dir() {
        return Err(Error::refused(format!("{} is no directory", root.display()), "give the application's directory"));
    }
    let path = root.join("image.toml");
    let text = text(&path)?.ok_or_else(|| {
        let message = format!("{} has neither an image.toml nor a Dockerfile", root.display());
        Error::refused(message, "`matrix create-image NAME DIR --init` writes an image.toml to begin with")
    })?;
    let settings = Settings::parse(&path.display().to_string(), &text);
    let path = root.join(".dockerignore");
    let ignore = Ignore::parse(&path.display().to_string(), &self::text(&path)?.unwrap_or_default());
    match (settings, ignore) {
        (Ok(settings), Ok(ignore)) => Ok((settings, ignore)),
        (settings, ignore) => {
            let found = [settings.err(), ignore.err()].into_iter().flatten().flatten();
            Err(Error::Input(found.collect()))
        }
    }
}

/// A text file the user wrote; none where there is no such file.
fn text(path: &Path) -> Result<Option<String>, Error> {
    match fs::read(path) {
        Ok(bytes) if bytes.len() > 1 << 20 => {
            Err(Error::refused(format!("{} has more than 1 MiB", path.display()), "it is not what its name says"))
        }
        Ok(bytes) => String::from_utf8(bytes)
            .map(Some)
            .map_err(|_| Error::refused(format!("{} is not text in UTF-8", path.display()), "write it anew")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::file("read", path)(error)),
    }
}

/// A base archive is looked for beside `image.toml`, then in the current directory.
fn find_base(root: &Path, path: &str) -> Result<PathBuf, Error> {
    let beside = root.join(path);
    if beside.exists() {
        return Ok(beside);
    }
    if Path::new(path).exists() {
        return Ok(path.into());
    }
    let name = Path::new(path).file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let message = format!("the base {path} is neither in {} nor in the current directory", root.display());
    Err(Error::refused(message, format!("`matrix create-base {name} --packages …` makes one")))
}

/// The path as the walk would meet it below `root`.
fn inside(root: &Path, path: &Path) -> PathBuf {
    let whole = |p: &Path| {
        let parent = p.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Some(parent.canonicalize().ok()?.join(p.file_name()?))
    };
    let below = whole(path).zip(root.canonicalize().ok()).and_then(|(p, r)| p.strip_prefix(r).ok().map(Path::to_owned));
    below.map_or_else(|| path.to_owned(), |below| root.join(below))
}

/// The time everything in the image carries: `SOURCE_DATE_EPOCH`, or 1970.
pub(super) fn epoch() -> Result<Timestamp, Error> {
    let Some(text) = std::env::var_os("SOURCE_DATE_EPOCH") else { return Ok(Timestamp::UNIX_EPOCH) };
    let seconds = text.to_str().and_then(|t| t.parse::<u32>().ok());
    seconds
        .and_then(|s| Timestamp::from_second(s.into()).ok())
        .ok_or_else(|| Error::refused("SOURCE_DATE_EPOCH is no number of seconds", "unset it, or as in $(date +%s)"))
}

/// Whether the archive is there, holds exactly this image under this name, and is undamaged.
fn holds(path: &Path, image: &Composed, name: &ImageName) -> bool {
    let there = path.is_file().then(|| Source::open(path, None, &super::Unwatched)).and_then(Result::ok);
    there.is_some_and(|source| {
        source.image == *image && source.name.as_deref() == Some(&name.to_string()) && source.verify().is_ok()
    })
}

fn copy_base<W: Write + Seek>(
    archive: &mut ArchiveWriter<W>,
    part: Option<&Part>,
    source: Option<&Source>,
    root: &Path,
) -> Result<(), Error> {
    let (Some(part), Some(source)) = (part, source) else { return Ok(()) };
    let mut copied = BTreeSet::new();
    for layer in &part.layers {
        if copied.insert(&layer.digest) {
            archive.blob(layer, &mut source.reader(&layer.digest)?).map_err(Error::image(root))?;
        }
    }
    Ok(())
}

/// An archive that gets its name when it is whole.
pub(super) struct Output {
    pub(super) archive: ArchiveWriter<BufWriter<File>>,
    temporary: tempfile::TempPath,
}

impl Output {
    pub(super) fn begin(path: &Path) -> Result<Self, Error> {
        let directory = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut builder = tempfile::Builder::new();
        builder.prefix(".matrix-").suffix(".part");
        // As any file the user writes; not the private file a temporary one is.
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644));
        let (file, temporary) = builder.tempfile_in(directory).map_err(Error::file("write", path))?.into_parts();
        let writer = BufWriter::with_capacity(1 << 20, file);
        Ok(Self { archive: ArchiveWriter::new(writer).map_err(Error::image(path))?, temporary })
    }

    pub(super) fn finish(self, image: &Composed, name: &ImageName, path: &Path) -> Result<(), Error> {
        self.archive.finish(image, name.repository.as_str(), &name.tag).map_err(Error::image(path))?;
        self.temporary.persist(path).map_err(|e| Error::file("write", path)(e.error))
    }
}

/// Makes the archive of a directory that has a Dockerfile and no `image.toml`, with a builder that is here.
///
/// # Errors
/// No builder; the builder's own; the disk.
pub async fn create_with_builder(request: &Request, watch: &dyn Watch) -> Result<Created, Error> {
    if request.base.is_some() {
        return Err(Error::refused("a Dockerfile names its own base", "leave --base out"));
    }
    let (archive, _passing) = super::build_dockerfile(&request.directory, &request.name, watch).await?;
    let source = Source::open(&archive, None, watch)?;
    super::base::rewrite(&source, &request.name, &request.output)?;
    let image = source.image.clone();
    let created = Created {
        name: request.name.to_string(),
        digest: None,
        archive: None,
        unchanged: false,
        size: 0,
        entries: 0,
        bytes: 0,
        image: None,
        listing: Vec::new(),
    };
    Ok(done(created, request, image))
}

/// Whether a directory is to be built by its Dockerfile.
pub fn wants_builder(directory: &Path) -> bool {
    !directory.join("image.toml").exists() && directory.join("Dockerfile").is_file()
}
