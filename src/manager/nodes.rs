//! The nodes as the manager knows them: found by lease or configuration, admitted, watched over one session each.
//!
//! Starts, stops and places nothing: whoever does that asks here for a node's engine.

mod admission;
mod discover;
mod error;
mod intake;
mod supervise;
mod vantage;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::{Notify, broadcast, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    inventory::{
        Admission, Container, ContainerState, Engine, HostKey, Intake, Node, NodeState, Seen, Snapshot, lease::Leases,
    },
    model::{CloudId, NodeName, Port, Timestamp},
    remote::{
        docker::{ContainerEvent, EngineClient, EngineError},
        leases, ssh,
    },
    store::Store,
};

use super::{config::Config, gateway::Gateway};
use admission::Pinned;
pub use error::NodesError;

const SSH: Port = Port::new(22).expect("not 0");
/// For one look at a node's containers.
const LOOK_WITHIN: Duration = Duration::from_millis(1500);
/// An engine tells a container's end, then takes its network down, and lists it as running until that is done.
const STILL_LISTED: Duration = Duration::from_secs(2);

/// All nodes; a handle, cheap to clone.
#[derive(Debug, Clone)]
pub struct Nodes {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: Arc<Config>,
    store: Arc<dyn Store>,
    sessions: PathBuf,
    stop: CancellationToken,
    tasks: TaskTracker,
    snapshot: watch::Sender<Arc<Snapshot>>,
    watched: Mutex<BTreeMap<NodeName, Watched>>,
    /// Supervisors that were told to end: a name's next one waits, for both use the same files.
    ending: Mutex<BTreeMap<NodeName, CancellationToken>>,
    leases: watch::Receiver<Arc<Leases>>,
    /// Nodes and ids of containers whose process ended.
    deaths: broadcast::Sender<(NodeName, String)>,
    /// The other side nodes are seen from.
    gateway: OnceLock<Gateway>,
    /// Machines that are nodes again only by an operator's hand.
    removed: Mutex<BTreeSet<NodeName>>,
}

/// What is kept of a node beside what is shown.
#[derive(Debug, Clone)]
struct Watched {
    /// Wakes its supervisor: its address or admission changed.
    wake: Arc<Notify>,
    /// Ends its supervisor.
    stop: CancellationToken,
    /// One look at a time, so that an older one never overwrites a newer.
    look: Arc<tokio::sync::Mutex<()>>,
    /// While its session is up.
    engine: Option<EngineClient>,
    /// Containers whose end was told lately.
    died: Arc<Mutex<HashMap<String, Instant>>>,
    /// Cancelled by its supervisor's end.
    ended: CancellationToken,
}

impl Nodes {
    /// Begins to watch: what the store has pinned, what the configuration names, what the leases file says. Ends what a
    /// killed manager left.
    ///
    /// # Errors
    /// When the store or the folder for sessions cannot be used.
    pub fn start(config: Arc<Config>, store: Arc<dyn Store>, stop: CancellationToken) -> Result<Self, NodesError> {
        let sessions = config.run.join("ssh");
        ssh::clean(&sessions)?;
        let pinned = admission::all(&*store)?;
        let removed = Mutex::new(admission::removed(&*store)?);
        let leases = match &config.leases {
            Some(file) => leases::follow(file.clone(), stop.clone()),
            None => watch::channel(Arc::default()).1,
        };
        let nodes = Self {
            shared: Arc::new(Shared {
                config,
                store,
                sessions,
                stop,
                tasks: TaskTracker::new(),
                snapshot: watch::channel(Arc::default()).0,
                watched: Mutex::default(),
                ending: Mutex::default(),
                leases,
                deaths: broadcast::Sender::new(1000),
                gateway: OnceLock::new(),
                removed,
            }),
        };
        for (name, pinned) in pinned {
            nodes.add(admission::known(name, &pinned));
        }
        nodes.discover();
        nodes.shared.tasks.spawn(discover::follow(nodes.clone()));
        Ok(nodes)
    }

    /// From now on nodes that do not answer are also looked at from here.
    pub fn look_through(&self, gateway: &Gateway) {
        _ = self.shared.gateway.set(gateway.clone());
    }

