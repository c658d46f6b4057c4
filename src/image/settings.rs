//! `image.toml`: what an application's directory becomes.
//!
//! Reads text, never a directory: whether the files it names are there is the walker's to say.

use std::collections::BTreeMap;

use toml::{Spanned, de::DeValue};

use crate::{
    model::{ImageRef, Port},
    plan::{
        Diagnostic,
        diagnostic::{Notes, Source, Span},
        table::{self, Fields, Lines, Value},
        value,
    },
};

/// What an `image.toml` says, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// What lies below.
    pub base: Base,
    /// What is copied where; empty: the whole directory to [`Settings::into`].
    pub files: Vec<FileRule>,
    /// Where the whole directory goes.
    pub into: String,
    /// The owner of all files that do not say their own.
    pub owner: (u32, u32),
    /// The command; none: the base's.
    pub command: Option<Vec<String>>,
    /// The entry point; none: the base's.
    pub entrypoint: Option<Vec<String>>,
    /// `USER[:GROUP]`; none: the base's.
    pub user: Option<String>,
    /// The working directory; none: the base's.
    pub working_dir: Option<String>,
    /// Environment variables, added to the base's.
    pub environment: BTreeMap<String, String>,
    /// The port it listens on.
    pub port: Option<Port>,
    /// Labels, added to the base's.
    pub labels: BTreeMap<String, String>,
    /// The signal that asks it to stop.
    pub stop_signal: Option<String>,
    /// The engine's own health check.
    pub health: Option<HealthCheck>,
}

/// What lies below an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Base {
    /// Nothing.
    Scratch,
    /// An archive on this machine.
    Archive(String),
    /// An image in a registry.
    Image(ImageRef),
}

impl Base {
    /// Reads `scratch`, an archive's path or an image reference.
    ///
    /// # Errors
    /// The reference's.
    pub fn parse(text: &str) -> Result<Self, crate::model::Invalid> {
        let lower = text.to_ascii_lowercase();
        let path = text.starts_with(['.', '/']) || [".tar", ".tar.gz", ".tgz"].iter().any(|end| lower.ends_with(end));
        match text {
            "scratch" => Ok(Self::Scratch),
            _ if path => Ok(Self::Archive(text.to_owned())),
            _ => text.parse().map(Self::Image),
        }
    }
}

/// What is copied where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRule {
    /// A file or directory below the application's directory; `.` is all of it.
    pub from: String,
    /// Absolute. With a slash at its end a file goes into it by its name.
    pub to: String,
    /// Permission bits for files, where they should differ from what they are.
    pub mode: Option<u32>,
    /// The owner, where it should differ.
    pub owner: Option<(u32, u32)>,
    /// Where in `image.toml` it stands: line and column.
    pub line: usize,
}

/// The engine's own health check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    /// What is run inside the container.
    pub command: Vec<String>,
    /// Between two checks, in milliseconds.
    pub interval: Option<u64>,
    /// For one check, in milliseconds.
    pub timeout: Option<u64>,
    /// Until failures count, in milliseconds.
    pub start_period: Option<u64>,
    /// How many failures make it unhealthy.
    pub retries: Option<u32>,
}

const KEYS: &[&str] = &[
    "base",
    "files",
    "into",
    "owner",
    "command",
    "entrypoint",
    "user",
    "working_dir",
    "environment",
    "port",
    "labels",
    "stop_signal",
    "health",
];
const FILE_KEYS: &[&str] = &["from", "to", "mode", "owner"];
const HEALTH_KEYS: &[&str] = &["command", "interval", "timeout", "start_period", "retries"];

impl Settings {
    /// Reads the text of `file`.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(file: &str, text: &str) -> Result<Self, Vec<Diagnostic>> {
        let source = Source::new(file, text);
        let mut notes = Notes::default();
        let table = table::parse(source.text(), &mut notes);
        let advice = |key: &str| {
            let advice = match key {
                "from" => "the image below is `base = \"…\"`",
                "cmd" | "run" | "args" => "the command is `command = [\"…\"]`",
                "env" => "environment variables stand below `[environment]`",
                "ports" | "expose" => "the one port is `port = 8080`",
                "workdir" => "the working directory is `working_dir`",
                "copy" | "add" => "files are `files = [{ from = \"…\", to = \"…\" }]`",
                "healthcheck" => "the health check is `[health]`",
                "name" | "tag" => "the name is given to the command: matrix create-image NAME DIR",
                _ => return None,
            };
            Some(advice.to_owned())
        };
        let fields = Fields::new(&table, KEYS, "image.toml", advice, &mut notes);
        let settings = read(&fields, &source, &mut notes);
        if notes.has_errors() { Err(notes.finish(&source)) } else { Ok(settings) }
    }
}

