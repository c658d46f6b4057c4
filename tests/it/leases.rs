//! The corpus of leases files: `plain` and `names` as dnsmasq 2.90 wrote them, the others made from such.

use std::{fs, path::Path};

use matrix::inventory::lease::parse;

/// Names with addresses, how many leases, how many problems, whether it is cut.
fn read(file: &str) -> (Vec<String>, usize, usize, bool) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/leases").join(file);
    let leases = parse(&String::from_utf8_lossy(&fs::read(path).unwrap()));
    assert!(leases.problems.iter().all(|p| !p.contains(|c: char| c.is_control())), "{:?}", leases.problems);
    let named = leases.by_name().iter().map(|(name, lease)| format!("{name} {}", lease.address)).collect();
    (named, leases.leases.len(), leases.problems.len(), leases.cut)
}

#[test]
fn files_as_dnsmasq_wrote_them_read_without_a_problem() {
    let (named, count, problems, cut) = read("plain.leases");
    assert_eq!((named.len(), count, problems, cut), (2, 2, 0, false), "{named:?}");
    let (named, count, problems, cut) = read("names.leases");
    assert_eq!(named, ["eternal 10.77.0.86", "node-three 10.77.0.80", "node1 10.77.0.81", "x 10.77.0.83"]);
    assert_eq!((count, problems, cut), (9, 0, false));
    let (named, count, problems, cut) = read("ipv6.leases");
    assert_eq!(named, ["node1 10.77.0.81", "node2 fd77::52"]);
    assert_eq!((count, problems, cut), (5, 0, false));
}

#[test]
fn damaged_files_give_what_is_whole() {
    let (named, count, problems, cut) = read("cut.leases");
    assert_eq!((named.as_slice(), count, problems, cut), (["eternal 10.77.0.86".to_owned()].as_slice(), 2, 0, true));
    let (named, count, problems, cut) = read("garbage.leases");
    assert_eq!(named, ["good 10.77.0.81"]);
    assert_eq!((count, problems, cut), (3, 7, false));
}
