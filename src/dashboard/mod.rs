//! Pages over the same views as the API. They show; they never change.
//!
//! | call | answers |
//! |---|---|
//! | `GET /` | the page, whole: also without JavaScript |
//! | `GET /live` | its parts as they change, at most four times a second, as server-sent events |
//! | `GET /assets/NAME` | style, script, sign |

mod assets;
mod page;
mod view;

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, LazyLock},
    time::Duration,
};

use axum::{
    Router,
    extract::{Request, State},
    middleware::{self, Next},
    response::{
        Html, IntoResponse, Response,
        sse::{Event, Sse},
    },
    routing::get,
};
use futures_util::{Stream, StreamExt, stream};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{api, manager::Manager, model::Timestamp};

pub use page::{PageError, Parts, page, parts};
pub use view::{Links, Shown};

/// How many of the last events are shown.
const EVENTS: usize = 20;
/// The longest silence: a page that hears nothing for twice as long takes the manager for gone.
const TICK: Duration = Duration::from_secs(5);
/// How many pages may be followed at once: each is a connection and a rendering of its own.
const FOLLOWERS: usize = 64;

const HEADERS: [(HeaderName, &str); 5] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

#[derive(Debug, Clone)]
struct Dashboard {
    manager: Manager,
    followers: Arc<Semaphore>,
}

/// Every page.
pub fn router(manager: Manager) -> Router {
    let dashboard = Dashboard { manager, followers: Arc::new(Semaphore::new(FOLLOWERS)) };
    Router::new()
        .route("/", get(whole))
        .route("/live", get(live))
        .route("/assets/{name}", get(assets::asset))
        .with_state(dashboard)
        .layer(middleware::from_fn(guarded))
}

async fn guarded(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response.headers_mut().entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

impl Dashboard {
    fn shown(&self, links: Option<Links>) -> Shown {
        Shown {
            at: Timestamp::now(),
            status: api::views::status(&self.manager),
            nodes: api::nodes::view(self.manager.nodes()),
            events: self.manager.events().last(EVENTS),
            links,
        }
    }
}

/// The gateway answers people under the name they reached this page by.
fn links(manager: &Manager, headers: &HeaderMap) -> Option<Links> {
    let port = manager.config().varnish.as_ref()?.port?;
    Links::new(headers.get(header::HOST)?.to_str().ok()?, port)
}

async fn whole(State(dashboard): State<Dashboard>, headers: HeaderMap) -> Response {
    let shown = dashboard.shown(links(&dashboard.manager, &headers));
    match page(&shown, &assets::VERSION) {
        Ok(text) => Html(text).into_response(),
        Err(error) => failed(&error),
    }
}

fn failed(error: &PageError) -> Response {
    let why = crate::manager::chain(error);
    tracing::error!("{why}");
    (StatusCode::INTERNAL_SERVER_ERROR, format!("{why}\n")).into_response()
}

async fn live(State(dashboard): State<Dashboard>, headers: HeaderMap) -> Response {
    let Ok(permit) = Arc::clone(&dashboard.followers).try_acquire_owned() else {
        let wait = [(header::RETRY_AFTER, "5")];
        return (StatusCode::SERVICE_UNAVAILABLE, wait, "too many pages are open\n").into_response();
    };
    let links = links(&dashboard.manager, &headers);
    let stopped = dashboard.manager.stopped().clone();
    let told = follow(dashboard, links, permit).take_until(async move { stopped.cancelled().await });
    Sse::new(told).into_response()
}

/// The parts that changed since the last message, and at least every [`TICK`] a word that all is as it was.
fn follow(
    dashboard: Dashboard,
    links: Option<Links>,
    permit: OwnedSemaphorePermit,
) -> impl Stream<Item = Result<Event, Infallible>> {
    let moves = Box::pin(api::changes(&dashboard.manager));
    let known: Parts = BTreeMap::new();
    stream::unfold((dashboard, links, permit, moves, known), async |(dashboard, links, permit, mut moves, known)| {
        let woken = tokio::time::timeout(TICK, moves.next()).await;
        if matches!(woken, Ok(None)) {
            return None;
        }
        let shown = dashboard.shown(links.clone());
        let now = match parts(&shown) {
            Ok(now) => now,
            Err(error) => {
                tracing::error!("{}", crate::manager::chain(&error));
                return None;
            }
        };
        let changed: BTreeMap<_, _> = now.iter().filter(|(id, html)| known.get(*id) != Some(*html)).collect();
        let message = serde_json::json!({
            "version": *LazyLock::force(&assets::VERSION),
            "at": shown.at.to_string(),
            "title": view::title(&shown.status),
            "parts": changed,
        });
        let event = Event::default().data(message.to_string());
        Some((Ok(event), (dashboard, links, permit, moves, now)))
    })
}
