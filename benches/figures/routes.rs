//! One application's routes changed while a hundred others are there: a varnishd on loopback, no containers.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener},
    os::unix::fs::PermissionsExt,
    process::{Child, Command, Stdio},
    thread,
};

use matrix::{
    manager::{
        config::{self, Config},
        gateway::Gateway,
    },
    model::{AppName, InstanceId, Port, Route},
    routing::{AppRouting, Backend, Probe, RoutingTable, vcl},
};
use tokio_util::sync::CancellationToken;

use crate::{
    report::{Figure, Goal, Other, Report, Unit, note},
    rig::{Res, get, noisy, run, timed, until},
};

const APPS: usize = 100;
const INSTANCES: u8 = 10;

/// A varnishd that ends with us.
struct Edge {
    child: Child,
    directory: tempfile::TempDir,
    port: u16,
}

impl Edge {
    fn start() -> Res<Self> {
        let directory = tempfile::tempdir()?;
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755))?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let workdir = directory.path().join("varnish");
        let mut varnishd = Command::new("varnishd");
        varnishd.args(["-F", "-f", "", "-s", "malloc,64m", "-a", &format!("127.0.0.1:{port}"), "-n"]).arg(&workdir);
        varnishd.args(vcl::varnishd_parameters()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let edge = Self { child: varnishd.spawn()?, directory, port };
        until("varnishd answers", 10, || {
            Ok(run(Command::new("varnishadm").arg("-n").arg(&workdir).arg("ping")).is_ok())
        })?;
        Ok(edge)
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        let id = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        _ = nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGTERM);
        _ = self.child.wait();
    }
}

/// A server whose answer is one word.
fn server(word: &'static str) -> Res<u16> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 2048];
            _ = stream.read(&mut request);
            let length = word.len();
            _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{word}");
        }
    });
    Ok(port)
}

fn table(ports: &[u16], changed: u16) -> Res<RoutingTable> {
    let app = |number: usize| -> Res<(AppName, AppRouting)> {
        let name = AppName::try_from(format!("app{number:03}"))?;
        let port = if number == 0 { changed } else { ports[0] };
        let backends = (1..=INSTANCES).map(|at| -> Res<(String, Backend)> {
            let instance: InstanceId = format!("{name}.{at}").parse()?;
            let probe = Probe { path: "/".into(), host: None, status: 200, interval_ms: 5000, timeout_ms: 1000 };
            let backend = Backend {
                instance,
                address: Ipv4Addr::LOCALHOST.into(),
                port: Port::new(port).ok_or("port 0")?,
                probe: Some(probe),
                serving: true,
            };
            Ok((format!("bench-{name}-{at}"), backend))
        });
        let routing = AppRouting {
            routes: vec![Route { host: None, path: format!("/{name}").parse()? }],
            strip_path: false,
            cache_seconds: None,
            idempotent: false,
            backends: backends.collect::<Res<BTreeMap<_, _>>>()?,
            canary: None,
        };
        Ok((name, routing))
    };
    Ok(RoutingTable { apps: (0..APPS).map(app).collect::<Res<_>>()? })
}

pub fn measure(report: &mut Report) -> Res<()> {
    let ports = [server("one")?, server("two")?];
    let edge = Edge::start()?;
    let config = Config {
        run: edge.directory.path().join("run"),
        varnish: Some(config::Varnish { workdir: edge.directory.path().join("varnish"), port: None }),
        ..Config::default()
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let stop = CancellationToken::new();
    let _stops = stop.clone().drop_guard();
    let gateway = runtime.block_on(async { Gateway::start(&config, stop) });
    let apply = |table: RoutingTable| runtime.block_on(gateway.apply(&table)).map_err(Box::from).map(drop);
    let whole = timed(|| apply(table(&ports, ports[0])?))?;
    let (mut took, mut doubted) = (Vec::new(), 0);
    let address = format!("127.0.0.1:{}", edge.port);
    for round in 1..=7 {
        doubted += usize::from(noisy());
        let next = ports[round % 2];
        let word = ["one", "two"][round % 2];
        took.push(timed(|| {
            apply(table(&ports, next)?)?;
            until("the change is seen", 10, || Ok(get(&address, "/app000/").is_ok_and(|(_, body)| body == word)))
        })?);
    }
    report.add(Figure {
        name: format!("route change of one of {APPS} applications of {INSTANCES}"),
        unit: Unit::Millis,
        ours: took.iter().map(|seconds| seconds * 1000.0).collect(),
        other: Other::Limit(1000.0),
        goal: Goal::Below(1.0),
        noisy: doubted,
    });
    note(&format!("all of them at once, into an empty varnishd: {whole:.1} s"));
    Ok(())
}
