//! Does one action on the world. Each can be done twice, and be cut off anywhere.

use std::{
    fmt::Write,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep};

use crate::{
    inventory::{ContainerSpec, ContainerState, Snapshot},
    model::{NodeName, Port},
    plan::Health,
    reconcile::Action,
    remote::{
        docker::{EngineClient, EngineError},
        probe::probe,
    },
};

use super::{
    config::Config,
    events::{Events, Kind},
    gateway::Gateway,
    journal::Answered,
    nodes::Nodes,
    pace::{self, Turn},
};

/// What an action works with.
pub(super) struct Hands {
    pub config: Arc<Config>,
    pub nodes: Nodes,
    pub gateway: Option<Gateway>,
    pub events: Events,
    /// Where it waits for its turn: requests go before it.
    pub turn: Option<Turn>,
    /// How to tell that the instance serves; none: it is not in the plan any more.
    pub health: Option<Health>,
    /// For a stop: whether it can be taken back.
    pub point: Point,
}

/// The point after which a stop cannot be taken back: the instance is about to get its signal. Until then it drains, and
/// serves as before if it is routed again. Of both sides, one comes first.
#[derive(Debug, Clone, Default)]
pub(super) struct Point(Arc<AtomicU8>);

impl Point {
    const OPEN: u8 = 0;
    const PASSED: u8 = 1;
    const TAKEN_BACK: u8 = 2;

    fn pass(&self) -> bool {
        self.0.compare_exchange(Self::OPEN, Self::PASSED, SeqCst, SeqCst).is_ok()
    }
    /// Whether it gets no signal any more.
    pub(super) fn take_back(&self) -> bool {
        self.0.compare_exchange(Self::OPEN, Self::TAKEN_BACK, SeqCst, SeqCst).is_ok()
    }
    /// Whether it gets its signal, or has.
    pub(super) fn passed(&self) -> bool {
        self.0.load(SeqCst) == Self::PASSED
    }
    /// Whether nothing has come of it yet.
    pub(super) fn open(&self) -> bool {
        self.0.load(SeqCst) == Self::OPEN
    }
}

/// How an action ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The container runs and answers.
    Answers(Answered),
    /// The container is gone.
    Gone,
    /// It failed.
    Failed {
        /// How, for people, with a hint.
        why: String,
        /// How often to try again before a release fails over it; none: always.
        tries: Option<u32>,
        /// The host port somebody else holds there.
        held: Option<Port>,
    },
    /// Nobody wants it any more.
    Cancelled,
}

/// An error with all its sources: `cannot read x: permission denied`.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            _ = write!(text, ": {inner_text}");
        }
        source = inner.source();
    }
    text
}

fn failed(error: &EngineError) -> Outcome {
    let hint = error.hint().map(|hint| format!("\n  hint: {hint}")).unwrap_or_default();
    Outcome::Failed { why: chain(error) + &hint, tries: error.tries(), held: None }
}

/// Does it.
pub(super) async fn execute(hands: &Hands, action: &Action) -> Outcome {
    let node = action.node();
    let Some(engine) = hands.nodes.engine(node) else {
        return Outcome::Failed { why: format!("{node} does not answer"), tries: None, held: None };
    };
    match action {
        Action::Start { container, reason, .. } => {
            hands.events.tell(Kind::Begin, action.instance(), Some(node), format!("starting ({reason})"));
            match start(hands, node, &engine, container).await {
                Ok(id) => verify(hands, node, &engine, container, id).await,
                Err(error) => match failed(&error) {
                    Outcome::Failed { why, tries, .. } if matches!(error, EngineError::PortTaken { .. }) => {
                        Outcome::Failed { why, tries, held: Some(container.host_port) }
                    }
                    outcome => outcome,
                },
            }
        }
        Action::Verify { container, .. } => {
            let id = container_of(&hands.nodes.snapshot(), node, &container.name).map(|(id, _)| id);
            match id {
                Some(id) => verify(hands, node, &engine, container, id).await,
                None => Outcome::Cancelled,
            }
        }
        Action::Stop { instance, id, name, drain_seconds, stop_seconds, reason, .. } => {
            hands.events.tell(Kind::Begin, instance, Some(node), format!("stopping ({reason})"));
            drain(hands, name, *drain_seconds).await;
            let ended = async {
                if !hands.point.pass() {
                    return Ok(false);
                }
                engine.stop(&hands.config.cloud, id, *stop_seconds).await?;
                engine.remove(&hands.config.cloud, id).await?;
                Ok(true)
            };
            match pace::in_turn(hands.turn.as_ref(), ended).await {
                Ok(false) => Outcome::Cancelled,
                Ok(true) => {
                    _ = hands.nodes.refresh(node).await;
                    hands.events.tell(Kind::Done, instance, Some(node), "stopped");
                    Outcome::Gone
                }
                Err(error) => failed(&error),
            }
        }
    }
}

