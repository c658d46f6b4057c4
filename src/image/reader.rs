//! Reading image archives: OCI, and docker-save old and new.
//!
//! Nothing is unpacked, so no path in an archive can reach a file system; content is located and checked by digest.

use std::{
    collections::BTreeMap,
    io::{Read, Seek, SeekFrom},
};

use serde::Deserialize;

use super::{Blob, DOCKER_LIST, DOCKER_MANIFEST, Error, Hashing, INDEX, MANIFEST, MAX_JSON, Platform, copy, digest_of};
use crate::model::Digest;

/// An honest image has a few entries for each of at most 127 layers.
const MAX_ENTRIES: usize = 20_000;
/// A list in a list in a list is a trap.
const MAX_NESTED: usize = 3;

/// A tar entry's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Located {
    /// Where it begins.
    pub offset: u64,
    /// How many bytes it has.
    pub size: u64,
}

/// An archive whose entries are known.
#[derive(Debug)]
pub struct Archive<R> {
    source: R,
    files: BTreeMap<String, Located>,
    links: BTreeMap<String, String>,
}

/// One image of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    /// The name it has in the archive: `cloud/shop:v2`, or only a tag.
    pub name: Option<String>,
    /// Its parts.
    pub packing: Packing,
}

/// How an image's parts lie in its archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packing {
    /// With a manifest, as a registry holds it.
    Oci {
        /// The manifest's bytes.
        manifest: Vec<u8>,
        /// The manifest.
        descriptor: Blob,
        /// The configuration.
        config: Blob,
        /// The layers, lowest first.
        layers: Vec<Blob>,
    },
    /// As docker-save wrote it: no manifest, plain layers.
    Docker {
        /// The configuration's bytes.
        config: Vec<u8>,
        /// The layers, lowest first.
        layers: Vec<SavedLayer>,
    },
}

/// A layer in a docker-save archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedLayer {
    /// The digest the configuration promises for the unpacked layer.
    pub diff_id: Digest,
    /// Where it is; it may be compressed.
    pub at: Located,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default)]
    media_type: String,
    digest: Digest,
    size: u64,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    platform: Option<RawPlatform>,
}
#[derive(Deserialize)]
struct RawPlatform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
}
#[derive(Deserialize)]
struct RawIndex {
    manifests: Vec<RawDescriptor>,
}
#[derive(Deserialize)]
struct RawManifest {
    config: RawDescriptor,
    layers: Vec<RawDescriptor>,
}
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawSaved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}
#[derive(Deserialize)]
struct RawConfig {
    rootfs: RawRootfs,
    #[serde(default)]
    config: Option<RawRuntime>,
}
#[derive(Deserialize)]
struct RawRootfs {
    diff_ids: Vec<Digest>,
}
#[derive(Deserialize)]
struct RawRuntime {
    #[serde(rename = "Labels", default)]
    labels: Option<BTreeMap<String, String>>,
}

impl From<RawDescriptor> for Blob {
    fn from(raw: RawDescriptor) -> Self {
        Self { media_type: raw.media_type, digest: raw.digest, size: raw.size }
    }
}

impl<R: Read + Seek> Archive<R> {
    /// Finds the archive's entries; reads none of their contents.
    ///
    /// # Errors
    /// What is no tar, is cut off, or holds names that lead outside.
    pub fn open(mut source: R) -> Result<Self, Error> {
        let length = source.seek(SeekFrom::End(0)).map_err(Error::read("the archive"))?;
        source.rewind().map_err(Error::read("the archive"))?;
        let (mut files, mut links) = (BTreeMap::new(), BTreeMap::new());
        let mut tar = tar::Archive::new(source);
        let damaged = |e: &std::io::Error| Error::Format(format!("{e}; it may be damaged or cut off"));
        for entry in tar.entries_with_seek().map_err(|e| damaged(&e))? {
            let entry = entry.map_err(|e| damaged(&e))?;
            let name = entry_name(&entry.path_bytes())?;
            let at = Located { offset: entry.raw_file_position(), size: entry.size() };
            if at.offset.checked_add(at.size).is_none_or(|end| end > length) {
                return Err(Error::Truncated(name));
            }
            match entry.header().entry_type() {
                tar::EntryType::Regular | tar::EntryType::Continuous => _ = files.insert(name, at),
                tar::EntryType::Symlink | tar::EntryType::Link => {
                    let to = entry.link_name_bytes().unwrap_or_default();
                    let to = String::from_utf8_lossy(&to).into_owned();
                    let symbolic = entry.header().entry_type() == tar::EntryType::Symlink;
                    let from = if symbolic { name.rsplit_once('/').map_or("", |(dir, _)| dir) } else { "" };
                    links.insert(name.clone(), join(from, &to).ok_or_else(|| outside(&to))?);
                }
                tar::EntryType::Directory | tar::EntryType::XGlobalHeader => {}
                other => return Err(Error::Hostile(format!("its entry {name:?} is of the kind {other:?}"))),
            }
            if files.len() + links.len() > MAX_ENTRIES {
                return Err(Error::Hostile(format!("it has more than {MAX_ENTRIES} entries")));
            }
        }
        Ok(Self { source: tar.into_inner(), files, links })
    }

