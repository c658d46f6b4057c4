//! The rendered VCL under varnishtest (`tests/vcl/*.vtc`), and what any valid table's VCL must be.

use std::{net::TcpListener, process::Command};

use matrix::{
    model::{AppName, Port, Route},
    routing::{AppRouting, Backend, Canary, RoutingTable, vcl},
};

/// Free ports: `p1` to `p5` for a script's servers, and one where nobody listens: held, as another test would take it.
struct Ports {
    all: Vec<u16>,
    dead: tokio::net::TcpSocket,
}

impl Ports {
    fn new() -> Self {
        let held: Vec<_> = (0..5).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let dead = tokio::net::TcpSocket::new_v4().unwrap();
        dead.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        Self { dead, all: held.iter().map(|l| l.local_addr().unwrap().port()).collect() }
    }
    fn p(&self, number: usize) -> u16 {
        self.all[number - 1]
    }
    fn dead(&self) -> u16 {
        self.dead.local_addr().unwrap().port()
    }
}

fn routes(texts: &[&str]) -> Vec<Route> {
    let route = |text: &&str| {
        let (host, path) = text.split_at(text.find('/').unwrap());
        Route { host: (!host.is_empty()).then(|| host.parse().unwrap()), path: path.parse().unwrap() }
    };
    let mut routes: Vec<_> = texts.iter().map(route).collect();
    routes.sort();
    routes
}

fn app(name: &str, paths: &[&str], ports: &[u16]) -> (AppName, AppRouting) {
    let backend = |(at, port): (usize, &u16)| {
        let backend = Backend {
            instance: format!("{name}.{}", at + 1).parse().unwrap(),
            address: [127, 0, 0, 1].into(),
            port: Port::new(*port).unwrap(),
            probe: None,
            serving: true,
        };
        (format!("{name}-{}", at + 1), backend)
    };
    let routing = AppRouting {
        routes: routes(paths),
        strip_path: false,
        cache_seconds: None,
        idempotent: false,
        backends: ports.iter().enumerate().map(backend).collect(),
        canary: None,
    };
    (name.parse().unwrap(), routing)
}

fn with((name, mut routing): (AppName, AppRouting), change: impl FnOnce(&mut AppRouting)) -> (AppName, AppRouting) {
    change(&mut routing);
    (name, routing)
}

