//! The small languages inside a plan's strings: durations, command lines, mounts, users, health paths.
//!
//! Each returns the value or the rule that the text breaks.

use super::Volume;

type Rule = &'static str;

/// `10s`, `500ms`, `1m30s`, in milliseconds.
pub(crate) fn milliseconds(text: &str) -> Option<u64> {
    let mut rest = text;
    let mut sum: u64 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, after) = rest.split_at(digits);
        let unit = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let factor = match &after[..unit] {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return None,
        };
        sum = sum.checked_add(number.parse::<u64>().ok()?.checked_mul(factor)?)?;
        rest = &after[unit..];
    }
    (!text.is_empty()).then_some(sum)
}

/// The shortest text that reads as this many milliseconds.
pub(crate) fn duration(milliseconds: u64) -> String {
    match milliseconds {
        n if n > 0 && n % 3_600_000 == 0 => format!("{}h", n / 3_600_000),
        n if n > 0 && n % 60_000 == 0 => format!("{}m", n / 60_000),
        n if n % 1000 == 0 => format!("{}s", n / 1000),
        n => format!("{n}ms"),
    }
}

/// A command line's words as a POSIX shell splits them: blanks, quotes and backslashes, and nothing else.
///
/// Second: the first unquoted word that would mean something to a shell and means nothing here.
pub(crate) fn words(line: &str) -> Result<(Vec<String>, Option<String>), Rule> {
    let mut words = Vec::new();
    let mut shell = None;
    let mut word: Option<String> = None;
    let mut plain = true;
    let mut chars = line.chars();
    let mut end = |word: &mut Option<String>, plain: &mut bool| {
        if let Some(word) = word.take() {
            if *plain && shell.is_none() && (word.contains(['|', '<', '>', ';', '&', '`', '$', '*'])) {
                shell = Some(word.clone());
            }
            words.push(word);
        }
        *plain = true;
    };
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' | '\n' => end(&mut word, &mut plain),
            '\'' => {
                plain = false;
                let word = word.get_or_insert_default();
                loop {
                    match chars.next() {
                        Some('\'') => break,
                        Some(c) => word.push(c),
                        None => return Err("has a ' that is not closed"),
                    }
                }
            }
            '"' => {
                plain = false;
                let word = word.get_or_insert_default();
                loop {
                    match chars.next() {
                        Some('"') => break,
                        Some('\\') => match chars.next() {
                            Some(c @ ('"' | '\\' | '$' | '`')) => word.push(c),
                            Some(c) => word.extend(['\\', c]),
                            None => return Err("has a \" that is not closed"),
                        },
                        Some(c) => word.push(c),
                        None => return Err("has a \" that is not closed"),
                    }
                }
            }
            '\\' => {
                plain = false;
                word.get_or_insert_default().push(chars.next().ok_or("ends with a backslash")?);
            }
            c => word.get_or_insert_default().push(c),
        }
    }
    end(&mut word, &mut plain);
    if words.is_empty() { Err("is empty") } else { Ok((words, shell)) }
}

/// An absolute path without `..`, `:` or control characters.
pub(crate) fn absolute(path: &str) -> bool {
    path.starts_with('/')
        && path.len() <= 4096
        && !path.contains(|c: char| c.is_control() || c == ':')
        && path.split('/').all(|part| part != "..")
}

/// A mount from its parts.
pub(super) fn volume(source: &str, target: &str, read_only: bool) -> Result<Volume, Rule> {
    let named = source.len() <= 128
        && source.starts_with(|c: char| c.is_ascii_alphanumeric())
        && source.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
    if !named && !absolute(source) {
        return Err(
            "has a source that is neither a volume's name (letters, digits, _ . -) nor an absolute path on the node",
        );
    }
    if !absolute(target) || target.chars().all(|c| c == '/') {
        return Err("has a target that is not an absolute path in the container");
    }
    Ok(Volume { source: source.to_owned(), target: target.to_owned(), read_only })
}

