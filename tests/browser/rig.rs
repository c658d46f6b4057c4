//! A manager and a browser for a test, both ended when dropped.

use std::{
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use thirtyfour::prelude::*;

/// An application by a digest: what is pinned is looked up in no registry.
pub fn plan(app: &str, replicas: u32) -> String {
    let digest = "ab".repeat(32);
    format!("[apps.{app}]\nimage = \"{app}@sha256:{digest}\"\nreplicas = {replicas}\n")
}

/// A `matrix serve` of its own, with one machine nobody answers at.
#[derive(Debug)]
pub struct Manager {
    folder: tempfile::TempDir,
    address: SocketAddr,
    child: Option<Child>,
}

/// What a command did.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub said: String,
}

impl Ran {
    #[track_caller]
    pub fn ok(self) {
        assert_eq!(self.code, Some(0), "{}", self.said);
    }
}

fn matrix() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_matrix"));
    command.env_remove("MATRIX_LAB").env_remove("MATRIX_MANAGER").env_remove("MATRIX_TOKEN").stdin(Stdio::null());
    command
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Manager {
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().display();
        let (listen, ssh) = (free_port(), free_port());
        let config = format!(
            "cloud = \"browser\"\nstate = \"{at}/state\"\nrun = \"{at}/run\"\nlisten = [\"127.0.0.1:{listen}\"]\n\
             leases = false\n[ssh]\nidentity = \"{at}/key\"\nport = {ssh}\n\
             [[nodes]]\nname = \"node1\"\naddress = \"127.0.0.1\"\n"
        );
        std::fs::write(folder.path().join("matrix.toml"), config).unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], listen));
        let mut manager = Self { folder, address, child: None };
        manager.start_again();
        manager
    }

    pub fn start_again(&mut self) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.folder.path().join("log")).unwrap();
        let mut command = matrix();
        command.args(["serve", "--config"]).arg(self.folder.path().join("matrix.toml"));
        self.child = Some(command.stdout(Stdio::null()).stderr(log).spawn().unwrap());
        let begun = Instant::now();
        while TcpStream::connect(self.address).is_err() {
            let log = || std::fs::read_to_string(self.folder.path().join("log")).unwrap();
            assert!(begun.elapsed() < Duration::from_secs(10), "the manager does not start:\n{}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// As by a power cut: it says good-bye to nobody.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub fn page(&self) -> String {
        format!("http://{}/", self.address)
    }

    pub fn deploy(&self, plan: &str, message: &str) -> Ran {
        let file = self.folder.path().join("applications.plan");
        std::fs::File::create(&file).unwrap().write_all(plan.as_bytes()).unwrap();
        let socket = self.folder.path().join("run/matrix.sock");
        let mut command = matrix();
        command.arg("--manager").arg(socket);
        let output = command.arg("deploy").arg(file).args(["--message", message]).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        Ran { code: output.status.code(), said: String::from_utf8_lossy(&said).into_owned() }
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Chromium without a window, with a profile of its own. Fields end in this order: session, driver, profile.
#[derive(Debug)]
pub struct Browser {
    session: WebDriver,
    _driver: Driver,
    _profile: tempfile::TempDir,
}

#[derive(Debug)]
struct Driver(Child);

impl Drop for Driver {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

const QUIET: &[&str] = &[
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1280,1000",
];

impl Browser {
    /// None where this machine has no Chromium: the packages' script has said so.
    pub async fn open(page: &str) -> Option<Self> {
        let spawned = Command::new("chromedriver").arg("--port=0").stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let Ok(child) = spawned else {
            eprintln!("chromedriver is not here: the page is not tested");
            return None;
        };
        let mut driver = Driver(child);
        let mut lines = BufReader::new(driver.0.stdout.take().unwrap()).lines();
        let port = lines.find_map(|line| {
            let line = line.unwrap();
            line.strip_suffix('.').unwrap_or(&line).rsplit_once("successfully on port ")?.1.parse::<u16>().ok()
        });
        let port = port.expect("chromedriver's port");
        // It stops when nobody reads what it says.
        std::thread::spawn(move || lines.for_each(drop));
        // The client of the driver wants one, also for plain HTTP; a second install fails and is fine.
        _ = rustls::crypto::ring::default_provider().install_default();
        let profile = tempfile::tempdir().unwrap();
        let mut capabilities = DesiredCapabilities::chrome();
        let folder = format!("--user-data-dir={}", profile.path().display());
        let scheme = std::env::var("MATRIX_SCHEME").map(|n| format!("--blink-settings=preferredColorScheme={n}"));
        for argument in QUIET.iter().copied().chain([folder.as_str()]).chain(scheme.as_deref()) {
            capabilities.add_arg(argument).unwrap();
        }
        capabilities.set_browser_log_level(thirtyfour::LoggingPrefsLogLevel::All).unwrap();
        let session = WebDriver::new(format!("http://127.0.0.1:{port}"), capabilities).await.unwrap();
        let browser = Self { session, _driver: driver, _profile: profile };
        browser.open_again(page).await;
        Some(browser)
    }

    pub async fn open_again(&self, page: &str) {
        self.session.goto(page).await.unwrap();
    }

    pub async fn close(self) {
        let Self { session, _driver, _profile } = self;
        session.quit().await.unwrap();
    }

    pub async fn run(&self, script: &str) -> serde_json::Value {
        self.session.execute(script, vec![]).await.unwrap().json().clone()
    }

    pub async fn title(&self) -> String {
        self.session.title().await.unwrap()
    }

    /// What a reader sees there; nothing where it is hidden.
    pub async fn text(&self, selector: &str) -> String {
        let text = self.run(&format!("return document.querySelector('{selector}').innerText")).await;
        let hidden = self.run(&format!("return document.querySelector('{selector}').offsetParent === null")).await;
        // What is fixed or sticky has a parent as long as it is shown.
        if hidden == true { String::new() } else { text.as_str().unwrap().to_owned() }
    }

    /// Waits until a reader sees this there.
    #[track_caller]
    pub fn until<'a>(
        &'a self,
        selector: &'a str,
        wanted: &'a str,
        within: Duration,
    ) -> impl Future<Output = ()> + use<'a> {
        let caller = std::panic::Location::caller();
        self.wait(selector, within, move |text| text.contains(wanted), move || format!("no {wanted:?} at {caller}"))
    }

    /// Waits until there is nothing to see there.
    pub async fn gone(&self, selector: &str, within: Duration) {
        self.wait(selector, within, str::is_empty, || "it stays".to_owned()).await;
    }

    async fn wait(&self, selector: &str, within: Duration, good: impl Fn(&str) -> bool, what: impl Fn() -> String) {
        let begun = Instant::now();
        loop {
            let text = self.text(selector).await;
            if good(&text) {
                return;
            }
            assert!(begun.elapsed() < within, "{selector}: {} in\n{text}", what());
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }

    /// What the browser found wrong: a policy broken, a file missing, a script that failed.
    pub async fn complaints(&self) -> Vec<String> {
        self.session.browser_log().await.unwrap().into_iter().map(|entry| entry.message).collect()
    }

    pub async fn width(&self, pixels: u32) {
        self.session.set_window_rect(0, 0, pixels, 900).await.unwrap();
    }

    /// `MATRIX_PHOTOGRAPHS=DIR` keeps pictures, to look at.
    pub async fn photograph(&self, name: &str) {
        if let Ok(folder) = std::env::var("MATRIX_PHOTOGRAPHS") {
            let file: PathBuf = Path::new(&folder).join(format!("{name}.png"));
            self.session.screenshot(&file).await.unwrap();
        }
    }
}
