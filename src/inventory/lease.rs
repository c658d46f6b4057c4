//! dnsmasq's leases file as values.
//!
//! Believes nothing it cannot read: a line that is odd becomes a problem, never a node. No I/O, no clock.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use crate::model::{MacAddr, NodeName, Timestamp};

/// More than these are counted, not kept: a file of garbage must not fill the memory.
const PROBLEMS_KEPT: usize = 50;

/// What a leases file says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Leases {
    /// One for each address, in the file's order.
    pub leases: Vec<Lease>,
    /// What could not be used, for people: `line 3: …`.
    pub problems: Vec<String>,
    /// Whether the last line has no end: the file was read while it was written.
    pub cut: bool,
}

/// An address that was given to a machine. No sign that the machine lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Until when; none: for ever.
    pub expires: Option<Timestamp>,
    /// The hardware address; IPv6 leases have none.
    pub mac: Option<MacAddr>,
    /// The address.
    pub address: IpAddr,
    /// The name the machine sent, in lower case; none where it sent none, or a newer lease has it.
    pub name: Option<NodeName>,
    /// The client id or DUID as dnsmasq writes it.
    pub client_id: Option<String>,
}

impl Leases {
    /// The machines that have a name. Where one has both, IPv4: the engine publishes ports there.
    pub fn by_name(&self) -> BTreeMap<&NodeName, &Lease> {
        let mut named = BTreeMap::new();
        for lease in &self.leases {
            let Some(name) = &lease.name else { continue };
            named
                .entry(name)
                .and_modify(|have: &mut &Lease| {
                    if have.address.is_ipv6() {
                        *have = lease;
                    }
                })
                .or_insert(lease);
        }
        named
    }
}

/// Reads the file's text.
pub fn parse(text: &str) -> Leases {
    let cut = !text.is_empty() && !text.ends_with('\n');
    let mut problems = Problems::default();
    let mut read: Vec<(usize, Lease)> = Vec::new();
    let mut lines = text.lines().enumerate().peekable();
    while let Some((at, line)) = lines.next() {
        // An unfinished line may end inside the address: 10.10.10.2 of 10.10.10.25.
        if cut && lines.peek().is_none() {
            break;
        }
        match read_line(line.trim_end_matches('\r'), at + 1, &mut problems) {
            Ok(Some(lease)) => read.push((at + 1, lease)),
            Ok(None) => {}
            Err(why) => problems.add(at + 1, why),
        }
    }
    let leases = newest(read, &mut problems);
    Leases { leases, problems: problems.kept(), cut }
}

/// One line; none for an empty line or the server's own DUID.
fn read_line(line: &str, number: usize, problems: &mut Problems) -> Result<Option<Lease>, String> {
    let mut words = line.split_ascii_whitespace();
    let Some(expires) = words.next() else { return Ok(None) };
    if expires == "duid" {
        return Ok(None);
    }
    let fields = (words.next(), words.next(), words.next(), words.next(), words.next());
    let (Some(hardware), Some(address), Some(name), client_id, None) = fields else {
        return Err("has not the five words of a lease".to_owned());
    };
    let expires: i64 = expires.parse().map_err(|_| "has no expiry in seconds".to_owned())?;
    let expires = match expires {
        0 => None,
        seconds => Some(Timestamp::from_second(seconds).map_err(|_| "has an expiry beyond all time".to_owned())?),
    };
    let address: IpAddr = address.parse().map_err(|_| "has no address".to_owned())?;
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    if broadcast || address.is_unspecified() || address.is_multicast() || address.is_loopback() {
        return Err(format!("has the address {address}, which no machine can have"));
    }
    let name = match name {
        "*" => None,
        // A machine may call itself what it likes; the lease of its address is true all the same.
        name => name.to_ascii_lowercase().parse().map_err(|e: crate::model::Invalid| problems.add(number, e)).ok(),
    };
    Ok(Some(Lease {
        expires,
        // IPv6 leases have their association's number here.
        mac: hardware.parse().ok().filter(|_| address.is_ipv4()),
        address,
        name,
        client_id: client_id.filter(|id| *id != "*").map(str::to_owned),
    }))
}