    /// The image named `want` (a name, or its tag), or the only one; of several platforms, this one.
    ///
    /// # Errors
    /// What is no image archive, lacks a part, or lies about one.
    pub fn contents(&mut self, want: Option<&str>, platform: &Platform) -> Result<Contents, Error> {
        if self.files.contains_key("index.json") {
            self.oci(want, platform)
        } else if self.files.contains_key("manifest.json") {
            self.docker(want)
        } else {
            Err(Error::Format("neither index.json nor manifest.json is in it; it may be cut off".to_owned()))
        }
    }

    /// Where a blob of an OCI archive is.
    ///
    /// # Errors
    /// [`Error::Missing`], or a size that is not the promised one.
    pub fn locate(&self, blob: &Blob) -> Result<Located, Error> {
        let name = format!("blobs/sha256/{}", blob.digest.hex());
        let at = self.find(&name).ok_or_else(|| Error::Missing(blob.digest.clone()))?;
        if at.size == blob.size {
            Ok(at)
        } else {
            let (is, said) = (at.size, blob.size);
            Err(Error::Format(format!("blob {} has {is} bytes, and the manifest says {said}", blob.digest)))
        }
    }

    /// An entry's content.
    ///
    /// # Errors
    /// The source's.
    pub fn read(&mut self, at: Located) -> Result<impl Read, Error> {
        self.source.seek(SeekFrom::Start(at.offset)).map_err(Error::read("the archive"))?;
        Ok((&mut self.source).take(at.size))
    }

    /// Checks that a blob is there and is what its digest says.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Missing`], the source's.
    pub fn verify(&mut self, blob: &Blob) -> Result<(), Error> {
        let at = self.locate(blob)?;
        let what = format!("blob {}", blob.digest);
        let mut hashing = Hashing::new(self.read(at)?);
        copy(&mut hashing, &mut std::io::sink()).map_err(Error::read(what.clone()))?;
        let (_, found, read) = hashing.finish();
        if read < blob.size {
            Err(Error::Truncated(what))
        } else if found == blob.digest {
            Ok(())
        } else {
            Err(Error::Damaged { what, wanted: blob.digest.clone(), found })
        }
    }

    /// A small blob's bytes, checked.
    ///
    /// # Errors
    /// As [`Self::verify`], and what is too large.
    pub fn bytes(&mut self, blob: &Blob) -> Result<Vec<u8>, Error> {
        let at = self.locate(blob)?;
        let what = format!("blob {}", blob.digest);
        let bytes = self.small(&what, at)?;
        let found = digest_of(&bytes);
        if found == blob.digest { Ok(bytes) } else { Err(Error::Damaged { what, wanted: blob.digest.clone(), found }) }
    }

    fn small(&mut self, what: &str, at: Located) -> Result<Vec<u8>, Error> {
        if at.size > MAX_JSON {
            return Err(Error::Hostile(format!(
                "{what:?} has {} bytes; more than {MAX_JSON} is no honest size",
                at.size
            )));
        }
        let mut bytes = Vec::new();
        self.read(at)?.read_to_end(&mut bytes).map_err(Error::read(what))?;
        if (bytes.len() as u64) < at.size { Err(Error::Truncated(what.to_owned())) } else { Ok(bytes) }
    }

    /// A file by its name, through links.
    fn find(&self, name: &str) -> Option<Located> {
        let mut name = name;
        for _ in 0..8 {
            match (self.files.get(name), self.links.get(name)) {
                (Some(at), _) => return Some(*at),
                (None, Some(to)) => name = to,
                (None, None) => return None,
            }
        }
        None
    }

