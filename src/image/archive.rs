//! Writing an OCI archive: a tar of an OCI layout, which older engines can load too.
//!
//! Never holds a blob in memory: a blob whose digest is not known yet is written first and named afterwards.

use std::io::{Read, Seek, SeekFrom, Write};

use oci_spec::image::{DescriptorBuilder, ImageIndexBuilder, MediaType};
use serde::{Deserialize, Serialize};

use super::{Composed, Error, Hashing, canonical, copy};
use crate::model::Digest;

/// A piece of content by its digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Blob {
    /// What it is.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
}

/// Writes an OCI archive. The same blobs in the same order give the same bytes.
#[derive(Debug)]
pub struct ArchiveWriter<W> {
    out: W,
    /// Where the header of the blob being written goes.
    open: Option<u64>,
}

impl<W: Write + Seek> ArchiveWriter<W> {
    /// Begins an archive at the writer's position.
    ///
    /// # Errors
    /// The writer's.
    pub fn new(out: W) -> Result<Self, Error> {
        let mut archive = Self { out, open: None };
        archive.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok(archive)
    }

    /// Where the content of a blob goes whose digest is known only when it is written. Then [`Self::end_blob`].
    ///
    /// # Errors
    /// The writer's.
    pub fn begin_blob(&mut self) -> Result<&mut W, Error> {
        let at = self.out.stream_position().map_err(Error::write("the archive"))?;
        self.open = Some(at);
        self.out.write_all(&[0; 512]).map_err(Error::write("the archive"))?;
        Ok(&mut self.out)
    }

    /// Names the blob that was begun.
    ///
    /// # Errors
    /// The writer's.
    pub fn end_blob(&mut self, digest: &Digest, size: u64) -> Result<(), Error> {
        let at = self.open.take().unwrap_or_default();
        let mut end = || {
            self.out.write_all(&[0; 512][..padding(size)])?;
            let end = self.out.stream_position()?;
            self.out.seek(SeekFrom::Start(at))?;
            self.out.write_all(header(&blob_name(digest), size).as_bytes())?;
            self.out.seek(SeekFrom::Start(end)).map(drop)
        };
        end().map_err(Error::write("the archive"))
    }

    /// Copies a blob and checks that it is what its digest says.
    ///
    /// # Errors
    /// Either side's, and [`Error::Damaged`].
    pub fn blob(&mut self, blob: &Blob, content: &mut impl Read) -> Result<(), Error> {
        let what = format!("blob {}", blob.digest);
        self.begin_blob()?;
        let mut to = Hashing::new(&mut self.out);
        let read = copy(&mut content.take(blob.size), &mut to).map_err(Error::read(what.clone()))?;
        let (_, found, _) = to.finish();
        if read < blob.size {
            return Err(Error::Truncated(what));
        }
        if found != blob.digest {
            return Err(Error::Damaged { what, wanted: blob.digest.clone(), found });
        }
        self.end_blob(&blob.digest, blob.size)
    }

    /// Writes configuration, manifest and index of an image whose layers are all there, and ends the archive.
    ///
    /// # Errors
    /// The writer's.
    pub fn finish(mut self, image: &Composed, repository: &str, tag: &str) -> Result<W, Error> {
        self.file(&blob_name(&image.config.digest), &image.config_bytes)?;
        self.file(&blob_name(&image.digest), &image.manifest)?;
        self.file("index.json", &index(image, repository, tag)?)?;
        // What an engine before OCI archives reads.
        let layers: Vec<_> = image.layers.iter().map(|l| blob_name(&l.digest)).collect();
        let docker = serde_json::json!([{
            "Config": blob_name(&image.config.digest), "RepoTags": [format!("{repository}:{tag}")], "Layers": layers,
        }]);
        self.file("manifest.json", &canonical(docker))?;
        self.out.write_all(&[0; 1024]).map_err(Error::write("the archive"))?;
        self.out.flush().map_err(Error::write("the archive"))?;
        Ok(self.out)
    }

    fn file(&mut self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let size = bytes.len() as u64;
        let mut write = || {
            self.out.write_all(header(name, size).as_bytes())?;
            self.out.write_all(bytes)?;
            self.out.write_all(&[0; 512][..padding(size)])
        };
        write().map_err(Error::write("the archive"))
    }
}

fn index(image: &Composed, repository: &str, tag: &str) -> Result<Vec<u8>, Error> {
    let wrong = |e: oci_spec::OciSpecError| Error::Format(e.to_string());
    let name = format!("{repository}:{tag}");
    let manifest = DescriptorBuilder::default()
        .media_type(MediaType::from(super::MANIFEST))
        .digest(image.digest.as_str().parse::<oci_spec::image::Digest>().map_err(wrong)?)
        .size(image.manifest.len() as u64)
        .annotations([
            ("org.opencontainers.image.ref.name".to_owned(), tag.to_owned()),
            ("io.containerd.image.name".to_owned(), name),
        ])
        .build()
        .map_err(wrong)?;
    let index = ImageIndexBuilder::default()
        .schema_version(2u32)
        .media_type(MediaType::ImageIndex)
        .manifests([manifest])
        .build()
        .map_err(wrong)?;
    serde_json::to_value(index).map(canonical).map_err(|e| Error::Format(e.to_string()))
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn padding(size: u64) -> usize {
    usize::try_from((512 - size % 512) % 512).unwrap_or(0)
}

fn header(name: &str, size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.set_cksum();
    header
}
