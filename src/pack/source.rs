//! An image in an archive on this machine, as a registry would hold it.
//!
//! Reads no more than it must: large blobs are found, not read, until somebody wants them.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use super::{Error, Stop, Watch, cache};
use crate::{
    image::{
        self, Archive, Blob, Composed, Gzip, Hashing, LAYER_GZIP, LayerSum, Located, Packing, Part, Platform, base_of,
        docker_manifest,
    },
    model::{Digest, Repository},
    remote::registry::Registry,
};

/// An image whose blobs can be read one by one.
#[derive(Debug)]
pub struct Source {
    /// Manifest, configuration and the list of blobs.
    pub image: Composed,
    /// The manifest's media type.
    pub media_type: String,
    /// The name the archive gives it.
    pub name: Option<String>,
    /// The archive as the user named it.
    path: PathBuf,
    places: BTreeMap<Digest, Place>,
    /// Holds what had to be unpacked or compressed.
    _spool: Option<tempfile::TempDir>,
}

#[derive(Debug, Clone)]
enum Place {
    Here(Here),
    /// In a registry, to be fetched when it is wanted.
    There(Box<There>),
}

#[derive(Debug, Clone)]
struct Here {
    file: PathBuf,
    at: Located,
    /// The content must be compressed first; its bytes are known from another time.
    compress: bool,
}

#[derive(Debug, Clone)]
struct There {
    registry: Registry,
    repository: Repository,
    blob: Blob,
    runtime: tokio::runtime::Handle,
}

impl Source {
    /// Opens an OCI archive or a docker-save archive, plain or in gzip.
    ///
    /// # Errors
    /// What is none, is damaged or is refused.
    pub fn open(path: &Path, want: Option<&str>, watch: &dyn Watch) -> Result<Self, Error> {
        let stop = Stop::default();
        let mut spool = None;
        let file = plain(path, &mut spool, watch)?;
        let reader = File::open(&file).map_err(Error::file("read", &file))?;
        let mut archive = Archive::open(BufReader::new(reader)).map_err(Error::image(path))?;
        let contents = archive.contents(want, &Platform::here()).map_err(Error::image(path))?;
        let mut places = BTreeMap::new();
        let (image, media_type) = match contents.packing {
            Packing::Oci { manifest, descriptor, config, layers } => {
                let config_bytes = archive.bytes(&config).map_err(Error::image(path))?;
                for layer in &layers {
                    let at = archive.locate(layer).map_err(Error::image(path))?;
                    let here = Here { file: file.clone(), at, compress: false };
                    places.insert(layer.digest.clone(), Place::Here(here));
                }
                (Composed { manifest, digest: descriptor.digest, config_bytes, config, layers }, descriptor.media_type)
            }
            Packing::Docker { config, layers } => {
                let mut blobs = Vec::new();
                for layer in layers {
                    let place = Here { file: file.clone(), at: layer.at, compress: true };
                    let (sum, place) = match cache::get("saved", &layer.diff_id) {
                        Some(sum) => (sum, place),
                        None => compressed(path, &place, &layer.diff_id, &mut spool, watch, &stop)?,
                    };
                    let blob = Blob { media_type: LAYER_GZIP.to_owned(), digest: sum.digest.clone(), size: sum.size };
                    places.insert(sum.digest, Place::Here(place));
                    blobs.push(blob);
                }
                let image = docker_manifest(config, blobs).map_err(Error::image(path))?;
                (image, image::MANIFEST.to_owned())
            }
        };
        Ok(Self { image, media_type, name: contents.name, path: path.to_owned(), places, _spool: spool })
    }