fn read(fields: &Fields<'_>, source: &Source, notes: &mut Notes) -> Settings {
    let base = fields.get("base").and_then(|v| {
        let text = table::text("base", "scratch, an archive's path or an image", v, notes)?;
        let place = v.span();
        Base::parse(text)
            .map_err(|e| {
                notes.error(place, e.to_string()).hint("`scratch`, an archive such as \"base.tar\", or REPOSITORY:TAG");
            })
            .ok()
    });
    if fields.get("base").is_none() {
        notes.error(0..0, "base is missing").hint("`base = \"scratch\"` for an image that needs nothing below");
    }
    let into = fields.get("into").and_then(|v| target("into", v, notes));
    if let (Some(value), Some(_)) = (fields.get("into"), fields.get("files")) {
        notes
            .error(value.span(), "into is for the whole directory, files for parts of it")
            .hint("leave one out; `files = [{ from = \".\", to = \"…\" }]` says the same as into");
    }
    Settings {
        base: base.unwrap_or(Base::Scratch),
        files: files(fields, source, notes),
        into: into.unwrap_or_else(|| "/app".to_owned()),
        owner: fields.get("owner").and_then(|v| owner(v, notes)).unwrap_or((0, 0)),
        command: fields.get("command").and_then(|v| words("command", v, notes)),
        entrypoint: fields.get("entrypoint").and_then(|v| words("entrypoint", v, notes)),
        user: fields
            .get("user")
            .and_then(|v| checked("user", v, value::user, "is USER or USER:GROUP, names or numbers", notes)),
        working_dir: fields.get("working_dir").and_then(|v| {
            checked("working_dir", v, value::absolute, "is an absolute path without `..` and `:`", notes)
        }),
        environment: texts("environment", fields.get("environment"), environment_name, notes),
        port: fields.get("port").and_then(|v| {
            let number = table::number("port", 1, 65535, v, notes)?;
            u16::try_from(number).ok().and_then(Port::new)
        }),
        labels: texts("labels", fields.get("labels"), label_name, notes),
        stop_signal: fields.get("stop_signal").and_then(|v| {
            checked("stop_signal", v, signal, "is a signal's name such as SIGTERM, or its number", notes)
        }),
        health: fields.get("health").and_then(|v| health(v, notes)),
    }
}

fn files(fields: &Fields<'_>, source: &Source, notes: &mut Notes) -> Vec<FileRule> {
    let Some(value) = fields.get("files") else { return Vec::new() };
    let DeValue::Array(list) = value.get_ref() else {
        table::wrong_type("files", "a list of { from = \"…\", to = \"…\" }", value, notes);
        return Vec::new();
    };
    if list.is_empty() {
        notes.error(value.span(), "files is empty").hint("without it the whole directory is taken");
    }
    list.iter().filter_map(|item| file_rule(item, source, notes)).collect()
}

fn file_rule(item: &Value<'_>, source: &Source, notes: &mut Notes) -> Option<FileRule> {
    let DeValue::Table(entry) = item.get_ref() else {
        table::wrong_type("an entry of files", "a table { from = \"…\", to = \"…\" }", item, notes);
        return None;
    };
    let fields = Fields::new(entry, FILE_KEYS, "an entry of files", |_| None, notes);
    for key in ["from", "to"] {
        if fields.get(key).is_none() {
            notes.error(item.span(), format!("an entry of files lacks {key}"));
        }
    }
    let from = fields.get("from").and_then(|v| {
        let inside = |p: &str| {
            !p.is_empty() && !p.starts_with('/') && p.split('/').all(|part| part != "..") && !p.contains('\0')
        };
        checked("from", v, inside, "is a path below the application's directory, without `..`", notes)
    });
    let to = fields.get("to").and_then(|v| target("to", v, notes));
    let mode = fields.get("mode").and_then(|v| {
        let text = table::text("mode", "permissions in octal, as in \"0755\"", v, notes)?;
        let digits = text.len() <= 5 && text.bytes().all(|b| (b'0'..=b'7').contains(&b));
        let mode = u32::from_str_radix(text, 8).ok().filter(|m| digits && *m <= 0o7777);
        if mode.is_none() {
            notes.error(v.span(), format!("mode {} is no permissions", table::quoted(text))).hint("as in \"0755\"");
        }
        mode
    });
    let owner = fields.get("owner").and_then(|v| owner(v, notes));
    Some(FileRule { from: from?, to: to?, mode, owner, line: source.line(item.span().start) })
}

fn target(key: &str, value: &Value<'_>, notes: &mut Notes) -> Option<String> {
    let good = |p: &str| p.starts_with('/') && p.len() <= 4000 && p.split('/').all(|part| !matches!(part, "." | ".."));
    checked(key, value, good, "is an absolute path in the image, without `.` and `..`", notes)
}

