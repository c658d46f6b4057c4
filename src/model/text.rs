//! Text from outside, made harmless before it is shown.
//!
//! Nothing here knows where it is shown; quoting for HTML, VCL or a shell is done there.

use std::borrow::Cow;

/// The text with control characters shown as `\u{…}` instead of obeyed; line breaks stay.
pub fn harmless(text: &str) -> Cow<'_, str> {
    let bad = |c: char| c.is_control() && c != '\n' || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    if text.contains(bad) {
        Cow::Owned(text.chars().map(|c| if bad(c) { c.escape_unicode().to_string() } else { c.to_string() }).collect())
    } else {
        Cow::Borrowed(text)
    }
}
