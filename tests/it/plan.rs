//! Plans as a user meets them: what is accepted, what is said of the rest, and the laws both forms keep.

use std::{fmt::Write as _, path::PathBuf};

use assert_cmd::Command;
use matrix::plan::{self, Placement};

fn corpus(kind: &str) -> Vec<PathBuf> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/plans").join(kind);
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    files
}

fn matrix(args: &[&str]) -> std::process::Output {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/plans");
    Command::cargo_bin("matrix").unwrap().current_dir(folder).args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// What this thread has used: unlike the clock, it does not run while others have the processor.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    stat.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9
}

#[test]
fn every_invalid_plan_is_refused_with_all_its_errors() {
    for file in corpus("invalid") {
        let name = file.file_name().unwrap().to_str().unwrap();
        let run = matrix(&["plan", "check", &format!("invalid/{name}")]);
        assert_eq!(run.status.code(), Some(2), "{name}");
        assert!(run.stdout.is_empty(), "{name}");
        let said = text(&run.stderr);
        assert!(!said.contains(|c: char| c.is_control() && c != '\n'), "{name} reaches the terminal");
        insta::assert_snapshot!(format!("invalid-{name}"), said);
    }
}

#[test]
fn every_valid_plan_is_shown_in_its_normal_form() {
    for file in corpus("valid") {
        let name = file.file_name().unwrap().to_str().unwrap();
        let run = matrix(&["plan", "show", &format!("valid/{name}")]);
        assert_eq!(run.status.code(), Some(0), "{name}: {}", text(&run.stderr));
        insta::assert_snapshot!(format!("valid-{name}"), format!("{}---\n{}", text(&run.stdout), text(&run.stderr)));
    }
}

#[test]
fn the_examples_are_valid() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("plans");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let file = entry.unwrap().path();
        let checked =
            plan::read_bytes("plan", &std::fs::read(&file).unwrap()).unwrap_or_else(|e| panic!("{file:?} {e:?}"));
        assert_eq!(checked.warnings, [], "{file:?}");
        seen += 1;
    }
    assert!(seen >= 3);
}

/// The keys of `plans/reference.toml` by the table they are in, and those the reader knows.
#[test]
fn the_reference_names_exactly_the_known_keys() {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("plans/reference.toml");
    let document: toml::Table = std::fs::read_to_string(file).unwrap().parse().unwrap();
    let keys = |table: &toml::Value| table.as_table().unwrap().keys().cloned().collect::<Vec<_>>();
    let sorted = |keys: &[&str]| {
        let mut keys: Vec<_> = keys.iter().map(|k| (*k).to_owned()).collect();
        keys.sort();
        keys
    };
    let shop = &document["apps"]["shop"];
    assert_eq!(keys(shop), sorted(plan::APP_KEYS));
    let mut health = keys(&shop["health"]);
    health.extend(keys(&document["apps"]["admin"]["health"]));
    health.sort();
    health.dedup();
    assert_eq!(health, sorted(plan::HEALTH_KEYS));
    assert_eq!(keys(&shop["update"]), sorted(plan::UPDATE_KEYS));
    assert_eq!(keys(&document["apps"]["admin"]["nodes"][0]), sorted(plan::NODE_KEYS));
    assert_eq!(keys(&shop["volumes"][1]), sorted(plan::VOLUME_KEYS));
    let without = |key: &&&str| !["image", "publish", "path", "host"].contains(*key);
    let mut defaults: Vec<_> = plan::APP_KEYS.iter().filter(without).copied().collect();
    defaults.sort_unstable();
    assert_eq!(sorted(&defaults), sorted(plan::DEFAULTS_KEYS));
    for key in keys(&document["defaults"]) {
        assert!(plan::DEFAULTS_KEYS.contains(&key.as_str()));
    }
}

