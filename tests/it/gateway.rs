//! The gateway against a real varnishd on loopback, with real backends: load, switch, discard, come back, refuse.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use matrix::{
    manager::{
        config::{self, Config},
        gateway::{Applied, Gateway, GatewayError},
    },
    model::{AppName, InstanceId, Port, Route},
    routing::{AppRouting, Backend, Probe, RoutingTable},
};
use tokio_util::sync::CancellationToken;

/// A varnishd of our own with its folder; gone when dropped.
pub(crate) struct Edge {
    dir: tempfile::TempDir,
    pub(crate) port: u16,
    child: Option<Child>,
}

impl Edge {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir_in("/tmp").unwrap();
        // varnishd's compiler runs as another user.
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let mut edge = Self { dir, port: free_port(), child: None };
        edge.boot();
        edge
    }
    pub(crate) fn workdir(&self) -> PathBuf {
        self.dir.path().join("varnish")
    }
    /// Starts varnishd without any VCL.
    fn boot(&mut self) {
        let spawn = |edge: &Self| {
            Command::new("/usr/sbin/varnishd")
                .args(["-F", "-f", "", "-n"])
                .arg(edge.workdir())
                .args(["-a", &format!("127.0.0.1:{}", edge.port)])
                .args(matrix::routing::vcl::varnishd_parameters())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap()
        };
        let mut child = spawn(self);
        until("varnishd is up", || {
            // The child of one that was killed may hold the port for a moment longer.
            if child.try_wait().unwrap().is_some() {
                child = spawn(self);
            }
            self.admin(&["ping"]).is_some()
        });
        self.child = Some(child);
    }
    fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }
    pub(crate) fn admin(&self, args: &[&str]) -> Option<String> {
        let out = Command::new("varnishadm").arg("-n").arg(self.workdir()).args(args).output().unwrap();
        out.status.success().then(|| String::from_utf8(out.stdout).unwrap())
    }
    fn ours(&self) -> Vec<String> {
        let list = self.admin(&["vcl.list"]).unwrap();
        let ours = |w: &&str| w.starts_with("matrix_") && *w != matrix::routing::vcl::NOTHING;
        let line = |l: &str| l.split_whitespace().find(ours).map(str::to_owned);
        list.lines().filter(|l| !l.starts_with("discarded")).filter_map(line).collect()
    }
    pub(crate) fn config(&self) -> Config {
        Config {
            run: self.dir.path().join("run"),
            varnish: Some(config::Varnish { workdir: self.workdir(), port: None }),
            ..Config::default()
        }
    }
    pub(crate) fn get(&self, path: &str) -> (u16, String) {
        get(self.port, path)
    }
}
impl Drop for Edge {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            _ = Command::new("kill").arg(child.id().to_string()).status();
            _ = child.wait();
        }
    }
}

pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(20), "not within 20 s: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
    start.elapsed()
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Status and body of a GET; status 0 where the connection failed.
fn get(port: u16, path: &str) -> (u16, String) {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: cloud.example\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    let Ok(text) = ask() else { return (0, String::new()) };
    let status = text.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    (status, text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}

/// A server that answers every request with its name, and those to `/slow` only when told to.
pub(crate) struct Server {
    pub(crate) port: u16,
    release: Arc<AtomicBool>,
    pub(crate) served: Arc<AtomicU32>,
}

pub(crate) fn server(name: &'static str) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (release, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let (may, count) = (Arc::clone(&release), Arc::clone(&served));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { return };
            let (may, count) = (Arc::clone(&may), Arc::clone(&count));
            std::thread::spawn(move || serve(stream, name, &may, &count));
        }
    });
    Server { port, release, served }
}

fn serve(mut stream: TcpStream, name: &str, may: &AtomicBool, count: &AtomicU32) {
    let mut seen = Vec::new();
    let mut chunk = [0; 4096];
    while let Ok(n @ 1..) = stream.read(&mut chunk) {
        seen.extend_from_slice(&chunk[..n]);
        while let Some(end) = seen.windows(4).position(|w| w == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&seen[..end]).into_owned();
            seen.drain(..end + 4);
            while head.contains("/slow") && !may.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(5));
            }
            if !head.contains("/health") {
                count.fetch_add(1, Ordering::Relaxed);
            }
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len());
            // A probe reads until the connection ends.
            if stream.write_all(answer.as_bytes()).is_err() || head.contains("Connection: close") {
                return;
            }
        }
    }
}