fn checked(key: &str, value: &Value<'_>, good: impl Fn(&str) -> bool, rule: &str, notes: &mut Notes) -> Option<String> {
    let text = table::text(key, "a string", value, notes)?;
    if good(text) {
        return Some(text.to_owned());
    }
    notes.error(value.span(), format!("{key} {} {}", table::quoted(text), rule.replacen("is ", "is not ", 1)));
    None
}

fn owner(value: &Value<'_>, notes: &mut Notes) -> Option<(u32, u32)> {
    let text = table::text("owner", "numbers, as in \"1000:1000\"", value, notes)?;
    let (user, group) = text.split_once(':').unwrap_or((text, text));
    // The tar header's field ends there.
    let id = |t: &str| t.parse::<u32>().ok().filter(|n| *n <= 0o777_7777 && t.bytes().all(|b| b.is_ascii_digit()));
    let ids = id(user).zip(id(group));
    if ids.is_none() {
        notes
            .error(value.span(), format!("owner {} is not UID or UID:GID", table::quoted(text)))
            .hint("in numbers: names mean different users in different images");
    }
    ids
}

fn words(key: &str, value: &Value<'_>, notes: &mut Notes) -> Option<Vec<String>> {
    match value.get_ref() {
        DeValue::String(line) => match value::words(line) {
            Ok((words, shell)) => {
                if let Some(word) = shell {
                    notes
                        .error(
                            value.span(),
                            format!("{key} is run without a shell; {} would mean nothing", table::quoted(&word)),
                        )
                        .hint(format!("{key} = [\"/bin/sh\", \"-c\", \"…\"]"));
                }
                table::clean(key, line, Lines::Many, value.span(), notes).then_some(words)
            }
            Err(why) => {
                notes.error(value.span(), format!("{key} {why}"));
                None
            }
        },
        DeValue::Array(list) => {
            let words: Vec<_> = list
                .iter()
                .filter_map(|v| match v.get_ref() {
                    DeValue::String(word) if word.contains('\0') => {
                        notes.error(v.span(), format!("{key} holds a NUL"));
                        None
                    }
                    DeValue::String(word) => Some(word.clone().into_owned()),
                    _ => {
                        table::wrong_type(&format!("a part of {key}"), "a string", v, notes);
                        None
                    }
                })
                .collect();
            Some(words)
        }
        _ => {
            table::wrong_type(key, "a string or a list of strings", value, notes);
            None
        }
    }
}

fn texts(key: &str, value: Option<&Value<'_>>, good: fn(&str) -> bool, notes: &mut Notes) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    let Some(value) = value else { return out };
    let DeValue::Table(entries) = value.get_ref() else {
        table::wrong_type(key, "a table NAME = \"value\"", value, notes);
        return out;
    };
    for (name, value) in entries {
        let text: &Spanned<_> = name;
        if !good(text.get_ref()) {
            notes.error(text.span(), format!("{key} has no room for the name {}", table::quoted(text.get_ref())));
            continue;
        }
        if let Some(value) = table::scalar(&format!("{key}.{}", text.get_ref()), Lines::Many, value, notes) {
            out.insert(text.get_ref().clone().into_owned(), value);
        }
    }
    out
}

fn environment_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn label_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 200 && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-/".contains(c))
}

fn signal(text: &str) -> bool {
    let name = text.strip_prefix("SIG").is_some_and(|n| {
        (2..=9).contains(&n.len())
            && n.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || "+-".contains(c))
    });
    name || text.parse::<u8>().is_ok_and(|n| (1..=64).contains(&n))
}

fn health(value: &Value<'_>, notes: &mut Notes) -> Option<HealthCheck> {
    let DeValue::Table(entries) = value.get_ref() else {
        table::wrong_type("health", "a table", value, notes);
        return None;
    };
    let fields = Fields::new(entries, HEALTH_KEYS, "health", |_| None, notes);
    let Some(command) = fields.get("command") else {
        lacks_command(value.span(), notes);
        return None;
    };
    let span = command.span();
    let command = words("health.command", command, notes)?;
    if command.is_empty() {
        lacks_command(span, notes);
        return None;
    }
    let mut time = |key: &str| {
        let value = fields.get(key)?;
        let text = table::text(key, "a time, as in \"10s\"", value, notes)?;
        let ms = value::milliseconds(text).filter(|ms| (1..=86_400_000).contains(ms));
        if ms.is_none() {
            notes.error(value.span(), format!("{key} {} is no time", table::quoted(text))).hint("as in \"10s\"");
        }
        ms
    };
    let (interval, timeout, start_period) = (time("interval"), time("timeout"), time("start_period"));
    let retries = fields.get("retries").and_then(|v| table::number("retries", 1, 100, v, notes));
    Some(HealthCheck { command, interval, timeout, start_period, retries })
}