/// Compose's short form: `SOURCE:TARGET[:ro]`.
pub(super) fn short_volume(text: &str) -> Result<Volume, Rule> {
    let mut parts = text.split(':');
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(source), Some(target), None, _) => volume(source, target, false),
        (Some(source), Some(target), Some(mode @ ("ro" | "rw")), None) => volume(source, target, mode == "ro"),
        _ => Err("is not SOURCE:TARGET or SOURCE:TARGET:ro"),
    }
}

/// `USER[:GROUP]`, names or numbers.
pub(crate) fn user(text: &str) -> bool {
    let name = |part: &str| {
        let inside = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
        !part.is_empty() && part.len() <= 64 && !part.starts_with(['-', '.']) && part.chars().all(inside)
    };
    let (user, group) = text.split_once(':').unwrap_or((text, "root"));
    name(user) && name(group)
}

/// A request's path with query: visible ASCII without quotes, backslash or `#`.
pub(super) fn request_path(text: &str) -> bool {
    let fits = |c: char| c.is_ascii_graphic() && !matches!(c, '"' | '\'' | '\\' | '#' | '{' | '}' | '<' | '>' | '`');
    text.starts_with('/') && text.len() <= 500 && text.chars().all(fits)
}

/// A `Host` header: `HOST[:PORT]`.
pub(super) fn host_header(text: &str) -> bool {
    let (host, port) = text.split_once(':').unwrap_or((text, "80"));
    !host.starts_with('*')
        && host.to_ascii_lowercase().parse::<crate::model::HostName>().is_ok()
        && port.parse::<crate::model::Port>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_back() {
        for (text, ms) in [("10s", 10_000), ("500ms", 500), ("1m30s", 90_000), ("2h", 7_200_000), ("0s", 0)] {
            assert_eq!(milliseconds(text), Some(ms), "{text}");
            assert_eq!(milliseconds(&duration(ms)), Some(ms), "{text}");
        }
        for bad in ["", "10", "s", "-1s", "1 s", "1d", "1.5s", "99999999999999999999s", "18446744073709551615h", "1é"]
        {
            assert_eq!(milliseconds(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn command_lines_split_as_a_shell_splits() {
        let split = |line| words(line).map(|(words, _)| words);
        assert_eq!(
            split(r#"a  "b c" 'd"e' f\ g h"i"'j' "" "#),
            Ok(["a", "b c", "d\"e", "f g", "hij", ""].map(str::to_owned).to_vec())
        );
        assert_eq!(split(r#""a\"b\\c\n""#), Ok(vec![r#"a"b\c\n"#.to_owned()]));
        for bad in ["", "  ", "'a", "\"a", "a\\", "\"a\\"] {
            assert!(split(bad).is_err(), "{bad:?}");
        }
        assert_eq!(words("a | b").map(|(_, shell)| shell), Ok(Some("|".to_owned())));
        assert_eq!(words("a '|' \"$b\" \\;").map(|(_, shell)| shell), Ok(None));
    }

    #[test]
    fn mounts_users_and_paths() {
        assert_eq!(short_volume("data:/var/lib:ro"), volume("data", "/var/lib", true));
        assert_eq!(short_volume("/srv/x:/x"), volume("/srv/x", "/x", false));
        for bad in
            ["", "/x", "data:x", "./x:/x", "a:/b:rx", "a:/b:ro:x", "a b:/x", "/a/../b:/x", "a:/", "a:/x/..", "$(id):/x"]
        {
            assert!(short_volume(bad).is_err(), "{bad:?}");
        }
        assert!(user("1000") && user("www-data:www-data"));
        assert!(!user("") && !user("a b") && !user("-u") && !user("a:") && !user("a:b:c"));
        assert!(
            request_path("/health?x=1&y=%20") && !request_path("/a b") && !request_path("/\"") && !request_path("x")
        );
        assert!(
            host_header("Shop.example:8080") && !host_header("*.a") && !host_header("a\r\nb") && !host_header("a:0")
        );
    }
}