fn backend(app: &str, slot: u32, port: u16) -> Backend {
    Backend {
        instance: format!("{app}.{slot}").parse::<InstanceId>().unwrap(),
        address: [127, 0, 0, 1].into(),
        port: Port::new(port).unwrap(),
        probe: Some(Probe { path: "/health".to_owned(), host: None, status: 200, interval_ms: 200, timeout_ms: 200 }),
        serving: true,
    }
}

pub(crate) fn app(name: &str, ports: &[u16]) -> (AppName, AppRouting) {
    let key = |(at, port): (usize, &u16)| {
        let slot = u32::try_from(at).unwrap() + 1;
        (format!("{name}-{slot}-{port}"), backend(name, slot, *port))
    };
    let routing = AppRouting {
        routes: vec![Route { host: None, path: format!("/{name}").parse().unwrap() }],
        strip_path: false,
        cache_seconds: None,
        idempotent: false,
        backends: ports.iter().enumerate().map(key).collect(),
        canary: None,
    };
    (name.parse().unwrap(), routing)
}

pub(crate) fn table(apps: impl IntoIterator<Item = (AppName, AppRouting)>) -> RoutingTable {
    RoutingTable { apps: apps.into_iter().collect::<BTreeMap<_, _>>() }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_changed_is_loaded_and_the_rest_forgotten() {
    let edge = Edge::start();
    let (a, b, c) = (server("a"), server("b"), server("c"));
    let stop = CancellationToken::new();
    let gateway = Gateway::start(&edge.config(), stop.clone());

    edge.admin(&["vcl.inline", "foreign", "\"vcl 4.1; backend default none;\""]).unwrap();
    let both = table([app("shop", &[a.port, b.port]), app("blog", &[c.port])]);
    let applied = gateway.apply(&both).await.unwrap();
    assert_eq!((applied.loaded.len(), applied.labels, applied.root), (3, 2, true), "{applied:?}");
    assert!(gateway.state().borrow().up);
    assert_eq!(edge.get("/blog/x"), (200, "c".to_owned()));
    let turns: Vec<String> = (0..6).map(|_| edge.get("/shop").1).collect();
    assert!(turns.windows(2).all(|w| w[0] != w[1]), "both answer in turn: {turns:?}");
    assert_eq!(edge.get("/shopping").0, 404);

    assert_eq!(gateway.apply(&both).await.unwrap(), Applied::default(), "nothing changed");

    let grown = table([app("shop", &[a.port, b.port, c.port]), app("blog", &[c.port])]);
    let applied = gateway.apply(&grown).await.unwrap();
    assert_eq!((applied.loaded.len(), applied.labels, applied.root), (1, 1, false), "{applied:?}");
    assert_eq!(applied.discarded.len(), 1, "{applied:?}");

    let applied = gateway.apply(&table([app("shop", &[a.port, b.port, c.port])])).await.unwrap();
    assert_eq!((applied.loaded.len(), applied.root), (1, true), "{applied:?}");
    assert_eq!(applied.discarded.len(), 3, "the root before, the label and its VCL: {applied:?}");
    assert_eq!(edge.get("/blog/x").0, 404);

    // A manager that starts anew finds its VCL there.
    stop.cancel();
    let later = Gateway::start(&edge.config(), CancellationToken::new());
    let applied = later.apply(&table([app("shop", &[a.port, b.port, c.port])])).await.unwrap();
    assert_eq!(applied, Applied::default());
    let applied = later.apply(&table([app("blog", &[c.port])])).await.unwrap();
    assert_eq!(applied.discarded.len(), 3, "what the manager before has left: {applied:?}");
    assert_eq!(edge.ours().len(), 3, "{:?}", edge.ours());
    assert!(edge.admin(&["vcl.list"]).unwrap().contains("foreign"), "others' VCL stays");
    let files = std::fs::read_dir(edge.config().run.join("vcl")).unwrap();
    let nothing = |name: &std::ffi::OsStr| name.to_string_lossy().starts_with(matrix::routing::vcl::NOTHING);
    assert_eq!(files.filter(|f| !nothing(&f.as_ref().unwrap().file_name())).count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_varnishd_that_comes_back_empty_soon_serves_again() {
    let mut edge = Edge::start();
    let a = server("a");
    let gateway = Gateway::start(&edge.config(), CancellationToken::new());
    // What the compiler takes on this machine now is not the gateway's time.
    let compiling = Instant::now();
    gateway.apply(&table([app("shop", &[a.port]), app("news", &[a.port])])).await.unwrap();
    let compiling = compiling.elapsed();
    edge.kill();
    let mut state = gateway.state();
    tokio::time::timeout(Duration::from_secs(5), state.wait_for(|s| !s.up)).await.unwrap().unwrap();
    // A table that comes meanwhile is loaded as well.
    let error = gateway.apply(&table([app("shop", &[a.port]), app("blog", &[a.port])])).await.unwrap_err();
    assert!(error.to_string().contains("does not answer"), "{error}");
    edge.boot();
    let took = until("it serves again", || edge.get("/blog").0 == 200);
    assert!(took < Duration::from_secs(3) + 3 * compiling, "{took:?}; at first {compiling:?}");
    assert!(gateway.state().borrow().up || until("it is up", || state.borrow_and_update().up) < Duration::from_secs(5));

    // The child alone: varnishd itself starts another, with all its VCL.
    let pids = edge.admin(&["pid"]).unwrap();
    let worker = pids.split("Worker:").nth(1).unwrap().trim().to_owned();
    assert!(Command::new("kill").args(["-9", &worker]).status().unwrap().success());
    assert!(until("the child serves again", || edge.get("/shop").0 == 200) < Duration::from_secs(10));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_prepared_is_not_compiled_again_and_serves_at_once() {
    let edge = Edge::start();
    let a = server("a");
    let port = free_port();
    let gateway = Gateway::start(&edge.config(), CancellationToken::new());
    gateway.apply(&table([app("shop", &[])])).await.unwrap();
    let mut coming = table([app("shop", &[port])]);
    for routing in coming.apps.values_mut() {
        for backend in routing.backends.values_mut() {
            backend.probe =
                Some(Probe { path: "/".into(), host: None, status: 200, interval_ms: 200, timeout_ms: 5000 });
        }
    }
    gateway.prepare(&coming).await;
    // Nobody listens there yet, and nobody is asked: probes would call it sick.
    tokio::time::sleep(Duration::from_millis(800)).await;
    assert_eq!(edge.get("/shop").0, 503);
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let a_port = a.port;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut there = TcpStream::connect(("127.0.0.1", a_port)).unwrap();
                let (mut here, mut back) = (stream.try_clone().unwrap(), there.try_clone().unwrap());
                let mut stream = stream;
                std::thread::spawn(move || std::io::copy(&mut back, &mut stream));
                _ = std::io::copy(&mut here, &mut there);
                _ = there.shutdown(std::net::Shutdown::Both);
            });
        }
    });
    let applied = gateway.apply(&coming).await.unwrap();
    assert_eq!(applied.loaded, Vec::<String>::new(), "compiled before");
    assert_eq!(edge.get("/shop").0, 200);
    // A new application's root is ready as well, and its label stands for nothing until then.
    let more = table([app("shop", &[a.port]), app("blog", &[a.port])]);
    gateway.prepare(&more).await;
    assert_eq!((edge.get("/shop").0, edge.get("/blog").0), (200, 404));
    let applied = gateway.apply(&more).await.unwrap();
    assert_eq!((applied.loaded, applied.labels, applied.root), (Vec::new(), 2, true));
    assert_eq!(edge.get("/blog"), (200, "a".to_owned()));
    gateway.prepare(&table([app("shop", &[a.port, port]), app("blog", &[a.port]), app("docs", &[a.port])])).await;
    // Out of use, it goes like any other: the next start finds no VCL that has probed what was not there.
    let applied = gateway.apply(&table([app("shop", &[])])).await.unwrap();
    assert!(applied.discarded.iter().any(|name| name.contains("vcl_")), "{applied:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_never_ends_its_connections_stops_no_change() {
    if !root() {
        return eprintln!("only root may end other programs' connections: not tried");
    }
    let edge = Edge::start();
    let a = server("a");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let frozen = listener.local_addr().unwrap().port();
    // It never ends a connection, also when the other side has.
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                while stream.read(&mut [0; 4096]).is_ok_and(|length| length > 0) {
                    _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nf");
                }
                std::thread::sleep(Duration::from_secs(1000));
            });
        }
    });
    // Another one takes six seconds: for so long, its request holds the VCL it came by.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let slow = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            _ = stream.read(&mut [0; 4096]);
            std::thread::sleep(Duration::from_secs(6));
            _ = stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\ns");
        }
    });
    let gateway = Gateway::start(&edge.config(), CancellationToken::new());
    let quick = |begun: Instant, most| assert!(begun.elapsed() < Duration::from_secs(most), "{:?}", begun.elapsed());
    gateway.apply(&table([app("shop", &[frozen])])).await.unwrap();
    assert_eq!(edge.get("/shop"), (200, "f".to_owned()));
    let begun = Instant::now();
    gateway.apply(&table([app("shop", &[a.port])])).await.unwrap();
    gateway.apply(&table([app("shop", &[frozen, slow])])).await.unwrap();
    quick(begun, 5);

    let port = edge.port;
    let asks = move || {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.write_all(b"POST /shop HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.pop()
    };
    let asked = [std::thread::spawn(asks), std::thread::spawn(asks)];
    tokio::time::sleep(Duration::from_secs(1)).await;
    gateway.apply(&table([app("shop", &[a.port])])).await.unwrap();
    let mut answers = asked.map(|asked| asked.join().unwrap());
    answers.sort();
    assert_eq!(answers, [Some('f'), Some('s')]);
    // Only now are both forgotten, long after they left.
    let begun = Instant::now();
    gateway.apply(&table([app("shop", &[a.port]), app("blog", &[a.port])])).await.unwrap();
    quick(begun, 9);
    assert_eq!(edge.get("/blog"), (200, "a".to_owned()));
}

