//! `matrix completion SHELL` and `matrix man`.

use std::io::Write;

use clap::CommandFactory;

use super::{Cli, Failure};

/// Options of `matrix completion`.
#[derive(Debug, clap::Args)]
pub struct CompletionArgs {
    /// The shell
    shell: clap_complete::Shell,
}

/// Options of `matrix man`.
#[derive(Debug, clap::Args)]
pub struct ManArgs {
    /// The command whose page is wanted: none, or `deploy`
    command: Option<String>,
}

pub(super) fn completion(args: &CompletionArgs) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "matrix", &mut script);
    write_out(&script)
}

pub(super) fn man(args: &ManArgs) -> Result<(), Failure> {
    let mut command = Cli::command();
    command.build();
    let page = match &args.command {
        None => command,
        Some(name) => command
            .find_subcommand(name)
            .cloned()
            .ok_or_else(|| Failure::invalid(format!("there is no command {name}")).hint("`matrix help` lists them"))?
            .display_name(format!("matrix-{name}"))
            .name(format!("matrix-{name}")),
    };
    let mut text = Vec::new();
    clap_mangen::Man::new(page)
        .render(&mut text)
        .map_err(|e| Failure::failed(format!("cannot write the manual page: {e}")))?;
    write_out(&text)
}

fn write_out(bytes: &[u8]) -> Result<(), Failure> {
    // A closed pipe is no error of ours.
    match std::io::stdout().write_all(bytes) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(Failure::failed(format!("cannot write: {e}"))),
        _ => Ok(()),
    }
}