    fn json<T: serde::de::DeserializeOwned>(&mut self, name: &str) -> Result<T, Error> {
        let at = self.find(name).ok_or_else(|| Error::Format(format!("it lacks {name:?}")))?;
        let bytes = self.small(name, at)?;
        parse(name, &bytes)
    }

    fn oci(&mut self, want: Option<&str>, platform: &Platform) -> Result<Contents, Error> {
        let index: RawIndex = self.json("index.json")?;
        let mut found: Vec<_> = index.manifests.into_iter().map(|d| (annotated_name(&d.annotations), d)).collect();
        if let Some(want) = want {
            if found.iter().any(|(name, _)| name.as_deref().is_some_and(|n| is_named(n, want))) {
                found.retain(|(name, _)| name.as_deref().is_some_and(|n| is_named(n, want)));
            } else if found.len() > 1 {
                return Err(no_such(want, found.iter().filter_map(|(name, _)| name.as_deref())));
            }
        }
        let names: Vec<_> = found.iter().filter_map(|(name, _)| name.clone()).collect();
        let several = names.iter().any(|n| *n != names[0]);
        if several {
            return Err(ambiguous(&names));
        }
        let name = names.into_iter().next();
        let mut descriptor = choose(found.into_iter().map(|(_, d)| d).collect(), platform)?;
        for _ in 0..MAX_NESTED {
            if !matches!(descriptor.media_type.as_str(), INDEX | DOCKER_LIST) {
                break;
            }
            let bytes = self.bytes(&descriptor.into())?;
            let index: RawIndex = parse("an index", &bytes)?;
            descriptor = choose(index.manifests, platform)?;
        }
        if !matches!(descriptor.media_type.as_str(), MANIFEST | DOCKER_MANIFEST) {
            return Err(Error::Format(format!("it holds a {:?}, not an image", descriptor.media_type)));
        }
        let descriptor = Blob::from(descriptor);
        let manifest = self.bytes(&descriptor)?;
        let (config, layers) = blobs_of(&manifest)?;
        for layer in &layers {
            self.locate(layer)?;
        }
        let bytes = self.bytes(&config)?;
        let diff_ids = checked_config(&bytes)?;
        if diff_ids.len() != layers.len() {
            return Err(Error::Format("its configuration and its manifest disagree about the layers".to_owned()));
        }
        Ok(Contents { name, packing: Packing::Oci { manifest, descriptor, config, layers } })
    }

    fn docker(&mut self, want: Option<&str>) -> Result<Contents, Error> {
        let mut saved: Vec<RawSaved> = self.json("manifest.json")?;
        let tags = |s: &RawSaved| s.repo_tags.clone().unwrap_or_default();
        let all: Vec<String> = saved.iter().flat_map(tags).collect();
        if let Some(want) = want
            && saved.len() > 1
        {
            saved.retain(|s| tags(s).iter().any(|n| is_named(n, want)));
            if saved.is_empty() {
                return Err(no_such(want, all.iter().map(String::as_str)));
            }
        }
        let (Some(image), true) = (saved.pop(), saved.is_empty()) else {
            return Err(if all.is_empty() { Error::Format("it holds no image".to_owned()) } else { ambiguous(&all) });
        };
        let name = tags(&image).into_iter().next();
        let at = self.find(&image.config).ok_or_else(|| Error::Format(format!("it lacks {:?}", image.config)))?;
        let config = self.small(&image.config, at)?;
        let stem = image.config.rsplit('/').next().unwrap_or_default().trim_end_matches(".json");
        if let Ok(wanted) = format!("sha256:{stem}").parse::<Digest>() {
            let found = digest_of(&config);
            if found != wanted {
                return Err(Error::Damaged { what: "the configuration".to_owned(), wanted, found });
            }
        }
        let diff_ids = checked_config(&config)?;
        if diff_ids.len() != image.layers.len() {
            return Err(Error::Format("its configuration and its manifest disagree about the layers".to_owned()));
        }
        let layers = diff_ids
            .into_iter()
            .zip(&image.layers)
            .map(|(diff_id, path)| {
                let at = self.find(path).ok_or_else(|| Error::Format(format!("it lacks {path:?}")))?;
                Ok(SavedLayer { diff_id, at })
            })
            .collect::<Result<_, Error>>()?;
        Ok(Contents { name, packing: Packing::Docker { config, layers } })
    }
}

