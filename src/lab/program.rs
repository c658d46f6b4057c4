//! Programs of the system, run with arguments, never with a command line put together from text.

use std::{
    ffi::OsStr,
    fs::File,
    path::Path,
    process::{Command, Stdio},
};

use super::LabError;

/// A program with the administrator's directories in its path, as a bare `su` or `cron` leaves them out.
pub fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", search_path()).stdin(Stdio::null());
    command
}

/// The directories programs are looked for in.
pub fn search_path() -> String {
    let own = std::env::var("PATH").unwrap_or_default();
    format!("{own}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
}

/// Whether such a program is there.
pub fn is_there(program: &str) -> bool {
    search_path().split(':').filter(|d| !d.is_empty()).any(|directory| Path::new(directory).join(program).is_file())
}

/// Runs a program to its end and returns what it printed.
pub fn run<A: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = A>) -> Result<String, LabError> {
    let mut command = command(program);
    command.args(args);
    finish(command)
}

/// Runs a command to its end and returns what it printed; its last words are the error.
pub fn finish(mut command: Command) -> Result<String, LabError> {
    let shown = || {
        let words = std::iter::once(command.get_program()).chain(command.get_args().take(6));
        words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
    };
    let program = shown();
    let output = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output()
        .map_err(|error| LabError::Program { program: program.clone(), message: error.to_string() })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last: Vec<_> = said.lines().rev().take(4).collect();
    let message = last.into_iter().rev().collect::<Vec<_>>().join("; ");
    Err(LabError::Program { program, message: if message.is_empty() { output.status.to_string() } else { message } })
}

/// Starts a command that outlives this process: a session of its own, its output in a log file.
pub fn detach(script: &Path, args: &[&OsStr], envs: &[(&str, &OsStr)], log: &Path) -> Result<(), LabError> {
    let open = || File::options().create(true).append(true).open(log);
    let out = open().map_err(LabError::file("write", log))?;
    let err = open().map_err(LabError::file("write", log))?;
    command("setsid")
        .arg("sh")
        .arg(script)
        .args(args)
        .envs(envs.iter().copied())
        .current_dir("/")
        .stdout(out)
        .stderr(err)
        .spawn()
        .map(drop)
        .map_err(|error| LabError::Program { program: "setsid".to_owned(), message: error.to_string() })
}