fn root() -> bool {
    std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self").unwrap()) == 0
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_vcl_changes_nothing_and_says_why() {
    let edge = Edge::start();
    let a = server("a");
    let gateway = Gateway::start(&edge.config(), CancellationToken::new());
    gateway.apply(&table([app("shop", &[a.port])])).await.unwrap();
    let before = edge.ours();

    // A status no probe can expect: the compiler's to refuse.
    let mut refused = table([app("blog", &[a.port]), app("shop", &[a.port, a.port])]);
    let probe = refused.apps.values_mut().last().unwrap().backends.values_mut().last().unwrap().probe.as_mut().unwrap();
    probe.status = 0;
    let error = gateway.apply(&refused).await.unwrap_err();
    assert!(
        matches!(&error, GatewayError::Compile { what, message } if what == "shop" && message.contains("expected_response")),
        "{error}"
    );
    assert_eq!(edge.ours(), before, "nothing of it stays behind");
    assert_eq!(edge.get("/shop").0, 200);
    assert!(gateway.state().borrow().error.as_deref().unwrap().contains("shop"));

    // A value that could leave its string never reaches the compiler.
    let mut hostile = table([app("shop", &[a.port])]);
    let probe = hostile.apps.values_mut().last().unwrap().backends.values_mut().last().unwrap().probe.as_mut().unwrap();
    probe.path = "/\"; } sub vcl_recv { return (synth(200)); } #".to_owned();
    assert!(matches!(gateway.apply(&hostile).await.unwrap_err(), GatewayError::Render(_)));

    gateway.apply(&table([app("shop", &[a.port])])).await.unwrap();
    assert!(gateway.state().borrow().error.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_under_traffic_lose_nothing() {
    let edge = Edge::start();
    let (a, b) = (server("a"), server("b"));
    let gateway = Gateway::start(&edge.config(), CancellationToken::new());
    gateway.apply(&table([app("shop", &[a.port, b.port])])).await.unwrap();
    let (stop, port) = (Arc::new(AtomicBool::new(false)), edge.port);
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                let (mut good, mut bad) = (0, Vec::new());
                while !stop.load(Ordering::Relaxed) {
                    match get(port, "/shop/x") {
                        (200, _) => good += 1,
                        other => bad.push(other),
                    }
                }
                (good, bad)
            })
        })
        .collect();
    for ports in [&[a.port][..], &[a.port, b.port], &[b.port], &[b.port, a.port], &[a.port], &[a.port, b.port]] {
        gateway.apply(&table([app("shop", ports), app("blog", &ports[..1])])).await.unwrap();
        gateway.apply(&table([app("shop", ports)])).await.unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    let (good, bad) = clients.into_iter().fold((0, Vec::new()), |(good, mut bad), client| {
        let (g, b) = client.join().unwrap();
        bad.extend(b);
        (good + g, bad)
    });
    assert!(bad.is_empty(), "{} lost of {}: {bad:?}", bad.len(), good + bad.len());
    assert!(good > 500, "there was traffic: {good}");
}

