//! What a lab looks like now.

use std::fs;

use serde::Serialize;

use super::{Lab, Leg, net, services};

/// A lab as `matrix lab status --json` shows it.
#[derive(Debug, Serialize)]
pub struct Status {
    /// Its name.
    pub name: String,
    /// Whether it is there at all.
    pub up: bool,
    /// Its nodes.
    pub nodes: Vec<NodeStatus>,
    /// The gateway's services.
    pub services: Vec<ServiceStatus>,
    /// The manager's socket.
    pub socket: String,
    /// The page, as this machine reaches it.
    pub page: Option<String>,
    /// Varnish, as this machine reaches it.
    pub varnish: Option<String>,
    /// The registry, as this machine reaches it.
    pub registry: Option<String>,
}

/// A node.
#[derive(Debug, Serialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// `on` or `off`.
    pub power: &'static str,
    /// `up`, `cut`, or `none` when it is off.
    pub link: &'static str,
    /// Its address, once it has a lease.
    pub address: Option<String>,
    /// Its hardware address.
    pub mac: String,
}

/// A service of the gateway.
#[derive(Debug, Serialize)]
pub struct ServiceStatus {
    /// Its name.
    pub name: &'static str,
    /// `running`, `stopped`; of the manager also `silent`: there, but not answering.
    pub state: &'static str,
}

impl Lab {
    /// What the lab looks like now.
    pub fn status(&self) -> Status {
        let leg =
            fs::read_to_string(self.places.state.join("leg")).ok().and_then(|text| text.trim().parse::<Leg>().ok());
        let at = |port: u16| leg.map(|leg| format!("http://{}:{port}/", leg.gateway()));
        let ports = net::ports_up(&self.name);
        let nodes = self.nodes().into_iter().map(|node| {
            let machine = self.machine(&node);
            let on = machine.is_on();
            let carries = ports.contains(&self.name.port(&node));
            NodeStatus {
                name: node.to_string(),
                power: if on { "on" } else { "off" },
                link: match (on, carries) {
                    (true, true) => "up",
                    (true, false) => "cut",
                    (false, _) => "none",
                },
                address: machine.address(),
                mac: self.name.mac(&node),
            }
        });
        let service = |name: &'static str| {
            let running = services::is_running(&self.name, &self.cgroups, name);
            let silent = name == "matrix" && running && !services::manager_answers(&self.places.socket());
            ServiceStatus {
                name,
                state: if silent {
                    "silent"
                } else if running {
                    "running"
                } else {
                    "stopped"
                },
            }
        };
        Status {
            name: self.name.to_string(),
            up: self.exists(),
            nodes: nodes.collect(),
            services: services::SERVICES.into_iter().map(service).collect(),
            socket: self.places.socket().display().to_string(),
            page: at(8080),
            varnish: at(6081),
            registry: leg.map(|leg| format!("{}:5000", leg.gateway())),
        }
    }
}
