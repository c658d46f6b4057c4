//! How many containers start and stop at once while requests are served: the nodes of a small cloud often share one
//! machine's processors, and what starts or stops takes them from what serves. Half of the time, nothing does.
//!
//! Looks at no clock and no plan: who is urgent does not come here.

use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, sleep, timeout},
};

use crate::model::NodeName;

/// How long one that starts or stops keeps the others waiting: an instance may take all of its stop timeout to end, and
/// does next to nothing meanwhile.
const TURN: Duration = Duration::from_millis(500);

/// After that, what serves has the processors to itself for as long as it took, and at most for so long.
const REST: Duration = Duration::from_millis(250);

/// Turns for a cloud of some size.
#[derive(Debug)]
pub(super) struct Pace {
    at_once: usize,
    cloud: Arc<Semaphore>,
    nodes: BTreeMap<NodeName, Arc<Semaphore>>,
    /// Whether routes change just now.
    routing: watch::Sender<bool>,
}

/// Where one action waits for its turn.
#[derive(Debug, Clone)]
pub(super) struct Turn {
    cloud: Arc<Semaphore>,
    node: Arc<Semaphore>,
    routing: watch::Receiver<bool>,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            at_once: 1,
            cloud: Arc::new(Semaphore::new(1)),
            nodes: BTreeMap::new(),
            routing: watch::Sender::new(false),
        }
    }
}

impl Pace {
    /// One at a time on each node, and on a third of this many nodes.
    pub(super) fn turn(&mut self, node: &NodeName, nodes: usize) -> Turn {
        self.resize(nodes);
        let node = self.nodes.entry(node.clone()).or_insert_with(|| Arc::new(Semaphore::new(1)));
        Turn { cloud: Arc::clone(&self.cloud), node: Arc::clone(node), routing: self.routing.subscribe() }
    }

    fn resize(&mut self, nodes: usize) {
        let at_once = nodes.div_ceil(3).max(1);
        if at_once != self.at_once {
            // Whoever has a turn of the cloud as it was ends it: for that long, there are some more at once.
            (self.at_once, self.cloud) = (at_once, Arc::new(Semaphore::new(at_once)));
        }
    }

    /// One that belongs to no node.
    pub(super) fn turn_of_none(&mut self, nodes: usize) -> Turn {
        self.resize(nodes);
        Turn { cloud: Arc::clone(&self.cloud), node: Arc::new(Semaphore::new(1)), routing: self.routing.subscribe() }
    }

    /// While routes change, VCL is compiled: nothing else begins that can wait.
    pub(super) fn routes_change(&self, now: bool) {
        self.routing.send_replace(now);
    }
}

impl Turn {
    async fn wait(&self) -> [Option<OwnedSemaphorePermit>; 2] {
        let node = Arc::clone(&self.node).acquire_owned().await.ok();
        let cloud = Arc::clone(&self.cloud).acquire_owned().await.ok();
        // An error: there is no loop any more that could change them.
        _ = timeout(TURN, self.routing.clone().wait_for(|changes| !changes)).await;
        [node, cloud]
    }
}

/// Does something when it is its turn; at once, where there is no need to wait for one.
pub(super) async fn in_turn<T>(turn: Option<&Turn>, work: impl Future<Output = T>) -> T {
    let Some(turn) = turn else { return work.await };
    let held = turn.wait().await;
    let begun = Instant::now();
    let mut work = std::pin::pin!(work);
    match timeout(TURN, &mut work).await {
        Ok(done) => {
            let rest = begun.elapsed().min(REST);
            tokio::spawn(async move {
                sleep(rest).await;
                drop(held);
            });
            done
        }
        Err(_) => {
            drop(held);
            work.await
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::*;

    async fn most_at_once(nodes: usize, works: usize, each: Duration) -> usize {
        let (mut pace, now, most) = (Pace::default(), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let all = (0..works).map(|at| {
            let node = NodeName::try_from(format!("node{}", at % nodes)).expect("a name");
            let (turn, now, most) = (pace.turn(&node, nodes), Arc::clone(&now), Arc::clone(&most));
            tokio::spawn(async move {
                let work = async {
                    most.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
                    sleep(each).await;
                    now.fetch_sub(1, SeqCst);
                };
                in_turn(Some(&turn), work).await;
            })
        });
        futures_util::future::join_all(all.collect::<Vec<_>>()).await;
        most.load(SeqCst)
    }

    #[tokio::test]
    async fn a_third_of_the_nodes_at_once() {
        let short = Duration::from_millis(5);
        assert_eq!(most_at_once(1, 4, short).await, 1);
        assert_eq!(most_at_once(3, 9, short).await, 1);
        assert_eq!(most_at_once(10, 40, short).await, 4);
    }

    #[tokio::test]
    async fn what_serves_has_the_processors_to_itself_in_between() {
        let mut pace = Pace::default();
        let node = NodeName::try_from("node1".to_owned()).expect("a name");
        let (begun, each) = (Instant::now(), Duration::from_millis(50));
        for _ in 0..3 {
            in_turn(Some(&pace.turn(&node, 1)), async { sleep(each).await }).await;
        }
        // Whoever is last waits for nobody's rest but that of those before.
        assert!(begun.elapsed() >= each * 5, "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn nothing_begins_while_routes_change() {
        let mut pace = Pace::default();
        let node = NodeName::try_from("node1".to_owned()).expect("a name");
        pace.routes_change(true);
        let turn = pace.turn(&node, 1);
        let work = tokio::spawn(async move { in_turn(Some(&turn), async {}).await });
        sleep(Duration::from_millis(50)).await;
        assert!(!work.is_finished());
        pace.routes_change(false);
        timeout(TURN / 2, work).await.expect("it begins then").expect("it ends well");
        // A gateway that takes its time holds nobody up for long.
        pace.routes_change(true);
        timeout(TURN * 2, in_turn(Some(&pace.turn(&node, 1)), async {})).await.expect("it begins all the same");
    }

    #[tokio::test]
    async fn what_takes_long_holds_nobody_up() {
        assert_eq!(most_at_once(3, 3, TURN * 3).await, 3);
    }
}
