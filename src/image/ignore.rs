//! `.dockerignore`, as Docker reads it: the last pattern that matches a path or a directory above it decides.
//!
//! Not `.gitignore`: patterns begin at the top, a slash changes nothing, and what lies below an ignored directory can be
//! taken back with `!`.

use crate::plan::{
    Diagnostic,
    diagnostic::{Notes, Source},
};

/// The patterns of a `.dockerignore`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ignore {
    patterns: Vec<(bool, Vec<Token>)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Char(char),
    /// `?`: one character, no slash.
    One,
    /// `*`: any characters, no slash.
    Some,
    /// `**/`: nothing, or any directories.
    Directories,
    /// `**` at the end: anything.
    All,
    /// `[a-z]`, `[^a]`.
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

impl Ignore {
    /// Reads the file's text.
    ///
    /// # Errors
    /// Every pattern that is none, with its line.
    pub fn parse(file: &str, text: &str) -> Result<Self, Vec<Diagnostic>> {
        let (mut patterns, mut notes) = (Vec::new(), Notes::default());
        let mut offset = 0;
        for line in text.split_inclusive('\n') {
            let start = offset;
            offset += line.len();
            let line = line.trim_start_matches('\u{feff}');
            let pattern = line.trim();
            if pattern.is_empty() || line.starts_with('#') {
                continue;
            }
            let (negated, pattern) = match pattern.strip_prefix('!') {
                Some(rest) => (true, rest.trim()),
                None => (false, pattern),
            };
            match tokens(&clean(pattern)) {
                Ok(tokens) if !tokens.is_empty() => patterns.push((negated, tokens)),
                Ok(_) if negated => _ = notes.error(start..start + 1, "! stands alone"),
                Ok(_) => {}
                Err(why) => _ = notes.error(start..offset, format!("the pattern {pattern:?} {why}")),
            }
        }
        if notes.has_errors() { Err(notes.finish(&Source::new(file, text))) } else { Ok(Self { patterns }) }
    }

    /// Whether this path (relative, `/` between) is left out.
    pub fn ignores(&self, path: &str) -> bool {
        let ends: Vec<usize> = path.match_indices('/').map(|(at, _)| at).chain([path.len()]).collect();
        let mut ignored = false;
        for (negated, tokens) in &self.patterns {
            if *negated == ignored && ends.iter().any(|end| matches(tokens, &path[..*end])) {
                ignored = !negated;
            }
        }
        ignored
    }

    /// Whether something below an ignored directory may be taken back.
    pub fn takes_back(&self) -> bool {
        self.patterns.iter().any(|(negated, _)| *negated)
    }
}

