//! A layer: a reproducible tar in gzip.
//!
//! No times, no owners but those that are given, no names of users, no order but the sorted one. Devices, sockets and
//! pipes have no place in a layer; the walker refuses them by name.

use std::io::{self, Read, Write};

use crate::model::Digest;

use super::{Error, Gzip, Hashing};

/// No file system here takes a longer path.
pub const MAX_NAME: usize = 4095;
/// What twelve octal digits with an end mark can say.
const USTAR_MAX_SIZE: u64 = 0o777_7777_7777;

/// One entry of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The path inside the image, relative, without `.` or `..`: `usr/share/nginx/html/index.html`.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A file of this many bytes.
    File(u64),
    /// A directory.
    Directory,
    /// A symbolic link to this.
    Symlink(Vec<u8>),
    /// Another name for an earlier entry's file.
    Hardlink(Vec<u8>),
}

/// What a finished layer is known by.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LayerSum {
    /// Of the compressed bytes.
    pub digest: Digest,
    /// Compressed bytes.
    pub size: u64,
    /// Of the tar.
    pub diff_id: Digest,
    /// Bytes of the tar.
    pub unpacked: u64,
}

/// Writes a layer, entry after entry in the order of their paths' bytes.
#[derive(Debug)]
pub struct LayerWriter<W: Write> {
    out: Hashing<Gzip<Hashing<W>>>,
    mtime: u64,
    last: Vec<u8>,
}

impl<W: Write> LayerWriter<W> {
    /// A layer whose entries all carry `mtime` (seconds since 1970).
    ///
    /// # Errors
    /// The sink's.
    pub fn new(sink: W, mtime: u64, threads: usize) -> Result<Self, Error> {
        let gzip = Gzip::new(Hashing::new(sink), threads).map_err(Error::write("the layer"))?;
        Ok(Self { out: Hashing::new(gzip), mtime, last: Vec::new() })
    }

    /// Adds an entry; `content` gives a file's bytes and is not read for other kinds.
    ///
    /// # Errors
    /// A path out of order or outside the image, a file that is shorter or longer than said, the sink's errors.
    pub fn add(&mut self, entry: &Entry, content: &mut impl Read) -> Result<(), Error> {
        let shown = String::from_utf8_lossy(&entry.path).into_owned();
        let wrong = |why: &str| Error::Entry { name: shown.clone(), why: why.to_owned() };
        if !inside(&entry.path) {
            return Err(wrong("is no path inside an image"));
        }
        if entry.path <= self.last {
            return Err(wrong("comes twice or out of order"));
        }
        self.last.clone_from(&entry.path);
        self.header(entry).map_err(Error::write("the layer"))?;
        if let Kind::File(size) = entry.kind {
            let mut buffer = vec![0; 256 << 10];
            let mut left = size;
            while left > 0 {
                let want = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                let n = content.read(&mut buffer[..want]).map_err(Error::read(shown.clone()))?;
                if n == 0 {
                    return Err(wrong("became shorter while it was read; try again when nothing writes to it"));
                }
                self.out.write_all(&buffer[..n]).map_err(Error::write("the layer"))?;
                left -= n as u64;
            }
            if content.read(&mut buffer[..1]).map_err(Error::read(shown.clone()))? != 0 {
                return Err(wrong("grew while it was read; try again when nothing writes to it"));
            }
            self.pad(size).map_err(Error::write("the layer"))?;
        }
        Ok(())
    }

    /// Ends the layer; gives back the sink and what it is known by.
    ///
    /// # Errors
    /// The sink's.
    pub fn finish(mut self) -> Result<(W, LayerSum), Error> {
        self.out.write_all(&[0; 1024]).map_err(Error::write("the layer"))?;
        let (gzip, diff_id, unpacked) = self.out.finish();
        let (sink, digest, size) = gzip.finish().map_err(Error::write("the layer"))?.finish();
        Ok((sink, LayerSum { digest, size, diff_id, unpacked }))
    }

