//! A lab's name, and every name that is made from it: interfaces, namespaces, hardware addresses.
//!
//! Touches nothing: the same lab and node always have the same names.

use std::{fmt, str::FromStr};

use sha2::{Digest, Sha256};

use crate::model::NodeName;

use super::LabError;

/// A lab's name. Twelve characters at most: `mx-NAME` is a network interface, and those end at fifteen.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LabName(String);

impl FromStr for LabName {
    type Err = LabError;
    fn from_str(text: &str) -> Result<Self, LabError> {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let good = (1..=12).contains(&text.len())
            && text.chars().all(|c| fits(c) || c == '-')
            && text.starts_with(fits)
            && text.ends_with(fits);
        if good {
            Ok(Self(text.to_owned()))
        } else {
            Err(LabError::Invalid {
                what: "lab name",
                value: text.to_owned(),
                rule: "may hold only a-z, 0-9 and -, begins and ends with a letter or digit, and has at most 12 characters",
            })
        }
    }
}

impl fmt::Display for LabName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl LabName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
    /// The interface of this machine's end of the leg to the gateway.
    pub fn host_interface(&self) -> String {
        format!("mx-{self}")
    }
    /// What all its network namespaces begin with; a dot cannot be in a name, so no lab's prefix begins another's.
    pub fn netns_prefix(&self) -> String {
        format!("matrix.{self}.")
    }
    /// The switch's network namespace.
    pub fn switch(&self) -> String {
        format!("matrix.{self}.switch")
    }
    /// The gateway's network namespace.
    pub fn gateway(&self) -> String {
        format!("matrix.{self}.gateway")
    }
    /// The client's network namespace: a machine on the inside network that is no node.
    pub fn client(&self) -> String {
        format!("matrix.{self}.client")
    }
    /// A node's network namespace.
    pub fn node(&self, node: &NodeName) -> String {
        format!("matrix.{self}.node-{node}")
    }
    /// A node's port on the switch: made from its hardware address, as node names are longer than interface names may be.
    pub fn port(&self, node: &NodeName) -> String {
        let [_, _, a, b, c, d] = self.mac_bytes(node);
        format!("n{a:02x}{b:02x}{c:02x}{d:02x}")
    }
    /// A node's hardware address.
    pub fn mac(&self, node: &NodeName) -> String {
        self.mac_bytes(node).map(|byte| format!("{byte:02x}")).join(":")
    }
    /// Locally administered, unicast; the rest by hash, so that a node keeps its address over reboots and labs differ.
    fn mac_bytes(&self, node: &NodeName) -> [u8; 6] {
        let hash = Sha256::digest(format!("{self}/{node}"));
        [0x02, 0x6d, hash[0], hash[1], hash[2], hash[3]]
    }
}

/// The nodes a user asks for: `node1` to `nodeN`.
pub fn numbered(count: u32) -> Vec<NodeName> {
    (1..=count).filter_map(|n| NodeName::try_from(format!("node{n}").as_str()).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lab(name: &str) -> LabName {
        name.parse().expect(name)
    }

    #[test]
    fn names_fit_interfaces() {
        for bad in ["", "a b", "Lab", "-a", "a-", "a.b", "../x", "thirteenchars"] {
            assert!(bad.parse::<LabName>().is_err(), "{bad}");
        }
        let long = lab("twelve-chars");
        assert!(long.host_interface().len() <= 15);
        let node = NodeName::try_from("a".repeat(63).as_str()).expect("a label");
        assert!(long.port(&node).len() <= 15);
    }

    #[test]
    fn nodes_and_labs_have_their_own_addresses() {
        let (one, two) = (NodeName::try_from("node1").expect("name"), NodeName::try_from("node2").expect("name"));
        assert_ne!(lab("a").mac(&one), lab("a").mac(&two));
        assert_ne!(lab("a").mac(&one), lab("b").mac(&one));
        assert_eq!(lab("a").mac(&one), lab("a").mac(&one));
        assert!(lab("a").mac(&one).starts_with("02:6d:"));
    }

    #[test]
    fn no_prefix_begins_another() {
        assert!(!lab("a-b").gateway().starts_with(&lab("a").netns_prefix()));
        assert!(lab("a").gateway().starts_with(&lab("a").netns_prefix()));
    }

    #[test]
    fn nodes_are_numbered_from_one() {
        assert_eq!(numbered(2).iter().map(NodeName::as_str).collect::<Vec<_>>(), ["node1", "node2"]);
    }
}