/// Renders the table and runs `tests/vcl/NAME.vtc` over it.
fn varnishtest<const N: usize>(name: &str, ports: &Ports, apps: [(AppName, AppRouting); N]) {
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    for (name, text) in vcl::all(&RoutingTable { apps: apps.into_iter().collect() }).unwrap() {
        std::fs::write(dir.path().join(format!("{name}.vcl")), text).unwrap();
    }
    let script = format!("{}/tests/vcl/{name}.vtc", env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new("varnishtest");
    // varnishtest hands them to a shell.
    let parameters = vcl::varnishd_parameters().map(|p| if p == "-p" { p.to_owned() } else { format!("'{p}'") });
    command.args(["-t", "60"]).args(parameters).arg("-D").arg(format!("vcl={}", dir.path().display()));
    for number in 1..=5 {
        command.arg("-D").arg(format!("p{number}={}", ports.p(number)));
    }
    let out = command.arg(script).output().expect("varnishtest: apt-get install varnish");
    let noise = |line: &&str| {
        !["vsl|", "CLI", "macro def", "http[", "hdr|", "txresp|", "txreq|"].iter().any(|n| line.contains(n))
    };
    let log = String::from_utf8_lossy(&out.stdout).lines().filter(noise).collect::<Vec<_>>().join("\n");
    assert!(out.status.success(), "{log}");
}

#[test]
fn host_and_longest_path_choose() {
    let ports = Ports::new();
    varnishtest(
        "routing",
        &ports,
        [
            app("shop", &["/shop"], &[ports.p(1)]),
            app("shop-admin", &["/shop/admin"], &[ports.p(2)]),
            app("www", &["www.cloud.example/"], &[ports.p(3)]),
            app("wild", &["*.cloud.example/static"], &[ports.p(4)]),
        ],
    );
}

#[test]
fn headers_and_paths_arrive_as_they_should() {
    let ports = Ports::new();
    let shop = app("shop", &["/shop", "cloud.example/store"], &[ports.p(1)]);
    varnishtest("headers", &ports, [with(shop, |r| r.strip_path = true), app("whole", &["/whole"], &[ports.p(2)])]);
}

#[test]
fn nobody_there_says_when_to_come_back() {
    let ports = Ports::new();
    let none = with(app("none", &["/none"], &[ports.p(1)]), |r| {
        r.backends.values_mut().for_each(|b| b.serving = false);
    });
    varnishtest("unavailable", &ports, [none, app("dead", &["/dead"], &[ports.dead(), ports.dead()])]);
}

#[test]
fn large_headers_pass() {
    let ports = Ports::new();
    varnishtest("large", &ports, [app("shop", &["/shop"], &[ports.p(1)])]);
}

#[test]
fn another_instance_answers() {
    let ports = Ports::new();
    varnishtest(
        "retry",
        &ports,
        [
            app("shop", &["/shop"], &[ports.dead(), ports.p(1)]),
            app("wide", &["/wide"], &[ports.dead(), ports.dead(), ports.p(1)]),
        ],
    );
}

#[test]
fn a_body_arrives_once() {
    let ports = Ports::new();
    let safe = with(app("safe", &["/safe"], &[ports.p(3), ports.p(4)]), |r| r.idempotent = true);
    varnishtest("once", &ports, [app("shop", &["/shop"], &[ports.p(1), ports.p(2)]), safe]);
}

#[test]
fn websockets_go_through() {
    let ports = Ports::new();
    varnishtest("websocket", &ports, [with(app("shop", &["/shop"], &[ports.p(1)]), |r| r.strip_path = true)]);
}

#[test]
fn only_what_may_be_kept_is_kept() {
    let ports = Ports::new();
    let keeping = |name: &str, path: &str, port| {
        with(app(name, &[path], &[port]), |r| {
            r.strip_path = true;
            r.cache_seconds = Some(60);
        })
    };
    varnishtest(
        "cache",
        &ports,
        [
            app("shop", &["/shop"], &[ports.p(1)]),
            keeping("kept", "/kept", ports.p(2)),
            keeping("other", "/other", ports.p(3)),
        ],
    );
}

#[test]
fn a_silent_instance_is_not_waited_for() {
    let ports = Ports::new();
    let silent = app("shop", &["/shop"], &[ports.p(1), ports.p(2)]);
    // No probe of this file's servers: its timeout alone is wanted.
    varnishtest(
        "silent",
        &ports,
        [with(silent, |r| {
            let probe = |path: &str, interval_ms| matrix::routing::Probe {
                path: path.to_owned(),
                host: None,
                status: 200,
                interval_ms,
                timeout_ms: 300,
            };
            let serving = Backend { serving: false, probe: Some(probe("/", 60_000)), ..r.backends["shop-1"].clone() };
            r.backends.insert("shop-3".to_owned(), serving);
        })],
    );
}

#[test]
fn what_is_kept_is_kept_as_long_and_for_those_it_says() {
    let ports = Ports::new();
    let keeping = |app| with(app, |r: &mut AppRouting| r.cache_seconds = Some(60));
    varnishtest(
        "keep",
        &ports,
        [
            keeping(app("kept", &["/kept"], &[ports.p(1)])),
            keeping(app("moved", &["/moved"], &[ports.p(2)])),
            with(keeping(app("two", &["/two", "/deux"], &[ports.p(3)])), |r| r.strip_path = true),
            app("shop", &["/shop"], &[ports.p(4)]),
        ],
    );
}

#[test]
fn the_last_instance_has_time_and_a_new_one_has_credit() {
    let ports = Ports::new();
    let new = with(app("new", &["/new"], &[ports.p(3)]), |r| {
        let path = "/probe".to_owned();
        let probe = matrix::routing::Probe { path, host: None, status: 200, interval_ms: 60_000, timeout_ms: 5000 };
        r.backends.values_mut().for_each(|b| b.probe = Some(probe.clone()));
    });
    varnishtest("patience", &ports, [app("shop", &["/shop"], &[ports.p(1), ports.p(2)]), new]);
}

#[test]
fn nobody_waits_for_another() {
    let ports = Ports::new();
    varnishtest("together", &ports, [app("shop", &["/shop"], &[ports.p(1), ports.p(2)])]);
}

/// The backends of a table of [`app`]s that are new, and their share.
fn canary(share: u32, names: &[&str]) -> Canary {
    Canary { share, backends: names.iter().map(|name| (*name).to_owned()).collect() }
}

#[test]
fn what_is_tried_out_may_fail() {
    let ports = Ports::new();
    let shop = app("shop", &["/shop"], &[ports.p(1), ports.dead()]);
    let all = app("all", &["/all"], &[ports.p(1), ports.dead()]);
    let gone = app("gone", &["/gone"], &[ports.dead(), ports.p(2)]);
    varnishtest(
        "canary",
        &ports,
        [
            with(shop, |r| r.canary = Some(canary(50, &["shop-2"]))),
            with(all, |r| r.canary = Some(canary(100, &["all-2"]))),
            with(gone, |r| r.canary = Some(canary(1, &["gone-2"]))),
        ],
    );
}

#[test]
fn only_what_is_tried_out_is_written_otherwise() {
    let (name, plain) = app("shop", &["/shop"], &[5050, 5051, 5052]);
    let text = vcl::app(&name, &plain).unwrap();
    for (share, names) in [(10, &[][..]), (100, &["shop-1", "shop-2", "shop-3"]), (50, &["elsewhere"])] {
        let one_kind = AppRouting { canary: Some(canary(share, names)), ..plain.clone() };
        assert_eq!(vcl::app(&name, &one_kind).unwrap(), text, "there is nothing to share out: {names:?}");
    }
    let tried = AppRouting { canary: Some(canary(20, &["shop-3"])), ..plain };
    let tried = vcl::app(&name, &tried).unwrap();
    let new: Vec<_> = tried.lines().filter(|line| !text.contains(line)).collect();
    insta::assert_snapshot!("canary", new.join("\n"));
}

#[test]
fn the_text_as_a_whole() {
    let shop = app("web-shop", &["/shop", "www.cloud.example/"], &[5050, 5051]);
    let shop = with(shop, |r| {
        r.strip_path = true;
        r.cache_seconds = Some(30);
        for backend in r.backends.values_mut() {
            backend.probe = Some(matrix::routing::Probe {
                path: "/health?deep=1".to_owned(),
                host: Some("shop".to_owned()),
                status: 204,
                interval_ms: 1500,
                timeout_ms: 300,
            });
        }
    });
    let many = (10..24).map(|n| app(&format!("app{n}"), &[&format!("/app{n}")], &[]));
    let table = RoutingTable { apps: many.chain([shop]).collect() };
    let texts = vcl::all(&table).unwrap();
    insta::assert_snapshot!("root", texts[vcl::ROOT]);
    insta::assert_snapshot!("app", texts["web-shop"]);
}

/// `matrix vcl`, with a manager at this address.
fn matrix(manager: &std::path::Path, args: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_matrix"));
    let out = command.arg("--manager").arg(manager).arg("vcl").args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (out.status.code().unwrap(), text(out.stdout), text(out.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_sees_what_runs_and_what_would() {
    use matrix::manager::{config::Config, gateway::Gateway};
    let dir = tempfile::tempdir().unwrap();
    let (socket, plan) = (dir.path().join("m.sock"), dir.path().join("applications.plan"));
    std::fs::write(&plan, "shop node25 5050 8080\nblog node25 5051 8080\n").unwrap();
    let plan = plan.to_str().unwrap().to_owned();

    let (code, _, err) = matrix(&socket, &[]);
    assert_eq!(code, 3, "{err}");
    let (code, out, err) = matrix(&socket, &[&plan]);
    assert!(code == 0 && out.contains("vcl(matrix_app_blog)") && err.contains("cannot be reached"), "{out}{err}");

    let gateway = Gateway::start(&Config::default(), tokio_util::sync::CancellationToken::new());
    gateway.apply(&RoutingTable { apps: [app("shop", &["/shop"], &[5050])].into_iter().collect() }).await.unwrap();
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    tokio::spawn(async move { axum::serve(listener, matrix::api::vcl::router(Some(gateway))).await });
    let (code, out, err) = matrix(&socket, &[]);
    assert!(code == 0 && out.contains("vcl(matrix_app_shop)") && out.contains("\"5050\""), "{out}{err}");
    // What would run: the new application has no instance yet, the old one keeps its own.
    let (_, out, err) = matrix(&socket, &[&plan]);
    assert!(out.contains("Application blog: 0") && out.contains("Application shop: 1") && err.is_empty(), "{out}{err}");
    let (_, out, _) = matrix(&socket, &["--app", "shop"]);
    assert!(out.contains("Application shop") && !out.contains("(root)"), "{out}");
    let (code, out, err) = matrix(&socket, &["--app", "blog"]);
    assert!(code == 2 && out.is_empty() && err.contains("these have: shop"), "{err}");
    std::fs::write(dir.path().join("bad.plan"), "shop node25 5050\n").unwrap();
    let (code, out, err) = matrix(&socket, &[dir.path().join("bad.plan").to_str().unwrap()]);
    assert!(code == 2 && out.is_empty() && err.contains("bad.plan"), "{out}{err}");
}

/// Names, hosts and paths at the edge of what is valid.
mod hostile {
    use std::net::IpAddr;

    use matrix::routing::Probe;
    use proptest::{collection::vec, option, prelude::*};

    use super::*;

    fn name() -> impl Strategy<Value = AppName> {
        "[a-z0-9]([a-z0-9_-]{0,8}[a-z0-9])?|[a-z0-9][_-]{61}[a-z0-9]|synth|root|default|b|vcl|if|label"
            .prop_map(|text| text.parse().unwrap())
    }
    fn host() -> impl Strategy<Value = String> {
        r"(\*\.)?[a-z0-9]([a-z0-9-]{0,4}[a-z0-9])?(\.[a-z]{1,3}){0,2}"
    }
    fn path() -> impl Strategy<Value = String> {
        prop_oneof![
            1 => Just("/".to_owned()),
            6 => vec("[A-Za-z0-9_~-][A-Za-z0-9._~-]{0,4}|[.]{3}|[\\-~]", 1..4).prop_map(|parts| format!("/{}", parts.join("/"))),
        ]
    }
    fn probe() -> impl Strategy<Value = Probe> {
        // Visible ASCII without quotes or backslash.
        ("/[!#-\\[\\]-~]{0,20}", option::of("[a-z0-9.:-]{1,10}"), 100u16..600, 1u32..90_000, 1u32..90_000).prop_map(
            |(path, host, status, interval_ms, timeout_ms)| Probe { path, host, status, interval_ms, timeout_ms },
        )
    }
    fn backend() -> impl Strategy<Value = (String, Backend)> {
        let address = prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(IpAddr::from)];
        let backend =
            (address, 1u16.., option::of(probe()), any::<bool>()).prop_map(|(address, port, probe, serving)| {
                let instance = "any.1".parse().unwrap();
                Backend { instance, address, port: Port::new(port).unwrap(), probe, serving }
            });
        // A container's name is the engine's to limit, not ours.
        ("[a-zA-Z0-9_.-]{1,70}|.{1,80}", backend)
    }
    fn routing() -> impl Strategy<Value = AppRouting> {
        let routes = vec((option::of(host()), path()), 1..6).prop_map(|routes| {
            let mut routes: Vec<_> = routes.into_iter().map(|(h, p)| h.unwrap_or_default() + &p).collect();
            routes.sort();
            routes.dedup();
            super::routes(&routes.iter().map(String::as_str).collect::<Vec<_>>())
        });
        let options = (any::<bool>(), any::<bool>(), option::of(any::<u32>()));
        let backends = vec((backend(), any::<bool>()), 0..4);
        (routes, options, option::of(1u32..=100), backends).prop_map(
            |(routes, (strip_path, idempotent, cache_seconds), share, backends)| {
                let new = backends.iter().filter(|(_, new)| *new).map(|((name, _), _)| name.clone()).collect();
                let backends = backends.into_iter().map(|(backend, _)| backend).collect();
                let canary = share.map(|share| Canary { share, backends: new });
                AppRouting { routes, strip_path, cache_seconds, idempotent, backends, canary }
            },
        )
    }
    fn table() -> impl Strategy<Value = RoutingTable> {
        vec((name(), routing()), 1..12).prop_map(|apps| RoutingTable { apps: apps.into_iter().collect() })
    }

    /// Varnish's own compiler, then tcc: where that fails a gateway would take gcc, and ten times the time.
    fn compiles(text: &str) -> Result<(), String> {
        let dir = tempfile::tempdir_in("/tmp").unwrap();
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let file = dir.path().join("some.vcl");
        std::fs::write(&file, text).unwrap();
        let out = Command::new("/usr/sbin/varnishd")
            .arg("-C")
            .arg("-n")
            .arg(dir.path().join("n"))
            .arg("-f")
            .arg(&file)
            .args(vcl::varnishd_parameters())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        if !out.status.success() {
            return Err(said.lines().take(20).collect::<Vec<_>>().join("\n"));
        }
        let c = dir.path().join("vcl.c");
        // Before it, varnishd says that parameters were set.
        std::fs::write(&c, &said[said.find("/*").unwrap()..]).unwrap();
        let mut tcc = Command::new("tcc");
        let out = tcc
            .arg("-shared")
            .arg("-o")
            .arg(dir.path().join("vcl.so"))
            .arg(&c)
            .output()
            .expect("tcc: apt-get install tcc");
        if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned()) }
    }

    /// The labels a root names stand for nothing here: a page in their place.
    fn without_labels(root: &str) -> String {
        let line = |l: &str| {
            if l.trim().starts_with("return (vcl(") { "return (synth(200));".to_owned() } else { l.to_owned() }
        };
        root.lines().map(line).collect::<Vec<_>>().join("\n")
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 30, ..ProptestConfig::default() })]

        #[test]
        fn every_valid_table_compiles(table in table()) {
            let mut texts = vcl::all(&table).unwrap();
            let root = texts.remove(vcl::ROOT).unwrap();
            prop_assert_eq!(compiles(&without_labels(&root)), Ok(()), "{}", root);
            // One is enough: the compiler takes its time.
            let (_, text) = texts.into_iter().max_by_key(|(_, text)| text.len()).unwrap();
            prop_assert_eq!(compiles(&text), Ok(()), "{}", text);
        }
    }

    /// Names that differ where an escape, the case or a cut could make them one.
    #[test]
    fn what_looks_alike_is_told_apart() {
        let long = "a".repeat(200);
        for (a, b) in
            [("a-b", "a_2db"), ("a_", "a_5f"), ("A", "a"), ("", "_"), (&*format!("{long}x"), &*format!("{long}y"))]
        {
            assert_ne!(vcl::backend_id(a), vcl::backend_id(b), "{a} and {b}");
        }
        let shop: AppName = "shop".parse().unwrap();
        assert_ne!(vcl::app_version(&shop, "one"), vcl::app_version(&shop, "two"));
        assert_ne!(vcl::root_version("one"), vcl::root_version("two"));
    }

    /// Which of these routes a request takes, in plain words: exact hosts, the longest wildcard, any host; the longest path.
    fn best<'a, T>(routes: impl Iterator<Item = (&'a Route, T)>, host: &str, url: &str) -> Option<T> {
        let fits = |route: &Route| {
            let class = match &route.host {
                None => (0, 0),
                Some(own) => match own.wildcard_suffix() {
                    None => (own.as_str() == host).then_some((2, 0))?,
                    Some(suffix) => {
                        let rest = host.strip_suffix(suffix)?.strip_suffix('.')?;
                        (!rest.is_empty()).then_some((1, suffix.len()))?
                    }
                },
            };
            let path = route.path.as_str();
            let below = |rest: &str| rest.is_empty() || rest.starts_with(['/', '?']);
            (route.path.is_root() || url.strip_prefix(path).is_some_and(below)).then_some((class, path.len()))
        };
        // Of equals the first.
        let all = routes.filter_map(|(route, what)| Some((fits(route)?, what)));
        all.reduce(|best, next| if next.0 > best.0 { next } else { best }).map(|(_, what)| what)
    }

    /// The first of the lines `wanted` knows that a request comes to, following the conditions of the text.
    fn follow<T>(text: &str, host: &str, url: &str, wanted: impl Fn(&str) -> Option<T>) -> Option<T> {
        let (mut skipped, mut taken) = (0, false);
        for line in text.lines().map(str::trim).skip_while(|line| *line != "sub vcl_recv {").skip(1) {
            if skipped > 0 {
                skipped += i32::from(line.ends_with('{')) - i32::from(line.starts_with('}'));
            } else if let Some((subject, pattern)) = line.strip_suffix("\") {").and_then(|l| l.split_once(" ~ \"")) {
                let key = format!("{host}{url}");
                let subject = if subject.ends_with("req.url") { url } else { &key };
                let over = taken && line.starts_with("else");
                let enters = !over && regex::Regex::new(pattern).unwrap().is_match(subject);
                taken = over || enters;
                skipped = i32::from(!enters);
            } else if let Some(found) = wanted(line) {
                return Some(found);
            } else if line.starts_with("sub ") {
                return None;
            }
        }
        None
    }

    /// Few letters, so that much is another's beginning, end or neighbour.
    fn close() -> impl Strategy<Value = (RoutingTable, Vec<(String, String)>)> {
        let host = || r"(\*\.)?[ab](\.[ab]|-a|xb){0,2}";
        let path = || r"(/[ab](\.a|-a|xa|~)?){1,3}|/";
        let routes = vec((option::of(host()), path()), 1..8);
        let name = "[a-z]-?[a-z]";
        let table = vec((name, routes, any::<bool>()), 1..8).prop_map(|apps| {
            let apps = apps.into_iter().map(|(name, routes, strip)| {
                let routes: Vec<_> = routes.into_iter().map(|(h, p)| h.unwrap_or_default() + &p).collect();
                let routes: Vec<_> = routes.iter().map(String::as_str).collect();
                with(app(&name, &routes, &[8080]), |routing| routing.strip_path = strip)
            });
            RoutingTable { apps: apps.collect() }
        });
        let request = (r"[ab](\.[ab]|-a|xb){0,3}", r"(/[ab](\.a|-a|xa|~)?){1,3}(/|\?a|a)?|/|/a\.b/a");
        (table, vec(request, 1..12))
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

        /// However the tests are ordered and nested, a request comes where the words say.
        #[test]
        fn the_text_chooses_as_the_words_say((table, requests) in close()) {
            let root = vcl::root(&table).unwrap();
            for (host, url) in &requests {
                let routes = table.apps.iter().flat_map(|(name, app)| app.routes.iter().map(move |r| (r, vcl::label(name))));
                let label = |line: &str| line.strip_prefix("return (vcl(")?.strip_suffix("));").map(str::to_owned);
                prop_assert_eq!(follow(&root, host, url, label), best(routes, host, url), "{}{}\n{}", host, url, root);
                for (name, routing) in table.apps.iter().filter(|(_, routing)| routing.strip_path) {
                    let text = vcl::app(name, routing).unwrap();
                    let prefix = |l: &str| l.strip_prefix("set req.http.X-Forwarded-Prefix = \"")?.strip_suffix("\";").map(str::to_owned);
                    let routes = routing.routes.iter().map(|route| (route, &route.path));
                    let cut = best(routes, host, url).filter(|path| !path.is_root()).map(ToString::to_string);
                    prop_assert_eq!(follow(&text, host, url, prefix), cut, "{}{}\n{}", host, url, text);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_distinct_is_called_so(a in "\\PC{0,90}|[a-z._A-Z-]{0,6}", b in "\\PC{0,90}|[a-z._A-Z-]{0,6}", x in name(), y in name()) {
            prop_assert_eq!(a == b, vcl::backend_id(&a) == vcl::backend_id(&b));
            prop_assert!(vcl::backend_id(&a).bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_'));
            prop_assert_eq!(x == y, vcl::label(&x) == vcl::label(&y));
            prop_assert_ne!(vcl::label(&x), vcl::app_version(&y, "text"));
        }

        /// What could leave its place is refused, whatever it is.
        #[test]
        fn nothing_leaves_its_string(path in ".{0,8}[\"\n\r\0-\u{1f}\u{7f}-\u{10ffff}].{0,8}", in_host in any::<bool>()) {
            let mut shop = app("shop", &["/shop"], &[8080]);
            let (path, host) = if in_host { ("/".to_owned(), Some(path)) } else { (path, None) };
            let probe = Probe { path, host, status: 200, interval_ms: 1, timeout_ms: 1 };
            shop.1.backends.values_mut().for_each(|b| b.probe = Some(probe.clone()));
            let refused = vcl::all(&RoutingTable { apps: [shop].into_iter().collect() }).is_err();
            prop_assert!(refused);
        }
    }
}
