//! Two machines that run as one: with copies of one disk, or after the one was replaced while it was away.
//!
//! Both have what makes a machine one of the cluster's, so neither can be refused. But each start of a machine has an id of its own, and
//! each machine tells its own in the status of the Machine. A machine that reads another's there tells its own again; if that is
//! overwritten once more, the other is alive.
//!
//! A status that was overwritten only once says nothing: that can be a last word of this machine's own start before, which came late, or
//! the store of the cluster from a snapshot. An agent that is restarted and a machine that is moved while it runs keep the id. Two that
//! were continued from one saved memory have it both, and are not told apart.

use std::time::Duration;

use garboard_api::About;
use garboard_api::condition::{self, Observation};
use garboard_api::machine::MachineStatus;

use crate::dispute::Claimant;
use crate::events::Notable;

/// How often the status is overwritten until another machine is behind it.
const TIMES: u32 = 2;

/// How fast the status is told again.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Time until one that was overwritten is: two machines must not keep the API server busy.
    pub pause: Duration,
    /// Time in which nobody has overwritten it, after which there is no other machine any more. It is longer than two pauses.
    pub quiet: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { pause: Duration::from_secs(10), quiet: Duration::from_secs(60) }
    }
}

/// Another machine that tells the status of this one's Machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Twin {
    /// Identifies its start.
    pub boot_id: String,
    /// What it says of itself.
    pub claimant: Claimant,
}

/// What is in the API, as this machine has seen it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shown {
    /// Nothing of this start yet.
    Nothing,
    /// This machine's own, since then.
    Own(Duration),
    /// What another wrote over it.
    Others,
}

/// Watches the status of this machine's Machine. Times are those since the machine was started.
#[derive(Clone, Debug)]
pub struct Watch {
    boot_id: String,
    pace: Pace,
    shown: Shown,
    overwritten: u32,
    last: Option<Twin>,
    due: Option<Duration>,
}

impl Watch {
    /// The watch of the start with this id.
    pub fn new(boot_id: &str, pace: Pace) -> Self {
        Self { boot_id: boot_id.to_owned(), pace, shown: Shown::Nothing, overwritten: 0, last: None, due: None }
    }

    /// Takes notice of the status that the API server has at `now`.
    pub fn see(&mut self, status: Option<&MachineStatus>, now: Duration) {
        let Some(boot_id) = status.and_then(|status| status.boot_id.as_deref()) else {
            // There is no Machine, or a new one: nobody has overwritten anything.
            *self = Self::new(&self.boot_id, self.pace);
            return;
        };
        if boot_id == self.boot_id {
            if !matches!(self.shown, Shown::Own(_)) {
                self.shown = Shown::Own(now);
            }
            self.due = None;
            return;
        }
        if let Shown::Own(_) = self.shown {
            self.overwritten += 1;
            self.shown = Shown::Others;
        }
        if self.shown == Shown::Others {
            let claimant = status.map(Claimant::of_status).unwrap_or_default().in_short();
            self.last = Some(Twin { boot_id: boot_id.to_owned(), claimant });
            self.due.get_or_insert(now + self.pace.pause);
        }
    }

    /// What is due at `now`: whether the status is to be told again.
    pub fn tell_again(&mut self, now: Duration) -> bool {
        if let Shown::Own(since) = self.shown
            && now.saturating_sub(since) >= self.pace.quiet
        {
            (self.overwritten, self.last) = (0, None);
        }
        let is_due = self.due.is_some_and(|due| due <= now);
        if is_due {
            // If it does not get there, it is not seen there, and due again.
            self.due = Some(now + self.pace.pause);
        }
        is_due
    }

    /// When something is due.
    pub fn next(&self) -> Option<Duration> {
        match self.shown {
            Shown::Own(since) if self.overwritten > 0 => Some(since + self.pace.quiet),
            _ => self.due,
        }
    }

    /// The other machine, while there is one.
    pub fn twin(&self) -> Option<&Twin> {
        self.last.as_ref().filter(|_| self.overwritten >= TIMES)
    }
}

/// The condition of a machine that has a twin.
pub fn observation(twin: &Twin) -> Observation {
    Observation::new(condition::UNIQUE, false, "TwoMachines", message(twin))
}

fn message(Twin { boot_id, claimant }: &Twin) -> String {
    format!(
        "{claimant}, started as {boot_id}, runs as this one too, maybe from a copy of its disk: switch one off, and give it an empty disk \
         and a name of its own"
    )
}

/// What is worth an Event in the step from one twin to the next.
pub fn notable(before: Option<&Twin>, after: Option<&Twin>) -> Option<Notable> {
    let (warning, reason, note) = match (before, after) {
        (None, Some(twin)) => (true, "TwoMachines", message(twin)),
        (Some(twin), None) => {
            (false, "OneMachine", format!("{}, started as {}, is not heard of any more", twin.claimant, twin.boot_id))
        }
        _ => return None,
    };
    Some(Notable { about: About::Machine, warning, reason, note })
}

#[cfg(test)]
#[path = "twin_tests.rs"]
mod tests;
