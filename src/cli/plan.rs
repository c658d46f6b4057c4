//! `matrix plan check` and `matrix plan show`: a plan by itself; where a manager answers, also against what it knows.

use std::{
    io::Read,
    path::{Path, PathBuf},
};

use http::Method;
use serde::Serialize;

use super::{Client, Failure, Global, Printer, block_on};
use crate::{
    api::PlanText,
    plan::{self, Checked, Diagnostic, Severity},
};

/// Options.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Report every error and warning of plans at once; exit code 2 when there is an error
    Check {
        /// Plans, TOML or the original four columns; - reads standard input
        #[arg(value_name = "FILE", default_value = "applications.plan")]
        files: Vec<PathBuf>,
    },
    /// Print a plan of either form in its normal TOML form
    Show {
        /// A plan, TOML or the original four columns; - reads standard input
        #[arg(value_name = "FILE", default_value = "applications.plan")]
        file: PathBuf,
    },
}

/// One file's result, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Report<'a> {
    file: &'a str,
    valid: bool,
    diagnostics: &'a [Diagnostic],
}

pub(super) fn run(args: Args, global: &Global, out: &Printer) -> Result<(), Failure> {
    match args.command {
        Command::Check { files } => check(&files, global, out),
        Command::Show { file } => show(&file, out),
    }
}

/// A plan's name for people, and its bytes: at most one more than may be read.
///
/// # Errors
/// When the file cannot be read.
pub(super) fn load(file: &Path) -> Result<(String, Vec<u8>), Failure> {
    let most = plan::MAX_BYTES as u64 + 1;
    let mut bytes = Vec::new();
    if file == Path::new("-") {
        let read = std::io::stdin().lock().take(most).read_to_end(&mut bytes);
        read.map_err(|e| Failure::invalid(format!("cannot read standard input: {e}")))?;
        return Ok(("standard input".to_owned(), bytes));
    }
    let name = file.display().to_string();
    let read = std::fs::File::open(file).and_then(|opened| {
        if opened.metadata()?.is_dir() {
            return Err(std::io::ErrorKind::IsADirectory.into());
        }
        opened.take(most).read_to_end(&mut bytes)
    });
    read.map_err(|error| {
        let hint = match error.kind() {
            std::io::ErrorKind::NotFound => "name the plan's file, or - for standard input",
            std::io::ErrorKind::PermissionDenied => "you may not read it: ls -l shows who may",
            std::io::ErrorKind::IsADirectory => "name a file in it",
            _ => "is it a plain file?",
        };
        Failure::invalid(format!("cannot read {name}: {error}")).hint(hint)
    })?;
    Ok((name, bytes))
}

/// A checked plan, its warnings printed; or all its errors printed, and the failure that says how many.
///
/// # Errors
/// When the file cannot be read or is no valid plan.
pub(super) fn load_checked(file: &Path, out: &Printer) -> Result<Checked, Failure> {
    let (name, bytes) = load(file)?;
    match plan::read_bytes(&name, &bytes) {
        Ok(checked) => {
            out.diagnostics(&checked.warnings);
            Ok(checked)
        }
        Err(found) => {
            out.diagnostics(&found);
            Err(Failure::invalid(format!("{name} has {}", count(&found))))
        }
    }
}

/// A plan's name and bytes, once they are known to be a valid plan; or all its errors printed.
///
/// # Errors
/// When the file cannot be read or is no valid plan.
pub(super) fn load_valid(file: &Path, out: &Printer) -> Result<(String, Vec<u8>), Failure> {
    let (name, bytes) = load(file)?;
    match plan::read_bytes(&name, &bytes) {
        Ok(_) => Ok((name, bytes)),
        Err(found) => {
            out.diagnostics(&found);
            Err(Failure::invalid(format!("{name} has {}", count(&found))))
        }
    }
}

/// `2 errors and 1 warning`
fn count(found: &[Diagnostic]) -> String {
    let of = |severity, word: &str| match found.iter().filter(|d| d.severity == severity).count() {
        0 => None,
        1 => Some(format!("1 {word}")),
        n => Some(format!("{n} {word}s")),
    };
    [of(Severity::Error, "error"), of(Severity::Warning, "warning")]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join(" and ")
}

/// What the cloud does not know of a valid plan; nothing where no manager answers: a plan is checked anywhere.
fn unknown(name: &str, bytes: &[u8], global: &Global) -> Vec<Diagnostic> {
    let plan = PlanText { file: name.to_owned(), text: String::from_utf8_lossy(bytes).into_owned() };
    let client = Client::new(global);
    block_on(async { client.send(Method::POST, "/v1/plan/check", &plan).await }).unwrap_or_default()
}

fn check(files: &[PathBuf], global: &Global, out: &Printer) -> Result<(), Failure> {
    let mut results: Vec<(String, bool, Vec<Diagnostic>)> = Vec::new();
    let mut unreadable = Vec::new();
    for file in files {
        match load(file) {
            Ok((name, bytes)) => {
                let (valid, found) = match plan::read_bytes(&name, &bytes) {
                    Ok(checked) => (true, [checked.warnings, unknown(&name, &bytes, global)].concat()),
                    Err(found) => (false, found),
                };
                out.diagnostics(&found);
                let verdict = match (valid, found.is_empty()) {
                    (true, true) => "is a valid plan".to_owned(),
                    (true, false) => format!("is a valid plan, with {}", count(&found)),
                    (false, _) => format!("has {}", count(&found)),
                };
                if valid {
                    out.line(format!("{name} {verdict}"));
                }
                results.push((name, valid, found));
            }
            Err(failure) => unreadable.push(failure),
        }
    }
    if out.is_json() {
        let reports: Vec<_> =
            results.iter().map(|(file, valid, diagnostics)| Report { file, valid: *valid, diagnostics }).collect();
        out.json(&reports);
    }
    // The last failure is the one that ends the process; the others are shown before it.
    let invalid = results.iter().filter(|(_, valid, _)| !valid);
    let mut failures: Vec<Failure> =
        invalid.map(|(name, _, found)| Failure::invalid(format!("{name} has {}", count(found)))).collect();
    failures.extend(unreadable);
    let Some(last) = failures.pop() else { return Ok(()) };
    for failure in &failures {
        out.failure(failure);
    }
    Err(last)
}

fn show(file: &Path, out: &Printer) -> Result<(), Failure> {
    let checked = load_checked(file, out)?;
    if out.is_json() {
        out.json(&checked.plan);
    } else {
        out.result(&plan::to_toml(&checked.plan));
    }
    Ok(())
}