    fn header(&mut self, entry: &Entry) -> io::Result<()> {
        let mut path = entry.path.clone();
        let (kind, size, link) = match &entry.kind {
            Kind::File(size) => (tar::EntryType::Regular, *size, &[][..]),
            Kind::Directory => {
                path.push(b'/');
                (tar::EntryType::Directory, 0, &[][..])
            }
            Kind::Symlink(to) => (tar::EntryType::Symlink, 0, to.as_slice()),
            Kind::Hardlink(to) => (tar::EntryType::Link, 0, to.as_slice()),
        };
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(entry.mode);
        header.set_uid(u64::from(entry.uid));
        header.set_gid(u64::from(entry.gid));
        header.set_mtime(self.mtime);
        header.set_size(size);
        let mut extended = Vec::new();
        if !put_name(&mut header, &path) {
            record(&mut extended, "path", &path);
        }
        let bytes = header.as_mut_bytes();
        bytes[157..257][..link.len().min(100)].copy_from_slice(&link[..link.len().min(100)]);
        if link.len() > 100 {
            record(&mut extended, "linkpath", link);
        }
        if size > USTAR_MAX_SIZE {
            record(&mut extended, "size", size.to_string().as_bytes());
        }
        header.set_cksum();
        if !extended.is_empty() {
            let mut pax = tar::Header::new_ustar();
            pax.set_entry_type(tar::EntryType::XHeader);
            pax.set_mode(0o644);
            pax.set_uid(0);
            pax.set_gid(0);
            pax.set_mtime(0);
            pax.set_size(extended.len() as u64);
            put_name(&mut pax, b"PaxHeaders/entry");
            pax.set_cksum();
            self.out.write_all(pax.as_bytes())?;
            self.out.write_all(&extended)?;
            self.pad(extended.len() as u64)?;
        }
        self.out.write_all(header.as_bytes())
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let rest = usize::try_from(size % 512).unwrap_or(0);
        if rest > 0 { self.out.write_all(&[0; 512][rest..]) } else { Ok(()) }
    }
}

/// Whether it is a relative path that stays inside: no empty part, no `.`, no `..`, no NUL.
fn inside(path: &[u8]) -> bool {
    path.len() <= MAX_NAME
        && !path.contains(&0)
        && path.split(|b| *b == b'/').all(|part| !matches!(part, b"" | b"." | b".."))
}

/// Puts the name into the header's own fields; says whether it fits.
fn put_name(header: &mut tar::Header, path: &[u8]) -> bool {
    let bytes = header.as_mut_bytes();
    if path.len() <= 100 {
        bytes[..path.len()].copy_from_slice(path);
        return true;
    }
    // The prefix ends before a slash and has at most 155 bytes; the name has the rest, at most 100 and not nothing.
    let at = path.iter().enumerate().position(|(at, b)| *b == b'/' && path.len() - at - 1 <= 100 && at > 0);
    match at {
        Some(at) if at <= 155 && at + 1 < path.len() => {
            bytes[..path.len() - at - 1].copy_from_slice(&path[at + 1..]);
            bytes[345..345 + at].copy_from_slice(&path[..at]);
            true
        }
        _ => {
            bytes[..100].copy_from_slice(&path[..100]);
            false
        }
    }
}

