//! TOML tables read key by key: wrong types and unknown keys become findings, never a panic, never only the first.
//!
//! Knows no plan; what the keys mean is `document`'s.

use std::str::FromStr;

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::diagnostic::{Note, Notes, Span, nearest};
use crate::model::Invalid;

pub(crate) type Value<'a> = Spanned<DeValue<'a>>;

/// A TOML text as a table, with what is wrong in it. Recovers: what can be read is there.
pub(crate) fn parse<'a>(text: &'a str, found: &mut Notes) -> DeTable<'a> {
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        let span = error.span().unwrap_or(0..0);
        let at = text.get(span.clone()).unwrap_or_default();
        match error.message() {
            "duplicate key" => {
                found
                    .error(span, format!("{} is there twice", quoted(at)))
                    .hint("keep one of the two; a table's keys go below one header");
            }
            message => {
                found.error(span, format!("not TOML: {}", message.to_lowercase()));
            }
        }
    }
    table.into_inner()
}

/// A key or a value's text in a message: cut, and escaped by its quotes.
pub(crate) fn quoted(text: &str) -> String {
    let cut: String = text.chars().take(100).collect();
    let bare = !cut.is_empty() && cut.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c));
    if bare { cut } else { format!("{cut:?}") }
}

/// A table whose keys are known.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fields<'a> {
    table: &'a DeTable<'a>,
    known: &'static [&'static str],
}

impl<'a> Fields<'a> {
    /// The table's fields; unknown keys become errors, with `advice` where it knows the key, else with the nearest one.
    pub(crate) fn new(
        table: &'a DeTable<'a>,
        known: &'static [&'static str],
        what: &str,
        advice: impl Fn(&str) -> Option<String>,
        found: &mut Notes,
    ) -> Self {
        for key in table.keys() {
            let name = key.get_ref().as_ref();
            if known.contains(&name) {
                continue;
            }
            let note = found.error(key.span(), format!("{what} has no key {}", quoted(name)));
            match (advice(name), nearest(name, known.iter().copied())) {
                (Some(advice), _) => note.hint(advice),
                (None, Some(near)) => note.hint(format!("did you mean {near}?")),
                (None, None) => note.hint(format!("the keys are {}", known.join(", "))),
            }
        }
        Self { table, known }
    }
    /// The value of a known key.
    pub(crate) fn get(&self, key: &str) -> Option<&'a Value<'a>> {
        debug_assert!(self.known.contains(&key), "{key} is read but not known");
        self.table.get(key)
    }
}

/// What a value is, for people.
fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// Says that `key` should be `wanted`.
pub(crate) fn wrong_type<'n>(key: &str, wanted: &str, value: &Value<'_>, found: &'n mut Notes) -> &'n mut Note {
    found.error(value.span(), format!("{key} is {wanted}, not {}", kind(value.get_ref())))
}

/// Which control characters a text may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lines {
    /// None.
    One,
    /// Line breaks and tabs: scripts, certificates.
    Many,
}

/// Whether a text may be used; says why not.
pub(crate) fn clean(key: &str, text: &str, lines: Lines, span: Span, found: &mut Notes) -> bool {
    let bad = |c: &char| c.is_control() && !(lines == Lines::Many && matches!(c, '\n' | '\t'));
    match text.chars().find(bad) {
        Some(c) => {
            found.error(span, format!("{key} holds the control character {}", c.escape_unicode()));
            false
        }
        None => true,
    }
}

/// A string of one line.
pub(crate) fn text<'a>(key: &str, wanted: &str, value: &'a Value<'a>, found: &mut Notes) -> Option<&'a str> {
    if let DeValue::String(text) = value.get_ref() {
        return clean(key, text, Lines::One, value.span(), found).then_some(text.as_ref());
    }
    wrong_type(key, wanted, value, found);
    None
}

/// A string that reads as a `T`.
pub(crate) fn parsed<T: FromStr<Err = Invalid>>(
    key: &str,
    wanted: &str,
    value: &Value<'_>,
    found: &mut Notes,
) -> Option<T> {
    let text = text(key, wanted, value, found)?;
    text.parse().map_err(|e: Invalid| _ = found.error(value.span(), e.to_string())).ok()
}

/// A whole number in a range.
pub(crate) fn number(key: &str, from: u32, to: u32, value: &Value<'_>, found: &mut Notes) -> Option<u32> {
    let DeValue::Integer(number) = value.get_ref() else {
        let note = wrong_type(key, &format!("a number from {from} to {to}"), value, found);
        if let DeValue::String(text) = value.get_ref()
            && text.parse::<u32>().is_ok()
        {
            note.hint(format!("without quotes: {key} = {text}"));
        }
        return None;
    };
    let read = i128::from_str_radix(number.as_str(), number.radix()).ok();
    let fits = read.and_then(|n| u32::try_from(n).ok()).filter(|n| (from..=to).contains(n));
    if fits.is_none() {
        found.error(value.span(), format!("{key} is a number from {from} to {to}"));
    }
    fits
}

/// `true` or `false`.
pub(crate) fn boolean(key: &str, value: &Value<'_>, found: &mut Notes) -> Option<bool> {
    if let DeValue::Boolean(yes) = value.get_ref() {
        return Some(*yes);
    }
    let note = wrong_type(key, "true or false", value, found);
    if let DeValue::String(text) = value.get_ref()
        && matches!(text.as_ref(), "true" | "false")
    {
        note.hint(format!("without quotes: {key} = {text}"));
    }
    None
}

/// A string, or a number or truth value as its text (environment variables and labels know only text).
pub(crate) fn scalar(key: &str, lines: Lines, value: &Value<'_>, found: &mut Notes) -> Option<String> {
    match value.get_ref() {
        DeValue::String(text) => clean(key, text, lines, value.span(), found).then(|| text.clone().into_owned()),
        DeValue::Boolean(yes) => Some(yes.to_string()),
        DeValue::Float(number) => Some(number.as_str().to_owned()),
        DeValue::Integer(number) => match i128::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Some(number.to_string()),
            Err(_) => {
                found.error(value.span(), format!("{key} is a number too large to read")).hint("write it in quotes");
                None
            }
        },
        DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => {
            wrong_type(key, "a string, a number, true or false", value, found).hint("write it in quotes");
            None
        }
    }
}

/// A value alone or a list of values, as Compose allows.
pub(crate) fn one_or_more<'a>(value: &'a Value<'a>) -> Box<dyn Iterator<Item = &'a Value<'a>> + 'a> {
    match value.get_ref() {
        DeValue::Array(list) => Box::new(list.iter()),
        _ => Box::new(std::iter::once(value)),
    }
}