/// Whoever has seen one application's new release sees no other's old one afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn a_release_of_several_applications_is_switched_to_in_one_step() {
    let edge = Edge::start();
    let (old, new) = (server("old"), server("new"));
    let of = |port: u16| table(["blog", "docs", "mail", "shop"].map(|name| app(name, &[port])));
    let config = edge.config();
    let mut stop = CancellationToken::new();
    let mut gateway = Gateway::start(&config, stop.clone());
    gateway.apply(&of(old.port)).await.unwrap();
    let port = edge.port;
    for turn in 0..12 {
        let (to, word) = if turn % 2 == 0 { (new.port, "new") } else { (old.port, "old") };
        if turn == 6 {
            // A manager that starts anew finds out which labels are in use.
            stop.cancel();
            stop = CancellationToken::new();
            gateway = Gateway::start(&config, stop.clone());
            gateway.apply(&of(old.port)).await.unwrap();
        }
        let seen = Arc::new(AtomicBool::new(false));
        let clients: Vec<_> = (0..4)
            .map(|client: usize| {
                let seen = Arc::clone(&seen);
                std::thread::spawn(move || {
                    let mut mixed = 0;
                    for round in 0..400 {
                        let before = seen.load(Ordering::SeqCst);
                        let (status, body) = get(port, ["/blog", "/docs", "/mail", "/shop"][(client + round) % 4]);
                        assert_eq!(status, 200);
                        let switched = body == word;
                        mixed += u32::from(before && !switched);
                        seen.fetch_or(switched, Ordering::SeqCst);
                        if before && round > 40 {
                            break;
                        }
                    }
                    mixed
                })
            })
            .collect();
        if turn % 3 == 0 {
            gateway.prepare(&of(to)).await;
        }
        gateway.apply(&of(to)).await.unwrap();
        let mixed: u32 = clients.into_iter().map(|client| client.join().unwrap()).sum();
        assert_eq!(mixed, 0, "turn {turn}: the old release answered after the new one had");
        assert_eq!(edge.get("/shop"), (200, word.to_owned()));
        assert_eq!(gateway.apply(&of(to)).await.unwrap(), Applied::default());
    }
    let ours = edge.ours();
    assert_eq!(ours.len(), 1 + 4 * 3, "a root, and of each application its VCL and two labels: {ours:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_flight_ends_where_it_began() {
    let edge = Edge::start();
    let (a, b) = (server("a"), server("b"));
    let gateway = Gateway::start(&edge.config(), CancellationToken::new());
    let (with_a, with_b) = (table([app("shop", &[a.port])]), table([app("shop", &[b.port])]));
    let container = format!("shop-1-{}", a.port);
    gateway.apply(&with_a).await.unwrap();
    assert_eq!(gateway.in_flight(&container).await.unwrap(), Some(0));
    let port = edge.port;
    let slow = std::thread::spawn(move || get(port, "/shop/slow"));
    until("it is in flight", || edge.admin(&["ping"]).is_some() && slow_begun(&edge));
    // Drained: gone from routing, while its request goes on. Then back again: the name of that VCL is still in use.
    gateway.apply(&with_b).await.unwrap();
    assert_eq!(gateway.in_flight(&container).await.unwrap(), Some(1));
    assert_eq!(edge.get("/shop/new"), (200, "b".to_owned()));
    gateway.apply(&with_a).await.unwrap();
    assert_eq!(edge.get("/shop/new"), (200, "a".to_owned()));
    gateway.apply(&with_b).await.unwrap();
    a.release.store(true, Ordering::Relaxed);
    assert_eq!(slow.join().unwrap(), (200, "a".to_owned()));
    assert_eq!(a.served.load(Ordering::Relaxed), 2);
    assert!(matches!(gateway.in_flight(&container).await.unwrap(), None | Some(0)));
}

