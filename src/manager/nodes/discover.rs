//! Which machines there are: leases and the configuration's static nodes, merged.
//!
//! An admitted node whose lease vanishes stays: a lease is no sign of life, nor is its absence one of death.

use std::{collections::BTreeMap, net::IpAddr};

use crate::{
    inventory::{Admission, Intake, Node, NodeState, lease::Leases},
    manager::config::StaticNode,
    model::{MacAddr, NodeName, Timestamp},
};

use super::{Nodes, admission};

/// A machine that could be a node.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    address: IpAddr,
    mac: Option<MacAddr>,
    expires: Option<Timestamp>,
}

/// What is configured counts more than what a machine says of itself: no lease takes a static node's name or address.
fn merge(leases: &Leases, fixed: &[StaticNode]) -> BTreeMap<NodeName, Found> {
    let named = leases.by_name().into_iter().filter(|(_, lease)| fixed.iter().all(|f| f.address != lease.address));
    let mut found: BTreeMap<_, _> = named
        .map(|(name, lease)| (name.clone(), Found { address: lease.address, mac: lease.mac, expires: lease.expires }))
        .collect();
    for node in fixed {
        let mac = leases.leases.iter().find(|lease| lease.address == node.address).and_then(|lease| lease.mac);
        found.insert(node.name.clone(), Found { address: node.address, mac, expires: None });
    }
    found
}

/// Merges again each time the leases change.
pub(super) async fn follow(nodes: Nodes) {
    let mut leases = nodes.shared.leases.clone();
    loop {
        tokio::select! {
            () = nodes.shared.stop.cancelled() => return,
            changed = leases.changed() => match changed {
                Ok(()) => nodes.discover(),
                // No leases file is followed.
                Err(_) => return,
            },
        }
    }
}

impl Nodes {
    /// Brings what is shown in line with the leases and the configuration.
    pub(super) fn discover(&self) {
        let leases = self.shared.leases.borrow().clone();
        let found = merge(&leases, &self.shared.config.nodes);
        let shown = self.snapshot();
        for (name, node) in &shown.nodes {
            if !found.contains_key(name) {
                match node.admission {
                    Admission::Candidate { .. } => self.remove(name),
                    Admission::Admitted { .. } | Admission::Refused { .. } => {
                        self.update(name, |node| node.lease_expires = None);
                    }
                }
            }
        }
        for (name, found) in found {
            match shown.nodes.get(&name) {
                Some(node) => self.found_again(node, &found),
                None => {
                    let intake = if self.removed().contains(&name) { Intake::Removed } else { Intake::Open };
                    self.add(Node { intake, ..candidate(name, &found) });
                }
            }
        }
    }

    fn found_again(&self, node: &Node, found: &Found) {
        let Found { address, mac, expires } = *found;
        let mac = mac.or(node.mac);
        if (node.address, node.mac, node.lease_expires) == (address, mac, expires) {
            return;
        }
        self.update(&node.name, |node| (node.address, node.mac, node.lease_expires) = (address, mac, expires));
        let kept = admission::amend(&*self.shared.store, &node.name, |pinned| {
            (pinned.address, pinned.mac) = (address, mac);
        });
        if let Err(error) = kept {
            tracing::warn!(node = %node.name, %error, "its address is not kept");
        }
        self.wake(&node.name);
    }
}

fn candidate(name: NodeName, found: &Found) -> Node {
    Node {
        name,
        address: found.address,
        mac: found.mac,
        lease_expires: found.expires,
        admission: Admission::Candidate { offered: None },
        state: NodeState::Unknown,
        since: Timestamp::now(),
        engine: None,
        containers: Vec::new(),
        trouble: None,
        intake: Intake::Open,
        disk_full: false,
    }
}

#[cfg(test)]
mod tests {
    use crate::inventory::lease::parse;

    use super::*;

    #[test]
    fn no_lease_takes_a_static_nodes_name_or_address() {
        let leases = parse(
            "9 02:42:0a:0a:0a:01 10.10.10.1 node1 *\n9 02:42:0a:0a:0a:02 10.10.10.2 rogue *\n\
             9 02:42:0a:0a:0a:03 10.10.10.3 node3 *\n",
        );
        let fixed = [
            StaticNode { name: "node3".parse().expect("a name"), address: [10, 10, 10, 33].into() },
            StaticNode { name: "node2".parse().expect("a name"), address: [10, 10, 10, 2].into() },
        ];
        let found = merge(&leases, &fixed);
        let shown: Vec<_> = found.iter().map(|(name, f)| (name.as_str(), f.address.to_string())).collect();
        assert_eq!(
            shown,
            [("node1", "10.10.10.1".into()), ("node2", "10.10.10.2".into()), ("node3", "10.10.10.33".into())]
        );
        assert_eq!(found.values().nth(1).and_then(|f| f.mac), "02:42:0a:0a:0a:02".parse().ok());
    }
}
