//! Archives that lie, are damaged or would lead somewhere: refused, whatever they hold.

use std::io::{Cursor, Read};

use matrix::image::{
    self, Archive, ArchiveWriter, Blob, Contents, Error, Packing, Platform, Settings, base_of, blobs_of,
    choose_in_index, compose, digest_of,
};
use proptest::{collection::vec, prelude::*};
use serde_json::{Value, json};
use tar::EntryType;

fn here() -> Platform {
    Platform { architecture: "amd64".to_owned() }
}

fn entry(out: &mut Vec<u8>, kind: EntryType, name: &str, content: &[u8], link: &str) {
    let mut header = tar::Header::new_gnu();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_size(content.len() as u64);
    header.set_cksum();
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(content);
    out.resize(out.len().next_multiple_of(512), 0);
}

fn tar(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, content) in files {
        entry(&mut out, EntryType::Regular, name, content, "");
    }
    out.resize(out.len() + 1024, 0);
    out
}

/// An OCI archive whose parts may be changed before what is above them names their digest: `config`, `manifest`, `index`.
fn oci(change: impl Fn(&str, &mut Value)) -> Vec<u8> {
    let mut files = Vec::new();
    let mut blob = |media_type: &str, bytes: Vec<u8>| {
        let digest = digest_of(&bytes);
        let descriptor = json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() });
        files.push((format!("blobs/sha256/{}", digest.hex()), bytes));
        descriptor
    };
    let layer = blob(image::LAYER_GZIP, b"what a layer would be".to_vec());
    let mut config = json!({ "architecture": "amd64", "os": "linux",
        "rootfs": { "type": "layers", "diff_ids": [digest_of(b"unpacked")] } });
    change("config", &mut config);
    let config = blob(image::CONFIG, config.to_string().into_bytes());
    let mut manifest = json!({ "schemaVersion": 2, "config": config, "layers": [layer] });
    change("manifest", &mut manifest);
    let manifest = blob(image::MANIFEST, manifest.to_string().into_bytes());
    let mut index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    change("index", &mut index);
    files.push(("index.json".to_owned(), index.to_string().into_bytes()));
    tar(&files)
}

fn saved(change: impl Fn(&str, &mut Value)) -> Vec<u8> {
    let mut config = json!({ "os": "linux", "rootfs": { "type": "layers", "diff_ids": [digest_of(b"unpacked")] } });
    let name = format!("{}.json", digest_of(config.to_string().as_bytes()).hex());
    change("config", &mut config);
    let mut manifest = json!([{ "Config": name, "RepoTags": ["shop:v1"], "Layers": ["a/layer.tar"] }]);
    change("manifest", &mut manifest);
    tar(&[
        (name, config.to_string().into_bytes()),
        ("a/layer.tar".to_owned(), b"unpacked".to_vec()),
        ("manifest.json".to_owned(), manifest.to_string().into_bytes()),
    ])
}

fn contents(bytes: &[u8], want: Option<&str>) -> Result<Contents, Error> {
    Archive::open(Cursor::new(bytes))?.contents(want, &here())
}

/// Contents with every blob checked, as whoever installs it checks them.
fn whole(bytes: &[u8]) -> Result<Contents, Error> {
    let mut archive = Archive::open(Cursor::new(bytes))?;
    let contents = archive.contents(None, &here())?;
    if let Packing::Oci { config, layers, .. } = &contents.packing {
        for blob in layers.iter().chain([config]) {
            archive.verify(blob)?;
        }
    }
    Ok(contents)
}

#[track_caller]
fn refused(found: Result<Contents, Error>, words: &str) {
    let error = found.expect_err(words).to_string();
    assert!(error.contains(words), "{words}: {error}");
}

#[test]
fn entries_that_lead_outside_or_are_no_files_are_refused() {
    use EntryType::{Block, Char, Fifo, Link, Regular, Symlink};
    for (kind, name, link, words) in [
        (Regular, "../x", "", "leads outside"),
        (Regular, "a/../index.json", "", "leads outside"),
        (Regular, "/etc/passwd", "", "leads outside"),
        (Symlink, "a/link", "/etc/passwd", "leads outside"),
        (Symlink, "a/link", "../../x", "leads outside"),
        (Link, "a/link", "../x", "leads outside"),
        (Char, "dev/null", "", "is of the kind"),
        (Block, "dev/sda", "", "is of the kind"),
        (Fifo, "pipe", "", "is of the kind"),
    ] {
        let mut bytes = Vec::new();
        entry(&mut bytes, kind, name, b"", link);
        bytes.extend(oci(|_, _| ()));
        refused(contents(&bytes, None), words);
    }
    let mut round = Vec::new();
    entry(&mut round, Symlink, "index.json", b"", "b");
    entry(&mut round, Symlink, "b", b"", "index.json");
    round.resize(round.len() + 1024, 0);
    assert!(contents(&round, None).is_err(), "links in a ring");
    let many: Vec<_> = (0..=20_000).map(|n| (format!("f{n}"), Vec::new())).collect();
    refused(contents(&tar(&many), None), "more than 20000 entries");
    refused(contents(&tar(&[("index.json".to_owned(), vec![b' '; 9 << 20])]), None), "no honest size");
    let good = oci(|_, _| ());
    assert!(Archive::open(Cursor::new(&good[..good.len() - 1024 - 512])).is_err(), "cut off inside its last entry");
}