fn slow_begun(edge: &Edge) -> bool {
    let out =
        Command::new("varnishstat").arg("-n").arg(edge.workdir()).args(["-1", "-f", "VBE.*.conn"]).output().unwrap();
    String::from_utf8(out.stdout).unwrap().lines().any(|l| l.split_whitespace().nth(1) == Some("1"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_is_taken_out_without_a_load() {
    let edge = Edge::start();
    let (a, b) = (server("a"), server("b"));
    let gateway = Gateway::start(&edge.config(), CancellationToken::new());
    let both = table([app("shop", &[a.port, b.port])]);
    gateway.apply(&both).await.unwrap();
    let container = format!("shop-1-{}", a.port);
    gateway.set_health(&container, true).await.unwrap();
    assert!((0..6).all(|_| edge.get("/shop").1 == "b"));
    // It is remembered over a load.
    gateway.apply(&table([app("shop", &[a.port, b.port, a.port])])).await.unwrap();
    let third: Vec<_> = (0..6).map(|_| edge.get("/shop").1).collect();
    gateway.apply(&both).await.unwrap();
    assert!((0..6).all(|_| edge.get("/shop").1 == "b"), "{third:?}");
    gateway.set_health(&container, false).await.unwrap();
    assert!((0..6).any(|_| edge.get("/shop").1 == "a"));
    gateway.set_health("nobody-1", true).await.unwrap();
}

/// At a fixed port the next instance comes where the last one refused connections a moment before.
#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_refused_is_asked_again_at_once() {
    let edge = Edge::start();
    let gateway = Gateway::start(&edge.config(), CancellationToken::new());
    for _ in 0..3 {
        let port = free_port();
        let (name, mut shop) = app("shop", &[port]);
        shop.backends.values_mut().for_each(|backend| backend.probe = None);
        gateway.apply(&table([(name, shop)])).await.unwrap();
        assert_eq!(edge.get("/shop").0, 503, "nobody is there yet");
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                serve(stream, "next", &AtomicBool::new(true), &AtomicU32::new(0));
            }
        });
        assert_eq!(edge.get("/shop"), (200, "next".to_owned()));
    }
}

