//! Notices another machine that runs as this one. How it shows is [`plan::twin`](garboard_plan::twin).

use std::sync::Arc;

use garboard_api::{Machine, MachineStatus};
use garboard_plan::events::Notable;
pub use garboard_plan::twin::Pace;
use garboard_plan::twin::{self as plan, Twin};
use garboard_runtime::backoff::after;
use garboard_runtime::source::Declared;
use garboard_runtime::status::StatusSink;
use garboard_sys::clock::boot_time;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::events;

/// What is noticed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TwinView {
    /// The other machine, while there is one.
    pub twin: Option<Twin>,
    /// How often the status was overwritten and is to be told again: whoever publishes it does so at each change.
    pub again: u64,
}

/// The task that watches what the API server has.
pub struct TwinWatch {
    machine: Declared<Machine>,
    status: watch::Receiver<Option<MachineStatus>>,
    statuses: Arc<StatusSink>,
    watch: plan::Watch,
    view: watch::Sender<TwinView>,
    notables: mpsc::Sender<Notable>,
}

impl std::fmt::Debug for TwinWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TwinWatch").finish_non_exhaustive()
    }
}

impl TwinWatch {
    /// Prepares the task for the start with this id, whose status goes to `statuses`; and the channel on which it tells.
    pub fn new(
        machine: Declared<Machine>,
        statuses: Arc<StatusSink>,
        boot_id: &str,
        pace: Pace,
        notables: mpsc::Sender<Notable>,
    ) -> (Self, watch::Receiver<TwinView>) {
        let (view, receiver) = watch::channel(TwinView::default());
        let (status, watch) = (machine.status.clone(), plan::Watch::new(boot_id, pace));
        (Self { machine, status, statuses, watch, view, notables }, receiver)
    }

    /// Watches until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        stop.run_until_cancelled(self.follow()).await;
    }

    async fn follow(&mut self) {
        loop {
            let now = boot_time();
            self.watch.see(self.status.borrow_and_update().as_ref(), now);
            let again = self.watch.tell_again(now);
            self.tell(again);
            let wait = self.watch.next().map(|next| next.saturating_sub(boot_time()));
            // Cancel-safe: both arms only wait.
            tokio::select! {
                Ok(()) = self.status.changed() => {}
                () = after(wait) => {}
            }
        }
    }

    fn tell(&self, again: bool) {
        let twin = self.watch.twin().cloned();
        let before = self.view.borrow().twin.clone();
        if let Some(notable) = plan::notable(before.as_ref(), twin.as_ref()) {
            if notable.warning {
                warn!(note = notable.note, "two machines");
            } else {
                info!(note = notable.note, "one machine");
            }
            events::hand_over(&self.notables, notable);
        }
        if again && let Some(machine) = self.machine.current() {
            self.statuses.overwritten::<Machine>(machine.node_name());
        }
        self.view.send_if_modified(|view| {
            let changed = again || view.twin != twin;
            view.again += u64::from(again);
            view.twin = twin;
            changed
        });
    }
}
