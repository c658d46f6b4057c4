//! Events as they happen, as server-sent events (HTML Living Standard, 9.2).

use std::{convert::Infallible, time::Duration};

use axum::{
    extract::State,
    response::{
        IntoResponse,
        sse::{KeepAlive, Sse},
    },
};
use futures_util::{Stream, StreamExt, stream};
use tokio::sync::broadcast::error::RecvError;

use crate::manager::{Manager, events::Event};

/// How many of the last events a new listener is told first.
const BACKLOG: usize = 50;

pub(super) async fn events(State(manager): State<Manager>) -> impl IntoResponse {
    let live = manager.events().subscribe();
    let backlog = manager.events().last(BACKLOG);
    let told = backlog.last().map_or(0, |event| event.number);
    let live = stream::unfold(live, async |mut live| {
        loop {
            match live.recv().await {
                Ok(event) => return Some((event, live)),
                // It was too slow: it goes on with what is there.
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
    })
    .filter(move |event| std::future::ready(event.number > told));
    let stopped = manager.stopped().clone();
    let all = stream::iter(backlog).chain(live).map(line).take_until(async move { stopped.cancelled().await });
    Sse::new(all).keep_alive(KeepAlive::new().interval(Duration::from_secs(15)))
}

#[expect(clippy::unnecessary_wraps, reason = "a stream of results is what Sse takes")]
fn line(event: Event) -> Result<axum::response::sse::Event, Infallible> {
    let data = serde_json::to_string(&event).unwrap_or_default();
    Ok(axum::response::sse::Event::default().id(event.number.to_string()).data(data))
}

/// A stream that says `changed` at most four times a second, whenever the world moved; first at once.
pub fn changes(manager: &Manager) -> impl Stream<Item = ()> + Send + use<> {
    let overview = manager.overview();
    let nodes = manager.nodes().subscribe();
    let events = manager.events().subscribe();
    stream::unfold((overview, nodes, events, true), async |(mut overview, mut nodes, mut events, first)| {
        if !first {
            tokio::time::sleep(Duration::from_millis(250)).await;
            tokio::select! {
                changed = overview.changed() => changed.ok()?,
                changed = nodes.changed() => changed.ok()?,
                told = events.recv() => if matches!(told, Err(RecvError::Closed)) { return None },
            }
        }
        overview.mark_unchanged();
        nodes.mark_unchanged();
        events = events.resubscribe();
        Some(((), (overview, nodes, events, false)))
    })
}