/// What drains leaves the turn with a word: while requests are served, VCL is compiled as seldom as it can be.
#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_the_table_is_out_without_a_load_and_stays_out() {
    let mut edge = Edge::start();
    let (a, b) = (server("a"), server("b"));
    let stop = CancellationToken::new();
    let gateway = Gateway::start(&edge.config(), stop.clone());
    let both = table([app("shop", &[a.port, b.port])]);
    let container = format!("shop-1-{}", a.port);
    let mut one = both.clone();
    one.apps.values_mut().for_each(|app| _ = app.backends.remove(&container));
    let turns = |edge: &Edge| -> Vec<_> { (0..6).map(|_| edge.get("/shop").1).collect() };
    let only_b = vec!["b"; 6];

    gateway.apply(&both).await.unwrap();
    let loaded = edge.ours();
    assert_eq!(gateway.apply(&one).await.unwrap(), Applied::default());
    assert_eq!(turns(&edge), only_b);
    assert_eq!(gateway.state().borrow().active.as_deref(), Some(&one));
    // Whoever calls it well does not bring it back.
    gateway.set_health(&container, false).await.unwrap();
    assert_eq!(turns(&edge), only_b);

    // It is needed after all.
    assert_eq!(gateway.apply(&both).await.unwrap(), Applied::default());
    assert!(turns(&edge).contains(&"a".to_owned()));
    assert_eq!(edge.ours(), loaded);

    // A varnishd that comes back empty does not get it again.
    gateway.apply(&one).await.unwrap();
    edge.kill();
    edge.boot();
    until("it serves again", || edge.get("/shop").0 == 200);
    assert_eq!(turns(&edge), only_b);

    // The last one that serves has VCL of its own: its page says that nobody does.
    let mut none = one.clone();
    none.apps.values_mut().for_each(|app| app.backends.clear());
    assert_eq!(gateway.apply(&none).await.unwrap().loaded.len(), 1);
    assert_eq!(edge.get("/shop").0, 503);
    gateway.apply(&both).await.unwrap();

    // Another manager knows nothing of it, and neither takes it back nor leaves it behind.
    gateway.apply(&one).await.unwrap();
    stop.cancel();
    let later = Gateway::start(&edge.config(), CancellationToken::new());
    assert_eq!(later.apply(&one).await.unwrap().loaded.len(), 1);
    assert_eq!(turns(&edge), only_b);
    later.apply(&both).await.unwrap();
    assert!(turns(&edge).contains(&"a".to_owned()));

    // When nothing else brings other VCL, it is forgotten all the same.
    later.apply(&one).await.unwrap();
    let id = matrix::routing::vcl::backend_id(&container);
    let names = |edge: &Edge| edge.admin(&["backend.list", "matrix_*.*"]).unwrap().contains(&id);
    assert!(names(&edge));
    until("VCL without it", || !names(&edge));
    assert_eq!(turns(&edge), only_b);
    assert_eq!(edge.ours().len(), 3);
}

