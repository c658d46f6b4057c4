//! A registry that wants https with an authority of its own, a name and a password: Debian's, as a user meets it.

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

struct Secure {
    process: Child,
    files: TempDir,
    address: SocketAddr,
}

const PASSWORD: &str = "correct-horse";

impl Secure {
    fn start() -> Self {
        let files = tempfile::tempdir().unwrap();
        let program = |name: &str, args: &str| {
            let output = Command::new(name).args(args.split_whitespace()).current_dir(files.path()).output();
            let output = output.unwrap_or_else(|e| panic!("{name} is not installed: {e}"));
            assert!(output.status.success(), "{name} {args}: {}", said(&output));
        };
        let made = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2";
        program("openssl", &format!("req -x509 {made} -subj /CN=authority -keyout ca.key -out ca.pem"));
        program("openssl", "req -newkey rsa:2048 -nodes -subj /CN=registry -keyout key.pem -out request.pem");
        fs::write(files.path().join("names"), "subjectAltName=IP:127.0.0.1,DNS:localhost\n").unwrap();
        program(
            "openssl",
            "x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out cert.pem",
        );
        program("htpasswd", &format!("-Bbc users shop {PASSWORD}"));
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let here = files.path().display();
        let configuration = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {here}/r}}}}\n\
             auth: {{htpasswd: {{realm: shop, path: {here}/users}}}}\n\
             http: {{addr: \"{address}\", tls: {{certificate: {here}/cert.pem, key: {here}/key.pem}}}}\n"
        );
        fs::write(files.path().join("r.yml"), configuration).unwrap();
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(files.path().join("r.yml"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is installed");
        let registry = Self { process, files, address };
        let until = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(address).is_err() {
            assert!(Instant::now() < until, "the registry does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        registry
    }

    /// `matrix …` told of this registry, and these of its environment.
    fn matrix(&self, args: &[&str], environment: &[(&str, &str)]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_matrix"));
        command.args(args).current_dir(self.files.path()).env("XDG_CACHE_HOME", self.files.path().join(".cache"));
        for name in ["MATRIX_REGISTRY_USER", "MATRIX_REGISTRY_PASSWORD", "MATRIX_REGISTRY_CA", "SOURCE_DATE_EPOCH"] {
            command.env_remove(name);
        }
        command.env("MATRIX_REGISTRY", format!("https://{}", self.address)).envs(environment.iter().copied());
        command.output().unwrap()
    }
}

impl Drop for Secure {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn an_image_goes_to_a_registry_with_its_own_authority_and_password() {
    let registry = Secure::start();
    let app = registry.files.path().join("app");
    fs::create_dir(&app).unwrap();
    fs::write(app.join("image.toml"), "base = \"scratch\"\ncommand = [\"/run\"]\nport = 8080\n").unwrap();
    fs::write(app.join("run"), "x").unwrap();
    let user = ("MATRIX_REGISTRY_USER", "shop");
    let password = ("MATRIX_REGISTRY_PASSWORD", PASSWORD);
    let ca = ("MATRIX_REGISTRY_CA", "ca.pem");
    let push = ["create-image", "shop", "app", "--push", "--output", "shop.tar", "--json"];

    let pushed = registry.matrix(&push, &[user, password, ca]);
    assert_eq!(pushed.status.code(), Some(0), "{}", said(&pushed));
    let pushed: serde_json::Value = serde_json::from_slice(&pushed.stdout).unwrap();
    let again = registry.matrix(&["install-image", "shop.tar", "--registry-ca", "ca.pem", "--json"], &[user, password]);
    let again: serde_json::Value =
        serde_json::from_slice(&again.stdout).unwrap_or_else(|e| panic!("{e}: {}", said(&again)));
    assert_eq!((&again["unchanged"], &again["digest"]), (&true.into(), &pushed["digest"]));
    let source = format!("docker://{}/cloud/shop:latest", registry.address);
    // A folder of its own: skopeo wants a certificate's key beside it.
    let trust = registry.files.path().join("trust");
    fs::create_dir(&trust).unwrap();
    fs::copy(registry.files.path().join("ca.pem"), trust.join("ca.crt")).unwrap();
    let mut skopeo = Command::new("skopeo");
    skopeo.args(["inspect", "--cert-dir", ".", "--creds", &format!("shop:{PASSWORD}"), &source]);
    let seen = skopeo.current_dir(&trust).output().unwrap();
    let seen: serde_json::Value =
        serde_json::from_slice(&seen.stdout).unwrap_or_else(|e| panic!("{e}: {}", said(&seen)));
    assert_eq!(seen["Digest"], pushed["digest"]);

    let install = ["install-image", "shop.tar"];
    let wrong = ("MATRIX_REGISTRY_PASSWORD", "battery-staple");
    for (environment, code, parts) in [
        (vec![user, wrong, ca], 1, ["password", "MATRIX_REGISTRY_PASSWORD"]),
        (vec![ca], 1, ["password", "MATRIX_REGISTRY_PASSWORD"]),
        (vec![user, password], 1, ["certificate", "--registry-ca"]),
        (vec![user, password, ("MATRIX_REGISTRY_CA", "users")], 2, ["users holds no certificate", "PEM"]),
        (vec![user, password, ("MATRIX_REGISTRY_CA", "none.pem")], 2, ["cannot read none.pem", "PEM"]),
    ] {
        let begun = Instant::now();
        let refused = registry.matrix(&install, &environment);
        let text = said(&refused);
        assert_eq!(refused.status.code(), Some(code), "{text}");
        assert!(parts.iter().all(|part| text.contains(part)), "{text}");
        assert!(!text.contains("battery-staple") && !text.contains(PASSWORD), "{text}");
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}: {text}", begun.elapsed());
    }
}
