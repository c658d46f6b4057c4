//! An application's `health`: a path, `"tcp"`, or a table.
//!
//! Only what is written; the default path needs the routes and is `check`'s.

use toml::{Spanned, de::DeValue};

use super::{
    check::HealthSettings,
    diagnostic::Notes,
    document::{milliseconds, seconds},
    limits, table,
    table::{Fields, Value},
    value,
};

/// The keys of `health`.
pub const HEALTH_KEYS: &[&str] = &["path", "host", "status", "tcp", "interval", "timeout", "deadline"];

fn advice(key: &str) -> Option<String> {
    Some(
        match key {
            "test" | "url" => "write path: the manager asks the instance by HTTP, as in path = \"/healthz\"",
            "start_period" | "start_interval" => {
                "write deadline: how long a new instance may take until it first answers"
            }
            "retries" => "leave it out: an instance is out after two of three answers are missing",
            "code" => "write status, as in status = 200",
            _ => return None,
        }
        .to_owned(),
    )
}

pub(super) fn read(value: &Value<'_>, found: &mut Notes) -> HealthSettings {
    let wanted = "a path in quotes, \"tcp\" or a table";
    let mut health = HealthSettings::default();
    match value.get_ref() {
        DeValue::String(text) if text == "tcp" => health.tcp = Some(Spanned::new(value.span(), true)),
        DeValue::String(_) => health.path = path(wanted, value, found),
        DeValue::Table(entries) => {
            let fields = Fields::new(entries, HEALTH_KEYS, "health", advice, found);
            health.path = fields.get("path").and_then(|v| path("a path in quotes", v, found));
            health.host = fields.get("host").and_then(|v| {
                let text = table::text("health.host", "a host name in quotes", v, found)?;
                if value::host_header(text) {
                    return Some(Spanned::new(v.span(), text.to_owned()));
                }
                found.error(v.span(), format!("health.host {} is not HOST or HOST:PORT", table::quoted(text)));
                None
            });
            health.status = fields.get("status").and_then(|v| {
                let status = u16::try_from(table::number("health.status", 100, 599, v, found)?).ok()?;
                Some(Spanned::new(v.span(), status))
            });
            health.tcp =
                fields.get("tcp").and_then(|v| Some(Spanned::new(v.span(), table::boolean("health.tcp", v, found)?)));
            let ms = |key: &'static str, from, to, found: &mut Notes| {
                let short = key.strip_prefix("health.").unwrap_or(key);
                fields.get(short).and_then(|v| u32::try_from(milliseconds(key, from, to, v, found)?).ok())
            };
            health.interval_ms = ms("health.interval", 100, limits::PROBE_MS, found);
            health.timeout_ms = ms("health.timeout", 10, limits::PROBE_MS, found);
            health.deadline_seconds =
                fields.get("deadline").and_then(|v| seconds("health.deadline", 1, limits::WAIT_SECONDS, v, found));
        }
        DeValue::Boolean(false) => {
            table::wrong_type("health", wanted, value, found)
                .hint("health = \"tcp\" asks the least: that a connection is accepted");
        }
        _ => {
            table::wrong_type("health", wanted, value, found);
        }
    }
    health
}

fn path(wanted: &str, value: &Value<'_>, found: &mut Notes) -> Option<Spanned<String>> {
    let text = table::text("health path", wanted, value, found)?;
    if value::request_path(text) {
        return Some(Spanned::new(value.span(), text.to_owned()));
    }
    let cut: String = text.chars().take(100).collect();
    found
        .error(
            value.span(),
            format!("health path {cut:?} begins with / and holds visible ASCII without quotes or backslash"),
        )
        .hint("as in \"/healthz\"; \"tcp\" only connects");
    None
}
