//! What an operator says of a node: nothing new there, everything away from there, not a node any more.
//!
//! Moves nothing: placement reads it and does.

use crate::{
    inventory::{Admission, Intake},
    model::NodeName,
};

use super::{Nodes, NodesError, admission};

impl Nodes {
    /// Says whether instances are placed on an admitted node; kept over restarts. Whether that is new.
    ///
    /// # Errors
    /// When there is no such node, it is not admitted, or the store fails.
    pub fn set_intake(&self, name: &NodeName, intake: Intake) -> Result<bool, NodesError> {
        let node = self.node(name)?;
        if matches!(node.admission, Admission::Candidate { .. }) {
            return Err(NodesError::NotAdmitted { node: name.clone() });
        }
        admission::amend(&*self.shared.store, name, |pinned| pinned.intake = intake)?;
        self.update(name, |node| node.intake = intake);
        Ok(node.intake != intake)
    }

    /// How full a disk may be, in percent, for anything new to be placed on its node.
    pub fn disk_limit(&self) -> u8 {
        self.shared.config.disk_limit
    }
}
