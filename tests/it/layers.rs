//! The import law of ARCHITECTURE.md: who may see whom, and what the rooms without a world must never reach for.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

/// The rooms each room may see, apart from itself.
const MAY_SEE: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("plan", &["model"]),
    ("inventory", &["model", "plan"]),
    ("release", &["model", "plan", "inventory"]),
    ("image", &["model", "plan"]),
    ("schedule", &["model", "plan", "release", "inventory"]),
    ("routing", &["model", "plan", "release", "inventory", "schedule"]),
    ("reconcile", &["model", "plan", "release", "inventory", "schedule", "routing"]),
    ("clean", &["model", "plan", "release", "inventory"]),
    ("remote", &["model", "plan", "inventory", "image", "routing"]),
    ("store", &["model", "plan", "release", "inventory"]),
    ("pack", &["model", "plan", "image", "remote"]),
    (
        "manager",
        &[
            "model",
            "plan",
            "release",
            "inventory",
            "image",
            "schedule",
            "reconcile",
            "routing",
            "clean",
            "remote",
            "store",
        ],
    ),
    (
        "api",
        &[
            "model",
            "plan",
            "release",
            "inventory",
            "image",
            "schedule",
            "reconcile",
            "routing",
            "clean",
            "store",
            "manager",
            "dashboard",
        ],
    ),
    ("dashboard", &["model", "plan", "release", "inventory", "schedule", "reconcile", "routing", "manager", "api"]),
    (
        "cli",
        &[
            "model",
            "plan",
            "release",
            "inventory",
            "image",
            "schedule",
            "reconcile",
            "routing",
            "clean",
            "store",
            "manager",
            "pack",
            "api",
            "dashboard",
            "lab",
        ],
    ),
    ("lab", &["model", "plan", "inventory", "routing", "image", "pack", "manager", "api"]),
];

/// Rooms that decide and compute, and are told all they know.
const PURE: &[&str] = &["model", "plan", "release", "inventory", "image", "schedule", "reconcile", "routing", "clean"];

/// What asks a clock, the machine or chance. `std::io` is not among them: its traits are values' to use.
const WORLD: &[&str] = &[
    "tokio",
    "std::fs",
    "std::net::Tcp",
    "std::net::Udp",
    "std::os::unix::net",
    "std::process",
    "std::env",
    "std::thread",
    "SystemTime",
    "Instant::now",
    "std::time::Instant",
    "Timestamp::now",
    "Zoned::now",
    "Uuid::now",
    "Uuid::new_v4",
    "rand::",
    "tracing",
    "println!",
    "eprintln!",
    "openssh",
    "bollard",
    "reqwest",
    "rusqlite",
    "nix::",
];

/// The file's code: without comments, strings' contents and its unit tests.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or(text);
    text.lines()
        .map(|line| line.split("//").next().unwrap_or(line))
        .fold(String::new(), |code, line| code + line + "\n")
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// Each source file by its room, with its code.
fn rooms() -> BTreeMap<String, Vec<(PathBuf, String)>> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    files(&src, &mut found);
    let mut rooms = BTreeMap::<String, Vec<_>>::new();
    for path in found {
        let first = path.strip_prefix(&src).unwrap().components().next().unwrap();
        let room = first.as_os_str().to_str().unwrap().trim_end_matches(".rs").to_owned();
        let text = code(&std::fs::read_to_string(&path).unwrap());
        rooms.entry(room).or_default().push((path, text));
    }
    rooms.remove("lib");
    rooms.remove("main");
    rooms
}

/// The rooms a file names: `crate::plan::…`, `crate::{plan, model::Port}`, nested and over several lines.
fn seen(code: &str) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        let Some(list) = rest.strip_prefix('{') else {
            seen.insert(word(rest));
            continue;
        };
        let mut depth = 1;
        let mut start = true;
        for (index, c) in list.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' => start = depth == 1,
                c if c.is_whitespace() => {}
                _ if start && depth == 1 => {
                    seen.insert(word(&list[index..]));
                    start = false;
                }
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
    }
    seen
}

#[test]
fn the_scanner_sees_every_way_to_import() {
    let text = "use crate::{\n    model::{Port, Name},\n    plan::{self, Plan},\n    store,\n};\nfn f() { crate::remote::x(); }\n// crate::lab\n";
    let names: Vec<_> = seen(&code(text)).into_iter().collect();
    assert_eq!(names, ["model", "plan", "remote", "store"]);
    assert!(code("a\n#[cfg(test)]\nmod tests { tokio }").lines().count() == 1);
}

#[test]
fn rooms_see_only_whom_they_may() {
    let law: BTreeMap<&str, &[&str]> = MAY_SEE.iter().copied().collect();
    let mut broken = Vec::new();
    let rooms = rooms();
    assert!(rooms.len() >= 16, "{:?}", rooms.keys());
    for (room, files) in &rooms {
        let Some(allowed) = law.get(room.as_str()) else {
            broken.push(format!("the room {room} is not in the law"));
            continue;
        };
        for (path, code) in files {
            for other in seen(code) {
                if rooms.contains_key(&other) && other != *room && !allowed.contains(&other.as_str()) {
                    broken.push(format!("{} sees {other}", path.display()));
                }
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn pure_rooms_reach_for_nothing() {
    let mut broken = Vec::new();
    for (room, files) in rooms().iter().filter(|(room, _)| PURE.contains(&room.as_str())) {
        for (path, code) in files {
            // Constants of the build are no question to the machine.
            let code = code.replace("std::env::consts", "");
            // Compressing on several threads gives the bytes that one would.
            let computes = |world: &str| room == "image" && world.ends_with("thread");
            for world in WORLD.iter().filter(|world| code.contains(**world) && !computes(world)) {
                broken.push(format!("{room}: {} holds {world}", path.display()));
            }
            // `use std::{fs, …}` says the same in other words.
            for list in code.match_indices("std::{").map(|(at, found)| &code[at + found.len()..]) {
                let list = list.split(';').next().unwrap_or(list);
                let names: Vec<_> = list.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
                for world in ["fs", "env", "process", "thread", "SystemTime", "Instant", "TcpStream", "UnixStream"] {
                    if names.contains(&world) && !computes(world) {
                        broken.push(format!("{room}: {} holds std::{world}", path.display()));
                    }
                }
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

/// Where order reaches a decision or a text, it must be the same each time.
#[test]
fn rooms_that_decide_hold_nothing_unordered() {
    let rooms = rooms();
    let mut broken = Vec::new();
    for room in ["plan", "release", "schedule", "reconcile", "routing", "clean"] {
        for (path, code) in &rooms[room] {
            for unordered in ["HashMap", "HashSet"].iter().filter(|name| code.contains(**name)) {
                broken.push(format!("{} holds a {unordered}", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}
