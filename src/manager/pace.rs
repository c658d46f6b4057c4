//! How many containers start and stop at once while requests are served: the nodes of a small cloud often share one
//! machine's processors, and what starts or stops takes them from what serves.
//!
//! Looks at no clock and no plan: who is urgent does not come here.

use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use crate::model::NodeName;

/// How long one that starts or stops keeps the others waiting: an instance may take all of its stop timeout to end, and
/// does next to nothing meanwhile.
const TURN: Duration = Duration::from_millis(500);

/// Turns for a cloud of some size.
#[derive(Debug)]
pub(super) struct Pace {
    at_once: usize,
    cloud: Arc<Semaphore>,
    nodes: BTreeMap<NodeName, Arc<Semaphore>>,
}

/// Where one action waits for its turn.
#[derive(Debug, Clone)]
pub(super) struct Turn {
    cloud: Arc<Semaphore>,
    node: Arc<Semaphore>,
}

impl Default for Pace {
    fn default() -> Self {
        Self { at_once: 1, cloud: Arc::new(Semaphore::new(1)), nodes: BTreeMap::new() }
    }
}

impl Pace {
    /// One at a time on each node, and on a third of this many nodes.
    pub(super) fn turn(&mut self, node: &NodeName, nodes: usize) -> Turn {
        let at_once = nodes.div_ceil(3).max(1);
        if at_once != self.at_once {
            // Whoever has a turn of the cloud as it was ends it: for that long, there are some more at once.
            (self.at_once, self.cloud) = (at_once, Arc::new(Semaphore::new(at_once)));
        }
        let node = self.nodes.entry(node.clone()).or_insert_with(|| Arc::new(Semaphore::new(1)));
        Turn { cloud: Arc::clone(&self.cloud), node: Arc::clone(node) }
    }
}

impl Turn {
    async fn wait(&self) -> [Option<OwnedSemaphorePermit>; 2] {
        let node = Arc::clone(&self.node).acquire_owned().await.ok();
        [node, Arc::clone(&self.cloud).acquire_owned().await.ok()]
    }
}

/// Does something when it is its turn; at once, where there is no need to wait for one.
pub(super) async fn in_turn<T>(turn: Option<&Turn>, work: impl Future<Output = T>) -> T {
    let Some(turn) = turn else { return work.await };
    let held = turn.wait().await;
    let mut work = std::pin::pin!(work);
    match timeout(TURN, &mut work).await {
        Ok(done) => done,
        Err(_) => {
            drop(held);
            work.await
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use tokio::time::sleep;

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
    async fn what_takes_long_holds_nobody_up() {
        assert_eq!(most_at_once(3, 3, TURN * 3).await, 3);
    }
}
