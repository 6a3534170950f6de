//! How far the template of a pool has come, and which machines may follow it next.
//!
//! A machine tries the template from when it may follow it until its trial has ended. Never more of them do so than the pool allows, and
//! none that serves joins them while so many machines are away. Those that do not serve come first, as the template may be what mends
//! them: they take no more away, but they wait for each other, lest a bad template reach all of them at once.
//!
//! What a machine tells of itself comes late. So a machine that is named counts as one that tries until it tells how that went, also
//! when the rollout stops or the template changes meanwhile; and the generations that a machine tells of count by the template that they
//! brought, as later ones may have changed something else.

use std::collections::BTreeSet;

use garboard_api::machine::{MachineStatus, PoolReference, TrialState, TrialStatus};
use garboard_api::machine_pool::{MachineTemplate, Rollout, RolloutFailure, RolloutStatus};
use garboard_api::{Machine, MachinePool, condition};
use sha2::{Digest as _, Sha256};

/// A machine of a pool.
#[derive(Clone, Copy, Debug)]
pub struct Member<'a> {
    machine: &'a Machine,
    /// What it tells of itself; none before it was ever there.
    status: Option<&'a MachineStatus>,
    node_ready: bool,
}

/// The generations of a pool that have one template.
#[derive(Clone, Copy, Debug)]
struct Span<'a> {
    pool: &'a str,
    first: i64,
    last: i64,
}

/// What there is to be done.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan<'a> {
    /// What the machines are told.
    pub status: RolloutStatus,
    /// The machines that follow the template.
    pub following: Vec<&'a str>,
    /// Those that may follow it and have yet to prove it.
    pub trying: Vec<&'a str>,
    /// Those that have not come to it.
    pub behind: Vec<&'a str>,
    /// Those that do not serve.
    pub not_ready: Vec<&'a str>,
    /// Whether it has failed on as many machines as it may.
    pub stopped: bool,
}

impl<'a> Member<'a> {
    /// A machine, and whether its node is Ready: a machine that is gone says nothing of it.
    pub fn new(machine: &'a Machine, node_ready: bool) -> Self {
        Self { machine, status: machine.own_status(), node_ready }
    }

    /// Its name.
    pub fn name(&self) -> &'a str {
        self.machine.node_name()
    }

    /// Whether it serves.
    pub fn is_ready(&self) -> bool {
        self.node_ready && self.says_ready()
    }

    fn says_ready(&self) -> bool {
        let ready = self.status.and_then(|status| condition::find(&status.conditions, condition::READY));
        ready.is_some_and(|ready| ready.status == condition::TRUE)
    }

    fn trial(&self) -> Option<&'a TrialStatus> {
        self.status?.trial.as_ref()
    }

    fn pool(&self) -> Option<&'a PoolReference> {
        self.status?.pool.as_ref()
    }

    fn is_on_trial(&self) -> bool {
        self.trial().is_some_and(|trial| trial.state == TrialState::Running)
    }

    /// Whether it knows of the pool. One that does not has just come, and needs nobody's leave.
    fn knows(&self, pool: &str) -> bool {
        let tried = self.trial().and_then(|trial| trial.pool.as_ref());
        [self.pool(), tried].into_iter().flatten().any(|reference| reference.name == pool)
    }

    fn follows(&self, span: Span<'_>) -> bool {
        span.holds(self.pool())
    }

    /// How a template has failed on it. What fails on a machine that follows the template is another change.
    fn failure(&self, span: Span<'_>) -> Option<RolloutFailure> {
        let trial =
            self.trial().filter(|trial| trial.state == TrialState::Failed && span.holds(trial.pool.as_ref()))?;
        let first = trial.failing.first();
        let message = first.map(|failing| &failing.message).or(trial.reason.as_ref());
        (!self.follows(span)).then(|| RolloutFailure {
            machine: self.name().to_owned(),
            probe: first.map(|failing| failing.probe.clone()),
            message: message.cloned().unwrap_or_default(),
        })
    }

    fn has_proved(&self, span: Span<'_>) -> bool {
        self.follows(span) && !self.is_on_trial()
    }

    fn is_settled(&self, span: Span<'_>) -> bool {
        self.has_proved(span) || self.failure(span).is_some()
    }

    /// Whether it has begun to follow a template.
    fn has_begun(&self, span: Span<'_>) -> bool {
        self.is_on_trial() && span.holds(self.trial().and_then(|trial| trial.pool.as_ref()))
    }
}

impl Span<'_> {
    fn holds(&self, reference: Option<&PoolReference>) -> bool {
        reference.is_some_and(|PoolReference { name, observed_generation }| {
            name == self.pool
                && observed_generation.is_some_and(|generation| (self.first..=self.last).contains(&generation))
        })
    }
}

