//! The one place that prints. Text from outside is made harmless here: no control character reaches a terminal.

use std::io::Write;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use owo_colors::OwoColorize;
use serde::Serialize;

pub use crate::model::harmless;

use super::{Failure, Global};
use crate::plan::{Diagnostic, Severity};

/// Prints text, tables or JSON to standard output, and progress and errors to standard error.
#[derive(Debug, Clone)]
pub struct Printer {
    json: bool,
    quiet: bool,
    bars: MultiProgress,
}

impl Printer {
    /// The printer these options ask for.
    pub fn new(global: &Global) -> Self {
        let target =
            if global.json || global.quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        Self { json: global.json, quiet: global.quiet, bars: MultiProgress::with_draw_target(target) }
    }
    /// Whether JSON is wanted.
    pub fn is_json(&self) -> bool {
        self.json
    }
    /// Prints a line of text; nothing under `--quiet` or `--json`.
    pub fn line(&self, text: impl AsRef<str>) {
        if !self.quiet && !self.json {
            let text = harmless(text.as_ref()).into_owned();
            // A closed pipe (head, less) is no error of ours.
            self.bars.suspend(|| _ = writeln!(anstream::stdout(), "{text}"));
        }
    }
    /// Prints bytes that are the result itself (VCL, a plan), whatever the options but `--json`.
    pub fn result(&self, text: &str) {
        _ = write!(anstream::stdout(), "{}", harmless_keep_tabs(text));
    }
    /// Prints a value as one JSON document.
    pub fn json(&self, value: &impl Serialize) {
        match serde_json::to_string_pretty(value) {
            Ok(text) => _ = writeln!(anstream::stdout(), "{text}"),
            Err(error) => _ = writeln!(anstream::stderr(), "error: cannot write JSON: {error}"),
        }
    }
    /// Prints a value as one line of JSON (a stream of them is NDJSON).
    pub fn json_line(&self, value: &impl Serialize) {
        if let Ok(text) = serde_json::to_string(value) {
            _ = writeln!(anstream::stdout(), "{text}");
        }
    }
    /// Prints a table, columns by the widest cell, no frame; nothing under `--quiet` or `--json`.
    pub fn table(&self, head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) {
        if self.quiet || self.json {
            return;
        }
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        table.set_content_arrangement(comfy_table::ContentArrangement::Disabled);
        table.set_header(head.iter().copied());
        for row in rows {
            table.add_row(row.iter().map(|cell| harmless(cell).into_owned()));
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        for line in table.lines() {
            _ = writeln!(anstream::stdout(), "{}", line.trim_end());
        }
    }
    /// Warns on standard error.
    pub fn warning(&self, text: &str) {
        let text = harmless(text).into_owned();
        self.bars.suspend(|| {
            _ = writeln!(anstream::stderr(), "{} {text}", "warning:".yellow());
        });
    }
    /// Shows what was found in a file on standard error; nothing under `--json`, where it is part of the result.
    pub fn diagnostics(&self, found: &[Diagnostic]) {
        if self.json {
            return;
        }
        for diagnostic in found {
            let text = harmless(&diagnostic.to_string()).into_owned();
            let _ = match diagnostic.severity {
                Severity::Error => writeln!(anstream::stderr(), "{} {text}", "error:".red()),
                Severity::Warning => writeln!(anstream::stderr(), "{} {text}", "warning:".yellow()),
            };
        }
    }
    /// Shows a failure on standard error, in JSON where JSON is wanted.
    pub fn failure(&self, failure: &Failure) {
        if self.json {
            let value = serde_json::json!({ "error": failure.message, "hint": failure.hint });
            _ = writeln!(anstream::stderr(), "{value}");
            return;
        }
        let message = harmless(&failure.message).into_owned();
        _ = writeln!(anstream::stderr(), "{} {message}", "error:".red());
        if let Some(hint) = &failure.hint {
            _ = writeln!(anstream::stderr(), "  hint: {}", harmless(hint));
        }
    }
    /// A progress bar of `total` bytes on standard error; hidden where that is no terminal.
    pub fn bytes_bar(&self, label: &str, total: u64) -> ProgressBar {
        let style =
            ProgressStyle::with_template("{prefix:20!} {wide_bar} {bytes:>10}/{total_bytes:10} {bytes_per_sec:>12}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = self.bars.add(ProgressBar::new(total).with_style(style));
        bar.set_prefix(harmless(label).into_owned());
        bar
    }
    /// A spinner with a message on standard error; hidden where that is no terminal.
    pub fn spinner(&self, label: &str) -> ProgressBar {
        let bar = self.bars.add(ProgressBar::new_spinner());
        bar.set_message(harmless(label).into_owned());
        bar.enable_steady_tick(std::time::Duration::from_millis(120));
        bar
    }
}

fn harmless_keep_tabs(text: &str) -> String {
    text.split('\t').map(harmless).collect::<Vec<_>>().join("\t")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_shown_not_obeyed() {
        assert_eq!(harmless("plain\ntext"), "plain\ntext");
        assert_eq!(harmless("a\u{1b}[2Jb\r\u{202e}c"), "a\\u{1b}[2Jb\\u{d}\\u{202e}c");
        assert_eq!(harmless_keep_tabs("a\tb\u{7}"), "a\tb\\u{7}");
    }
}