/// Each key of the reference changes the plan: none is known and then ignored.
#[test]
fn no_known_key_is_ignored() {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("plans/reference.toml");
    let whole: toml::Table = std::fs::read_to_string(file).unwrap().parse().unwrap();
    let plan_of = |document: &toml::Table| plan::read("p", &document.to_string()).unwrap().plan;
    for key in plan::APP_KEYS {
        let mut less = whole.clone();
        less["apps"]["shop"].as_table_mut().unwrap().remove(*key);
        assert_ne!(plan_of(&less), plan_of(&whole), "{key}");
    }
    for key in plan::HEALTH_KEYS.iter().filter(|key| **key != "tcp") {
        let mut less = whole.clone();
        less["apps"]["shop"]["health"].as_table_mut().unwrap().remove(*key);
        assert_ne!(plan_of(&less), plan_of(&whole), "health.{key}");
    }
    for key in plan::UPDATE_KEYS {
        let mut less = whole.clone();
        less["apps"]["shop"]["update"].as_table_mut().unwrap().remove(*key);
        assert_ne!(plan_of(&less), plan_of(&whole), "update.{key}");
    }
    // What one application may say, all may say together.
    for key in plan::DEFAULTS_KEYS {
        let mut moved = whole.clone();
        let shop = moved["apps"]["shop"].as_table_mut().unwrap();
        let value = shop.remove(*key).unwrap();
        moved["apps"].as_table_mut().unwrap().remove("admin");
        let mut kept = whole.clone();
        kept["apps"].as_table_mut().unwrap().remove("admin");
        if *key == "nodes" {
            moved["apps"]["shop"].as_table_mut().unwrap().remove("publish");
            kept["apps"]["shop"].as_table_mut().unwrap().remove("publish");
        }
        moved["defaults"].as_table_mut().unwrap().insert((*key).to_owned(), value);
        if *key == "replicas" {
            // Who names nodes is pinned to them, whatever the default.
            assert!(matches!(plan_of(&moved).apps[&"shop".parse().unwrap()].placement, Placement::Pinned(_)));
        } else {
            assert_eq!(plan_of(&moved), plan_of(&kept), "defaults.{key}");
        }
    }
}

#[test]
fn a_plan_comes_from_standard_input_and_goes_out_as_json() {
    let run = Command::cargo_bin("matrix")
        .unwrap()
        .args(["plan", "check", "-", "--json"])
        .write_stdin("shop node25 5050 8080\nshop node25 5050\n")
        .output()
        .unwrap();
    assert_eq!(run.status.code(), Some(2));
    let reports: serde_json::Value = serde_json::from_slice(&run.stdout).unwrap();
    assert_eq!(reports[0]["valid"], false);
    let found: Vec<plan::Diagnostic> = serde_json::from_value(reports[0]["diagnostics"].clone()).unwrap();
    assert_eq!((found[0].line, found[0].column, found[0].file.as_str()), (2, 1, "standard input"));

    let run = matrix(&["plan", "show", "valid/columns.plan", "--json"]);
    let shown: plan::Plan = serde_json::from_slice(&run.stdout).unwrap();
    assert_eq!(shown.apps.len(), 1);
}

#[test]
fn an_unreadable_file_is_named_with_what_to_do() {
    let run = matrix(&["plan", "check", "nowhere.toml", "valid/columns.plan", "invalid"]);
    assert_eq!(run.status.code(), Some(2));
    let said = text(&run.stderr);
    assert!(said.contains("cannot read nowhere.toml") && said.contains("cannot read invalid"), "{said}");
    assert!(said.matches("hint: ").count() == 2, "{said}");
    assert!(text(&run.stdout).contains("valid/columns.plan is a valid plan"));
    // An endless file ends.
    let run = matrix(&["plan", "check", "/dev/zero"]);
    assert_eq!(run.status.code(), Some(2));
}

