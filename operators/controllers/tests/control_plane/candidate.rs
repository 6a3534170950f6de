//! A candidate for the lease of the cluster operators, whose duty is to be there.

use std::sync::Arc;

use garboard_catalog::pki::Leaf;
use garboard_controllers::leader::{Identity, OPERATORS, Standing, lead};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::world::World;

pub struct Candidate {
    stop: CancellationToken,
    standing: watch::Receiver<Option<Standing>>,
    duty: Arc<()>,
    task: JoinHandle<()>,
}

impl Candidate {
    /// A candidate of that name, with the rights of the cluster operators.
    pub fn new(world: &World, machine: &str) -> Self {
        let (client, identity) = (world.client(Leaf::Operators), Identity::new(machine, "run"));
        let (standing, seen) = watch::channel(None);
        let (stop, duty) = (CancellationToken::new(), Arc::new(()));
        let tell = move |now| {
            standing.send_replace(Some(now));
        };
        let held = Arc::downgrade(&duty);
        let duties = move |stop: CancellationToken| {
            let held = held.upgrade();
            async move {
                stop.cancelled().await;
                drop(held);
            }
        };
        let task = tokio::spawn(lead(client, OPERATORS, identity, tell, duties, stop.clone()));
        Self { stop, standing: seen, duty, task }
    }

    /// Waits until that is its standing.
    pub async fn is(&self, world: &World, expected: Standing) {
        world.wait(&expected.to_string(), || self.standing.borrow().as_ref() == Some(&expected)).await;
    }

    /// Whether it does its duty.
    pub fn at_work(&self) -> bool {
        Arc::strong_count(&self.duty) > 1
    }

    /// Ends it.
    pub async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}
