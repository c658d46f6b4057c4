//! Cleaning against Debian's own registry on loopback: the real binary, a manager without nodes, no root.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

/// A registry that its supervisor starts again, read-only while the manager's file is there; and a manager.
struct Cloud {
    place: TempDir,
    address: String,
    supervisor: Child,
    manager: Option<Child>,
}

const SUPERVISE: &str = "\
trap 'kill $(cat pid); exit' TERM
while :; do
    unset REGISTRY_STORAGE_MAINTENANCE_READONLY
    [ -f run/registry.env ] && . ./run/registry.env && export REGISTRY_STORAGE_MAINTENANCE_READONLY
    docker-registry serve r.yml & echo $! >pid
    wait $!
done";

impl Cloud {
    fn start(grace_minutes: u32, more: &str, collect: &str) -> Self {
        let place = tempfile::tempdir().unwrap();
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let at = |path: &str| place.path().join(path).display().to_string();
        fs::create_dir(at("run")).unwrap();
        fs::write(
            at("r.yml"),
            format!(
                "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nstorage: {{filesystem: \
                 {{rootdirectory: {}}}, delete: {{enabled: true}}}}\nhttp: {{addr: \"{free}\"}}\n",
                at("r")
            ),
        )
        .unwrap();
        let collect = if collect.is_empty() {
            format!("\"docker-registry\", \"garbage-collect\", {:?}", at("r.yml"))
        } else {
            format!("\"sh\", \"-c\", {:?}", collect.replace("CONFIG", &at("r.yml")))
        };
        fs::write(
            at("matrix.toml"),
            format!(
                "state = {:?}\nrun = {:?}\nleases = false\n[registry]\nendpoint = \"http://{free}\"\n[gc]\nat = \"off\"\n\
                 grace_minutes = {grace_minutes}\nstorage = {:?}\ncollect = [{collect}]\n\
                 restart = [\"sh\", \"-c\", {:?}]\n{more}\n",
                at("state"),
                at("run"),
                at("r"),
                format!("[ ! -e {} ] && kill $(cat {})", at("broken"), at("pid")),
            ),
        )
        .unwrap();
        let supervisor = Command::new("sh")
            .args(["-c", SUPERVISE])
            .current_dir(place.path())
            .process_group(0)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut cloud = Self { place, address: free.to_string(), supervisor, manager: None };
        within("the registry answers", || TcpStream::connect(&cloud.address).is_ok());
        cloud.serve();
        cloud
    }
    fn at(&self, path: &str) -> PathBuf {
        self.place.path().join(path)
    }
    fn serve(&mut self) {
        let manager = Command::new(env!("CARGO_BIN_EXE_matrix"))
            .args(["serve", "--config"])
            .arg(self.at("matrix.toml"))
            .stdout(Stdio::null())
            .stderr(fs::File::options().create(true).append(true).open(self.at("log")).unwrap())
            .spawn()
            .unwrap();
        self.manager = Some(manager);
        within("the manager answers", || self.matrix(&["status"]).status.success());
    }
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_matrix"));
        command
            .args(args)
            .current_dir(self.place.path())
            .env("XDG_CACHE_HOME", self.at(".cache"))
            .env_remove("MATRIX_REGISTRY")
            .env("MATRIX_MANAGER", self.at("run/matrix.sock"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }
    fn matrix(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }
    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        let output = self.matrix(args);
        assert!(
            output.status.success(),
            "{args:?}: {}\n{}",
            said(&output),
            fs::read_to_string(self.at("log")).unwrap()
        );
        said(&output)
    }
    /// An image of some hundred kilobytes of its own.
    fn application(&self, name: &str, number: u32) -> String {
        let directory = format!("{name}-{number}");
        fs::create_dir_all(self.at(&directory)).unwrap();
        fs::write(self.at(&format!("{directory}/image.toml")), "base = \"scratch\"\ncommand = [\"/x\"]\n").unwrap();
        let mut state = u64::from(number) + 1;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33).to_le_bytes()[0]
        };
        fs::write(self.at(&format!("{directory}/x")), (0..300_000).map(|_| next()).collect::<Vec<u8>>()).unwrap();
        directory
    }
    #[track_caller]
    fn push(&self, name: &str, number: u32) -> String {
        let directory = self.application(name, number);
        let said = self.ok(&["create-image", name, &directory, "--push", "--json"]);
        let digest = said.split("\"digest\": \"sha256:").nth(1).expect("a digest");
        format!("sha256:{}", &digest[..64])
    }
    /// The answers of `matrix gc --json`, one a line.
    #[track_caller]
    fn gc(&self, options: &[&str]) -> Vec<Value> {
        let said = self.ok(&[&["gc", "--json"], options].concat());
        said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }
    /// Whether the whole image is there: its manifest and all it names.
    fn is_whole(&self, repository: &str, digest: &str) -> bool {
        let ran = Command::new("skopeo")
            .args(["copy", "-q", "--src-tls-verify=false"])
            .arg(format!("docker://{}/{repository}@{digest}", self.address))
            .arg(format!("dir:{}", self.at(&digest[7..]).display()))
            .output()
            .expect("skopeo is installed");
        ran.status.success()
    }
    fn bytes(&self) -> u64 {
        fn all(folder: &Path) -> u64 {
            let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
            entries.map(|path| if path.is_dir() { all(&path) } else { fs::metadata(path).unwrap().len() }).sum()
        }
        all(&self.at("r/docker/registry/v2/blobs"))
    }
    fn is_read_only(&self) -> bool {
        let url = format!("http://{}/v2/cloud/x/manifests/latest", self.address);
        let asked = Command::new("curl")
            .args(["-s", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", "-X", "PUT", "-d", "none", &url])
            .output()
            .expect("curl is installed");
        asked.stdout == b"405"
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        if let Some(manager) = &mut self.manager {
            _ = manager.kill();
            _ = manager.wait();
        }
        let group = nix::unistd::Pid::from_raw(-i32::try_from(self.supervisor.id()).unwrap());
        _ = nix::sys::signal::kill(group, nix::sys::signal::Signal::SIGKILL);
        _ = self.supervisor.wait();
    }
}

#[track_caller]
fn within(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < until, "{what}: not in time");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn what_lost_its_tag_goes_with_its_blobs_and_what_has_one_stays() {
    let cloud = Cloud::start(0, "", "");
    let (old, new) = (cloud.push("shop", 1), cloud.push("shop", 2));
    let kept = cloud.push("kept:v1", 3);
    let before = cloud.bytes();

    let forecast = cloud.gc(&["--dry-run"]);
    assert_eq!((forecast.len(), cloud.bytes()), (1, before), "{forecast:?}");
    let items = forecast[0]["items"].as_array().unwrap();
    assert_eq!(items.len(), 1, "{items:?}");
    assert_eq!((&items[0]["what"], &items[0]["digest"]), (&"manifest".into(), &old.as_str().into()));
    let bytes = items[0]["bytes"].as_u64().unwrap();
    assert!(bytes > 100_000, "{bytes}");
    assert!(cloud.is_whole("cloud/shop", &old));

    let lines = cloud.gc(&[]);
    let end = lines.last().unwrap();
    assert_eq!((&end["type"], &end["freed"]), (&"end".into(), &bytes.into()), "{lines:?}");
    assert_eq!(cloud.bytes(), before - bytes);
    assert!(!cloud.is_whole("cloud/shop", &old));
    assert!(cloud.is_whole("cloud/shop", &new) && cloud.is_whole("cloud/kept", &kept));
    assert!(!cloud.is_read_only());

    assert!(cloud.ok(&["gc"]).contains("nothing to clean"));
    let again = cloud.push("shop", 1);
    assert_eq!(again, old);
    assert!(cloud.is_whole("cloud/shop", &old), "what is pushed again after it was collected is whole");
}

#[test]
fn only_the_newest_tags_stay_where_a_number_is_set() {
    let cloud = Cloud::start(0, "tags = 1", "");
    let first = cloud.push("shop:v1", 1);
    let latest = cloud.push("shop:latest", 2);
    std::thread::sleep(Duration::from_millis(20));
    let newest = cloud.push("shop:v3", 3);
    cloud.gc(&[]);
    assert!(!cloud.is_whole("cloud/shop", &first));
    assert!(cloud.is_whole("cloud/shop", &latest) && cloud.is_whole("cloud/shop", &newest));
}

#[test]
fn what_came_just_now_may_be_a_push_under_way_and_stays() {
    let cloud = Cloud::start(60, "", "");
    let (old, _) = (cloud.push("shop", 1), cloud.push("shop", 2));
    let before = cloud.bytes();
    let lines = cloud.gc(&[]);
    assert_eq!((cloud.bytes(), &lines.last().unwrap()["freed"]), (before, &0.into()), "{lines:?}");
    assert!(cloud.is_whole("cloud/shop", &old));
}

#[test]
fn pushes_while_the_registry_is_cleaned_arrive_whole() {
    let cloud = Cloud::start(0, "", "sleep 2; exec docker-registry garbage-collect CONFIG");
    (1..4).for_each(|number| _ = cloud.push("shop", number));
    let directories: Vec<_> = (10..14).map(|number| (number, cloud.application("busy", number))).collect();
    let cleaning = cloud.command(&["gc"]).spawn().unwrap();
    within("the registry is read-only", || cloud.is_read_only());
    let pushes: Vec<_> = directories
        .iter()
        .map(|(number, directory)| {
            let name = format!("busy:v{number}");
            cloud.command(&["create-image", &name, directory, "--push", "--json"]).spawn().unwrap()
        })
        .collect();
    let cleaned = cleaning.wait_with_output().unwrap();
    assert!(cleaned.status.success(), "{}", said(&cleaned));
    for push in pushes {
        let output = push.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        let said = said(&output);
        let digest = format!("sha256:{}", &said.split("\"digest\": \"sha256:").nth(1).unwrap()[..64]);
        assert!(cloud.is_whole("cloud/busy", &digest), "{digest}");
    }
}

#[test]
fn a_manager_killed_while_the_registry_is_cleaned_first_makes_it_take_images_again() {
    let mut cloud = Cloud::start(0, "", "sleep 3; exec docker-registry garbage-collect CONFIG");
    (1..3).for_each(|number| _ = cloud.push("shop", number));
    let mut cleaning = cloud.command(&["gc"]).spawn().unwrap();
    within("the registry is read-only", || cloud.is_read_only());
    let mut manager = cloud.manager.take().unwrap();
    manager.kill().unwrap();
    manager.wait().unwrap();
    assert!(!cleaning.wait().unwrap().success(), "who waited is told");
    assert!(cloud.is_read_only());
    cloud.serve();
    within("the registry takes images", || !cloud.is_read_only());
    let digest = cloud.push("shop", 3);
    assert!(cloud.is_whole("cloud/shop", &digest));
    assert!(cloud.ok(&["gc"]).contains("freed"));
}

#[test]
fn a_registry_that_could_not_be_started_anew_is_told_and_put_right_when_it_can() {
    let cloud = Cloud::start(0, "", "docker-registry garbage-collect CONFIG && touch $(dirname CONFIG)/broken");
    (1..3).for_each(|number| _ = cloud.push("shop", number));
    let output = cloud.matrix(&["gc"]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("may still take no images"), "{}", said(&output));
    assert!(cloud.is_read_only() && cloud.ok(&["status"]).contains("may still take no images"));
    fs::remove_file(cloud.at("broken")).unwrap();
    within("the registry takes images", || !cloud.is_read_only());
    let digest = cloud.push("shop", 3);
    assert!(cloud.is_whole("cloud/shop", &digest));
}