#[test]
fn an_archive_that_lies_about_its_parts_is_refused() {
    assert!(whole(&oci(|_, _| ())).is_ok() && whole(&saved(|_, _| ())).is_ok());
    let at = |wanted: &'static str, set: fn(&mut Value)| {
        move |part: &str, value: &mut Value| {
            if part == wanted {
                set(value);
            }
        }
    };
    for (part, set, words) in [
        ("index", (|v| v["manifests"][0]["mediaType"] = json!("application/x")) as fn(&mut Value), "not an image"),
        ("index", |v| v["manifests"][0]["size"] = json!(7), "the manifest says 7"),
        ("index", |v| v["manifests"] = json!([]), "no image"),
        ("manifest", |v| v["layers"][0]["digest"] = json!(digest_of(b"other")), "lacks the blob"),
        ("manifest", |v| v["layers"][0]["size"] = json!(7), "the manifest says 7"),
        ("config", |v| v["rootfs"]["diff_ids"] = json!([]), "disagree about the layers"),
        ("config", |v| v["config"] = json!({ "Labels": { "a": "\u{1b}[2J" } }), "control characters"),
    ] {
        refused(contents(&oci(at(part, set)), None), words);
    }
    for (part, set, words) in [
        ("config", (|v| v["os"] = json!("plan9")) as fn(&mut Value), "is damaged"),
        ("manifest", |v| v[0]["Layers"] = json!([]), "disagree about the layers"),
        ("manifest", |v| v[0]["Layers"] = json!(["../x"]), "it lacks"),
        ("manifest", |v| v[0]["Config"] = json!("/etc/passwd"), "it lacks"),
    ] {
        refused(contents(&saved(at(part, set)), None), words);
    }
}

#[test]
fn one_image_of_several_is_chosen_by_platform_and_name() {
    let two = |first: Value, second: Value| {
        oci(move |part, value| {
            if part == "index" {
                let real = value["manifests"][0].clone();
                let mut list = [first.clone(), second.clone()];
                for entry in &mut list {
                    let more = entry.as_object().unwrap().clone();
                    // What says nothing else is the image; the other one is not even there.
                    let absent = json!({ "mediaType": image::MANIFEST, "digest": digest_of(b"absent"), "size": 6 });
                    *entry = if more.contains_key("real") { real.clone() } else { absent };
                    entry.as_object_mut().unwrap().extend(more);
                }
                value["manifests"] = json!(list);
            }
        })
    };
    let platform = |os: &str, architecture: &str| json!({ "os": os, "architecture": architecture });
    let other = |os: &str, architecture: &str| json!({ "platform": platform(os, architecture) });
    let ours = json!({ "platform": platform("linux", "amd64"), "real": 1 });
    for not_ours in [other("linux", "arm64"), other("windows", "amd64")] {
        assert!(whole(&two(not_ours.clone(), ours.clone())).is_ok(), "{not_ours}");
        refused(contents(&two(not_ours.clone(), not_ours), None), "no image for linux/amd64");
    }
    let named = |name: &str, real: bool| {
        let mut entry = json!({ "annotations": { "io.containerd.image.name": name },
            "platform": platform("linux", "amd64") });
        if real {
            entry["real"] = json!(1);
        }
        entry
    };
    let bytes = two(named("cloud/blog:v1", false), named("cloud/shop:v2", true));
    refused(contents(&bytes, None), "say which with --tag");
    refused(contents(&bytes, Some("wiki")), "it holds no \"wiki\"");
    for want in ["cloud/shop:v2", "shop:v2", "v2"] {
        assert_eq!(contents(&bytes, Some(want)).unwrap().name.as_deref(), Some("cloud/shop:v2"));
    }
}

