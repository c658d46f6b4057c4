//! Ports and hardware addresses.

use std::{fmt, num::NonZeroU16, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{Invalid, text_value};

/// A TCP port, 1 to 65535.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Port(NonZeroU16);

impl Port {
    /// The port with this number; none for 0.
    pub const fn new(number: u16) -> Option<Self> {
        match NonZeroU16::new(number) {
            Some(port) => Some(Self(port)),
            None => None,
        }
    }
    /// The number.
    pub const fn get(self) -> u16 {
        self.0.get()
    }
}
impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
impl FromStr for Port {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let digits = text.bytes().all(|b| b.is_ascii_digit());
        text.parse()
            .ok()
            .filter(|_| digits)
            .map(Self)
            .ok_or_else(|| Invalid::new("port", text, "is a number from 1 to 65535"))
    }
}

/// A hardware address (EUI-48): `02:42:0a:0a:0a:19`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddr([u8; 6]);

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().enumerate().try_for_each(|(at, octet)| match at {
            0 => write!(f, "{octet:02x}"),
            _ => write!(f, ":{octet:02x}"),
        })
    }
}
impl FromStr for MacAddr {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let wrong = || Invalid::new("MAC address", text, "is six pairs of hexadecimal digits with colons between");
        let mut octets = [0u8; 6];
        let mut parts = text.split([':', '-']);
        for octet in &mut octets {
            let part =
                parts.next().filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit())).ok_or_else(wrong)?;
            *octet = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        match parts.next() {
            None => Ok(Self(octets)),
            Some(_) => Err(wrong()),
        }
    }
}
text_value!(MacAddr);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_addresses_read_back() {
        assert_eq!("5050".parse::<Port>().map(Port::get), Ok(5050));
        for bad in ["0", "65536", "-1", "+80", "", "80x", " 80"] {
            assert!(bad.parse::<Port>().is_err(), "{bad}");
        }
        let mac: MacAddr = "02:42:0A:0a:0a:19".parse().expect("a MAC address");
        assert_eq!(mac.to_string(), "02:42:0a:0a:0a:19");
        for bad in ["02:42", "02:42:0a:0a:0a:19:20", "zz:42:0a:0a:0a:19", "2:42:0a:0a:0a:190", "+2:42:0a:0a:0a:19"] {
            assert!(bad.parse::<MacAddr>().is_err(), "{bad}");
        }
    }
}