/// Whoever leaves the table drains: for requests that began before it left, it may be the only one that is left.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_out_still_serves_requests_that_began_before() {
    let edge = Edge::start();
    let (b, c) = (server("b"), server("c"));
    b.release.store(true, Ordering::Relaxed);
    // Takes a request, and ends its connection without an answer when it is told to.
    let dies = TcpListener::bind("127.0.0.1:0").unwrap();
    let a = dies.local_addr().unwrap().port();
    let (taken, end) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(false)));
    let (count, over) = (Arc::clone(&taken), Arc::clone(&end));
    std::thread::spawn(move || {
        for mut stream in dies.incoming().flatten() {
            let (count, over) = (Arc::clone(&count), Arc::clone(&over));
            std::thread::spawn(move || {
                let mut head = [0; 4096];
                let read = stream.read(&mut head).unwrap_or(0);
                if String::from_utf8_lossy(&head[..read]).contains("/health") {
                    _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
                    return;
                }
                count.fetch_add(u32::from(read > 0), Ordering::Relaxed);
                while !over.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(5));
                }
            });
        }
    });
    let gateway = Gateway::start(&edge.config(), CancellationToken::new());
    let mut first = table([app("shop", &[a, b.port, c.port])]);
    let without = |table: &RoutingTable, gone: &str| {
        let mut table = table.clone();
        table.apps.values_mut().for_each(|app| app.backends.retain(|name, _| !name.starts_with(gone)));
        table
    };
    // On a loaded machine probes are slow.
    let backends = first.apps.values_mut().flat_map(|app| app.backends.values_mut());
    backends.for_each(|backend| backend.probe.as_mut().unwrap().timeout_ms = 5000);
    let all = first.clone();
    first = without(&first, "shop-3");
    gateway.apply(&first).await.unwrap();
    let port = edge.port;
    let asked: Vec<_> = (0..2).map(|_| std::thread::spawn(move || get(port, "/shop/slow"))).collect();
    until("one of them waits there", || taken.load(Ordering::Relaxed) == 1);

    // Another VCL, and then fewer by a word.
    gateway.apply(&without(&all, "shop-1")).await.unwrap();
    assert_eq!(gateway.apply(&without(&without(&all, "shop-1"), "shop-2")).await.unwrap(), Applied::default());
    assert!((0..6).all(|_| edge.get("/shop").1 == "c"));
    end.store(true, Ordering::Relaxed);
    for asked in asked {
        assert_eq!(asked.join().unwrap(), (200, "b".to_owned()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whom_probes_call_sick_is_told_and_overrules_end_with_their_manager() {
    let edge = Edge::start();
    let (a, nobody) = (server("a"), free_port());
    let stop = CancellationToken::new();
    let gateway = Gateway::start(&edge.config(), stop.clone());
    let mut both = table([app("shop", &[a.port, nobody])]);
    // Nobody refuses at once; on a loaded machine the other one is slow.
    let backends = both.apps.values_mut().flat_map(|app| app.backends.values_mut());
    backends.for_each(|backend| backend.probe.as_mut().unwrap().timeout_ms = 5000);
    gateway.apply(&both).await.unwrap();
    let mut unhealthy = gateway.unhealthy();
    let sick = tokio::time::timeout(Duration::from_secs(20), unhealthy.wait_for(|sick| !sick.is_empty())).await;
    let names: Vec<_> = sick.unwrap().unwrap().keys().cloned().collect();
    assert_eq!(names, [format!("shop-2-{nobody}")]);
    let said = |port| gateway.sees([127, 0, 0, 1].into()).into_iter().find(|s| s.port.get() == port).unwrap().probe;
    assert_eq!((said(a.port), said(nobody)), (Some(true), Some(false)));
    assert!(gateway.sees([127, 0, 0, 2].into()).is_empty());

    // A manager that was killed had overruled it; who comes after does not know that.
    gateway.set_health(&format!("shop-1-{}", a.port), true).await.unwrap();
    assert_eq!(edge.get("/shop").0, 503);
    stop.cancel();
    let later = Gateway::start(&edge.config(), CancellationToken::new());
    later.apply(&both).await.unwrap();
    assert_eq!(edge.get("/shop"), (200, "a".to_owned()));
}

/// It says nothing while it waits for a backend's end; nobody must go by what it said before any longer than that.
#[tokio::test(flavor = "multi_thread")]
async fn a_varnishd_that_was_silent_is_asked_right_after() {
    let edge = Edge::start();
    let (a, status) = (server("a"), Arc::new(AtomicU32::new(200)));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (port, says) = (listener.local_addr().unwrap().port(), Arc::clone(&status));
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            _ = stream.read(&mut [0; 4096]);
            let status = says.load(Ordering::Relaxed);
            _ = write!(stream, "HTTP/1.1 {status} x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let gateway = Gateway::start(&edge.config(), CancellationToken::new());
    gateway.apply(&table([app("shop", &[a.port, port])])).await.unwrap();
    let mut unhealthy = gateway.unhealthy();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(unhealthy.borrow().is_empty());
    let command_line = edge.child.as_ref().unwrap().id().to_string();
    let signal = |name: &str| assert!(Command::new("kill").args([name, &command_line]).status().unwrap().success());
    signal("-STOP");
    tokio::time::sleep(Duration::from_secs(3)).await;
    status.store(500, Ordering::Relaxed);
    signal("-CONT");
    let sick = tokio::time::timeout(Duration::from_secs(15), unhealthy.wait_for(|sick| !sick.is_empty())).await;
    let names: Vec<_> = sick.unwrap().unwrap().keys().cloned().collect();
    assert_eq!(names, [format!("shop-2-{port}")]);
}

#[test]
fn the_tools_are_there() {
    for tool in ["/usr/sbin/varnishd", "/usr/bin/varnishadm", "/usr/bin/varnishtest"] {
        assert!(Path::new(tool).exists(), "{tool} is missing: apt-get install varnish");
    }
}

/// The figure: one application's change among a hundred of ten instances each. Compiling them all takes a while.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes half a minute; run with --run-ignored"]
async fn one_of_a_hundred_changes_within_a_second() {
    let edge = Edge::start();
    let a = server("a");
    let gateway = Gateway::start(&edge.config(), CancellationToken::new());
    let ports = |n: usize| vec![a.port; n];
    let mut hundred = table((0..100).map(|n| app(&format!("app{n}"), &ports(10))));
    for backend in hundred.apps.values_mut().flat_map(|r| r.backends.values_mut()) {
        backend.probe.as_mut().unwrap().interval_ms = 5000;
    }
    let start = Instant::now();
    gateway.apply(&hundred).await.unwrap();
    println!("cold load of 100 applications of 10 instances: {:?}", start.elapsed());
    for n in [9, 8, 7] {
        hundred.apps.extend([app("app50", &ports(n))]);
        let start = Instant::now();
        let applied = gateway.apply(&hundred).await.unwrap();
        let took = start.elapsed();
        println!("change of one: {took:?}");
        assert_eq!(applied.loaded.len(), 1);
        assert!(took < Duration::from_secs(1), "{took:?}");
    }
    let routed = app("late", &ports(10));
    hundred.apps.insert(routed.0, routed.1);
    let start = Instant::now();
    gateway.apply(&hundred).await.unwrap();
    println!("one more, with its route: {:?}", start.elapsed());
}
