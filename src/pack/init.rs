//! An `image.toml` to begin with, from what is in the directory.
//!
//! A guess, and says so: every line is explained, nothing is hidden in defaults.

use std::{
    fs::{self, File},
    io::{Read, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use super::Error;

/// What the directory looks like.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Looks {
    /// A program that needs nothing below.
    Static(String),
    /// A program that needs its system's libraries.
    Dynamic(String),
    Site,
    Node,
    Python,
    Php,
    Java(String),
    Anything,
}

/// Writes `image.toml` into the directory.
///
/// # Errors
/// One that is there; the disk.
pub fn init(directory: &Path, name: &str) -> Result<PathBuf, Error> {
    let path = directory.join("image.toml");
    if !directory.is_dir() {
        return Err(Error::refused(
            format!("{} is no directory", directory.display()),
            "give the application's directory",
        ));
    }
    let text = text(&look(directory, name), name);
    let mut file = File::create_new(&path).map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => {
            Error::refused(format!("{} is there already", path.display()), "it is left as it is; remove it first")
        }
        _ => Error::file("write", &path)(error),
    })?;
    file.write_all(text.as_bytes()).map_err(Error::file("write", &path))?;
    Ok(path)
}

fn look(directory: &Path, name: &str) -> Looks {
    let mut names: Vec<String> = fs::read_dir(directory)
        .map(|entries| entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect())
        .unwrap_or_default();
    names.sort();
    let has = |n: &str| names.iter().any(|m| m == n);
    if has("package.json") {
        return Looks::Node;
    }
    if has("requirements.txt") || has("pyproject.toml") {
        return Looks::Python;
    }
    if let Some(war) = names.iter().find(|n| Path::new(n).extension().is_some_and(|e| e == "war")) {
        return Looks::Java(war.clone());
    }
    if has("index.php") {
        return Looks::Php;
    }
    let programs: Vec<_> = names.iter().filter_map(|n| Some((n, elf(&directory.join(n))?))).collect();
    let program = programs.iter().find(|(n, _)| *n == name).or(programs.first());
    match program {
        Some((n, true)) => Looks::Static((*n).clone()),
        Some((n, false)) => Looks::Dynamic((*n).clone()),
        None if has("index.html") => Looks::Site,
        None => Looks::Anything,
    }
}

