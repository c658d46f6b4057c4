//! What is wrong with a file, where, and what to do: every finding at once, in the file's order.
//!
//! Nothing here is printed. Excerpts hold no control character, so that whoever prints them cannot be steered by a file.

use std::{collections::BTreeSet, fmt, ops::Range};

use serde::{Deserialize, Serialize};

/// A byte range of a file.
pub(crate) type Span = Range<usize>;

/// More findings than anybody reads; the rest is counted.
const SHOWN: usize = 200;
/// The longest excerpt, in characters.
const EXCERPT: usize = 120;

/// Whether a finding stops the file from being used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The file cannot be used.
    Error,
    /// It can, but may not mean what its writer thinks.
    Warning,
}
impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

/// One finding. Displays as `FILE:LINE:COLUMN: MESSAGE`, the excerpt with a mark below, and the hint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnostic {
    /// Error or warning.
    pub severity: Severity,
    /// The file as the user named it.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// The character in the line, from 1.
    pub column: usize,
    /// The line, or the part of a long one around the place; control characters replaced.
    pub excerpt: String,
    /// Where in the excerpt the place begins, in characters.
    pub mark: usize,
    /// How many characters of the excerpt it covers, at least 1.
    pub width: usize,
    /// What is wrong, lowercase.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {}", self.file, self.line, self.column, self.message)?;
        if !self.excerpt.trim().is_empty() {
            write!(f, "\n    {}\n    {:mark$}{}", self.excerpt, "", "^".repeat(self.width), mark = self.mark)?;
        }
        match &self.hint {
            Some(hint) => write!(f, "\n  hint: {hint}"),
            None => Ok(()),
        }
    }
}

/// A file's name and text, and where its lines begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    file: String,
    text: String,
    lines: Vec<usize>,
}

impl Source {
    pub(crate) fn new(file: &str, text: &str) -> Self {
        let lines = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { file: file.to_owned(), text: text.to_owned(), lines }
    }
    pub(crate) fn text(&self) -> &str {
        &self.text
    }
    /// The line, from 1, that holds this byte.
    pub(crate) fn line(&self, at: usize) -> usize {
        self.lines.partition_point(|start| *start <= at).max(1)
    }
    fn diagnostic(&self, note: Note) -> Diagnostic {
        let floor = |mut at: usize| {
            at = at.min(self.text.len());
            while !self.text.is_char_boundary(at) {
                at -= 1;
            }
            at
        };
        let (start, end) = (floor(note.span.start), floor(note.span.end));
        let line = self.line(start);
        let begin = self.lines[line - 1];
        let rest = &self.text[begin..];
        let text = rest.split('\n').next().unwrap_or(rest).trim_end_matches('\r');
        let before = self.text[begin..start].chars().count();
        let covered = self.text[start..end.clamp(start, (begin + text.len()).max(start))].chars().count();
        // A long line is cut so that the place stays in sight.
        let skip = if before + covered.min(40) > EXCERPT { before.saturating_sub(30) } else { 0 };
        let excerpt: String = text.chars().skip(skip).take(EXCERPT).map(harmless).collect();
        let mark = before - skip;
        Diagnostic {
            severity: note.severity,
            file: self.file.clone(),
            line,
            column: before + 1,
            mark,
            width: covered.clamp(1, (EXCERPT - mark.min(EXCERPT - 1)).max(1)),
            excerpt: excerpt.trim_end().to_owned(),
            message: note.message,
            hint: note.hint,
        }
    }
}

/// One character for one, so that marks stay below what they mark.
fn harmless(c: char) -> char {
    match c {
        '\t' => ' ',
        c if c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') => '\u{fffd}',
        c => c,
    }
}

/// A finding by its bytes.
#[derive(Debug, Clone)]
pub(crate) struct Note {
    pub(crate) severity: Severity,
    pub(crate) span: Span,
    message: String,
    hint: Option<String>,
}

impl Note {
    /// Says what to do.
    pub(crate) fn hint(&mut self, hint: impl Into<String>) {
        self.hint = Some(hint.into());
    }
}

/// Findings as they are made.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    found: Vec<Note>,
}