    /// An image in a registry. Its layers are fetched when they are read, from a thread that may block.
    ///
    /// # Errors
    /// A registry that does not answer; an image that is not there, or not for this machine.
    pub async fn pull(registry: &Registry, repository: &Repository, tag: &str) -> Result<Self, Error> {
        let path = PathBuf::from(format!("{repository}:{tag}"));
        let lacks = |what: &str| {
            let message = format!("{what} is not in the registry at {}", registry.endpoint());
            Error::refused(message, "`matrix images` lists what is there")
        };
        let mut manifest =
            registry.manifest(repository, tag).await?.ok_or_else(|| lacks(&format!("{repository}:{tag}")))?;
        if matches!(manifest.media_type.as_str(), image::INDEX | image::DOCKER_LIST) {
            let digest = image::choose_in_index(&manifest.bytes, &Platform::here()).map_err(Error::image(&path))?;
            manifest = registry.manifest(repository, digest.as_str()).await?.ok_or_else(|| lacks(digest.as_str()))?;
        }
        let (config, layers) = image::blobs_of(&manifest.bytes).map_err(Error::image(&path))?;
        if config.size > image::MAX_JSON {
            let source = image::Error::Hostile("its configuration is too large".to_owned());
            return Err(Error::Image { path, source });
        }
        let mut config_bytes = Vec::new();
        registry.pull_blob(repository, &config, &mut config_bytes, |_| ()).await?;
        let runtime = tokio::runtime::Handle::current();
        let there = |blob: &Blob| There {
            registry: registry.clone(),
            repository: repository.clone(),
            blob: blob.clone(),
            runtime: runtime.clone(),
        };
        let places = layers.iter().map(|l| (l.digest.clone(), Place::There(Box::new(there(l))))).collect();
        let image = Composed { manifest: manifest.bytes, digest: manifest.digest, config_bytes, config, layers };
        let name = Some(format!("{repository}:{tag}"));
        Ok(Self { image, media_type: manifest.media_type, name, path, places, _spool: None })
    }

    /// An image whose layers are all in the registry already.
    pub fn known(image: Composed) -> Self {
        let path = PathBuf::from(image.digest.as_str());
        let media_type = image::MANIFEST.to_owned();
        Self { image, media_type, name: None, path, places: BTreeMap::new(), _spool: None }
    }

    /// As a base to build upon.
    ///
    /// # Errors
    /// What no image can be built upon.
    pub fn part(&self) -> Result<Part, Error> {
        base_of(&self.image.manifest, &self.image.config_bytes).map_err(Error::image(&self.path))
    }

    /// Whether this digest is one of its layers.
    pub fn has(&self, digest: &Digest) -> bool {
        self.places.contains_key(digest)
    }

    /// A layer's bytes. Not checked: whoever copies them checks the digest.
    ///
    /// # Errors
    /// The file's.
    pub fn reader(&self, digest: &Digest) -> Result<Box<dyn Read + Send>, Error> {
        let place = self
            .places
            .get(digest)
            .ok_or_else(|| Error::Image { path: self.path.clone(), source: image::Error::Missing(digest.clone()) })?;
        let place = match place {
            Place::Here(place) => place,
            Place::There(place) => return place.fetch(),
        };
        let from = part(place)?;
        if !place.compress {
            return Ok(Box::new(from));
        }
        let mut spool = tempfile::tempfile_in(scratch()?).map_err(Error::file("write", &std::env::temp_dir()))?;
        pack(unpacked(from), &mut spool).map_err(Error::image(&self.path))?;
        spool.rewind().map_err(Error::file("read", &self.path))?;
        Ok(Box::new(spool))
    }

    /// Checks every layer against its digest.
    ///
    /// # Errors
    /// The first that is damaged.
    pub fn verify(&self) -> Result<(), Error> {
        for layer in &self.image.layers {
            let mut hashing = Hashing::new(self.reader(&layer.digest)?);
            image::copy(&mut hashing, &mut io::sink()).map_err(Error::file("read", &self.path))?;
            let (_, found, _) = hashing.finish();
            if found != layer.digest {
                let what = format!("blob {}", layer.digest);
                let source = image::Error::Damaged { what, wanted: layer.digest.clone(), found };
                return Err(Error::Image { path: self.path.clone(), source });
            }
        }
        Ok(())
    }
}

impl There {
    fn fetch(&self) -> Result<Box<dyn Read + Send>, Error> {
        let mut spool = tempfile::tempfile_in(scratch()?).map_err(Error::file("write", &std::env::temp_dir()))?;
        self.runtime.block_on(self.registry.pull_blob(&self.repository, &self.blob, &mut spool, |_| ()))?;
        spool.rewind().map_err(Error::file("read", &std::env::temp_dir()))?;
        Ok(Box::new(spool))
    }
}

fn part(place: &Here) -> Result<io::Take<File>, Error> {
    let mut file = File::open(&place.file).map_err(Error::file("read", &place.file))?;
    file.seek(SeekFrom::Start(place.at.offset)).map_err(Error::file("read", &place.file))?;
    Ok(file.take(place.at.size))
}

/// Where large passing files go: a real disk rather than memory.
pub(super) fn scratch() -> Result<PathBuf, Error> {
    let directory = cache::directory().map_or_else(std::env::temp_dir, |d| d.join("tmp"));
    std::fs::create_dir_all(&directory).map_err(Error::file("write", &directory))?;
    Ok(directory)
}