/// Whether it is an executable for Linux, and if so whether it needs no interpreter.
fn elf(path: &Path) -> Option<bool> {
    let meta = path.symlink_metadata().ok()?;
    if !meta.is_file() || meta.permissions().mode() & 0o111 == 0 {
        return None;
    }
    let mut head = Vec::new();
    File::open(path).ok()?.take(4096).read_to_end(&mut head).ok()?;
    if !head.starts_with(b"\x7fELF\x02\x01") || head.len() < 64 {
        return None;
    }
    let number = |at: usize, n: usize| {
        head.get(at..at + n).map(|b| b.iter().rev().fold(0usize, |v, b| v << 8 | usize::from(*b)))
    };
    let (offset, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    // A program header of type 3 names the interpreter.
    let interpreted = (0..count.min(64)).any(|n| number(offset.saturating_add(n * size), 4) == Some(3));
    Some(!interpreted)
}

fn text(looks: &Looks, name: &str) -> String {
    let packages = |list: &str, what: &str| {
        format!(
            "# {what} comes from the distribution's own packages:\n#   matrix create-base {name}-base --packages {list}\nbase = \"{name}-base.tar\"\n"
        )
    };
    let (what, base, into, command) = match looks {
        Looks::Static(program) => (
            format!("{program} is a static program: it needs nothing below."),
            "base = \"scratch\"\n".to_owned(),
            "/",
            format!("[\"/{program}\"]"),
        ),
        Looks::Dynamic(program) => (
            format!("{program} is a program that needs its system's libraries."),
            packages("libc6", "What it is linked with"),
            "/app",
            format!("[\"/app/{program}\"]"),
        ),
        Looks::Site => (
            "a web site; nginx serves it. Its configuration must listen on the port below.".to_owned(),
            packages("nginx-light", "nginx"),
            "/var/www/html",
            "[\"nginx\", \"-g\", \"daemon off;\"]".to_owned(),
        ),
        Looks::Node => (
            "a Node.js application; node_modules must be there already.".to_owned(),
            packages("nodejs", "node"),
            "/app",
            "[\"node\", \".\"]".to_owned(),
        ),
        Looks::Python => (
            "a Python application; what requirements.txt names must be packages of the base or lie in the directory."
                .to_owned(),
            packages("python3-minimal", "python3"),
            "/app",
            "[\"python3\", \"main.py\"]".to_owned(),
        ),
        Looks::Php => (
            "a PHP application, on PHP's own server; for more load, put php-fpm and nginx into the base.".to_owned(),
            packages("php-cli", "php"),
            "/app",
            "[\"php\", \"-S\", \"0.0.0.0:8080\", \"-t\", \"/app\"]".to_owned(),
        ),
        Looks::Java(war) => (
            format!("{war} is a web application; Tomcat runs it."),
            packages("tomcat10", "Tomcat"),
            "/var/lib/tomcat10/webapps",
            "[\"/usr/libexec/tomcat10/tomcat-start.sh\"]".to_owned(),
        ),
        Looks::Anything => (
            "nothing here tells what it is: set base and command.".to_owned(),
            "base = \"scratch\"\n".to_owned(),
            "/app",
            "[\"/app/start\"]".to_owned(),
        ),
    };
    let what = what.chars().map(|c| if c.is_control() { '?' } else { c }).collect::<String>();
    let user = if matches!(looks, Looks::Static(_) | Looks::Dynamic(_)) {
        "user = \"65534:65534\""
    } else {
        "# user = \"1000:1000\""
    };
    format!(
        r#"# What the image of {name} is made of. `matrix create-image {name} DIR --dry-run` lists what it would hold.
#
# This is a guess from what is in the directory: {what}

# The image below: "scratch", an archive beside this file or in the current directory, or REPOSITORY:TAG in the registry.
{base}
# Where this directory goes, without image.toml, .dockerignore and what .dockerignore names.
into = "{into}"
# Or only parts of it:
# files = [
#   {{ from = "site", to = "/srv/site" }},
#   {{ from = "app.conf", to = "/etc/app/", mode = "0644", owner = "0:0" }},
# ]

# What runs. No shell is between: each word stands by itself.
command = {command}
# entrypoint = ["/usr/bin/tini", "--"]
# working_dir = "/app"
{user}

# The port it listens on.
port = 8080

# stop_signal = "SIGTERM"

# [environment]
# GREETING = "hello"

# [labels]
# "org.example.team" = "shop"

# The engine's own check, run inside the container. The manager's check by HTTP stands in the plan.
# [health]
# command = ["/bin/check"]
# interval = "10s"
# timeout = "2s"
# retries = 3
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Settings;

    #[test]
    fn what_is_written_is_read() {
        let odd = "a\"b\\c".to_owned();
        for looks in [
            Looks::Site,
            Looks::Node,
            Looks::Python,
            Looks::Php,
            Looks::Anything,
            Looks::Static("a".into()),
            Looks::Java(odd),
        ] {
            let text = text(&looks, "shop");
            if let Err(found) = Settings::parse("image.toml", &text) {
                panic!("{looks:?}: {found:#?}\n{text}");
            }
        }
    }

    #[test]
    fn a_directory_is_looked_at() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = directory.path();
        assert_eq!(look(at, "x"), Looks::Anything);
        fs::write(at.join("index.html"), "hi").expect("a file");
        assert_eq!(look(at, "x"), Looks::Site);
        fs::copy("/proc/self/exe", at.join("prog")).expect("a program");
        assert_eq!(look(at, "x"), Looks::Dynamic("prog".into()));
        fs::write(at.join("package.json"), "{}").expect("a file");
        assert_eq!(look(at, "x"), Looks::Node);
        let written = init(at, "x").expect("written");
        assert!(init(at, "x").is_err_and(|e| e.to_string().contains("already")), "{written:?} is kept");
    }
}