fn lacks_command(span: Span, notes: &mut Notes) {
    notes.error(span, "health lacks its command").hint(
        "what is run inside the container, as in command = [\"/bin/check\"]; the manager's own check by HTTP stands in the plan",
    );
}

/// Permissions as they are written: `0755`.
pub fn mode_text(mode: u32) -> String {
    format!("{mode:04o}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_whole_file() {
        let text = r#"
base = "web-base.tar"
files = [
  { from = "site", to = "/usr/share/nginx/html" },
  { from = "nginx.conf", to = "/etc/nginx/", mode = "0644", owner = "0:4" },
]
command = "nginx -g 'daemon off;'"
entrypoint = []
user = "1000:1000"
working_dir = "/srv"
port = 8080
stop_signal = "SIGQUIT"
[environment]
A = "x y"
N = 3
[labels]
"org.example.team" = "shop"
[health]
command = ["/bin/check"]
interval = "10s"
retries = 3
"#;
        let settings = Settings::parse("image.toml", text).expect("settings");
        assert_eq!(settings.base, Base::Archive("web-base.tar".to_owned()));
        assert_eq!(settings.command, Some(["nginx", "-g", "daemon off;"].map(str::to_owned).to_vec()));
        assert_eq!(settings.entrypoint, Some(vec![]));
        assert_eq!(
            (settings.files[1].mode, settings.files[1].owner, settings.files[1].line),
            (Some(0o644), Some((0, 4)), 5)
        );
        assert_eq!(settings.environment["N"], "3");
        assert_eq!(settings.health.expect("a check").interval, Some(10_000));
    }

    #[test]
    fn everything_that_is_wrong_is_said_at_once() {
        let text = r#"
base = "Not An Image"
comand = ["x"]
port = 99999
user = "a b"
into = "/x"
files = [
  { from = "../secret", to = "relative" },
  { from = "a" },
]
command = "run | tee"
stop_signal = "KILL"
[environment]
"A B" = "x"
C = "bell\u0007"
[health]
interval = "soon"
"#;
        let found = Settings::parse("shop/image.toml", text).expect_err("errors");
        let lines: Vec<_> = found.iter().map(|d| d.line).collect();
        assert_eq!(lines, [2, 3, 4, 5, 6, 8, 8, 9, 11, 12, 14, 15, 16], "{found:#?}");
        let all = found.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        for part in ["shop/image.toml:3:1: image.toml has no key comand", "did you mean command?", "lacks to"] {
            assert!(all.contains(part), "{part} is missing in\n{all}");
        }
    }

    #[test]
    fn what_leads_outside_or_fits_no_image_is_refused() {
        let good =
            "base = \"scratch\"\nfiles = [{ from = \"a\", to = \"/a\", mode = \"0755\", owner = \"1:65534\" }]\n";
        assert!(Settings::parse("image.toml", good).is_ok());
        let bad = [
            ("from = \"a\"", "from = \"/etc/shadow\""),
            ("from = \"a\"", "from = \"b/../../a\""),
            ("from = \"a\"", "from = \"a\\u0000b\""),
            ("to = \"/a\"", "to = \"/a/../../b\""),
            ("to = \"/a\"", "to = \"/a\\u0000b\""),
            ("\"0755\"", "\"0855\""),
            ("\"0755\"", "\"17777\""),
            ("\"0755\"", "\"-1\""),
            ("\"1:65534\"", "\"1:99999999999\""),
            ("\"1:65534\"", "\"root:root\""),
            ("\"1:65534\"", "\"1:-2\""),
        ];
        for (here, there) in bad {
            let text = good.replace(here, there);
            let found = Settings::parse("image.toml", &text).expect_err(there);
            assert!(found.iter().all(|d| d.line == 2), "{there}: {found:#?}");
        }
        for label in ["\"a b\" = \"x\"", "\"\" = \"x\"", "\"a\\u0000\" = \"x\""] {
            assert!(Settings::parse("image.toml", &format!("{good}[labels]\n{label}\n")).is_err(), "{label}");
        }
    }

    #[test]
    fn bases() {
        assert_eq!(Base::parse("scratch"), Ok(Base::Scratch));
        assert_eq!(Base::parse("./b"), Ok(Base::Archive("./b".to_owned())));
        assert!(matches!(Base::parse("cloud/web-base:v1"), Ok(Base::Image(_))));
        assert!(Base::parse("a b").is_err() && Base::parse("").is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,60}", key in "base|files|health|command|owner|environment") {
            _ = Settings::parse("image.toml", &text);
            _ = Settings::parse("image.toml", &format!("{key} = {text}"));
        }
    }
}