/// Pull where missing, create, start. Answers the container's id.
async fn start(
    hands: &Hands,
    node: &NodeName,
    engine: &EngineClient,
    container: &ContainerSpec,
) -> Result<String, EngineError> {
    let image = &container.spec.image;
    if !engine.has_image(&image.to_string()).await? {
        hands.events.tell(Kind::Note, &container.ours.instance, Some(node), format!("pulling {}", image.repository));
        engine.pull(image, |_| {}).await?;
    }
    let started = async {
        let id = engine.create(container).await?;
        engine.start(&id).await?;
        Ok(id)
    };
    pace::in_turn(hands.turn.as_ref(), started).await
}

/// Asks until it answers or its deadline is over; tells the last answer and the container's last lines then.
async fn verify(
    hands: &Hands,
    node: &NodeName,
    engine: &EngineClient,
    container: &ContainerSpec,
    id: String,
) -> Outcome {
    let Some(health) = &hands.health else { return Outcome::Cancelled };
    let instance = &container.ours.instance;
    let begun = Instant::now();
    let deadline = begun + Duration::from_secs(u64::from(health.deadline_seconds));
    // The snapshot knows the container before anybody relies on it.
    let mut seen = Some(hands.nodes.refresh(node));
    let mut pause = Duration::from_millis(20);
    // An engine's proxy accepts before the container's network passes packets: what is sent then waits for a second.
    let mut patience = health.timeout_ms.min(150);
    let mut crashes = 0;
    loop {
        let snapshot = hands.nodes.snapshot();
        let Some(address) = snapshot.nodes.get(node).map(|n| n.address) else {
            return Outcome::Failed { why: format!("{node} is not known any more"), tries: None, held: None };
        };
        let asked = probe(address, container.host_port, &health.check, patience);
        patience = health.timeout_ms.min(patience * 2);
        let answer = match seen.take() {
            Some(refresh) => tokio::join!(asked, refresh).0,
            None => asked.await,
        };
        let why = match answer {
            Ok(status) => {
                let took = begun.elapsed().as_millis();
                hands.events.tell(Kind::Done, instance, Some(node), format!("answers after {took} ms"));
                return Outcome::Answers(Answered { id, status, node: node.clone() });
            }
            Err(why) => why,
        };
        let state = container_of(&snapshot, node, &container.name).map(|(_, state)| state);
        crashes += u32::from(matches!(state, Some(ContainerState::Restarting | ContainerState::Exited)));
        // A process that ends again and again will not answer later either; a slow one is given its whole time.
        let crashing = crashes >= 20 && begun.elapsed() > Duration::from_secs(5);
        if Instant::now() >= deadline || crashing {
            let what = if crashing { "its process ends again and again" } else { "it does not answer" };
            let mut text = format!("{what} ({}): {why}", container.name);
            let lines = engine.logs_tail(&id, 8).await.unwrap_or_default();
            if !lines.is_empty() {
                _ = write!(text, "\n  its last lines:");
                for line in lines {
                    _ = write!(text, "\n    {line}");
                }
            }
            return Outcome::Failed { why: text, tries: Some(0), held: None };
        }
        sleep(pause).await;
        pause = (pause * 3 / 2).min(Duration::from_millis(250));
    }
}

fn container_of(snapshot: &Snapshot, node: &NodeName, name: &str) -> Option<(String, ContainerState)> {
    let node = snapshot.nodes.get(node)?;
    node.containers.iter().find(|c| c.name == name).map(|c| (c.id.clone(), c.state))
}

/// Waits until the gateway counts no request in flight there, or the time is over.
async fn drain(hands: &Hands, name: &str, seconds: u32) {
    let Some(gateway) = &hands.gateway else { return };
    let deadline = Instant::now() + Duration::from_secs(u64::from(seconds));
    let mut pause = Duration::from_millis(20);
    while Instant::now() < deadline {
        match gateway.in_flight(name).await {
            // A gateway that is gone has nothing in flight.
            Ok(Some(0) | None) | Err(_) => return,
            Ok(Some(_)) => sleep(pause).await,
        }
        pause = (pause * 2).min(Duration::from_millis(500));
    }
}
