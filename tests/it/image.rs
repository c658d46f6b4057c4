//! Images as a user makes and installs them: the real binary, a real registry, skopeo as the second opinion.

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// A directory for one test, with a cache of its own.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }
    fn at(&self, path: &str) -> std::path::PathBuf {
        self.0.path().join(path)
    }
    fn write(&self, path: &str, text: impl AsRef<[u8]>) {
        let path = self.at(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_matrix"));
        command
            .args(args)
            .current_dir(self.0.path())
            .env("XDG_CACHE_HOME", self.at(".cache"))
            .env_remove("MATRIX_REGISTRY")
            .env_remove("SOURCE_DATE_EPOCH")
            .env("MATRIX_MANAGER", self.at("no.sock"));
        command
    }
    fn matrix(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }
    fn json(&self, args: &[&str]) -> serde_json::Value {
        let output = self.matrix(args);
        assert!(output.status.success(), "{args:?}: {}", said(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }
    fn refused(&self, args: &[&str], code: i32) -> String {
        let output = self.matrix(args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", said(&output));
        said(&output)
    }
    /// An application's directory with what a layer can hold.
    fn application(&self, directory: &str) {
        self.write(
            &format!("{directory}/image.toml"),
            "base = \"scratch\"\ninto = \"/srv/app\"\ncommand = [\"/srv/app/run\"]\nport = 8080\n[labels]\nb = \"2\"\na = \"1\"\n",
        );
        self.write(&format!("{directory}/.dockerignore"), "*.log\n!keep.log\nsecret\n");
        self.write(&format!("{directory}/run"), "#!/bin/sh\n");
        fs::set_permissions(self.at(&format!("{directory}/run")), fs::Permissions::from_mode(0o4755)).unwrap();
        self.write(&format!("{directory}/data/file"), "content");
        fs::hard_link(self.at(&format!("{directory}/data/file")), self.at(&format!("{directory}/data/name"))).unwrap();
        symlink("../../etc/passwd", self.at(&format!("{directory}/data/link"))).unwrap();
        self.write(&format!("{directory}/x.log"), "no");
        self.write(&format!("{directory}/keep.log"), "yes");
        self.write(&format!("{directory}/secret/key"), "no");
        self.write(&format!("{directory}/{}/deep", "long".repeat(40)), "far");
    }
    fn skopeo(&self, args: &[&str]) -> serde_json::Value {
        let output =
            Command::new("skopeo").args(args).current_dir(self.0.path()).output().expect("skopeo is installed");
        assert!(output.status.success(), "skopeo {args:?}: {}", said(&output));
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Debian's registry on a free port.
struct Registry {
    process: Child,
    address: String,
    _files: TempDir,
}

impl Registry {
    fn start() -> Self {
        let files = tempfile::tempdir().unwrap();
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let configuration = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {}/r}}, delete: {{enabled: true}}}}\nhttp: {{addr: \"{free}\"}}\n",
            files.path().display()
        );
        fs::write(files.path().join("r.yml"), configuration).unwrap();
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(files.path().join("r.yml"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is installed");
        let registry = Self { process, address: free.to_string(), _files: files };
        let until = Instant::now() + Duration::from_secs(20);
        while std::net::TcpStream::connect(free).is_err() {
            assert!(Instant::now() < until, "the registry does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        registry
    }
}
impl Drop for Registry {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

/// Name, kind and mode of every entry of the archive's last layer.
fn layer(archive: &Path) -> Vec<(String, char, u32)> {
    let out = tempfile::tempdir().unwrap();
    let ok = Command::new("skopeo")
        .args(["copy", "-q", &format!("oci-archive:{}", archive.display()), &format!("dir:{}", out.path().display())])
        .status()
        .unwrap();
    assert!(ok.success());
    let manifest: serde_json::Value =
        serde_json::from_slice(&fs::read(out.path().join("manifest.json")).unwrap()).unwrap();
    let digest = manifest["layers"].as_array().unwrap().last().unwrap()["digest"].as_str().unwrap();
    let file = fs::File::open(out.path().join(digest.trim_start_matches("sha256:"))).unwrap();
    let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(file));
    tar.entries()
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let kind = match entry.header().entry_type() {
                tar::EntryType::Directory => 'd',
                tar::EntryType::Symlink => 'l',
                tar::EntryType::Link => 'h',
                _ => '-',
            };
            (entry.path().unwrap().display().to_string(), kind, entry.header().mode().unwrap())
        })
        .collect()
}

#[test]
fn a_directory_becomes_an_image_that_others_read() {
    let place = Place::new();
    place.application("app");
    let made = place.json(&["create-image", "shop:v2", "app", "--json"]);
    let seen = place.skopeo(&["inspect", "oci-archive:shop.tar"]);
    assert_eq!(seen["Digest"], made["digest"]);
    assert_eq!(seen["Labels"]["a"], "1");
    place.skopeo(&["inspect", "docker-archive:shop.tar"]);
    let entries = layer(&place.at("shop.tar"));
    let find = |name: &str| entries.iter().find(|(n, ..)| n == name).map(|(_, k, m)| (*k, *m));
    assert_eq!(find("srv/"), Some(('d', 0o755)), "directories above are named: {entries:?}");
    assert_eq!(find("srv/app/run"), Some(('-', 0o4755)));
    assert_eq!(find("srv/app/data/file").map(|e| e.0), Some('-'));
    assert_eq!(find("srv/app/data/name").map(|e| e.0), Some('h'), "{entries:?}");
    assert_eq!(find("srv/app/data/link"), Some(('l', 0o777)));
    assert!(find("srv/app/keep.log").is_some() && find(&format!("srv/app/{}/deep", "long".repeat(40))).is_some());
    for left_out in ["srv/app/x.log", "srv/app/secret/", "srv/app/image.toml", "srv/app/.dockerignore"] {
        assert_eq!(find(left_out), None, "{left_out}");
    }
}

#[test]
fn a_copy_of_a_directory_has_the_same_digest() {
    let place = Place::new();
    place.application("one");
    std::thread::sleep(Duration::from_millis(1100));
    place.application("two");
    let first = place.json(&["create-image", "shop", "one", "--json", "-o", "1.tar"]);
    let second = place.json(&["create-image", "shop", "two", "--json", "-o", "2.tar"]);
    assert_eq!(first["digest"], second["digest"]);
    assert_eq!(fs::read(place.at("1.tar")).unwrap(), fs::read(place.at("2.tar")).unwrap());
    place.write("two/data/file", "Content");
    let third = place.json(&["create-image", "shop", "two", "--json", "-o", "2.tar"]);
    assert_ne!(first["digest"], third["digest"], "an edit of the same size is seen");
}

#[test]
fn an_image_is_of_the_day_that_is_asked_for() {
    let place = Place::new();
    place.application("app");
    let made = |epoch: &str| {
        let mut command = place.command(&["create-image", "shop", "app", "--json"]);
        command.env("SOURCE_DATE_EPOCH", epoch).output().unwrap()
    };
    let (one, other) = (made("86400"), made("172800"));
    assert!(one.status.success() && other.status.success(), "{} {}", said(&one), said(&other));
    assert_ne!(one.stdout, other.stdout, "the day is part of what is made");
    assert_eq!(place.skopeo(&["inspect", "oci-archive:shop.tar"])["Created"], "1970-01-03T00:00:00Z");
    let unsaid = place.json(&["create-image", "shop", "app", "--json"]);
    assert_eq!(place.skopeo(&["inspect", "oci-archive:shop.tar"])["Created"], "1970-01-01T00:00:00Z");
    assert_eq!(unsaid["unchanged"], false);
    let wrong = made("yesterday");
    assert_eq!(wrong.status.code(), Some(2));
    assert!(said(&wrong).contains("SOURCE_DATE_EPOCH is no number of seconds"), "{}", said(&wrong));
}

#[test]
fn an_archive_inside_its_directory_is_no_part_of_itself() {
    let place = Place::new();
    place.application("app");
    place.application("bare");
    // What was written just now may be written again unseen: it is not remembered.
    std::thread::sleep(Duration::from_millis(200));
    let bare = place.json(&["create-image", "shop", "bare", "--json"]);
    for unchanged in [false, true] {
        let made = place.json(&["create-image", "shop", "app", "--json", "-o", "app/data/out.tar"]);
        assert_eq!((&made["digest"], &made["unchanged"]), (&bare["digest"], &unchanged.into()));
    }
    let at = place.at("app/data");
    let made =
        place.command(&["create-image", "shop", "..", "--json", "-o", "out.tar"]).current_dir(at).output().unwrap();
    let made: serde_json::Value =
        serde_json::from_slice(&made.stdout).unwrap_or_else(|e| panic!("{e}: {}", said(&made)));
    assert_eq!(made["digest"], bare["digest"]);
}

#[test]
fn an_unchanged_directory_is_known_and_a_damaged_archive_made_anew() {
    let place = Place::new();
    place.application("app");
    std::thread::sleep(Duration::from_millis(200));
    let first = place.json(&["create-image", "shop", "app", "--json"]);
    assert_eq!(first["unchanged"], false);
    assert_eq!(place.json(&["create-image", "shop", "app", "--json"])["unchanged"], true);
    let good = fs::read(place.at("shop.tar")).unwrap();
    let mut bad = good.clone();
    bad[1600] ^= 1;
    place.write("shop.tar", bad);
    let again = place.json(&["create-image", "shop", "app", "--json"]);
    assert_eq!((&again["unchanged"], &again["digest"]), (&false.into(), &first["digest"]));
    assert_eq!(fs::read(place.at("shop.tar")).unwrap(), good);
    place.write("app/data/file", "CONTENT");
    let edited = place.json(&["create-image", "shop", "app", "--json"]);
    assert_ne!(edited["digest"], first["digest"]);
}

#[test]
fn an_archive_is_a_base() {
    let place = Place::new();
    place.application("below");
    place.json(&["create-image", "below", "below", "--json"]);
    place.write("above/image.toml", "base = \"below.tar\"\ninto = \"/more\"\n[environment]\nX = \"1\"\n");
    place.write("above/file", "x");
    place.json(&["create-image", "above", "above", "--json"]);
    let seen = place.skopeo(&["inspect", "oci-archive:above.tar"]);
    assert_eq!(seen["Layers"].as_array().unwrap().len(), 2);
    assert!(seen["Env"].as_array().unwrap().contains(&"X=1".into()));
}

#[test]
fn what_cannot_be_an_image_is_said_with_its_place() {
    let place = Place::new();
    place.write("bad/image.toml", "base = \"scratch\"\ncomand = [\"x\"]\nport = 0\n");
    place.write("bad/.dockerignore", "[a\n");
    let text = place.refused(&["create-image", "shop", "bad"], 2);
    for part in ["bad/image.toml:2:1", "did you mean command?", "bad/image.toml:3:8", "bad/.dockerignore:1:1"] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
    place.application("pipe");
    nix::unistd::mkfifo(&place.at("pipe/data/fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let text = place.refused(&["create-image", "shop", "pipe"], 2);
    assert!(text.contains("pipe/data/fifo is a pipe"), "{text}");
    assert!(!place.at("shop.tar").exists());
    place.write("none/x", "");
    assert!(place.refused(&["create-image", "shop", "none"], 2).contains("--init"));
    assert!(place.refused(&["create-image", "Sh op", "none"], 2).contains("may hold only"));
    place.write("out/image.toml", "base = \"scratch\"\nfiles = [{ from = \"link/x\", to = \"/x\" }]\n");
    symlink("/etc", place.at("out/link")).unwrap();
    assert!(place.refused(&["create-image", "shop", "out"], 2).contains("symbolic link"));
    let left: Vec<_> =
        fs::read_dir(place.0.path()).unwrap().filter_map(|e| e.unwrap().file_name().into_string().ok()).collect();
    assert!(!left.iter().any(|n| n.contains(".part")), "{left:?}");
}

#[test]
fn init_writes_what_create_image_reads() {
    let place = Place::new();
    place.write("app/notes.txt", "x");
    place.json(&["create-image", "shop", "app", "--init", "--json"]);
    place.json(&["create-image", "shop", "app", "--json"]);
    assert!(place.refused(&["create-image", "shop", "app", "--init"], 2).contains("already"));
}

#[test]
fn images_go_to_the_registry_once() {
    let (place, registry) = (Place::new(), Registry::start());
    place.application("app");
    // Large enough to be worth mounting, and not to be shrunk below that.
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    };
    let noise: Vec<u8> = (0..200_000).map(|_| next()).collect();
    place.write("app/noise", noise);
    let made = place.json(&["create-image", "shop:v1", "app", "--json"]);
    let to = ["--registry", &registry.address, "--json"];
    let install = |what: &[&str]| place.json(&[&["install-image"], what, &to].concat());
    let first = install(&["shop.tar"]);
    assert_eq!((&first["digest"], &first["unchanged"]), (&made["digest"], &false.into()));
    assert!(first["sent"].as_u64().unwrap() > 60_000, "{first}");
    let second = install(&["shop.tar"]);
    assert_eq!((&second["unchanged"], &second["sent"]), (&true.into(), &0.into()));
    let other = install(&["shop.tar", "--name", "other:v9"]);
    assert_eq!(other["mounted"], 1, "{other}");
    let reference = format!("docker://{}/cloud/other:v9", registry.address);
    assert_eq!(place.skopeo(&["inspect", "--tls-verify=false", &reference])["Digest"], made["digest"]);
    let copied = format!("dir:{}", place.at("copied").display());
    place.skopeo(&["copy", "-q", "--src-tls-verify=false", &reference, &copied]);
    let list = place.json(&["images", "--registry", &registry.address, "--json"]);
    let names: Vec<_> = list.as_array().unwrap().iter().map(|l| format!("{}:{}", l["repository"], l["tag"])).collect();
    assert_eq!(names, ["\"cloud/other\":\"v9\"", "\"cloud/shop\":\"v1\""]);
    place.write("web/image.toml", "base = \"shop:v1\"\n");
    place.write("web/page", "hi");
    let push = ["create-image", "web", "web", "--push", "--registry", &registry.address, "--json"];
    assert_eq!(place.json(&push)["installed"]["mounted"], 1, "the base's layer is not sent again");
    assert!(!place.at("web.tar").exists());
    assert!(place.refused(&["images", "rm", "shop:v1", "--registry", &registry.address], 2).contains("--yes"));
    place.json(&["images", "rm", "shop:v1", "--yes", "--registry", &registry.address, "--json"]);
    let list = place.json(&["images", "--registry", &registry.address, "--json"]);
    assert!(!list.to_string().contains("cloud/shop"), "{list}");
}

#[test]
fn damaged_archives_change_nothing_in_the_registry() {
    let (place, registry) = (Place::new(), Registry::start());
    place.application("app");
    place.json(&["create-image", "shop", "app", "--json"]);
    let good = fs::read(place.at("shop.tar")).unwrap();
    let install = |file: &str| place.refused(&["install-image", file, "--registry", &registry.address], 2);
    for cut in [0, 100, 512, 1500, good.len() / 2, good.len() - 3000] {
        place.write("cut.tar", &good[..cut]);
        install("cut.tar");
    }
    let mut flipped = good.clone();
    flipped[1600] ^= 1;
    place.write("flipped.tar", flipped);
    assert!(install("flipped.tar").contains("damaged"));
    assert!(install("nowhere.tar").contains("no archive"));
    place.write("text.tar", "not an archive, whatever its name says".repeat(100));
    install("text.tar");
    let list = place.json(&["images", "--registry", &registry.address, "--json"]);
    assert_eq!(list, serde_json::json!([]));
}

#[test]
fn hostile_archives_are_refused() {
    let place = Place::new();
    let write = |name: &str, entries: &[(&str, &[u8], u64)]| {
        let mut bytes = Vec::new();
        for (path, content, size) in entries {
            let mut header = tar::Header::new_gnu();
            header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
            header.set_size(*size);
            header.set_entry_type(tar::EntryType::Regular);
            header.set_mode(0o644);
            header.set_cksum();
            bytes.extend_from_slice(header.as_bytes());
            bytes.extend_from_slice(content);
            bytes.resize(bytes.len().next_multiple_of(512), 0);
        }
        bytes.resize(bytes.len() + 1024, 0);
        place.write(name, bytes);
        place.refused(&["install-image", name, "--registry", "127.0.0.1:9"], 2)
    };
    assert!(write("up.tar", &[("../../etc/cron.d/x", b"x", 1)]).contains("leads outside"));
    assert!(write("absolute.tar", &[("/etc/passwd", b"x", 1)]).contains("leads outside"));
    assert!(write("huge.tar", &[("index.json", b"{}", 1 << 60)]).contains("cut off"));
    assert!(write("deep.tar", &[("index.json", "[".repeat(100_000).as_bytes(), 100_000)]).contains("index.json"));
    let config = b"{\"architecture\":\"amd64\",\"os\":\"linux\",\"config\":{\"Labels\":{\"a\":\"\\u001b[2J\"}},\"rootfs\":{\"type\":\"layers\",\"diff_ids\":[]}}";
    let saved = br#"[{"Config":"c.json","RepoTags":["x:y"],"Layers":[]}]"#;
    let text =
        write("label.tar", &[("c.json", config, config.len() as u64), ("manifest.json", saved, saved.len() as u64)]);
    assert!(text.contains("control characters") && !text.contains('\u{1b}'), "{text}");
    let lying = br#"{"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:../../x","size":1}]}"#;
    write("digest.tar", &[("index.json", lying, lying.len() as u64)]);
}

#[test]
fn a_docker_archive_is_installed_plain_and_compressed() {
    let (place, registry) = (Place::new(), Registry::start());
    place.application("app");
    place.json(&["create-image", "shop", "app", "--json"]);
    place.skopeo(&["copy", "-q", "oci-archive:shop.tar", "docker-archive:old.tar:cloud/old:v3"]);
    let mut gzip =
        flate2::write::GzEncoder::new(fs::File::create(place.at("old.tar.gz")).unwrap(), flate2::Compression::fast());
    std::io::copy(&mut fs::File::open(place.at("old.tar")).unwrap(), &mut gzip).unwrap();
    gzip.finish().unwrap();
    let plain = place.json(&["install-image", "old.tar", "--registry", &registry.address, "--json"]);
    assert_eq!(plain["name"], "cloud/old:v3");
    let packed = place.json(&["install-image", "old.tar.gz", "--registry", &registry.address, "--json"]);
    assert_eq!((&packed["digest"], &packed["unchanged"]), (&plain["digest"], &true.into()));
    let copied = format!("dir:{}", place.at("copied").display());
    let from = format!("docker://{}/cloud/old:v3", registry.address);
    place.skopeo(&["copy", "-q", "--src-tls-verify=false", &from, &copied]);
}

#[test]
fn a_registry_that_is_down_is_named_with_what_to_do() {
    let place = Place::new();
    place.application("app");
    place.json(&["create-image", "shop", "app", "--json"]);
    let text = place.refused(&["install-image", "shop.tar", "--registry", "127.0.0.1:1"], 1);
    assert!(text.contains("http://127.0.0.1:1 does not answer") && text.contains("--registry"), "{text}");
    let text = place.refused(&["install-image", "shop.tar"], 3);
    assert!(text.contains("MATRIX_REGISTRY"), "{text}");
}

#[test]
fn a_dockerfile_without_an_engine_says_what_to_install() {
    let place = Place::new();
    place.write("app/Dockerfile", "FROM scratch\nCOPY Dockerfile /\n");
    fs::create_dir(place.at("programs")).unwrap();
    let create = |programs: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_matrix"));
        command.args(["create-image", "shop", "app"]).current_dir(place.0.path());
        command.env("PATH", programs).env("DOCKER_HOST", "unix:///nonexistent.sock");
        command.output().unwrap()
    };
    let refused = |output: Output| {
        let text = said(&output);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains("app has a Dockerfile, and no docker, podman or buildah works here"), "{text}");
        assert!(text.contains("apt install buildah") && text.contains("image.toml"), "{text}");
        assert!(!place.at("shop.tar").exists());
    };
    refused(create(&place.at("programs")));
    // A client whose daemon is not there builds nothing either.
    let path = std::env::var_os("PATH").unwrap();
    if let Some(docker) = std::env::split_paths(&path).map(|d| d.join("docker")).find(|p| p.is_file()) {
        symlink(docker, place.at("programs/docker")).unwrap();
        refused(create(&place.at("programs")));
    }
}