    /// The world as it is known now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.shared.snapshot.borrow())
    }

    /// The world each time it changes.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.shared.snapshot.subscribe()
    }

    /// Node and id of each container whose process ends, from now on. Told after the snapshot knows.
    pub fn deaths(&self) -> broadcast::Receiver<(NodeName, String)> {
        self.shared.deaths.subscribe()
    }

    /// The cloud they are nodes of.
    pub fn cloud(&self) -> &CloudId {
        &self.shared.config.cloud
    }

    /// What is wrong with the leases file, for people.
    pub fn lease_problems(&self) -> Vec<String> {
        self.shared.leases.borrow().problems.clone()
    }

    /// A node's engine, while its session is up.
    pub fn engine(&self, node: &NodeName) -> Option<EngineClient> {
        self.watched().get(node)?.engine.clone()
    }

    /// Looks at a node's containers now and publishes what is there; nothing where its session is down.
    ///
    /// # Errors
    /// When the engine does not answer.
    pub async fn refresh(&self, node: &NodeName) -> Result<(), NodesError> {
        let watched = self.watched().get(node).cloned();
        match watched {
            Some(watched) => match &watched.engine {
                Some(engine) => Ok(self.look(node, engine, &watched).await?),
                None => Ok(()),
            },
            None => Ok(()),
        }
    }

    async fn look(&self, name: &NodeName, engine: &EngineClient, watched: &Watched) -> Result<(), EngineError> {
        let _one = watched.look.lock().await;
        let mut containers = engine.containers(LOOK_WITHIN).await?;
        let mut died = watched.died.lock().unwrap_or_else(PoisonError::into_inner);
        died.retain(|_, when| when.elapsed() < STILL_LISTED);
        containers.iter_mut().filter(|c| died.contains_key(&c.id)).for_each(show_ended);
        drop(died);
        self.update(name, |node| {
            node.containers = containers;
            seen(node, Seen::Answer, Duration::ZERO);
            node.trouble = None;
        });
        Ok(())
    }

    /// Reads the key a machine offers now.
    ///
    /// # Errors
    /// When there is no such machine, or it does not answer.
    pub async fn offered_key(&self, name: &NodeName) -> Result<HostKey, NodesError> {
        let node = self.node(name)?;
        Ok(ssh::scan(name, node.address, self.port()).await?)
    }

    /// Pins the key a machine offers now, and makes it a node. `expected`, a fingerprint, must be that key's.
    ///
    /// # Errors
    /// When there is no such machine, it does not answer, or it offers another key than the expected one.
    pub async fn admit(&self, name: &NodeName, expected: Option<&str>) -> Result<HostKey, NodesError> {
        let key = self.offered_key(name).await?;
        if let Some(expected) = expected.filter(|e| *e != key.fingerprint) {
            return Err(NodesError::OtherKey {
                node: name.clone(),
                expected: expected.to_owned(),
                offered: key.fingerprint,
            });
        }
        self.pin(name, key.clone())?;
        self.wake(name);
        Ok(key)
    }

    /// Unpins a node's key and ends its session. Its containers go on; while it has a lease it is a candidate again, and
    /// no policy admits it.
    ///
    /// # Errors
    /// When there is no such node, or the store fails.
    pub fn forget(&self, name: &NodeName) -> Result<(), NodesError> {
        self.node(name)?;
        admission::unpin(&*self.shared.store, name)?;
        self.removed().insert(name.clone());
        self.remove(name);
        self.discover();
        Ok(())
    }

    /// Returns when every session has ended, after `stop` was cancelled.
    pub async fn finished(&self) {
        self.shared.stop.cancelled().await;
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }

    /// Takes an event's word for it, before any look confirms it.
    fn heard(&self, name: &NodeName, watched: &Watched, event: &ContainerEvent) {
        let mut died = watched.died.lock().unwrap_or_else(PoisonError::into_inner);
        match event.action.as_str() {
            "die" => {
                died.insert(event.id.clone(), Instant::now());
                drop(died);
                self.update(name, |node| {
                    node.containers.iter_mut().filter(|c| c.id == event.id).for_each(show_ended);
                });
                // Nobody listening is no error.
                _ = self.shared.deaths.send((name.clone(), event.id.clone()));
            }
            "start" | "destroy" => _ = died.remove(&event.id),
            _ => {}
        }
    }

    fn pin(&self, name: &NodeName, key: HostKey) -> Result<(), NodesError> {
        let node = self.node(name)?;
        admission::pin(&*self.shared.store, name, &Pinned::new(key.clone(), &node))?;
        self.removed().remove(name);
        tracing::info!(node = %name, address = %node.address, %key, "admitted");
        self.update(name, |node| {
            node.admission = Admission::Admitted { key };
            node.intake = if node.intake == Intake::Removed { Intake::Open } else { node.intake };
            node.trouble = None;
        });
        Ok(())
    }

    fn node(&self, name: &NodeName) -> Result<Node, NodesError> {
        self.snapshot().nodes.get(name).cloned().ok_or_else(|| NodesError::Unknown { node: name.clone() })
    }

    fn port(&self) -> Port {
        Port::new(self.shared.config.ssh.port).unwrap_or(SSH)
    }

    fn watched(&self) -> MutexGuard<'_, BTreeMap<NodeName, Watched>> {
        self.shared.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn removed(&self) -> MutexGuard<'_, BTreeSet<NodeName>> {
        self.shared.removed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ending(&self) -> MutexGuard<'_, BTreeMap<NodeName, CancellationToken>> {
        self.shared.ending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self, name: &NodeName) {
        if let Some(watched) = self.watched().get(name) {
            watched.wake.notify_one();
        }
    }

    fn set_engine(&self, name: &NodeName, engine: Option<EngineClient>) {
        if let Some(watched) = self.watched().get_mut(name) {
            watched.engine = engine;
        }
    }

    /// Shows a node and begins to watch it.
    fn add(&self, node: Node) {
        let name = node.name.clone();
        let watched = Watched {
            wake: Arc::default(),
            stop: self.shared.stop.child_token(),
            look: Arc::default(),
            engine: None,
            died: Arc::default(),
            ended: CancellationToken::new(),
        };
        self.watched().insert(name.clone(), watched.clone());
        let before = self.ending().remove(&name);
        self.shared.snapshot.send_modify(|all| {
            Arc::make_mut(all).nodes.insert(name.clone(), node);
        });
        let nodes = self.clone();
        self.shared.tasks.spawn(async move {
            if let Some(before) = before {
                before.cancelled().await;
            }
            supervise::watch_over(nodes, name, watched).await;
        });
    }

    fn remove(&self, name: &NodeName) {
        if let Some(watched) = self.watched().remove(name) {
            watched.stop.cancel();
            self.ending().insert(name.clone(), watched.ended);
        }
        self.shared.snapshot.send_if_modified(|all| Arc::make_mut(all).nodes.remove(name).is_some());
    }

    /// Changes what is shown of a node; nobody is told where nothing changed.
    fn update(&self, name: &NodeName, change: impl FnOnce(&mut Node)) {
        self.shared.snapshot.send_if_modified(|all| {
            let Some(now) = all.nodes.get(name) else { return false };
            let mut next = now.clone();
            change(&mut next);
            let changed = next != *now;
            if changed {
                Arc::make_mut(all).nodes.insert(name.clone(), next);
            }
            changed
        });
    }

    /// Records that the engine with this id is `name`'s; or whose it is already.
    fn claim_engine(&self, name: &NodeName, engine_id: &str) -> Option<(NodeName, IpAddr)> {
        // Two clones that come at once must not both find nobody.
        static ONE: Mutex<()> = Mutex::new(());
        let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let claimed = admission::all(&*self.shared.store).and_then(|pinned| {
            let twin = pinned
                .into_iter()
                .find(|(other, pinned)| other != name && pinned.engine_id.as_deref() == Some(engine_id));
            if twin.is_none() {
                admission::amend(&*self.shared.store, name, |pinned| pinned.engine_id = Some(engine_id.to_owned()))?;
            }
            Ok(twin)
        });
        match claimed {
            Ok(twin) => twin.map(|(twin, pinned)| (twin, pinned.address)),
            Err(error) => {
                tracing::warn!(node = %name, %error, "its engine's id is not kept");
                None
            }
        }
    }
}

/// What the engine says now; the disk stays as it was seen last.
fn show_engine(node: &mut Node, mut info: Engine) {
    if let Some(before) = &node.engine {
        (info.disk_free, info.disk_total) = (before.disk_free, before.disk_total);
    }
    node.engine = Some(info);
}

fn show_ended(container: &mut Container) {
    if container.state == ContainerState::Running {
        container.state = ContainerState::Exited;
        container.published.clear();
    }
}

/// The node after one more look.
fn seen(node: &mut Node, seen: Seen, lost_after: Duration) {
    let now = Timestamp::now();
    let before = node.state;
    node.state = before.next(seen, lost_after, now);
    let same = matches!(
        (before, node.state),
        (NodeState::Ready, NodeState::Ready)
            | (NodeState::Suspect { .. }, NodeState::Suspect { .. })
            | (NodeState::Lost { .. }, NodeState::Lost { .. })
    );
    if !same {
        tracing::info!(node = %node.name, from = ?before, to = ?node.state, "node state");
        node.since = now;
    }
}