#[test]
fn a_hundred_thousand_lines_are_read_in_time() {
    let mut columns = String::new();
    let mut document = String::new();
    for n in 0..100_000 {
        writeln!(columns, "app{n} node{} {} 8080", n / 60_000, n % 60_000 + 1).unwrap();
        if n % 4 == 0 {
            writeln!(document, "[apps.app{n}]\nimage = \"app:v1\"\nnodes = [\"node25\"]\nmemory = \"64m\"").unwrap();
        }
    }
    for good in [&columns, &document] {
        let start = cpu_seconds();
        assert!(plan::read("big", good).unwrap().plan.apps.len() >= 25_000);
        let took = cpu_seconds() - start;
        assert!(took < 10.0, "{took} s");
    }
    // As many errors: the first are shown, the others counted.
    for bad in [columns.replace("8080", "x"), document.replace("64m", "64x"), document.replace(" = ", " ")] {
        let start = cpu_seconds();
        let found = plan::read("big", &bad).unwrap_err();
        assert!(found.len() == 201 && found[200].message.contains("more errors"), "{}", found.len());
        let took = cpu_seconds() - start;
        assert!(took < 10.0, "{took} s");
    }
}

#[test]
fn deep_and_long_texts_are_refused_not_died_of() {
    let n = 100_000;
    let hostile = [
        format!("a = {}", "[".repeat(n)),
        format!("a = {}1{}", "[".repeat(n), "]".repeat(n)),
        format!("a = {}", "{a=".repeat(n)),
        format!("{} = 1", vec!["a"; n].join(".")),
        format!("[{}]", vec!["a"; n].join(".")),
        format!("[apps.shop.{}]", vec!["a"; n].join(".")),
        format!("[apps.{}]", "a".repeat(n)),
        format!("[apps.shop]\n{} = 1", "k".repeat(n)),
        format!("[apps.shop]\npath = \"{}\"", "/a".repeat(n)),
        format!("[apps.shop]\ncommand = \"{}\"", "'a' ".repeat(n)) + "\nport = 0",
        format!("shop node25 5050 {}", "9".repeat(n)),
        "shop ".repeat(n),
        "\0".repeat(n),
        "[apps.shop]\nimage = \"a\0b\"".to_owned(),
        "x".repeat(plan::MAX_BYTES + 1),
    ];
    for text in &hostile {
        let start = cpu_seconds();
        let found = plan::read("hostile", text).unwrap_err();
        assert!(!found.is_empty());
        assert!(found.iter().all(|d| d.to_string().len() < 3000), "{}", &found[0].to_string()[..3000]);
        let took = cpu_seconds() - start;
        assert!(took < 10.0, "{took} s for {}", &text[..40]);
    }
}

mod laws {
    use std::fmt::Write as _;

    use matrix::plan::{self, App, Check, Health, Pin, Placement, Plan, Restart, Volume};
    use proptest::{collection, prelude::*};

