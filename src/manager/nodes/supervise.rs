//! One task per machine: reads a candidate's key, keeps an admitted node's session, follows its engine.
//!
//! Changes nothing on a node. A machine that is not the one admitted is not spoken to.

use std::{convert::Infallible, pin::pin, time::Duration};

use backon::BackoffBuilder as _;
use futures_util::StreamExt as _;
use tokio::{
    sync::{Notify, Semaphore},
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::{
    inventory::{Admission, Backends, HostKey, Intake, Node, Seen},
    model::NodeName,
    remote::{
        docker::{EngineClient, EngineError},
        ssh::{self, Session, SshError, Target},
    },
};

use super::{LOOK_WITHIN, Nodes, Watched, admission, seen};

/// Between two looks at the containers of a node that answers.
const POLL: Duration = Duration::from_secs(2);
/// Between two of an engine's heartbeats: a request to a node that lost its power waits until one is missed.
const BEAT: Duration = Duration::from_millis(500);
/// For one heartbeat.
const BEAT_WITHIN: Duration = Duration::from_millis(500);
/// So much longer between two heartbeats for each node: of a thousand, each is felt every two seconds.
const BEAT_FOR_EACH: Duration = Duration::from_millis(2);
/// What an event told is complete by then.
const AFTERMATH: Duration = Duration::from_millis(300);
/// Between two looks at the disk and the engine's own figures.
const FIGURES: Duration = Duration::from_secs(30);
/// The same of a node whose disk is full: who has made room wants to deploy.
const FULL: Duration = Duration::from_secs(5);
/// A candidate whose key was read, or a clone, is looked at again.
const AGAIN: Duration = Duration::from_secs(30);
/// Misses closer together than this count as one: an sshd or engine that restarts refuses many times a second.
const MISS_APART: Duration = Duration::from_millis(800);
/// A session whose engine was silent this often is opened anew.
const SILENT_TOO_OFTEN: u32 = 12;
/// Ten thousand candidates must not keep an admitted node from its handshake.
static SCANS: Semaphore = Semaphore::const_new(2);

/// Watches over a machine until it is removed or the manager stops.
pub(super) async fn watch_over(nodes: Nodes, name: NodeName, watched: Watched) {
    let answered = Instant::now();
    let mut supervisor = Supervisor { nodes, name, watched, pauses: Pauses::default(), last_miss: None, answered };
    while !supervisor.watched.stop.is_cancelled() {
        let Ok(node) = supervisor.nodes.node(&supervisor.name) else { break };
        match node.admission.clone() {
            Admission::Candidate { .. } => supervisor.candidate(&node).await,
            Admission::Admitted { key } => supervisor.admitted(&node, key).await,
            Admission::Refused { pinned: Some(pinned), offered, .. } => {
                supervisor.refused(&node, pinned, offered).await;
            }
            Admission::Refused { pinned: None, .. } => supervisor.pause(AGAIN).await,
        }
    }
    supervisor.watched.ended.cancel();
}

struct Supervisor {
    nodes: Nodes,
    name: NodeName,
    watched: Watched,
    pauses: Pauses,
    last_miss: Option<Instant>,
    /// When it last answered; at first, when it was first looked for.
    answered: Instant,
}

/// Why a session was left.
enum Left {
    Stop,
    Changed,
    Closed(String),
    Silent,
    Clone,
}

impl Supervisor {
    /// Reads the key it offers; the policy may admit it.
    async fn candidate(&mut self, node: &Node) {
        let Some(offered) = self.scan(node).await else { return };
        match offered {
            Ok(key)
                if node.intake != Intake::Removed
                    && admission::by_itself(&self.nodes.shared.config.admission, node.mac) =>
            {
                if let Err(error) = self.nodes.pin(&self.name, key) {
                    self.nodes.update(&self.name, |node| node.trouble = Some(error.to_string()));
                    self.pause(AGAIN).await;
                }
            }
            Ok(key) => {
                self.nodes.update(&self.name, |node| {
                    node.admission = Admission::Candidate { offered: Some(key) };
                    node.trouble = None;
                });
                self.pause(AGAIN).await;
            }
            Err(error) => {
                self.trouble(&error);
                self.pause_longer().await;
            }
        }
    }

    /// Waits for the admitted machine to come back, or for somebody to accept the other one.
    async fn refused(&mut self, node: &Node, pinned: HostKey, offered: Option<HostKey>) {
        self.pause(AGAIN).await;
        if self.nodes.node(&self.name).is_ok_and(|now| now.admission != node.admission) {
            return;
        }
        if offered.as_ref() == Some(&pinned) {
            // A clone: its key is right, its engine may have been given an id of its own meanwhile.
            self.admitted(node, pinned).await;
        } else if let Some(Ok(now)) = self.scan(node).await {
            self.nodes.update(&self.name, |node| {
                if let Admission::Refused { offered, .. } = &mut node.admission {
                    if now == pinned {
                        node.admission = Admission::Admitted { key: pinned };
                        node.trouble = None;
                    } else {
                        *offered = Some(now);
                    }
                }
            });
        }
    }

    /// The offered key; none when woken or stopped meanwhile.
    async fn scan(&self, node: &Node) -> Option<Result<HostKey, SshError>> {
        let look = async {
            let _permit = SCANS.acquire().await.ok();
            ssh::scan(&self.name, node.address, self.nodes.port()).await
        };
        tokio::select! {
            offered = look => Some(offered),
            () = self.interrupted() => None,
        }
    }

    /// Opens a session and stays with it until it ends.
    async fn admitted(&mut self, node: &Node, key: HostKey) {
        let config = &self.nodes.shared.config.ssh;
        let target = Target {
            node: self.name.clone(),
            address: node.address,
            port: self.nodes.port(),
            user: config.user.clone(),
            identity: config.identity.clone(),
            key,
            engine_socket: config.engine_socket.clone(),
        };
        let opened = tokio::select! {
            opened = Session::open(&target, &self.nodes.shared.sessions) => opened,
            () = self.interrupted() => return,
        };
        let session = match opened {
            Ok(session) => session,
            Err(error) if error.is_changed_key() => return self.refuse_key(node, &target.key, &error).await,
            Err(error) => {
                self.miss(with_hint(&error, error.hint().as_deref())).await;
                return self.pause_longer().await;
            }
        };
        let left = match EngineClient::open(self.name.clone(), session.socket()) {
            Ok(engine) => self.stay(&session, &engine, &target).await,
            Err(error) => Left::Closed(error.to_string()),
        };
        self.nodes.set_engine(&self.name, None);
        session.close().await;
        match left {
            Left::Closed(words) => {
                tracing::info!(node = %self.name, words, "session ended");
                self.miss(format!("its session ended: {words}")).await;
            }
            Left::Silent => self.pause_longer().await,
            Left::Stop | Left::Changed | Left::Clone => {}
        }
    }

    async fn stay(&mut self, session: &Session, engine: &EngineClient, target: &Target) -> Left {
        let dirty = Notify::new();
        let (nodes, watched, name) = (self.nodes.clone(), self.watched.clone(), self.name.clone());
        tokio::select! {
            () = watched.stop.cancelled() => Left::Stop,
            () = changed(&nodes, &watched, target) => Left::Changed,
            words = session.closed() => Left::Closed(words),
            left = self.poll(engine, &dirty) => left,
            never = follow_events(&nodes, &watched, engine, &dirty) => match never {},
            never = follow_figures(&nodes, &name, session, engine) => match never {},
        }
    }

    /// Looks again and again: at each event, every two seconds, and at once when a heartbeat is missed.
    async fn poll(&mut self, engine: &EngineClient, dirty: &Notify) -> Left {
        let (mut introduced, mut silent, mut told) = (false, 0, false);
        loop {
            let start = Instant::now();
            let looked = async {
                if !introduced && self.introduce(engine).await? {
                    return Ok(true);
                }
                introduced = true;
                engine.ping(BEAT_WITHIN).await?;
                self.nodes.look(&self.name, engine, &self.watched).await.map(|()| false)
            };
            let mut next = start + POLL;
            match looked.await {
                Ok(true) => return Left::Clone,
                Ok(false) => {
                    silent = 0;
                    (self.last_miss, self.answered) = (None, Instant::now());
                    self.pauses = Pauses::default();
                }
                Err(error) => {
                    self.miss(error.to_string()).await;
                    silent += 1;
                    if silent == SILENT_TOO_OFTEN {
                        return Left::Silent;
                    }
                    // It cost the whole patience: the next look is due. An engine that refuses is starting.
                    next = (start + BEAT_WITHIN).max(Instant::now());
                }
            }
            if std::mem::take(&mut told) {
                next = next.min(start + AFTERMATH);
            }
            tokio::select! {
                () = dirty.notified() => told = true,
                () = sleep_until(next) => {}
                () = self.missed_beat(engine) => {}
            }
        }
    }

    /// Returns when the engine misses a heartbeat: far cheaper than a look at all containers.
    async fn missed_beat(&self, engine: &EngineClient) {
        let nodes = u32::try_from(self.nodes.watched().len()).unwrap_or(u32::MAX);
        let pause = BEAT.max(BEAT_FOR_EACH.saturating_mul(nodes));
        loop {
            sleep(pause).await;
            if engine.ping(BEAT_WITHIN).await.is_err() {
                return;
            }
        }
    }

    /// Learns who the engine is; true when it is another node's, by its id.
    async fn introduce(&self, engine: &EngineClient) -> Result<bool, EngineError> {
        let info = timeout(LOOK_WITHIN, engine.info()).await.map_err(|_| engine.silent("ask about the engine"))??;
        if let Some((twin, address)) = self.nodes.claim_engine(&self.name, &info.id) {
            let why = format!(
                "its engine has the id of {twin}'s ({address}): one is a clone of the other. Give it an id of its own \
                 (stop docker, remove /etc/docker/key.json and /var/lib/docker/engine-id, start docker), or, if \
                 {twin} was renamed: matrix nodes forget {twin}"
            );
            self.nodes.update(&self.name, |node| {
                if let Admission::Admitted { key } = &node.admission {
                    tracing::warn!(node = %node.name, why, "refused");
                    node.admission =
                        Admission::Refused { pinned: Some(key.clone()), offered: Some(key.clone()), why: why.clone() };
                    node.trouble = Some(why);
                }
            });
            return Ok(true);
        }
        // Before it is shown as ready: who sees that may ask for the engine at once.
        self.nodes.set_engine(&self.name, Some(engine.clone()));
        self.nodes.update(&self.name, |node| {
            if let Admission::Refused { pinned: Some(key), .. } = &node.admission {
                node.admission = Admission::Admitted { key: key.clone() };
            }
            super::show_engine(node, info);
        });
        Ok(false)
    }

    async fn refuse_key(&mut self, node: &Node, pinned: &HostKey, error: &SshError) {
        let offered = self.scan(node).await.and_then(Result::ok);
        let why = with_hint(error, error.hint().as_deref());
        tracing::warn!(node = %self.name, why, "refused");
        self.nodes.update(&self.name, |node| {
            // Somebody may have accepted the new key meanwhile.
            if matches!(&node.admission, Admission::Admitted { key } if key == pinned) {
                node.admission = Admission::Refused { pinned: Some(pinned.clone()), offered, why: why.clone() };
                node.trouble = Some(why);
            }
        });
    }

    fn trouble(&self, error: &SshError) {
        let text = with_hint(error, error.hint().as_deref());
        self.nodes.update(&self.name, |node| node.trouble = Some(text));
    }

    /// It did not answer: what the gateway sees of it decides with it what that means.
    async fn miss(&mut self, why: String) {
        if self.last_miss.is_some_and(|last| last.elapsed() < MISS_APART) {
            return;
        }
        let Ok(node) = self.nodes.node(&self.name) else { return };
        let path = self.nodes.look_from_gateway(&self.name, node.address).await;
        self.last_miss = Some(Instant::now());
        let silence = Seen::Silence { lasting: self.answered.elapsed(), path };
        let trouble = match path.backends {
            Backends::Serving => {
                format!("{why}; its instances answer the gateway: they stay as they are, none is added")
            }
            Backends::None | Backends::Sick => why,
        };
        self.nodes.update(&self.name, |node| {
            node.trouble = Some(trouble);
            seen(node, silence, self.nodes.shared.config.healing.lost_after);
        });
    }

    async fn pause_longer(&mut self) {
        let time = self.pauses.next();
        self.pause(time).await;
    }

    async fn pause(&mut self, time: Duration) {
        tokio::select! {
            () = sleep(time) => {}
            () = self.interrupted() => self.pauses = Pauses::default(),
        }
    }

    /// Returns when somebody changed something about this machine, or it is no longer watched.
    async fn interrupted(&self) {
        tokio::select! {
            () = self.watched.stop.cancelled() => {}
            () = self.watched.wake.notified() => {}
        }
    }
}

/// Returns when the session leads to the wrong place, or is no longer wanted.
async fn changed(nodes: &Nodes, watched: &Watched, target: &Target) {
    loop {
        watched.wake.notified().await;
        let same = nodes.node(&target.node).is_ok_and(|node| {
            node.address == target.address
                && matches!(&node.admission, Admission::Admitted { key } if *key == target.key)
        });
        if !same {
            return;
        }
    }
}

async fn follow_events(nodes: &Nodes, watched: &Watched, engine: &EngineClient, dirty: &Notify) -> Infallible {
    loop {
        let mut events = pin!(engine.events());
        while let Some(Ok(event)) = events.next().await {
            tracing::debug!(node = %engine.node(), id = event.id, action = event.action, "container event");
            nodes.heard(engine.node(), watched, &event);
            dirty.notify_one();
        }
        // What happened while nobody listened is found by looking.
        sleep(Duration::from_secs(1)).await;
        dirty.notify_one();
    }
}

async fn follow_figures(nodes: &Nodes, name: &NodeName, session: &Session, engine: &EngineClient) -> Infallible {
    let limit = nodes.disk_limit();
    loop {
        if let Ok(root) = engine.root_dir().await {
            let disk = session.disk(root.as_deref().unwrap_or("/var/lib/docker")).await;
            if let Ok(info) = engine.info().await {
                nodes.update(name, |node| {
                    // Not before it was introduced: it may be a clone.
                    if let Some(shown) = &node.engine
                        && shown.id == info.id
                    {
                        super::show_engine(node, info);
                    }
                    if let Some(engine) = &mut node.engine {
                        (engine.disk_free, engine.disk_total) = disk.unzip();
                        node.disk_full = engine.disk_used().is_some_and(|used| used >= limit);
                    }
                });
            }
        }
        let full = nodes.snapshot().nodes.get(name).is_some_and(|node| node.disk_full);
        sleep(if full { FULL } else { FIGURES }).await;
    }
}

fn with_hint(error: &dyn std::error::Error, hint: Option<&str>) -> String {
    match hint {
        Some(hint) => format!("{error}; {hint}"),
        None => error.to_string(),
    }
}

/// From a fifth of a second to three, doubled each time, with jitter: nodes that vanished together do not come together.
#[derive(Default)]
struct Pauses(Option<backon::ExponentialBackoff>);

impl Pauses {
    const LONGEST: Duration = Duration::from_secs(3);

    fn next(&mut self) -> Duration {
        let pauses = self.0.get_or_insert_with(|| {
            backon::ExponentialBuilder::default()
                .with_min_delay(Duration::from_millis(200))
                .with_max_delay(Self::LONGEST)
                .without_max_times()
                .with_jitter()
                .build()
        });
        pauses.next().unwrap_or(Self::LONGEST)
    }
}
