//! `matrix lab`: a cloud of nodes on this one machine.

use std::ffi::OsString;

use clap::Subcommand;

use crate::{
    lab::{Lab, LabError, LabName, Power, SERVICES, Status, Target, numbered},
    model::NodeName,
};

use super::{Exit, Failure, Global, Printer};

/// Options.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The lab's name; labs of different names live side by side
    #[arg(long, global = true, value_name = "LAB", default_value = "lab", env = "MATRIX_LAB")]
    name: LabName,
    /// Where labs keep their state: a real file system, no overlay [default: /var/lib/matrix-lab]
    #[arg(long = "dir", global = true, value_name = "DIR", env = "MATRIX_LAB_DIR")]
    directory: Option<String>,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Start the lab, or add what is missing
    Up {
        /// How many nodes: node1, node2, …
        #[arg(long, value_name = "N", default_value_t = 3, conflicts_with = "names", value_parser = clap::value_parser!(u32).range(0..=200))]
        nodes: u32,
        /// The nodes' names: node25,node108
        #[arg(long, value_name = "NAMES", value_delimiter = ',')]
        names: Vec<NodeName>,
        /// Leave the manager out
        #[arg(long)]
        no_serve: bool,
    },
    /// Remove the lab and all it left on this machine
    Down,
    /// Show nodes, services and addresses
    Status,
    /// Switch a node off as by its power cord
    Poweroff {
        /// The node
        node: NodeName,
    },
    /// Switch a node on and wait until it is ready
    Boot {
        /// The node
        node: NodeName,
        /// Return at once
        #[arg(long)]
        no_wait: bool,
    },
    /// Reset a node and wait until it is ready
    Reboot {
        /// The node
        node: NodeName,
        /// Return at once
        #[arg(long)]
        no_wait: bool,
    },
    /// Pull a node's network cable; it lives on
    Cut {
        /// The node
        node: NodeName,
    },
    /// Plug a node's network cable in again
    Heal {
        /// The node
        node: NodeName,
    },
    /// Run a command, or a shell, on a machine of the lab
    Shell {
        /// gateway, client (a machine inside that is no node), or a node
        target: String,
        /// The user on a node: root or cloud
        #[arg(long, default_value = "root", value_parser = ["root", "cloud"])]
        user: String,
        /// The command
        #[arg(last = true, value_name = "CMD")]
        command: Vec<OsString>,
    },
    /// Start or stop a service of the gateway; one that dies is started again by itself
    Service {
        /// What to do
        #[arg(value_enum)]
        what: ServiceAction,
        /// The service
        #[arg(value_parser = SERVICES)]
        service: String,
    },
    /// Print what a shell needs to speak to the lab's manager
    Env,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum ServiceAction {
    Start,
    Stop,
    Restart,
    /// Kill it; its supervisor starts it again
    Crash,
}

impl From<LabError> for Failure {
    fn from(error: LabError) -> Self {
        let exit = match error {
            LabError::Invalid { .. } | LabError::NoLab(_) | LabError::NoNode { .. } | LabError::Off(_) => Exit::Invalid,
            _ => Exit::Failed,
        };
        Self { hint: error.hint(), ..Self::from_error(exit, &error) }
    }
}

pub(super) fn run(args: Args, _global: &Global, out: &Printer) -> Result<(), Failure> {
    let lab = Lab::new(args.name, args.directory.as_deref())?;
    match args.action {
        Action::Up { nodes, names, no_serve } => {
            let nodes = if names.is_empty() { numbered(nodes) } else { names };
            let status = lab.up(&nodes, !no_serve, &mut |step| out.line(step))?;
            show(&status, out);
        }
        Action::Down => {
            let there = lab.down()?;
            out.line(if there { "the lab is gone" } else { "there was no lab" });
        }
        Action::Status => {
            let status = lab.status();
            if !status.up && !out.is_json() {
                return Err(LabError::NoLab(status.name).into());
            }
            show(&status, out);
        }
        Action::Poweroff { node } => lab.power(&node, Power::Off, false)?,
        Action::Boot { node, no_wait } => lab.power(&node, Power::On, !no_wait)?,
        Action::Reboot { node, no_wait } => lab.power(&node, Power::Reset, !no_wait)?,
        Action::Cut { node } => lab.power(&node, Power::Cut, false)?,
        Action::Heal { node } => lab.power(&node, Power::Heal, false)?,
        Action::Shell { target, user, command } => {
            let target = match target.as_str() {
                "gateway" => Target::Gateway,
                "client" => Target::Client,
                node => Target::Node(node.parse().map_err(|e| Failure::from_error(Exit::Invalid, &e))?, user),
            };
            lab.shell(&target, &command)?;
        }
        Action::Service { what, service } => {
            if matches!(what, ServiceAction::Crash) {
                lab.crash_service(&service)?;
            }
            if matches!(what, ServiceAction::Stop | ServiceAction::Restart) {
                lab.stop_service(&service)?;
            }
            if matches!(what, ServiceAction::Start | ServiceAction::Restart) {
                lab.start_service(&service)?;
            }
        }
        Action::Env => {
            let status = lab.status();
            let variables = [
                ("MATRIX_LAB", Some(status.name)),
                ("MATRIX_MANAGER", Some(status.socket)),
                ("MATRIX_REGISTRY", status.registry),
            ];
            for (name, value) in variables {
                if let Some(value) = value {
                    out.result(&format!("export {name}={value}\n"));
                }
            }
        }
    }
    Ok(())
}

fn show(status: &Status, out: &Printer) {
    if out.is_json() {
        return out.json(status);
    }
    out.table(
        &["NODE", "POWER", "LINK", "ADDRESS", "MAC"],
        status.nodes.iter().map(|node| {
            let address = node.address.clone().unwrap_or_else(|| "-".to_owned());
            vec![node.name.clone(), node.power.to_owned(), node.link.to_owned(), address, node.mac.clone()]
        }),
    );
    out.line("");
    out.table(&["SERVICE", "STATE"], status.services.iter().map(|s| vec![s.name.to_owned(), s.state.to_owned()]));
    out.line("");
    let places = [("page", &status.page), ("varnish", &status.varnish), ("registry", &status.registry)];
    for (what, address) in places {
        out.line(format!("{what:9} {}", address.as_deref().unwrap_or("-")));
    }
    out.line(format!("manager   {}", status.socket));
}