impl Notes {
    pub(crate) fn error(&mut self, span: Span, message: impl Into<String>) -> &mut Note {
        self.push(Severity::Error, span, message.into())
    }
    pub(crate) fn warning(&mut self, span: Span, message: impl Into<String>) -> &mut Note {
        self.push(Severity::Warning, span, message.into())
    }
    fn push(&mut self, severity: Severity, span: Span, message: String) -> &mut Note {
        self.found.push(Note { severity, span, message, hint: None });
        let last = self.found.len() - 1;
        &mut self.found[last]
    }
    /// Adds what to do to the finding made last.
    pub(crate) fn hint_last(&mut self, hint: impl Into<String>) {
        if let Some(note) = self.found.last_mut() {
            note.hint(hint);
        }
    }
    /// The lines that have findings; and the lines below those of them that begin with `[`, up to the next such.
    pub(crate) fn broken_lines(&self, source: &Source) -> (BTreeSet<usize>, BTreeSet<usize>) {
        let broken: BTreeSet<usize> = self.found.iter().map(|note| source.line(note.span.start)).collect();
        let mut headless = BTreeSet::new();
        let mut below = false;
        for (index, line) in source.text.split('\n').enumerate() {
            if line.trim_start().starts_with('[') {
                below = broken.contains(&(index + 1));
            } else if below {
                headless.insert(index + 1);
            }
        }
        (broken, headless)
    }
    pub(crate) fn has_errors(&self) -> bool {
        self.found.iter().any(|note| note.severity == Severity::Error)
    }
    /// Keeps what `keep` says.
    pub(crate) fn retain(&mut self, keep: impl FnMut(&Note) -> bool) {
        self.found.retain(keep);
    }
    /// Adds another list's findings.
    pub(crate) fn extend(&mut self, other: Self) {
        self.found.extend(other.found);
    }
    /// The findings in the file's order, the first of too many, and how many more.
    pub(crate) fn finish(mut self, source: &Source) -> Vec<Diagnostic> {
        self.found.sort_by(|a, b| (a.span.start, a.severity, &a.message).cmp(&(b.span.start, b.severity, &b.message)));
        self.found.dedup_by(|a, b| a.span.start == b.span.start && a.message == b.message);
        if self.found.len() > SHOWN {
            // Errors before warnings where not all fit.
            let errors = self.found.iter().filter(|n| n.severity == Severity::Error).count();
            if errors > 0 {
                self.found.retain(|n| n.severity == Severity::Error);
            }
            let more = self.found.len().saturating_sub(SHOWN);
            if more > 0 {
                let next = &mut self.found[SHOWN];
                next.message = format!("{more} more {} from here on", if errors > 0 { "errors" } else { "warnings" });
                next.hint = None;
                self.found.truncate(SHOWN + 1);
            }
        }
        self.found.into_iter().map(|note| source.diagnostic(note)).collect()
    }
}

/// The known name most like `name`, where one is like it at all.
pub(crate) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Nobody mistypes a name this long; comparing costs the product of both lengths.
    if name.len() > 100 {
        return None;
    }
    let most = (name.chars().count() / 3).max(1);
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&name.to_ascii_lowercase(), candidate), candidate))
        .filter(|(distance, _)| *distance <= most)
        .min()
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str, span: Span) -> Diagnostic {
        let mut notes = Notes::default();
        notes.error(span, "wrong").hint("right it");
        notes.finish(&Source::new("f", text)).remove(0)
    }

    #[test]
    fn places_are_counted_in_characters() {
        let text = "é a\r\n\tbad = 1\r\n";
        let at = text.find("bad").expect("bad");
        let found = one(text, at..at + 3);
        assert_eq!((found.line, found.column, found.width), (2, 2, 3));
        assert_eq!(found.to_string(), "f:2:2: wrong\n     bad = 1\n     ^^^\n  hint: right it");
    }

    #[test]
    fn any_place_in_any_text_can_be_shown() {
        for text in ["", "\n", "a", "é", "\u{1b}[2Jx", &"long ".repeat(1000)] {
            for start in 0..text.len().min(300) + 3 {
                for width in [0, 1, 500] {
                    let found = one(text, start..start + width);
                    assert!(found.excerpt.chars().count() <= EXCERPT && !found.excerpt.contains('\u{1b}'));
                    assert!(found.mark <= EXCERPT && found.width >= 1 && found.width <= EXCERPT);
                }
            }
        }
    }

    #[test]
    fn nearest_is_near() {
        let known = ["image", "replicas", "memory", "port", "path"];
        assert_eq!(nearest("imgae", known), Some("image"));
        assert_eq!(nearest("Replica", known), Some("replicas"));
        assert_eq!(nearest("pot", known), Some("port"));
        assert_eq!(nearest("gigantic", known), None);
    }
}