/// Of two leases for one address the newer; of two for one name and family, the older loses the name, as in dnsmasq.
fn newest(read: Vec<(usize, Lease)>, problems: &mut Problems) -> Vec<Lease> {
    // An expiry is set anew at each renewal: the later one was seen last. For ever is latest; then the earlier line,
    // since dnsmasq writes the newest first.
    let age = |lease: &Lease, line: usize| (lease.expires.is_none(), lease.expires, Reverse(line));
    let mut by_address: HashMap<IpAddr, usize> = HashMap::new();
    let mut by_name: HashMap<(NodeName, bool), usize> = HashMap::new();
    let mut kept: Vec<Option<(usize, Lease)>> = Vec::with_capacity(read.len());
    let newer = |kept: &[Option<(usize, Lease)>], at: usize, lease: &Lease, line: usize| {
        kept[at].as_ref().is_none_or(|(have_line, have)| age(lease, line) > age(have, *have_line))
    };
    for (line, mut lease) in read {
        let at = kept.len();
        if let Some(&have) = by_address.get(&lease.address) {
            problems.add(line, format!("{} is leased twice; the newer lease counts", lease.address));
            if !newer(&kept, have, &lease, line) {
                continue;
            }
            kept[have] = None;
        }
        by_address.insert(lease.address, at);
        if let Some(name) = lease.name.clone() {
            let key = (name, lease.address.is_ipv6());
            match by_name.get(&key).copied().filter(|have| kept[*have].is_some()) {
                Some(have) if newer(&kept, have, &lease, line) => {
                    problems.add(line, format!("{} is named twice; the newer lease has the name", key.0));
                    if let Some((_, older)) = &mut kept[have] {
                        older.name = None;
                    }
                    by_name.insert(key, at);
                }
                Some(_) => {
                    problems.add(line, format!("{} is named twice; the newer lease has the name", key.0));
                    lease.name = None;
                }
                None => _ = by_name.insert(key, at),
            }
        }
        kept.push(Some((line, lease)));
    }
    kept.into_iter().flatten().map(|(_, lease)| lease).collect()
}

#[derive(Default)]
struct Problems {
    texts: Vec<String>,
    more: usize,
}

