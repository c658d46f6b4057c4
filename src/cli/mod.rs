//! The command line: one thin file per command, one printer, one error shape.
//!
//! Never reaches `remote`: it speaks to the manager's API, to `pack` (a workstation's work) or to `lab`.

mod client;
mod create_base;
mod create_image;
mod deploy;
mod error;
mod gc;
mod images;
mod install_image;
mod lab;
mod nodes;
mod plan;
mod printer;
mod progress;
mod registry;
mod releases;
mod serve;
mod shell;
mod status;
mod steer;
mod vcl;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub use client::{Client, ManagerAddress};
pub use error::{Exit, Failure};
pub use printer::Printer;

/// A self-hosted private cloud on your own VMs: images, plans, nodes, routes.
#[derive(Debug, Parser)]
#[command(name = "matrix", version, propagate_version = true, arg_required_else_help = true, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options every command takes.
#[derive(Debug, Clone, clap::Args)]
pub struct Global {
    /// Print JSON instead of text, where there is something to print
    #[arg(long, global = true)]
    pub json: bool,
    /// Print errors only
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// The manager: a unix socket's path, or http://HOST:PORT
    #[arg(
        long,
        global = true,
        value_name = "ADDRESS",
        env = "MATRIX_MANAGER",
        default_value = "/run/matrix/matrix.sock"
    )]
    pub manager: ManagerAddress,
    /// The manager's token, where it is reached over TCP
    #[arg(long, global = true, value_name = "TOKEN", env = "MATRIX_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make an image from an application's directory (on a workstation; no manager, no engine)
    CreateImage(create_image::Args),
    /// Make a base image from the distribution's own packages
    CreateBase(create_base::Args),
    /// Put an image into the private registry
    InstallImage(install_image::Args),
    /// List or remove images in the private registry
    Images(images::Args),
    /// List, admit, cordon, drain or remove nodes
    Nodes(nodes::Args),
    /// Check or show a plan
    Plan(plan::Args),
    /// Make the cloud run a plan
    Deploy(deploy::Args),
    /// Let a staged release go on, or end its canary: the switch
    Activate(deploy::OnItsWay),
    /// Throw the release away that is on its way
    Abort(deploy::OnItsWay),
    /// Show the release that is on its way until it ends
    Follow(deploy::OnItsWay),
    /// List the releases the cloud ran
    Releases(releases::ListArgs),
    /// Show what changed between two releases
    Diff(releases::DiffArgs),
    /// Go back to an earlier release, also when its plan is gone
    Rollback(releases::RollbackArgs),
    /// Run more or fewer instances of an application
    Scale(steer::ScaleArgs),
    /// Make every container of an application anew, one after another, without a gap
    Restart(steer::RestartArgs),
    /// Show applications, instances, where they run and whether they serve
    Status(status::Args),
    /// Remove images and stopped containers that no kept release needs
    Gc(gc::Args),
    /// Print the gateway's VCL
    Vcl(vcl::Args),
    /// Run the manager
    Serve(serve::Args),
    /// A cloud of nodes on this one machine, to try and to test
    Lab(lab::Args),
    /// Print a shell's completion script
    Completion(shell::CompletionArgs),
    /// Print the manual page
    Man(shell::ManArgs),
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    // One provider for every TLS client; a second install is harmless.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cli = Cli::parse();
    let printer = Printer::new(&cli.global);
    match run(cli, &printer) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            printer.failure(&failure);
            failure.exit.into()
        }
    }
}

fn run(cli: Cli, out: &Printer) -> Result<(), Failure> {
    let global = &cli.global;
    match cli.command {
        Command::CreateImage(args) => create_image::run(args, global, out),
        Command::CreateBase(args) => create_base::run(args, global, out),
        Command::InstallImage(args) => install_image::run(&args, global, out),
        Command::Images(args) => images::run(args, global, out),
        Command::Nodes(args) => nodes::run(args, global, out),
        Command::Plan(args) => plan::run(args, global, out),
        Command::Deploy(args) => deploy::run(args, global, out),
        Command::Activate(args) => deploy::activate(args, global, out),
        Command::Abort(args) => deploy::abort(args, global, out),
        Command::Follow(args) => deploy::watch(args, global, out),
        Command::Releases(args) => releases::list(args, global, out),
        Command::Diff(args) => releases::diff(args, global, out),
        Command::Rollback(args) => releases::rollback(args, global, out),
        Command::Scale(args) => steer::scale(args, global, out),
        Command::Restart(args) => steer::restart(args, global, out),
        Command::Status(args) => status::run(args, global, out),
        Command::Gc(args) => gc::run(args, global, out),
        Command::Vcl(args) => vcl::run(args, global, out),
        Command::Serve(args) => serve::run(args, global, out),
        Command::Lab(args) => lab::run(args, global, out),
        Command::Completion(args) => shell::completion(&args),
        Command::Man(args) => shell::man(&args),
    }
}

/// Runs a future to its end on a runtime of its own; Ctrl-C ends it with a clear word.
///
/// # Errors
/// The future's own, or [`Failure::interrupted`].
pub fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::failed(format!("cannot start the runtime: {e}")))?;
    let result = runtime.block_on(async {
        tokio::select! {
            result = future => result,
            _ = tokio::signal::ctrl_c() => Err(Failure::interrupted()),
        }
    });
    // A blocking read that nobody waits for any more must not hold the exit.
    runtime.shutdown_timeout(std::time::Duration::from_millis(100));
    result
}