/// What is due for the pool's machines. While it is `held`, no further machine may follow.
pub fn plan<'a>(pool: &MachinePool, members: &[Member<'a>], held: bool) -> Plan<'a> {
    let name = pool.metadata.name.as_deref().unwrap_or_default();
    let last = pool.metadata.generation.unwrap_or_default();
    let template = digest(&pool.spec.template);
    let seen = pool.status.as_ref().and_then(|status| status.observed_generation) == Some(last);
    let former = pool.status.as_ref().and_then(|status| status.rollout.as_ref());
    let same = former.filter(|former| seen || former.template == template);
    let span = Span { pool: name, first: same.map_or(last, |same| same.generation), last };
    // A machine that could follow another template before is to tell what it made of that.
    let former_span = match (former, same) {
        (Some(former), None) => Span { pool: name, first: former.generation, last: last - 1 },
        _ => span,
    };
    let former_names: BTreeSet<&str> =
        former.into_iter().flat_map(|former| &former.machines).map(String::as_str).collect();
    let named = |member: &Member<'_>| former_names.contains(member.name()) && !member.is_settled(former_span);

    let failures = failures(same, members, span);
    let failed_names: BTreeSet<&str> = failures.iter().map(|failure| failure.machine.as_str()).collect();
    let failed = |member: &Member<'_>| failed_names.contains(member.name());
    let stopped = is_stopped(&pool.spec.rollout, &failures);
    let tries = |member: &Member<'_>| named(member) || member.is_on_trial();
    let is_away = |member: &Member<'_>| tries(member) || member.status.is_some() && !member.is_ready();
    let all = u32::try_from(members.len()).unwrap_or(u32::MAX);
    let limit = usize::try_from(pool.spec.rollout.max_unavailable.of(all)).unwrap_or(usize::MAX);
    let mut trying = members.iter().filter(|member| tries(member)).count();
    let mut away = members.iter().filter(|member| is_away(member)).count();
    let mut machines: BTreeSet<&'a str> = members.iter().filter(|member| named(member)).map(Member::name).collect();
    let mut waiting: Vec<&Member<'a>> = members
        .iter()
        .filter(|member| member.knows(name) && !member.follows(span) && !failed(member) && !named(member))
        .collect();
    // A machine of which only its node tells that it does not serve may be gone: whoever can still speak comes before it.
    waiting.sort_by_key(|member| (!member.is_on_trial(), !is_away(member), member.says_ready(), member.name()));
    for member in waiting.iter().filter(|_| !stopped && !held) {
        let (one_more_tries, one_more_away) = (!tries(member), !is_away(member));
        if machines.len() < limit && (!one_more_tries || trying < limit) && (!one_more_away || away < limit) {
            trying += usize::from(one_more_tries);
            away += usize::from(one_more_away);
            machines.insert(member.name());
        }
    }

    let names = |which: &dyn Fn(&Member<'_>) -> bool| -> Vec<&'a str> {
        members.iter().filter(|member| which(member)).map(Member::name).collect()
    };
    let tries = |member: &Member<'_>| machines.contains(member.name()) || member.has_begun(span);
    let follows = |member: &Member<'_>| member.follows(span) && !tries(member);
    Plan {
        following: names(&follows),
        trying: names(&tries),
        behind: names(&|member| !follows(member) && !tries(member) && !failed(member)),
        not_ready: names(&|member| !member.is_ready()),
        stopped,
        status: RolloutStatus {
            generation: span.first,
            template,
            machines: machines.into_iter().map(str::to_owned).collect(),
            failures,
        },
    }
}

/// Whether a template has failed on as many machines as it may.
pub fn is_stopped(rollout: &Rollout, failures: &[RolloutFailure]) -> bool {
    u32::try_from(failures.len()).is_ok_and(|failures| failures >= rollout.max_failures)
}

/// On which machines the template has failed. One that is gone since has not made it better; one that has proved it after all has.
fn failures(same: Option<&RolloutStatus>, members: &[Member<'_>], span: Span<'_>) -> Vec<RolloutFailure> {
    let new: Vec<_> = members.iter().filter_map(|member| member.failure(span)).collect();
    let known = same.map(|same| same.failures.as_slice()).unwrap_or_default();
    let proved = |machine: &str| members.iter().any(|member| member.name() == machine && member.has_proved(span));
    let is_new = |machine: &str| new.iter().any(|failure| failure.machine == machine);
    let kept = known.iter().filter(|failure| !proved(&failure.machine) && !is_new(&failure.machine)).cloned();
    let mut failures: Vec<_> = kept.chain(new.iter().cloned()).collect();
    failures.sort_by(|a, b| a.machine.cmp(&b.machine));
    failures
}

/// What tells a template from others.
fn digest(template: &MachineTemplate) -> String {
    let text = serde_json::to_vec(template).unwrap_or_default();
    Sha256::digest(text).iter().fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

#[cfg(test)]
#[path = "rollout_tests.rs"]
mod tests;
