//! Who may be a node: the policy, and the keys pinned in the store under `node/NAME`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use serde::{Deserialize, Serialize};

use crate::{
    inventory::{Admission, HostKey, Intake, Node, NodeState},
    manager::config::AdmissionPolicy,
    model::{MacAddr, NodeName, Timestamp},
    store::{Change, Store, StoreError, get_json, list_json},
};

const PREFIX: &str = "node/";
/// Names of nodes that were removed: no policy admits them.
const REMOVED: &str = "removed-node/";

/// What is kept of an admitted node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pinned {
    /// Its key.
    pub(super) key: HostKey,
    /// Its last address: where it is looked for until its lease is seen again.
    pub(super) address: IpAddr,
    /// Its hardware address, where a lease said it.
    pub(super) mac: Option<MacAddr>,
    /// Its engine's id, once it has answered: a second machine with it is a clone.
    pub(super) engine_id: Option<String>,
    /// When it was admitted.
    pub(super) admitted: Timestamp,
    /// Whether instances are placed there.
    #[serde(default)]
    pub(super) intake: Intake,
}

impl Pinned {
    pub(super) fn new(key: HostKey, node: &Node) -> Self {
        // A node that comes back to be one takes instances; one whose key changed is as it was.
        let intake = if node.intake == Intake::Removed { Intake::Open } else { node.intake };
        Self { key, address: node.address, mac: node.mac, engine_id: None, admitted: Timestamp::now(), intake }
    }
}

fn key_of(name: &NodeName) -> String {
    format!("{PREFIX}{name}")
}

pub(super) fn all(store: &dyn Store) -> Result<BTreeMap<NodeName, Pinned>, StoreError> {
    let named: BTreeMap<String, Pinned> = list_json(store, PREFIX)?;
    Ok(named.into_iter().filter_map(|(name, pinned)| Some((name.parse().ok()?, pinned))).collect())
}

pub(super) fn removed(store: &dyn Store) -> Result<BTreeSet<NodeName>, StoreError> {
    let named: BTreeMap<String, Timestamp> = list_json(store, REMOVED)?;
    Ok(named.into_keys().filter_map(|name| name.parse().ok()).collect())
}

pub(super) fn pin(store: &dyn Store, name: &NodeName, pinned: &Pinned) -> Result<(), StoreError> {
    store.transact(&[Change::put(key_of(name), pinned)?, Change::delete(format!("{REMOVED}{name}"))])
}

pub(super) fn unpin(store: &dyn Store, name: &NodeName) -> Result<(), StoreError> {
    store.transact(&[Change::delete(key_of(name)), Change::put(format!("{REMOVED}{name}"), &Timestamp::now())?])
}

/// Changes what is pinned; nothing is written where nothing changes or the node is not admitted.
pub(super) fn amend(store: &dyn Store, name: &NodeName, change: impl FnOnce(&mut Pinned)) -> Result<(), StoreError> {
    let Some(before) = get_json::<Pinned>(store, &key_of(name))? else { return Ok(()) };
    let mut after = before.clone();
    change(&mut after);
    if after == before { Ok(()) } else { pin(store, name, &after) }
}

/// An admitted node nothing else is known of yet.
pub(super) fn known(name: NodeName, pinned: &Pinned) -> Node {
    Node {
        name,
        address: pinned.address,
        mac: pinned.mac,
        lease_expires: None,
        admission: Admission::Admitted { key: pinned.key.clone() },
        state: NodeState::Unknown,
        since: Timestamp::now(),
        engine: None,
        containers: Vec::new(),
        trouble: None,
        intake: pinned.intake,
        disk_full: false,
    }
}

/// Whether the policy admits a machine with this hardware address without being asked.
pub(super) fn by_itself(policy: &AdmissionPolicy, mac: Option<MacAddr>) -> bool {
    match policy {
        AdmissionPolicy::Ask => false,
        AdmissionPolicy::Mac { macs } => mac.is_some_and(|mac| macs.contains(&mac)),
        AdmissionPolicy::FirstUse => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_policy_admits_by_itself() {
        let mac = |last: u8| format!("02:42:0a:0a:0a:{last:02x}").parse::<MacAddr>().ok();
        let list = AdmissionPolicy::Mac { macs: mac(1).into_iter().collect() };
        assert!(by_itself(&list, mac(1)) && !by_itself(&list, mac(2)) && !by_itself(&list, None));
        assert!(!by_itself(&AdmissionPolicy::Ask, mac(1)) && by_itself(&AdmissionPolicy::FirstUse, None));
    }
}