/// Without empty parts, `.` and `..` resolved, without a slash at either end.
fn clean(pattern: &str) -> String {
    let mut parts = Vec::new();
    for part in pattern.split('/') {
        match part {
            "" | "." => {}
            ".." => _ = parts.pop(),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

fn tokens(pattern: &str) -> Result<Vec<Token>, &'static str> {
    let mut tokens = Vec::new();
    let mut chars = pattern.chars().peekable();
    while let Some(c) = chars.next() {
        tokens.push(match c {
            '*' if chars.next_if_eq(&'*').is_some() => {
                while chars.next_if_eq(&'*').is_some() {}
                chars.next_if_eq(&'/');
                if chars.peek().is_some() { Token::Directories } else { Token::All }
            }
            '*' => Token::Some,
            '?' => Token::One,
            '\\' => Token::Char(chars.next().ok_or("ends with a backslash")?),
            '[' => class(&mut chars)?,
            c => Token::Char(c),
        });
    }
    Ok(tokens)
}

fn class(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<Token, &'static str> {
    const OPEN: &str = "has a [ without its ]";
    let negated = chars.next_if_eq(&'^').is_some();
    let mut ranges = Vec::new();
    loop {
        let mut one = |first: bool| match chars.next().ok_or(OPEN)? {
            ']' if !first => Ok(None),
            ']' | '-' => Err("has a [] that holds nothing, or an unescaped - or ]"),
            '\\' => chars.next().map(Some).ok_or(OPEN),
            c => Ok(Some(c)),
        };
        let Some(low) = one(ranges.is_empty())? else { return Ok(Token::Class { negated, ranges }) };
        let high = if chars.next_if_eq(&'-').is_some() {
            match chars.next().ok_or(OPEN)? {
                ']' | '-' => return Err("has a range without its end"),
                '\\' => chars.next().ok_or(OPEN)?,
                c => c,
            }
        } else {
            low
        };
        if high < low {
            return Err("has a range that runs backwards");
        }
        ranges.push((low, high));
    }
}

/// Whether the tokens match the whole path. Quadratic at worst, whatever the pattern.
fn matches(tokens: &[Token], path: &str) -> bool {
    let path: Vec<char> = path.chars().collect();
    // reached[i]: the tokens so far match path[..i]
    let mut reached = vec![false; path.len() + 1];
    reached[0] = true;
    for token in tokens {
        let mut next = vec![false; path.len() + 1];
        let mut open = false;
        for at in 0..=path.len() {
            let before = at.checked_sub(1).map(|b| (reached[b], path[b]));
            next[at] = match token {
                Token::Char(c) => before == Some((true, *c)),
                Token::One => before.is_some_and(|(reached, c)| reached && c != '/'),
                Token::Class { negated, ranges } => before.is_some_and(|(reached, c)| {
                    reached && c != '/' && ranges.iter().any(|(low, high)| (*low..=*high).contains(&c)) != *negated
                }),
                Token::Some => {
                    open = reached[at] || open && before.is_some_and(|(_, c)| c != '/');
                    open
                }
                Token::All => {
                    open |= reached[at];
                    open
                }
                Token::Directories => {
                    let here = reached[at] || open && before.is_some_and(|(_, c)| c == '/');
                    open |= reached[at];
                    here
                }
            };
        }
        reached = next;
    }
    reached[path.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ignored(text: &str, path: &str) -> bool {
        Ignore::parse(".dockerignore", text).expect("patterns").ignores(path)
    }

    #[test]
    fn as_docker_reads_it() {
        for (text, path, want) in [
            ("*.md", "README.md", true),
            ("*.md", "docs/README.md", false),
            ("**/*.md", "docs/deep/README.md", true),
            ("**/*.md", "README.md", true),
            ("*.md\n!README.md", "README.md", false),
            ("!README.md\n*.md", "README.md", true),
            ("*.md\n!README*.md\nREADME-secret.md", "README-secret.md", true),
            ("node_modules", "node_modules/left/pad.js", true),
            ("node_modules", "a/node_modules/x", false),
            ("**/node_modules", "a/b/node_modules/x", true),
            ("/build/", "build/x", true),
            ("*/temp*", "somedir/temporary.txt", true),
            ("*/*/temp*", "a/b/tempdir/x", true),
            ("temp?", "tempa", true),
            ("temp?", "temp", false),
            ("temp?", "temp/x", false),
            ("# x", "# x", false),
            (" # x", "# x", true),
            ("a/**", "a/b/c", true),
            ("a/**", "a", false),
            ("a/**/z", "a/z", true),
            ("a/**/z", "a/b/c/z", true),
            ("a/**/z", "a/bz", false),
            ("**", "x/y", true),
            ("dir\n!dir/keep", "dir/keep/x", false),
            ("dir\n!dir/keep", "dir/lost", true),
            ("[a-c]x", "bx", true),
            ("[^a-c]x", "bx", false),
            ("\\*x", "*x", true),
            ("\\*x", "ax", false),
            ("a/../b", "b", true),
            ("\u{feff}a", "a", true),
            ("a.b", "axb", false),
        ] {
            assert_eq!(ignored(text, path), want, "{text:?} on {path:?}");
        }
    }

    #[test]
    fn what_is_no_pattern_is_said_with_its_line() {
        let problems = Ignore::parse(".dockerignore", "ok\n[a\n!\nb\\\n[z-a]").expect_err("four problems");
        assert_eq!(problems.iter().map(|p| p.line).collect::<Vec<_>>(), [2, 3, 4, 5], "{problems:?}");
    }

    #[test]
    fn a_pattern_cannot_take_long() {
        let path = "a".repeat(2000);
        assert!(!ignored(&format!("{}b", "**/*a*".repeat(100)), &path));
    }

    /// The plain meaning, by trying everything.
    fn slow(tokens: &[Token], path: &[char]) -> bool {
        let Some((token, rest)) = tokens.split_first() else { return path.is_empty() };
        match token {
            Token::All => (0..=path.len()).any(|n| slow(rest, &path[n..])),
            Token::Directories => {
                slow(rest, path) || (1..=path.len()).any(|n| path[n - 1] == '/' && slow(rest, &path[n..]))
            }
            Token::Some => (0..=path.len()).take_while(|n| !path[..*n].contains(&'/')).any(|n| slow(rest, &path[n..])),
            Token::One => path.first().is_some_and(|c| *c != '/') && slow(rest, &path[1..]),
            Token::Char(c) => path.first() == Some(c) && slow(rest, &path[1..]),
            Token::Class { negated, ranges } => {
                path.first().is_some_and(|c| *c != '/' && ranges.iter().any(|(l, h)| l <= c && c <= h) != *negated)
                    && slow(rest, &path[1..])
            }
        }
    }

    proptest! {
        #[test]
        fn equals_the_plain_meaning(lines in proptest::collection::vec("!?[ab*?/]{1,6}|!?[ab]\\[ab\\][*]{0,2}", 1..4),
                                    path in "[ab]{1,2}(/[ab]{1,2}){0,3}") {
            let Ok(ignore) = Ignore::parse(".dockerignore", &lines.join("\n")) else { return Ok(()) };
            let chars: Vec<char> = path.chars().collect();
            let mut want = false;
            for (negated, tokens) in &ignore.patterns {
                let hit = (1..=chars.len())
                    .filter(|n| *n == chars.len() || chars[*n] == '/')
                    .any(|n| slow(tokens, &chars[..n]));
                if hit { want = !negated; }
            }
            prop_assert_eq!(ignore.ignores(&path), want, "{:?} on {}", lines, path);
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,40}", path in "\\PC{1,20}") {
            if let Ok(ignore) = Ignore::parse(".dockerignore", &text) { ignore.ignores(&path); }
        }
    }
}
