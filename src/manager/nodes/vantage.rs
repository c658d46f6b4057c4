//! The second vantage point: a node seen from the gateway, whatever its engine and its sshd say, or do not say.
//!
//! Decides nothing about a node: `NodeState::next` does. Only ends connections that lead nowhere.

use std::{net::IpAddr, time::Duration};

use futures_util::future::join_all;

use crate::{
    inventory::{Backends, DataPath},
    manager::gateway::Sight,
    model::{NodeName, Port},
    remote::{
        connections,
        probe::{Knock, knock},
    },
};

use super::Nodes;

/// A machine of the same network answers in a millisecond; a loaded one in fifty.
const KNOCK_WITHIN: Duration = Duration::from_millis(400);
/// As many backends of one node are knocked at; a first packet that is lost must not decide.
const KNOCKS: usize = 6;
/// As many other nodes are asked whether the network is there.
const WITNESSES: usize = 2;

impl Nodes {
    /// Looks at a node from the gateway's side.
    pub(super) async fn look_from_gateway(&self, name: &NodeName, address: IpAddr) -> DataPath {
        let gateway = self.shared.gateway.get();
        let sights = gateway.map(|gateway| gateway.sees(address)).unwrap_or_default();
        // Those that would speak for it first.
        let (well, sick): (Vec<_>, Vec<_>) = sights.iter().partition(|sight| sight.probe != Some(false));
        let asked: Vec<&Sight> = well.into_iter().chain(sick).take(KNOCKS).collect();
        let doors = asked.iter().map(|sight| sight.port).chain([self.port()]);
        let knocks = join_all(doors.map(|port| knock(address, port, KNOCK_WITHIN))).await;
        let path = read(&asked, &knocks);
        if !path.machine && path.backends != Backends::None {
            self.end_connections(name, address).await;
        }
        path
    }

    /// Requests on their way to a machine that is gone are tried elsewhere at once, not after their timeout. Costs nothing
    /// where that is wrong, but for a request that may not be repeated; so not when this side's network may be the cause.
    async fn end_connections(&self, name: &NodeName, address: IpAddr) {
        if !self.somebody_else_answers(name).await {
            return;
        }
        if let Err(error) = connections::cut(address, self.port().get()).await {
            tracing::warn!(node = %name, %error, "connections to a silent node stay until they time out");
        }
    }

    async fn somebody_else_answers(&self, name: &NodeName) -> bool {
        let snapshot = self.snapshot();
        let others = snapshot.nodes.values().filter(|node| node.name != *name && node.is_ready());
        let ports: Vec<(IpAddr, Port)> = others.map(|node| (node.address, self.port())).take(WITNESSES).collect();
        let answers = join_all(ports.into_iter().map(|(address, port)| knock(address, port, KNOCK_WITHIN))).await;
        answers.iter().any(|answer| *answer != Knock::Silent)
    }
}

/// What follows from the knocks: one at each backend, the last at sshd.
fn read(asked: &[&Sight], knocks: &[Knock]) -> DataPath {
    let machine = knocks.iter().any(|knock| *knock != Knock::Silent);
    // A probe knows more than a knock, but speaks later.
    let serves = |(sight, knock): (&&Sight, &Knock)| sight.probe.unwrap_or(*knock == Knock::Accepted);
    let backends = match asked {
        [] => Backends::None,
        _ if machine && asked.iter().zip(knocks).any(serves) => Backends::Serving,
        _ => Backends::Sick,
    };
    DataPath { machine, backends }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Knock::{Accepted, Refused, Silent};

    #[test]
    fn a_machine_that_says_nothing_serves_nothing() {
        let sight = |probe| Sight { container: "shop.1".into(), port: Port::new(20_000).expect("not 0"), probe };
        let (good, bad, unknown) = (sight(Some(true)), sight(Some(false)), sight(None));
        for (asked, knocks, machine, backends) in [
            (vec![], vec![Silent], false, Backends::None),
            (vec![], vec![Refused], true, Backends::None),
            (vec![&good], vec![Silent, Silent], false, Backends::Sick),
            // A container on its way out swallows what knocks, its machine does not.
            (vec![&good], vec![Silent, Accepted], true, Backends::Serving),
            // sshd's port alone is cut off.
            (vec![&good, &good], vec![Accepted, Accepted, Silent], true, Backends::Serving),
            (vec![&bad], vec![Accepted, Silent], true, Backends::Sick),
            (vec![&bad, &good], vec![Refused, Accepted, Refused], true, Backends::Serving),
            (vec![&unknown], vec![Accepted, Silent], true, Backends::Serving),
            (vec![&unknown], vec![Refused, Accepted], true, Backends::Sick),
            (vec![&unknown], vec![Silent, Silent], false, Backends::Sick),
        ] {
            assert_eq!(read(&asked, &knocks), DataPath { machine, backends }, "{asked:?} {knocks:?}");
        }
    }
}