/// A PAX record: its own length in decimal, a blank, `key=value`, a line break.
fn record(into: &mut Vec<u8>, key: &str, value: &[u8]) {
    let body = key.len() + value.len() + 3;
    let mut len = body + 1;
    while body + len.to_string().len() != len {
        len = body + len.to_string().len();
    }
    into.extend_from_slice(format!("{len} {key}=").as_bytes());
    into.extend_from_slice(value);
    into.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(path: &str, size: usize) -> Entry {
        Entry { path: path.into(), kind: Kind::File(size as u64), mode: 0o644, uid: 0, gid: 0 }
    }

    fn layer(entries: &[(Entry, Vec<u8>)]) -> Result<(Vec<u8>, LayerSum), Error> {
        let mut writer = LayerWriter::new(Vec::new(), 0, 2)?;
        for (entry, content) in entries {
            writer.add(entry, &mut content.as_slice())?;
        }
        writer.finish()
    }

    #[test]
    fn names_of_any_length_come_back() {
        let deep = format!("{}/f", vec!["directory"; 40].join("/"));
        let long = "n".repeat(250);
        let middle = format!("{}/{}", "p".repeat(90), "q".repeat(90));
        let mut entries: Vec<_> =
            [deep.as_str(), &long, &middle, "short"].iter().map(|p| (file(p, 3), b"abc".to_vec())).collect();
        let link = Kind::Symlink(format!("../{long}").into_bytes());
        entries.push((Entry { path: b"zz".to_vec(), kind: link, mode: 0o777, uid: 0, gid: 0 }, Vec::new()));
        entries.sort_by(|a, b| a.0.path.cmp(&b.0.path));
        let (bytes, sum) = layer(&entries).expect("a layer");
        assert_eq!(sum.size, bytes.len() as u64);
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(bytes.as_slice()));
        let mut seen = Vec::new();
        for entry in archive.entries().expect("entries") {
            let entry = entry.expect("an entry");
            if let Some(link) = entry.link_name_bytes() {
                assert_eq!(link.as_ref(), format!("../{long}").as_bytes());
            }
            seen.push(entry.path_bytes().into_owned());
        }
        assert_eq!(seen, entries.iter().map(|e| e.0.path.clone()).collect::<Vec<_>>());
    }

    #[test]
    fn a_file_larger_than_a_plain_header_can_say_is_named_with_its_size() {
        for size in [USTAR_MAX_SIZE, USTAR_MAX_SIZE + 1, 9 << 40] {
            let mut writer = LayerWriter::new(Vec::new(), 0, 1).expect("a layer");
            let large = Entry { path: b"large".to_vec(), kind: Kind::File(size), mode: 0o644, uid: 0, gid: 0 };
            writer.header(&large).expect("a header");
            let (bytes, _) = writer.finish().expect("a layer");
            let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(bytes.as_slice()));
            let entry = archive.entries().expect("entries").next().expect("one").expect("an entry");
            assert_eq!((entry.path_bytes().as_ref(), entry.size()), (&b"large"[..], size));
        }
    }

    #[test]
    fn what_leaves_the_image_or_its_order_is_refused() {
        for bad in ["", "/etc", "../x", "a/../b", "a//b", "a/", "./a", "a\0b"] {
            assert!(matches!(layer(&[(file(bad, 0), vec![])]), Err(Error::Entry { .. })), "{bad:?}");
        }
        assert!(layer(&[(file("b", 0), vec![]), (file("a", 0), vec![])]).is_err());
        assert!(layer(&[(file("a", 0), vec![]), (file("a", 0), vec![])]).is_err());
        for wrong in [2, 4] {
            let error = layer(&[(file("a", wrong), b"abc".to_vec())]).expect_err("a changed file");
            assert!(error.to_string().contains("while it was read"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_entries_come_back(names in proptest::collection::btree_set("[a-zé ]{1,130}(/[a-z]{1,120}){0,3}", 1..8),
                                 mode in 0u32..0o7777) {
            // a file cannot be another's directory
            let names: Vec<_> = names.iter()
                .filter(|n| !names.iter().any(|m| m.starts_with(&format!("{n}/")))).cloned().collect();
            let entries: Vec<_> = names.iter()
                .map(|n| (Entry { mode, ..file(n, n.len()) }, n.clone().into_bytes())).collect();
            let (bytes, sum) = layer(&entries).expect("a layer");
            prop_assert_eq!(&sum, &layer(&entries).expect("the same").1);
            let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(bytes.as_slice()));
            let mut back = Vec::new();
            for entry in archive.entries().expect("entries") {
                let mut entry = entry.expect("an entry");
                prop_assert_eq!(entry.header().mode().expect("a mode"), mode);
                prop_assert_eq!(entry.header().mtime().expect("a time"), 0);
                let mut content = String::new();
                entry.read_to_string(&mut content).expect("content");
                back.push((String::from_utf8(entry.path_bytes().into_owned()).expect("text"), content));
            }
            prop_assert_eq!(back, names.iter().map(|n| (n.clone(), n.clone())).collect::<Vec<_>>());
        }
    }
}