impl Problems {
    fn add(&mut self, line: usize, why: impl std::fmt::Display) {
        if self.texts.len() < PROBLEMS_KEPT {
            self.texts.push(format!("line {line}: {why}"));
        } else {
            self.more += 1;
        }
    }
    fn kept(mut self) -> Vec<String> {
        if self.more > 0 {
            self.texts.push(format!("and {} more", self.more));
        }
        self.texts
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use proptest::prelude::*;

    use super::*;

    fn names(leases: &Leases) -> Vec<(String, String)> {
        leases.by_name().iter().map(|(name, lease)| (name.to_string(), lease.address.to_string())).collect()
    }
    fn pair(name: &str, address: &str) -> (String, String) {
        (name.to_owned(), address.to_owned())
    }

    #[test]
    fn a_lease_reads() {
        let leases = parse("1794000000 02:42:0a:0a:0a:19 10.10.10.25 node25 01:02:42:0a:0a:0a:19\n");
        assert_eq!(leases.problems, Vec::<String>::new());
        let lease = &leases.leases[0];
        assert_eq!(lease.expires.map(Timestamp::as_second), Some(1_794_000_000));
        assert_eq!(lease.mac, "02:42:0a:0a:0a:19".parse().ok());
        assert_eq!(lease.client_id.as_deref(), Some("01:02:42:0a:0a:0a:19"));
        assert_eq!(names(&leases), [pair("node25", "10.10.10.25")]);
    }

    #[test]
    fn infinite_and_nameless_leases_and_ipv6_read() {
        let leases = parse(
            "0 02:42:0a:0a:0a:01 10.10.10.41 * *\n\
             0 02:42:0a:0a:0a:02 10.10.10.42 Node42 *\n\
             duid 00:01:00:01:2c:1b:3e:7c:02:42:0a:0a:0a:01\n\
             1794000000 T1234567 fd00::42 node42 00:01:00:01:aa\n\
             1794000000 33554433 fd00::43 node43 00:01:00:01:bb\n",
        );
        assert_eq!(leases.problems, Vec::<String>::new());
        assert_eq!(leases.leases.len(), 4);
        assert_eq!(leases.leases[0].expires, None);
        assert_eq!(leases.leases[2].mac, None);
        assert_eq!(names(&leases), [pair("node42", "10.10.10.42"), pair("node43", "fd00::43")]);
    }

    #[test]
    fn an_unfinished_last_line_is_not_believed() {
        let leases = parse("0 02:42:0a:0a:0a:01 10.10.10.41 node41 *\n0 02:42:0a:0a:0a:02 10.10.10.42 node4");
        assert!(leases.cut);
        assert_eq!(names(&leases), [pair("node41", "10.10.10.41")]);
        assert!(!parse("").cut);
    }

    #[test]
    fn the_newer_of_two_wins() {
        let leases = parse(
            "200 02:42:0a:0a:0a:01 10.10.10.1 a *\n100 02:42:0a:0a:0a:02 10.10.10.2 a *\n\
             100 02:42:0a:0a:0a:03 10.10.10.3 b *\n200 02:42:0a:0a:0a:04 10.10.10.3 c *\n\
             300 02:42:0a:0a:0a:05 10.10.10.5 d *\n0 02:42:0a:0a:0a:06 10.10.10.6 d *\n\
             300 02:42:0a:0a:0a:07 10.10.10.7 e *\n300 02:42:0a:0a:0a:08 10.10.10.8 e *\n",
        );
        let wanted = [("a", "10.10.10.1"), ("c", "10.10.10.3"), ("d", "10.10.10.6"), ("e", "10.10.10.7")];
        assert_eq!(names(&leases), wanted.map(|(name, address)| pair(name, address)));
        assert_eq!(leases.problems.len(), 4, "{:?}", leases.problems);
        assert_eq!(leases.leases.len(), 7);
    }

    #[test]
    fn hostile_names_never_become_nodes() {
        for name in ["a;reboot", "$(id)", "../../etc", "-oProxyCommand=x", "a\u{1b}[2J", "é", "a.b", &"x".repeat(64)] {
            let leases = parse(&format!("0 02:42:0a:0a:0a:01 10.10.10.41 {name} *\n"));
            assert_eq!(names(&leases), [], "{name}");
            assert_eq!(leases.problems.len(), 1, "{name}");
            assert!(!leases.problems[0].contains('\u{1b}'), "{name}");
        }
        for line in
            ["x", "0 m 10.10.10.1", "0 m 0.0.0.0 a *", "0 m 127.0.0.1 a *", "x m 10.10.10.1 a *", "0 m 1.2.3.4 a * b"]
        {
            let leases = parse(&format!("{line}\n"));
            assert_eq!((leases.leases.len(), leases.problems.len()), (0, 1), "{line}");
        }
    }

    #[test]
    fn ten_thousand_lines_take_no_time() {
        use std::fmt::Write as _;
        let mut text = String::new();
        for n in 0..10_000 {
            writeln!(
                text,
                "{} 02:42:0a:0a:{:02x}:{:02x} 10.9.{}.{} node{} *",
                n + 1,
                n >> 8,
                n & 255,
                n >> 8,
                n & 255,
                n % 9000
            )
            .expect("text");
        }
        let start = Instant::now();
        let leases = parse(&text);
        let took = start.elapsed();
        assert_eq!((leases.leases.len(), leases.by_name().len()), (10_000, 9000));
        assert_eq!(leases.problems.len(), PROBLEMS_KEPT + 1);
        assert!(took < Duration::from_millis(500), "{took:?}");
    }

    /// Anything like a lease: what random bytes never hit.
    fn almost() -> impl Strategy<Value = String> {
        let word = prop_oneof![
            Just("0".to_owned()),
            Just("duid".to_owned()),
            Just("*".to_owned()),
            Just("node1".to_owned()),
            Just("02:42:0a:0a:0a:01".to_owned()),
            (0u8..4).prop_map(|n| format!("10.0.0.{n}")),
            (0u8..4).prop_map(|n| format!("fd00::{n}")),
            any::<i64>().prop_map(|n| n.to_string()),
            "\\PC{0,8}",
        ];
        let line = proptest::collection::vec(word, 0..7).prop_map(|words| words.join(" "));
        proptest::collection::vec(line, 0..12).prop_map(|lines| lines.join("\n"))
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            parse(&String::from_utf8_lossy(&bytes));
        }

        /// No address twice, no name twice in a family, whatever the file.
        #[test]
        fn an_address_and_a_name_belong_to_one(text in almost()) {
            let leases = parse(&text).leases;
            for (at, a) in leases.iter().enumerate() {
                for b in &leases[at + 1..] {
                    prop_assert_ne!(a.address, b.address);
                    if a.name.is_some() && a.address.is_ipv4() == b.address.is_ipv4() {
                        prop_assert_ne!(&a.name, &b.name);
                    }
                }
            }
        }
    }
}
