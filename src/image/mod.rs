//! Images as bytes: layers, configuration, manifests, archives, over `Read`, `Write` and `Seek`.
//!
//! Opens no file, knows no directory, no registry, no clock. What comes out depends on what goes in and on nothing else:
//! the same input has the same digest on every machine and on every day.

mod archive;
mod compose;
mod gzip;
mod ignore;
mod layer;
mod reader;
mod settings;

use std::io;

pub use archive::{ArchiveWriter, Blob};
pub use compose::{Composed, Part, Platform, base_of, compose, docker_manifest};
pub use gzip::Gzip;
pub use ignore::Ignore;
pub use layer::{Entry, Kind, LayerSum, LayerWriter, MAX_NAME};
pub use reader::{Archive, Contents, Located, Packing, SavedLayer, blobs_of, choose_in_index};
pub use settings::{Base, FileRule, HealthCheck, Settings, mode_text};

use crate::model::Digest;

/// The OCI manifest's media type.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// The OCI index's media type.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// The OCI configuration's media type.
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// A gzip layer's media type.
pub const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// Docker's manifest, schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker's list of manifests.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// A manifest, an index or a configuration larger than this is no honest one.
pub const MAX_JSON: u64 = 8 << 20;

/// What can be wrong with an image.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading failed.
    #[error("cannot read {what}")]
    Read {
        /// What was read.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// Writing failed.
    #[error("cannot write {what}")]
    Write {
        /// What was written.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// The archive ends too early.
    #[error("the archive is cut off inside {0}")]
    Truncated(String),
    /// The archive is none, or none that is understood.
    #[error("this is no image archive: {0}")]
    Format(String),
    /// The archive tries something no honest one does.
    #[error("the archive is refused: {0}")]
    Hostile(String),
    /// Content is not what its digest says.
    #[error("{what} is damaged: its content has the digest {found}, not {wanted}")]
    Damaged {
        /// What was read.
        what: String,
        /// The digest that was promised.
        wanted: Digest,
        /// The digest it has.
        found: Digest,
    },
    /// A blob the manifest names is not there.
    #[error("the archive lacks the blob {0}")]
    Missing(Digest),
    /// An entry cannot be part of a layer.
    #[error("{name}: {why}")]
    Entry {
        /// The entry's name.
        name: String,
        /// The rule it breaks.
        why: String,
    },
    /// A base or its configuration is unusable.
    #[error("the base image is unusable: {0}")]
    Base(String),
}

impl Error {
    pub(crate) fn read(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        |source| match source.kind() {
            io::ErrorKind::UnexpectedEof => Self::Truncated(what),
            _ => Self::Read { what, source },
        }
    }
    pub(crate) fn write(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        |source| Self::Write { what, source }
    }
}

/// Hashes what passes through.
#[derive(Debug)]
pub struct Hashing<T> {
    inner: T,
    hash: sha2::Sha256,
    count: u64,
}

impl<T> Hashing<T> {
    /// Nothing has passed yet.
    pub fn new(inner: T) -> Self {
        Self { inner, hash: sha2::Digest::new(), count: 0 }
    }
    /// The inner part, the digest and the number of the bytes that passed.
    pub fn finish(self) -> (T, Digest, u64) {
        (self.inner, digest_of_hash(self.hash), self.count)
    }
    /// The inner part.
    pub fn inner_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}
impl<W: io::Write> io::Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        sha2::Digest::update(&mut self.hash, &bytes[..n]);
        self.count += n as u64;
        Ok(n)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
impl<R: io::Read> io::Read for Hashing<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(into)?;
        sha2::Digest::update(&mut self.hash, &into[..n]);
        self.count += n as u64;
        Ok(n)
    }
}

fn digest_of_hash(hash: sha2::Sha256) -> Digest {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(71);
    text.push_str("sha256:");
    for byte in sha2::Digest::finalize(hash) {
        _ = write!(text, "{byte:02x}");
    }
    text.parse().unwrap_or_else(|_| unreachable!("64 hexadecimal digits"))
}

/// The digest of these bytes.
pub fn digest_of(bytes: &[u8]) -> Digest {
    let mut hash: sha2::Sha256 = sha2::Digest::new();
    sha2::Digest::update(&mut hash, bytes);
    digest_of_hash(hash)
}

/// JSON with sorted keys, whatever features the build has: one value, one digest.
pub(crate) fn canonical(mut value: serde_json::Value) -> Vec<u8> {
    value.sort_all_objects();
    value.to_string().into_bytes()
}

/// Copies in pieces large enough for hashing and disks.
pub(crate) fn copy(from: &mut impl io::Read, to: &mut impl io::Write) -> io::Result<u64> {
    let mut buffer = vec![0; 256 << 10];
    let mut total = 0;
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(total),
            Ok(n) => {
                to.write_all(&buffer[..n])?;
                total += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