#[test]
fn lists_in_lists_end() {
    let deep = |levels: usize| {
        let mut blobs = Vec::new();
        let bytes = oci(|_, _| ());
        let mut archive = tar::Archive::new(bytes.as_slice());
        let mut index = Vec::new();
        for found in archive.entries().unwrap() {
            let mut found = found.unwrap();
            let (name, mut content) = (found.path().unwrap().display().to_string(), Vec::new());
            found.read_to_end(&mut content).unwrap();
            if name == "index.json" { index = content } else { blobs.push((name, content)) }
        }
        for _ in 0..levels {
            let digest = digest_of(&index);
            let descriptor = json!({ "mediaType": image::INDEX, "digest": digest, "size": index.len() });
            blobs.push((format!("blobs/sha256/{}", digest.hex()), std::mem::take(&mut index)));
            index = json!({ "manifests": [descriptor] }).to_string().into_bytes();
        }
        blobs.push(("index.json".to_owned(), index));
        tar(&blobs)
    };
    assert!(whole(&deep(2)).is_ok());
    refused(contents(&deep(5), None), "not an image");
}

#[test]
fn a_blob_is_copied_only_as_its_digest_says() {
    let content = b"content".as_slice();
    let blob = Blob { media_type: String::new(), digest: digest_of(content), size: content.len() as u64 };
    let copy = |mut content: &[u8]| ArchiveWriter::new(Cursor::new(Vec::new())).unwrap().blob(&blob, &mut content);
    assert!(copy(content).is_ok());
    assert!(matches!(copy(b"Content"), Err(Error::Damaged { .. })));
    assert!(matches!(copy(b"conten"), Err(Error::Truncated(_))));
}

#[test]
fn a_base_brings_what_it_says_and_nothing_of_its_making() {
    let settings = |text: &str| Settings::parse("image.toml", text).unwrap();
    let below = settings("base = \"scratch\"\n[labels]\na = \"1\"\nb = \"1\"");
    let made = compose(None, &here(), &below, &[], matrix::model::Timestamp::UNIX_EPOCH).unwrap();
    let mut config: Value = serde_json::from_slice(&made.config_bytes).unwrap();
    for key in ["container", "id", "parent"] {
        config[key] = json!("of the engine that made it");
    }
    let part = base_of(&made.manifest, config.to_string().as_bytes()).unwrap();
    let above = settings("base = \"b.tar\"\n[labels]\nb = \"2\"");
    let made = compose(Some(&part), &here(), &above, &[], matrix::model::Timestamp::UNIX_EPOCH).unwrap();
    let config: Value = serde_json::from_slice(&made.config_bytes).unwrap();
    assert_eq!(config["config"]["Labels"], json!({ "a": "1", "b": "2" }));
    assert!(["container", "id", "parent"].iter().all(|key| config.get(*key).is_none()), "{config}");

    let layered = |kind: &str| {
        let layer = json!({ "mediaType": kind, "digest": digest_of(b"l"), "size": 1 });
        let mut manifest: Value = serde_json::from_slice(&made.manifest).unwrap();
        manifest["layers"] = json!([layer]);
        let config = json!({ "architecture": "amd64", "os": "linux",
            "rootfs": { "type": "layers", "diff_ids": [digest_of(b"u")] } });
        base_of(manifest.to_string().as_bytes(), config.to_string().as_bytes())
    };
    let docker = layered("application/vnd.docker.image.rootfs.diff.tar.gzip").unwrap();
    assert_eq!(docker.layers[0].media_type, image::LAYER_GZIP);
    for foreign in ["application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "text/plain"] {
        assert!(layered(foreign).is_err(), "{foreign}");
    }
}

proptest! {
    /// An archive that was changed anywhere is refused, or holds the same image.
    #[test]
    fn no_change_goes_unseen(at in any::<prop::sample::Index>(), by in 1u8.., docker in any::<bool>()) {
        let good = if docker { saved(|_, _| ()) } else { oci(|_, _| ()) };
        let (wanted, mut bad) = (whole(&good).unwrap().packing, good);
        let at = at.index(bad.len());
        bad[at] ^= by;
        match (whole(&bad).map(|found| found.packing), wanted) {
            (Err(_), _) => {}
            (Ok(Packing::Docker { config, layers }), Packing::Docker { config: wanted, layers: all }) => {
                // Its name alone says what it should be: another name promises nothing.
                let named = bad.windows(64).any(|w| w == digest_of(&wanted).hex().as_bytes());
                prop_assert!(config == wanted || !named);
                prop_assert_eq!(layers.len(), all.len());
            }
            (Ok(found), wanted) => prop_assert_eq!(found, wanted),
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in vec(any::<u8>(), 0..2000), text in "[\\[\\]{}\",:a-z0-9]{0,60}", cut in any::<prop::sample::Index>()) {
        _ = whole(&bytes);
        let good = oci(|_, _| ());
        _ = whole(&good[..cut.index(good.len())]);
        for text in [text.as_bytes(), &bytes] {
            _ = (base_of(text, text).is_ok(), blobs_of(text).is_ok(), choose_in_index(text, &here()).is_ok());
        }
    }
}
