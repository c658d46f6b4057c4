//! Memory and processor shares.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{Invalid, text_value};

/// An amount of memory in bytes. Written as Compose writes it: `64m`, `1g`, `1.5g`, `512k`, `100b`, with or without a
/// following `b` or `ib`, any case; units are powers of 1024.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct Memory(pub u64);

impl Memory {
    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}
impl fmt::Display for Memory {
    /// The largest unit that divides it: `64m`, `1g`, `1500k`, `100b`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.0 {
            n if n != 0 && n % (1 << 30) == 0 => format!("{}g", n >> 30),
            n if n != 0 && n % (1 << 20) == 0 => format!("{}m", n >> 20),
            n if n != 0 && n % (1 << 10) == 0 => format!("{}k", n >> 10),
            n => format!("{n}b"),
        };
        f.pad(&text)
    }
}
impl FromStr for Memory {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let wrong = || Invalid::new("memory", text, "is a number with a unit b, k, m or g, as in 64m or 1.5g");
        let lower = text.to_ascii_lowercase();
        let split = lower.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let (number, unit) = lower.split_at(split);
        let shift = match unit {
            "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            _ => return Err(wrong()),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
        if whole.is_empty() || whole.len() > 20 || fraction.len() > 3 {
            return Err(wrong());
        }
        let thousandths: u128 = format!("{whole}{fraction:0<3}").parse().map_err(|_| wrong())?;
        u64::try_from((thousandths << shift) / 1000).map(Self).map_err(|_| wrong())
    }
}
text_value!(Memory);

/// A share of processors in thousandths: `0.5` is 500.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct Cpus(pub u32);

impl Cpus {
    /// Thousandths of a processor.
    pub const fn millis(self) -> u32 {
        self.0
    }
    /// Billionths of a processor, the engine's `NanoCpus`.
    pub const fn nanos(self) -> i64 {
        self.0 as i64 * 1_000_000
    }
}
impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{}.{:03}", self.0 / 1000, self.0 % 1000);
        f.pad(text.trim_end_matches('0').trim_end_matches('.'))
    }
}
impl FromStr for Cpus {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let wrong =
            || Invalid::new("cpus", text, "is a number from 0.001 to 1024 with at most three decimals, as in 0.5");
        let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(fraction) || fraction.len() > 3 || whole.len() > 4 {
            return Err(wrong());
        }
        let millis: u32 = format!("{whole}{fraction:0<3}").parse().map_err(|_| wrong())?;
        if (1..=1_024_000).contains(&millis) { Ok(Self(millis)) } else { Err(wrong()) }
    }
}
text_value!(Cpus);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_back() {
        for (text, bytes, shown) in [
            ("64m", 64 << 20, "64m"),
            ("64MB", 64 << 20, "64m"),
            ("1.5g", 3 << 29, "1536m"),
            ("1GiB", 1 << 30, "1g"),
            ("100b", 100, "100b"),
        ] {
            let memory: Memory = text.parse().expect(text);
            assert_eq!((memory.bytes(), memory.to_string().as_str()), (bytes, shown));
        }
        assert_eq!("1099511628801b".parse::<Memory>().map(Memory::bytes), Ok(1_099_511_628_801));
        for bad in ["", "64", "m", "-1m", "1.2.3m", "64x", "99999999999999g", "1.m ", ".m"] {
            assert!(bad.parse::<Memory>().is_err(), "{bad:?}");
        }
        assert_eq!("0.5".parse::<Cpus>().map(Cpus::nanos), Ok(500_000_000));
        assert_eq!("2".parse::<Cpus>().map(|c| c.to_string()).as_deref(), Ok("2"));
        for bad in ["", "0", "-1", "1e3", "0.0001", "2000", "."] {
            assert!(bad.parse::<Cpus>().is_err(), "{bad:?}");
        }
    }
}