    fn node() -> impl Strategy<Value = matrix::model::NodeName> {
        "n[0-9]{1,3}".prop_map(|n| n.parse().unwrap())
    }
    fn port() -> impl Strategy<Value = matrix::model::Port> {
        (1u16..).prop_map(|p| matrix::model::Port::new(p).unwrap())
    }
    /// Any text a value may hold: everything but control characters, and line breaks and tabs.
    fn words() -> impl Strategy<Value = String> {
        "[\\PC\n\t]{0,20}"
    }
    fn placement() -> impl Strategy<Value = Placement> {
        let pins = collection::vec((node(), proptest::option::of(port())), 1..5).prop_map(|mut pins| {
            pins.sort();
            pins.dedup();
            Placement::Pinned(pins.into_iter().map(|(node, publish)| Pin { node, publish }).collect())
        });
        let spread = (0u32..=1000, collection::btree_set(node(), 0..5), proptest::option::of(port())).prop_map(
            |(count, nodes, publish)| {
                let nodes: Vec<_> = nodes.into_iter().collect();
                let most =
                    if publish.is_some() && !nodes.is_empty() { u32::try_from(nodes.len()).unwrap() } else { 1000 };
                Placement::Replicas { count: count.min(most), nodes, publish }
            },
        );
        prop_oneof![pins, spread]
    }
    fn health() -> impl Strategy<Value = Health> {
        let http =
            ("/[a-z0-9?&=%_.-]{0,9}", proptest::option::of("[a-z]{1,5}(:80)?"), proptest::option::of(100u16..=599))
                .prop_map(|(path, host, status)| Check::Http { path, host, status });
        (prop_oneof![Just(Check::Tcp), http], 100u32..=60_000, 10u32..=60_000, 1u32..=3600).prop_map(
            |(check, interval_ms, timeout_ms, deadline_seconds)| Health {
                check,
                interval_ms,
                timeout_ms,
                deadline_seconds,
            },
        )
    }
    prop_compose! {
        fn container()(
            environment in collection::btree_map("[^=\\pC]{1,8}", words(), 0..3),
            command in proptest::option::of((".{1,9}".prop_filter("plain", |s: &String| !s.contains(char::is_control)), collection::vec(words(), 0..3))),
            volumes in collection::btree_map("(/[a-z .']{0,8}[a-z]){1,2}", ("[a-z0-9][a-z0-9_.-]{0,9}", any::<bool>()), 0..3),
            memory in proptest::option::of((6u64 << 20)..=(1 << 50)),
            cpus in proptest::option::of(1u32..=1_024_000),
            user in proptest::option::of("[a-z0-9]{1,8}(:[a-z0-9]{1,8})?"),
            working_dir in proptest::option::of("/[a-z \"\\\\]{0,9}"),
            labels in collection::btree_map("[a-z][a-z0-9._/-]{0,9}", "\\PC{0,9}", 0..3),
            restart in prop_oneof![Just(Restart::Always), Just(Restart::UnlessStopped), Just(Restart::OnFailure), Just(Restart::No)],
        ) -> App {
            App {
                image: "shop".parse().unwrap(),
                placement: Placement::Pinned(Vec::new()),
                port: matrix::model::Port::new(1).unwrap(),
                routes: Vec::new(),
                strip_path: false,
                environment: environment.clone(),
                command: command.clone().map(|(first, rest)| std::iter::once(first).chain(rest).collect()),
                entrypoint: None,
                volumes: volumes.into_iter().map(|(target, (source, read_only))| Volume { source, target, read_only }).collect(),
                memory: memory.map(matrix::model::Memory),
                cpus: cpus.map(matrix::model::Cpus),
                user,
                working_dir,
                labels,
                health: Health { check: Check::Tcp, interval_ms: 1000, timeout_ms: 1000, deadline_seconds: 60 },
                restart,
                cache_seconds: None,
                idempotent: false,
                drain_timeout_seconds: 30,
                stop_timeout_seconds: 10,
                update: plan::Update::default(),
            }
        }
    }
    prop_compose! {
        fn update()(
            mode in prop_oneof![Just(plan::Mode::Staged), Just(plan::Mode::Rolling), Just(plan::Mode::Canary), Just(plan::Mode::Recreate)],
            batch in 1u32..=1000,
            pause_seconds in 0u32..=3600,
            watch_seconds in 0u32..=3600,
            share in 1u32..=100,
            time_seconds in 1u32..=3600,
            errors in (0u32..=10_000).prop_map(plan::Percent),
            latency_ms in proptest::option::of(1u32..=60_000),
        ) -> plan::Update {
            let canary = plan::Canary { share, time_seconds, errors, latency_ms };
            plan::Update { mode, batch, pause_seconds, watch_seconds, canary }
        }
    }
    prop_compose! {
        fn app()(
            mut app in container(),
            image in "([a-z]{1,5}\\.[a-z]{2}:5000/)?([a-z]{1,5}/)?[a-z0-9]{1,5}(:v[0-9])?",
            placement in placement(),
            port in port(),
            hosts in collection::btree_set("(\\*\\.)?[a-z]{1,4}\\.[a-z]{2}", 0..3),
            paths in collection::btree_set("(/[a-z0-9_.~-]{1,4}[a-z]){1,3}|/", 0..3),
            health in health(),
            flags in any::<(bool, bool)>(),
            cache_seconds in proptest::option::of(1u32..=31_536_000),
            (drain, stop) in (0u32..=3600, 0u32..=3600),
            update in update(),
            entrypoint in proptest::option::of(collection::vec("[a-z$;|'\"\\\\]{1,9}", 1..3)),
        ) -> App {
            let hosts: Vec<_> = if paths.is_empty() || hosts.is_empty() { vec![None] } else { hosts.into_iter().map(|h| Some(h.parse().unwrap())).collect() };
            app.image = image.parse().unwrap();
            app.placement = placement;
            app.port = port;
            app.routes = hosts.iter().flat_map(|host| paths.iter().map(|path| matrix::model::Route { host: host.clone(), path: path.parse().unwrap() })).collect();
            app.routes.sort();
            app.strip_path = flags.0;
            app.health = health;
            app.cache_seconds = cache_seconds;
            app.idempotent = flags.1;
            app.drain_timeout_seconds = drain;
            app.stop_timeout_seconds = stop;
            app.entrypoint = entrypoint;
            app.update = update;
            app
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_normal_form_reads_back(name in "[a-z]([a-z0-9_-]{0,8}[a-z])?", app in app()) {
            let plan = Plan { apps: [(name.parse().unwrap(), app)].into() };
            let text = plan::to_toml(&plan);
            match plan::read("p", &text) {
                Ok(checked) => {
                    prop_assert_eq!(&checked.plan, &plan, "{}", text);
                    prop_assert_eq!(plan::to_toml(&checked.plan), text);
                }
                Err(found) => prop_assert!(false, "{}\n{}", found[0], text),
            }
        }

        #[test]
        fn a_four_column_plan_equals_its_toml_twin(
            rows in collection::btree_set(("[a-c]", "n[0-4]", 1u16..6), 1..12),
            blanks in collection::vec("[ \t]{1,3}", 4),
            end in prop_oneof![Just("\n"), Just("\r\n"), Just(" # comment\n"), Just("\n\n#x\n")],
        ) {
            let mut columns = format!("#app{}node{end}", blanks[0]);
            let mut apps = std::collections::BTreeMap::<_, Vec<_>>::new();
            for (app, node, port) in &rows {
                write!(columns, "{}{app}{}{node}{}{port}{}80{end}", blanks[3].trim(), blanks[0], blanks[1], blanks[2]).unwrap();
                apps.entry(app).or_default().push(format!("{{ node = \"{node}\", publish = {port} }}"));
            }
            let twin: String = apps.iter().fold(String::new(), |text, (app, pins)| {
                format!("[apps.{app}]\nnodes = [{}]\nport = 80\n{text}", pins.join(","))
            });
            match (plan::read("p", &columns), plan::read("p", &twin)) {
                (Ok(columns), Ok(twin)) => prop_assert_eq!(columns.plan, twin.plan),
                // Both refuse, for the same number of taken ports.
                (Err(columns), Err(twin)) => prop_assert_eq!(columns.len(), twin.len()),
                (one, other) => prop_assert!(false, "{:?}\n{:?}", one.err(), other.err()),
            }
        }

        #[test]
        fn no_bytes_bring_it_down(bytes in collection::vec(any::<u8>(), 0..200)) {
            let _ = plan::read_bytes("p", &bytes);
        }

        #[test]
        fn no_soup_of_its_own_words_brings_it_down(
            soup in collection::vec(prop_oneof![
                proptest::sample::select(vec![
                    "[", "]", "[[", "]]", "{", "}", "=", " = ", ".", ",", "\"", "'", "\"\"\"", "\n", "\r\n", "\t", " ", "#", "\\", "é",
                    "apps", "[apps.shop]\n", "[apps.shop.health]\n", "[defaults]\n", "-1", "1e9", "0x", "1979-05-27", "true", "\u{feff}", "\0",
                ]).prop_map(str::to_owned),
                proptest::sample::select(plan::APP_KEYS).prop_map(|key| format!("{key} = ")),
                proptest::sample::select(plan::HEALTH_KEYS).prop_map(|key| format!("{key} = ")),
                "\\PC{0,3}",
            ], 0..60),
            head in prop_oneof![Just(""), Just("[apps.shop]\n"), Just("shop node25 1 2\n")],
        ) {
            for found in plan::read("p", &format!("{head}{}", soup.concat())).err().unwrap_or_default() {
                prop_assert!(found.line >= 1 && found.column >= 1);
                prop_assert!(!found.to_string().contains(|c: char| c.is_control() && c != '\n'), "{:?}", found);
            }
        }
    }
}
