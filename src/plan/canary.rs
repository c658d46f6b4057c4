//! What `update` says of a canary: the share, how long, and what its instances may cost.
//!
//! Only what is written and what is left out; who judges by it is elsewhere.

use std::fmt;

use serde::{Deserialize, Serialize};
use toml::{Spanned, de::DeValue};

use super::{
    defaults,
    diagnostic::Notes,
    document::{milliseconds, seconds},
    limits, table,
    table::{Fields, Value},
};

/// The keys of `update` that only a canary has.
pub(super) const KEYS: &[&str] = &["share", "time", "errors", "latency"];

/// A release that begins with a share of the requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Canary {
    /// So many of a hundred requests go to the new instances, from 1.
    pub share: u32,
    /// For how long, in seconds.
    pub time_seconds: u32,
    /// By how much their share of failed requests may exceed the old instances'.
    pub errors: Percent,
    /// How long all but a few of their answers take at most to begin, in milliseconds; none: it does not matter.
    pub latency_ms: Option<u32>,
}
impl Default for Canary {
    fn default() -> Self {
        let (share, time_seconds) = (defaults::CANARY_SHARE, defaults::CANARY_SECONDS);
        Self { share, time_seconds, errors: defaults::CANARY_ERRORS, latency_ms: None }
    }
}

/// A percentage, in hundredths of a percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Percent(pub u32);

impl Percent {
    /// `12`, `0.5`, `0.25`: at most two places, from 0 to 100.
    fn read(text: &str) -> Option<Self> {
        let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(part) || part.len() > 2 {
            return None;
        }
        let hundredths = format!("{part:0<2}").parse::<u32>().ok()?;
        let sum = whole.parse::<u32>().ok()?.checked_mul(100)?.checked_add(hundredths)?;
        (sum <= 10_000).then_some(Self(sum))
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0 / 100, self.0 % 100) {
            (whole, 0) => write!(f, "{whole}%"),
            (whole, part) if part.is_multiple_of(10) => write!(f, "{whole}.{}%", part / 10),
            (whole, part) => write!(f, "{whole}.{part:02}%"),
        }
    }
}

/// What `update` says of it. None: nothing.
#[derive(Debug, Clone, Default)]
pub(super) struct CanarySettings {
    pub(super) share: Option<u32>,
    pub(super) time: Option<u32>,
    pub(super) errors: Option<Percent>,
    pub(super) latency: Option<u32>,
    /// The first of its keys in this very table.
    pub(super) first: Option<Spanned<&'static str>>,
}

impl CanarySettings {
    pub(super) fn over_defaults(&self) -> Canary {
        let or = Canary::default();
        Canary {
            share: self.share.unwrap_or(or.share),
            time_seconds: self.time.unwrap_or(or.time_seconds),
            errors: self.errors.unwrap_or(or.errors),
            latency_ms: self.latency.or(or.latency_ms),
        }
    }
}

pub(super) fn read(fields: &Fields<'_>, found: &mut Notes) -> CanarySettings {
    let first = KEYS.iter().find_map(|key| Some(Spanned::new(fields.get(key)?.span(), *key)));
    CanarySettings {
        share: fields.get("share").and_then(|v| share(v, found)),
        time: fields.get("time").and_then(|v| seconds("update.time", 1, limits::WAIT_SECONDS, v, found)),
        errors: fields.get("errors").and_then(|v| percent("update.errors", 0, v, found)),
        latency: fields
            .get("latency")
            .and_then(|v| u32::try_from(milliseconds("update.latency", 1, limits::PROBE_MS, v, found)?).ok()),
        first,
    }
}

fn share(value: &Value<'_>, found: &mut Notes) -> Option<u32> {
    let Percent(hundredths) = percent("update.share", 1, value, found)?;
    if !hundredths.is_multiple_of(100) {
        found.error(value.span(), "update.share counts whole percents");
        return None;
    }
    Some(hundredths / 100)
}

fn percent(key: &str, from: u32, value: &Value<'_>, found: &mut Notes) -> Option<Percent> {
    let wanted = format!("a percentage from {from} to 100");
    let read = match value.get_ref() {
        DeValue::Integer(number) => Percent::read(number.as_str()),
        DeValue::Float(number) => Percent::read(number.as_str()),
        DeValue::String(text) => text.strip_suffix('%').and_then(Percent::read),
        _ => {
            table::wrong_type(key, &wanted, value, found);
            return None;
        }
    };
    let fits = read.filter(|percent| *percent >= Percent(from * 100));
    if fits.is_none() {
        found.error(value.span(), format!("{key} is {wanted}")).hint(format!("as in {key} = 5 or {key} = \"5%\""));
    }
    fits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_read_back() {
        for (text, hundredths, shown) in
            [("0", 0, "0%"), ("1", 100, "1%"), ("0.5", 50, "0.5%"), ("99.99", 9999, "99.99%"), ("2.05", 205, "2.05%")]
        {
            assert_eq!(Percent::read(text), Some(Percent(hundredths)), "{text}");
            assert_eq!(Percent(hundredths).to_string(), shown);
            assert_eq!(Percent::read(shown.trim_end_matches('%')), Some(Percent(hundredths)));
        }
        for bad in ["", "-1", "+1", "100.01", "101", "1.", ".5", "0.001", "1e1", "inf", "1 ", "99999999999"] {
            assert_eq!(Percent::read(bad), None, "{bad:?}");
        }
    }
}