/// The digest of an index's image for this platform.
///
/// # Errors
/// What is no index, or holds no such image.
pub fn choose_in_index(bytes: &[u8], platform: &Platform) -> Result<Digest, Error> {
    let index: RawIndex = parse("an index", bytes)?;
    choose(index.manifests, platform).map(|d| d.digest)
}

/// A manifest's configuration and layers.
///
/// # Errors
/// What is no manifest.
pub fn blobs_of(manifest: &[u8]) -> Result<(Blob, Vec<Blob>), Error> {
    let raw: RawManifest = parse("the manifest", manifest)?;
    Ok((raw.config.into(), raw.layers.into_iter().map(Blob::from).collect()))
}

fn parse<T: serde::de::DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|e| Error::Format(format!("{what} is not what it should be: {e}")))
}

/// The digests of the unpacked layers, of a configuration that could not harm whoever shows it.
fn checked_config(bytes: &[u8]) -> Result<Vec<Digest>, Error> {
    let config: RawConfig = parse("the configuration", bytes)?;
    let labels = config.config.and_then(|c| c.labels).unwrap_or_default();
    let bad = |text: &str| text.chars().any(|c| c.is_control() && c != '\n' && c != '\t');
    match labels.iter().find(|(name, value)| bad(name) || bad(value)) {
        Some((name, _)) => Err(Error::Hostile(format!("its label {name:?} holds control characters"))),
        None => Ok(config.rootfs.diff_ids),
    }
}

/// The one manifest for this platform, or the only one.
fn choose(mut list: Vec<RawDescriptor>, platform: &Platform) -> Result<RawDescriptor, Error> {
    let here = |d: &RawDescriptor| {
        d.platform.as_ref().is_some_and(|p| p.os == "linux" && p.architecture == platform.architecture)
    };
    let at = if list.len() == 1 { Some(0) } else { list.iter().position(here) };
    match at {
        Some(at) => Ok(list.swap_remove(at)),
        None if list.is_empty() => Err(Error::Format("it holds no image".to_owned())),
        None => Err(Error::Format(format!("it holds no image for linux/{}", platform.architecture))),
    }
}

fn annotated_name(annotations: &BTreeMap<String, String>) -> Option<String> {
    ["io.containerd.image.name", "org.opencontainers.image.ref.name"].iter().find_map(|k| annotations.get(*k)).cloned()
}

/// `want` may be the whole name, its last part with tag, or only the tag.
fn is_named(name: &str, want: &str) -> bool {
    let latest = |s: &str| {
        if s.rsplit('/').next().is_some_and(|l| l.contains(':')) { s.to_owned() } else { format!("{s}:latest") }
    };
    let (whole, wanted) = (latest(name), latest(want));
    name == want
        || whole == wanted
        || whole.ends_with(&format!("/{wanted}"))
        || whole.rsplit_once(':').is_some_and(|(_, tag)| tag == want)
}

fn no_such<'a>(want: &str, names: impl Iterator<Item = &'a str>) -> Error {
    let names: Vec<_> = names.take(20).map(|n| format!("{n:?}")).collect();
    Error::Format(format!("it holds no {want:?}; it holds {}", names.join(", ")))
}

fn ambiguous(names: &[String]) -> Error {
    let names: Vec<_> = names.iter().take(20).map(|n| format!("{n:?}")).collect();
    Error::Format(format!("it holds several images ({}); say which with --tag", names.join(", ")))
}

fn outside(name: &str) -> Error {
    Error::Hostile(format!("its entry {name:?} leads outside"))
}

/// An entry's name without `./` and slashes at its end.
fn entry_name(bytes: &[u8]) -> Result<String, Error> {
    let name = String::from_utf8_lossy(bytes);
    if name.starts_with('/') {
        return Err(outside(&name));
    }
    if name.split('/').any(|part| part == "..") {
        return Err(outside(&name));
    }
    join("", &name).ok_or_else(|| outside(&name))
}

/// A relative path from a directory, resolved; none where it leads outside.
fn join(directory: &str, path: &str) -> Option<String> {
    let mut parts: Vec<&str> = directory.split('/').filter(|p| !p.is_empty()).collect();
    if path.starts_with('/') {
        return None;
    }
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => _ = parts.pop()?,
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}