/// The archive itself, or what its gzip holds.
fn plain(path: &Path, spool: &mut Option<tempfile::TempDir>, watch: &dyn Watch) -> Result<PathBuf, Error> {
    let mut file = File::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            Error::refused(format!("there is no file {}", path.display()), "`ls` shows what is there")
        }
        _ => Error::file("read", path)(error),
    })?;
    let mut magic = [0; 6];
    let mut read = 0;
    while read < magic.len() {
        match file.read(&mut magic[read..]).map_err(Error::file("read", path))? {
            0 => break,
            n => read += n,
        }
    }
    let unpacker = match magic {
        [0x1f, 0x8b, ..] => None,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some("zstd -d"),
        [0xfd, b'7', b'z', b'X', b'Z', 0] => Some("xz -d"),
        [b'B', b'Z', b'h', ..] => Some("bzip2 -d"),
        _ => return Ok(path.to_owned()),
    };
    if let Some(unpacker) = unpacker {
        let message = format!("{} is compressed in a way that is not read here", path.display());
        return Err(Error::refused(message, format!("unpack it first: {unpacker} {}", path.display())));
    }
    watch.step("unpack", 0);
    file.rewind().map_err(Error::file("read", path))?;
    let directory = tempfile::tempdir_in(scratch()?).map_err(Error::file("write", path))?;
    let to = directory.path().join("archive.tar");
    let mut out = File::create(&to).map_err(Error::file("write", &to))?;
    let mut from = flate2::read::MultiGzDecoder::new(BufReader::new(file));
    image::copy(&mut from, &mut out).map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => {
            let source = image::Error::Format(format!("its gzip is damaged or cut off: {e}"));
            Error::Image { path: path.to_owned(), source }
        }
        _ => Error::file("write", &to)(e),
    })?;
    *spool = Some(directory);
    Ok(to)
}

/// A saved layer's tar, whether it is compressed or not.
fn unpacked(from: io::Take<File>) -> Box<dyn Read> {
    let mut from = BufReader::with_capacity(256 << 10, from);
    let gzip = io::BufRead::fill_buf(&mut from).is_ok_and(|b| b.starts_with(&[0x1f, 0x8b]));
    if gzip { Box::new(flate2::read::MultiGzDecoder::new(from)) } else { Box::new(from) }
}

fn pack(from: impl Read, to: impl Write) -> Result<LayerSum, image::Error> {
    let threads = std::thread::available_parallelism().map_or(1, Into::into);
    let write = image::Error::write("the layer");
    let gzip = Gzip::new(Hashing::new(to), threads).map_err(write)?;
    let (mut from, mut gzip) = (Hashing::new(from), gzip);
    image::copy(&mut from, &mut gzip).map_err(image::Error::read("the layer"))?;
    let (_, digest, size) = gzip.finish().map_err(image::Error::write("the layer"))?.finish();
    let (_, diff_id, unpacked) = from.finish();
    Ok(LayerSum { digest, size, diff_id, unpacked })
}

/// Compresses a saved layer into the spool and checks it against its configuration.
fn compressed(
    path: &Path,
    place: &Here,
    diff_id: &Digest,
    spool: &mut Option<tempfile::TempDir>,
    watch: &dyn Watch,
    stop: &Stop,
) -> Result<(LayerSum, Here), Error> {
    stop.check().map_err(|_| Error::Interrupted)?;
    watch.step("compress", place.at.size);
    if spool.is_none() {
        *spool = Some(tempfile::tempdir_in(scratch()?).map_err(Error::file("write", path))?);
    }
    let directory = spool.as_ref().map_or_else(std::env::temp_dir, |s| s.path().to_owned());
    let file = directory.join(diff_id.hex());
    let out = File::create(&file).map_err(Error::file("write", &file))?;
    let sum = pack(unpacked(part(place)?), out).map_err(Error::image(path))?;
    watch.advance(place.at.size);
    if sum.diff_id != *diff_id {
        let what = format!("layer {diff_id}");
        let source = image::Error::Damaged { what, wanted: diff_id.clone(), found: sum.diff_id };
        return Err(Error::Image { path: path.to_owned(), source });
    }
    cache::put("saved", diff_id, &sum);
    let at = Located { offset: 0, size: sum.size };
    Ok((sum, Here { file, at, compress: false }))
}
