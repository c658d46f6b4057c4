//! Which addresses a lab's leg to this machine gets. Looks at nothing itself: what is taken is passed in.

use std::{fmt, net::Ipv4Addr, str::FromStr};

use ipnet::Ipv4Net;

/// A leg: four addresses, of which this machine has the first and the gateway the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leg(Ipv4Net);

impl Leg {
    /// This machine's address.
    pub fn host(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.0.network()) + 1)
    }
    /// The gateway's address.
    pub fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.0.network()) + 2)
    }
    /// The first leg that touches nothing taken: 10.10.9.0/30, 10.10.8.0/30 … 10.10.0.0/30, then 10.10.9.4/30 and on.
    pub fn choose(taken: &[Ipv4Net]) -> Option<Self> {
        (0..64u8)
            .flat_map(|quarter| (0..10u8).rev().map(move |third| Ipv4Addr::new(10, 10, third, quarter * 4)))
            .filter_map(|network| Ipv4Net::new(network, 30).ok())
            .find(|leg| !taken.iter().any(|net| net.contains(leg) || leg.contains(net)))
            .map(Self)
    }
}

impl fmt::Display for Leg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Leg {
    type Err = ipnet::AddrParseError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(|net: Ipv4Net| Self(net.trunc()))
    }
}

/// The networks named in the lines of `ip -o -4 addr show` and `ip -4 route show`, the default route left out.
pub fn taken(listing: &str) -> Vec<Ipv4Net> {
    listing
        .split_whitespace()
        .filter_map(|word| word.parse::<Ipv4Net>().ok().or_else(|| word.parse::<Ipv4Addr>().ok().map(Ipv4Net::from)))
        .filter(|net| net.prefix_len() > 0)
        .map(|net| net.trunc())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(list: &[&str]) -> Vec<Ipv4Net> {
        list.iter().map(|n| n.parse().expect(n)).collect()
    }

    #[test]
    fn the_first_leg_and_the_next() {
        let leg = Leg::choose(&[]).expect("a leg");
        assert_eq!(
            (leg.to_string(), leg.host(), leg.gateway()),
            ("10.10.9.0/30".to_owned(), Ipv4Addr::new(10, 10, 9, 1), Ipv4Addr::new(10, 10, 9, 2))
        );
        let next = Leg::choose(&nets(&["10.10.9.0/30"])).expect("a leg");
        assert_eq!(next.to_string(), "10.10.8.0/30");
    }

    #[test]
    fn what_is_taken_is_left_alone() {
        let all_lower: Vec<_> = (0..10).map(|n| format!("10.10.{n}.0/30").parse().expect("net")).collect();
        assert_eq!(Leg::choose(&all_lower).expect("a leg").to_string(), "10.10.9.4/30");
        assert_eq!(Leg::choose(&nets(&["10.10.8.0/23"])).expect("a leg").to_string(), "10.10.7.0/30");
        assert_eq!(Leg::choose(&nets(&["10.0.0.0/8"])), None);
    }

    #[test]
    fn addresses_and_routes_are_read() {
        let listing = "2: eth0    inet 192.0.2.2/24 brd 192.0.2.255 scope global eth0\\ valid_lft forever\n\
                       default via 192.0.2.1 dev eth0\n10.10.9.0/30 dev mx-lab proto kernel src 10.10.9.1\n";
        let found = taken(listing);
        assert!(found.contains(&"192.0.2.0/24".parse().expect("net")));
        assert!(found.contains(&"10.10.9.0/30".parse().expect("net")));
        assert_eq!(Leg::choose(&found).expect("a leg").to_string(), "10.10.8.0/30");
    }
}
