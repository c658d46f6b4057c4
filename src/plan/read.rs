//! Text to a checked plan, whichever of the two forms it has.
//!
//! Which one is told by content alone: names of files prove nothing.

use super::{
    Diagnostic, Plan, Severity, check,
    diagnostic::{Notes, Source},
    document, legacy,
};

/// The largest plan that is read.
pub const MAX_BYTES: usize = 16 << 20;

/// A plan without errors, and what its writer should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// The plan.
    pub plan: Plan,
    /// What may not be meant as it is written.
    pub warnings: Vec<Diagnostic>,
    /// For warnings about the world, later.
    pub(super) source: Source,
    pub(super) places: check::Places,
}

/// Reads a plan in either form; `file` is its name for people.
///
/// # Errors
/// All that is wrong with it, in the file's order, warnings included.
pub fn read(file: &str, text: &str) -> Result<Checked, Vec<Diagnostic>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let source = Source::new(file, text);
    let mut notes = Notes::default();
    if text.len() > MAX_BYTES {
        notes.error(0..0, format!("the plan has {} bytes; {MAX_BYTES} are read at most", text.len()));
        return Err(notes.finish(&Source::new(file, "")));
    }
    let drafts = match form(text) {
        Form::Toml => document::read(&source, &mut notes),
        Form::Columns => legacy::read(&source, &mut notes),
        Form::Other { at, what } => {
            notes
                .error(at..at, format!("this looks like {what}, not like a plan"))
                .hint("a plan is TOML with [apps.NAME], or four columns: APP NODE EXTERNAL-PORT INTERNAL-PORT");
            Vec::new()
        }
    };
    let (plan, places) = check::plan(&drafts, &source, &mut notes);
    let failed = notes.has_errors();
    let found = notes.finish(&source);
    if failed {
        return Err(found);
    }
    debug_assert!(found.iter().all(|d| d.severity == Severity::Warning));
    Ok(Checked { plan, warnings: found, source, places })
}

/// As [`read`], from bytes that may not even be text.
///
/// # Errors
/// As [`read`].
pub fn read_bytes(file: &str, bytes: &[u8]) -> Result<Checked, Vec<Diagnostic>> {
    match std::str::from_utf8(bytes) {
        Ok(text) => read(file, text),
        Err(error) => {
            let good = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
            let mut notes = Notes::default();
            let at = good.len();
            let what = format!("byte {:#04x} is not UTF-8", bytes.get(at).copied().unwrap_or_default());
            notes.error(at..at, what).hint("save the plan as UTF-8 text");
            Err(notes.finish(&Source::new(file, &good)))
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Form {
    Toml,
    Columns,
    Other { at: usize, what: &'static str },
}

/// The first line that says anything decides: a later slip must not turn the whole file into the other form.
fn form(text: &str) -> Form {
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let begin = at;
        at += line.len();
        let words = line.split('#').next().unwrap_or(line).trim();
        if words.is_empty() {
            continue;
        }
        if words.contains('\0') {
            return Form::Other { at: begin, what: "a binary file" };
        }
        if words.starts_with('{') {
            return Form::Other { at: begin, what: "JSON" };
        }
        if words.starts_with('<') {
            return Form::Other { at: begin, what: "markup" };
        }
        if words.starts_with('[') || words.contains('=') {
            return Form::Toml;
        }
        if words.starts_with("---") || words.ends_with(':') || (words.contains(": ") && !words.starts_with('"')) {
            return Form::Other { at: begin, what: "YAML" };
        }
        return Form::Columns;
    }
    Form::Toml
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_is_told_by_the_first_line_that_says_anything() {
        for toml in
            ["", "# only a comment", "[apps.shop]", "\n# x\n  [defaults]", "apps.shop = {}", "apps = 1\nshop a 1 2"]
        {
            assert_eq!(form(toml), Form::Toml, "{toml:?}");
        }
        for columns in
            ["shop node25 5050 8080", "#app name\nshop\tnode25", "shop", "\r\n\tshop node25 1 2 # a = b\r\n[x]"]
        {
            assert_eq!(form(columns), Form::Columns, "{columns:?}");
        }
        for other in ["services:\n  web:", "version: '3'", "---\n", "{\"apps\": {}}", "<html>", "a\0b"] {
            assert!(matches!(form(other), Form::Other { .. }), "{other:?}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_have_a_place() {
        let found = read_bytes("f", b"[apps.a]\nimage = \"\xff\"").expect_err("not UTF-8");
        assert_eq!((found[0].line, found[0].column), (2, 10));
    }
}
