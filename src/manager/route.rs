//! The loop's part that tells the gateway who serves: as seldom as it can, since each change is compiled.

use std::time::Duration;

use tokio::time::Instant;

use crate::{model::AppName, reconcile::Action, remote::varnish::VarnishError, routing::AppRouting};

use super::{
    execute,
    gateway::GatewayError,
    run::{Loop, Message, Untaken},
};

/// How long a backend that answers waits for others, so that they are routed together.
pub(super) const TOGETHER: Duration = Duration::from_millis(400);

impl Loop {
    /// Gives the gateway the table, where it has another one.
    pub(super) fn route(&mut self) {
        let table = &self.known.table;
        let Some(gateway) = &self.parts.gateway else {
            // Nobody to tell: it holds at once, and what waits for it goes on now, not at the next heartbeat.
            if self.applied.as_ref() != Some(table) {
                _ = self.sender.send(Message::Applied { table: Box::new(table.clone()), result: Ok(()) });
            }
            return;
        };
        let up = gateway.state().borrow().up;
        // One that was not there is told once more when it is back, which wakes the loop.
        let told = self.gateway_error.as_ref().is_some_and(|(untaken, last)| last == table && untaken.refused == up);
        if self.applying || self.applied.as_ref() == Some(table) || told {
            self.growing = None;
            return;
        }
        if self.may_grow() && (!self.gains() || self.growing.get_or_insert_with(Instant::now).elapsed() < TOGETHER) {
            return;
        }
        self.growing = None;
        self.applying = true;
        self.pace.routes_change(true);
        let (gateway, table, sender) = (gateway.clone(), table.clone(), self.sender.clone());
        tokio::spawn(async move {
            let untaken = |error: GatewayError| {
                let refused = !matches!(error, GatewayError::Varnish(VarnishError::Down { .. }));
                Untaken { why: execute::chain(&error), refused }
            };
            let result = gateway.apply(&table).await.map(drop).map_err(untaken);
            _ = sender.send(Message::Applied { table: Box::new(table), result });
        });
    }

    /// Whether all that is new is more backends and applications, and more may come at once: each load costs a
    /// compilation.
    fn may_grow(&self) -> bool {
        let coming = self.running.values().any(|running| !matches!(running.action, Action::Stop { .. }));
        let Some(applied) = self.applied.as_ref().filter(|_| coming) else { return false };
        applied.apps.iter().all(|(name, before)| {
            let Some(now) = self.known.table.apps.get(name) else { return false };
            let mut grown = before.clone();
            grown.backends.clone_from(&now.backends);
            grown == *now && before.backends.iter().all(|(name, backend)| now.backends.get(name) == Some(backend))
        })
    }

    /// Whether the table has a backend that the gateway lacks.
    fn gains(&self) -> bool {
        let has = |app: &AppName| self.applied.as_ref().and_then(|applied| applied.apps.get(app));
        let lacks = |(app, new): (&AppName, &AppRouting)| {
            new.backends.keys().any(|name| has(app).is_none_or(|old| !old.backends.contains_key(name)))
        };
        self.known.table.apps.iter().any(lacks)
    }
}
