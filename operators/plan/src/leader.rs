//! Which machine does what is done once for the whole cluster: the one whose name a Lease bears, while it renews it.
//!
//! How long ago a holder has renewed is measured by the clock of whoever looks, from the moment when it first saw the
//! lease as it is: machines whose times of day differ agree all the same. A holder gives up before anybody else may take
//! over. What it has begun may still be on its way to the API server then, so its duties must bear being done twice.

use std::fmt;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

/// Name of the lease of the cluster operators.
pub const OPERATORS: &str = "garboard-operators";
/// Name of the lease of those who change the membership of the cluster's store.
pub const ETCD: &str = "garboard-etcd";
/// Namespace of the leases.
pub const NAMESPACE: &str = "kube-system";
/// Time for which a renewal holds.
pub const DURATION: Duration = Duration::from_secs(30);
/// Time between two renewals, from asking to asking, and longest time between two looks at somebody else's lease.
pub const RENEWAL: Duration = Duration::from_secs(5);
/// Time after its last renewal when a holder gives up.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Who holds a lease: a machine since a start of its kernel, so that what it was before does not keep it waiting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    machine: String,
    boot_id: String,
}

impl Identity {
    /// A machine by its name, which is one DNS label, and the identifier of this start of its kernel.
    pub fn new(machine: impl Into<String>, boot_id: impl Into<String>) -> Self {
        Self { machine: machine.into(), boot_id: boot_id.into() }
    }

    /// Whether that holder is this machine, now or before it was started again: that run has ended.
    fn is_own(&self, holder: &str) -> bool {
        holder.split_once('_').is_some_and(|(machine, _)| machine == self.machine)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // No label has an underscore.
        write!(f, "{}_{}", self.machine, self.boot_id)
    }
}

/// The lease as it was seen.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// The lease.
    pub lease: Lease,
    /// When it was first seen as it is, by the clock of whoever looks.
    pub since: Duration,
}

impl Seen {
    /// The lease as it is seen now, after it was seen as `former`.
    pub fn after(former: Option<Self>, lease: Lease, now: Duration) -> Self {
        match former {
            Some(former) if former.lease == lease => former,
            _ => Self { lease, since: now },
        }
    }

    /// Who holds it; none when it is free.
    pub fn holder(&self) -> Option<&str> {
        self.spec()?.holder_identity.as_deref().filter(|holder| !holder.is_empty())
    }

    /// When it may be taken from a holder who does not renew it.
    fn expires(&self) -> Duration {
        let seconds = self.spec().and_then(|spec| spec.lease_duration_seconds).unwrap_or_default();
        self.since + Duration::from_secs(seconds.try_into().unwrap_or_default())
    }

    fn spec(&self) -> Option<&LeaseSpec> {
        self.lease.spec.as_ref()
    }
}

/// What a machine does that does not lead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Candidacy {
    /// Write the lease in its own name.
    Take,
    /// Look again after a while: another leads.
    Wait(Duration),
}

/// What follows from the lease for a machine that does not lead.
pub fn candidacy(seen: Option<&Seen>, identity: &Identity, now: Duration) -> Candidacy {
    let Some((seen, holder)) = seen.and_then(|seen| Some((seen, seen.holder()?))) else { return Candidacy::Take };
    match seen.expires().checked_sub(now) {
        Some(left) if !left.is_zero() && !identity.is_own(holder) => Candidacy::Wait(left.min(RENEWAL)),
        _ => Candidacy::Take,
    }
}

/// Time until a lease is to be renewed that was asked for at `renewed`: an answer that was slow to come leaves the next one no less time.
pub fn until_renewal(renewed: Duration, now: Duration) -> Duration {
    (renewed + RENEWAL).saturating_sub(now)
}

/// Why a machine no longer leads.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Loss {
    /// Another has the lease.
    #[error("{0} has taken the lease")]
    Taken(String),
    /// The lease could not be renewed, and another may take it soon.
    #[error("the lease could not be renewed for {} seconds", DEADLINE.as_secs())]
    Late,
}

/// Why a machine that leads, and renewed the lease at `renewed`, has to give up; none while it has not.
pub fn loss(seen: Option<&Seen>, identity: &Identity, renewed: Duration, now: Duration) -> Option<Loss> {
    let holder = seen.and_then(Seen::holder);
    let other = holder.filter(|holder| *holder != identity.to_string()).map(|holder| Loss::Taken(holder.to_owned()));
    other.or_else(|| (now >= renewed + DEADLINE).then_some(Loss::Late))
}

/// The lease of a name, held by a machine, made of the one that is there; it is replaced only if it is still the same.
pub fn held(name: &str, former: Option<&Lease>, identity: &Identity, time: MicroTime) -> Lease {
    let mut lease = former.cloned().unwrap_or_default();
    lease.metadata.name = Some(name.to_owned());
    lease.metadata.namespace = Some(NAMESPACE.to_owned());
    let spec = lease.spec.get_or_insert_default();
    let holder = identity.to_string();
    if spec.holder_identity.as_ref() != Some(&holder) {
        spec.lease_transitions = Some(spec.lease_transitions.map_or(0, |transitions| transitions.saturating_add(1)));
        spec.acquire_time = Some(time.clone());
        spec.holder_identity = Some(holder);
    }
    spec.renew_time = Some(time);
    spec.lease_duration_seconds = i32::try_from(DURATION.as_secs()).ok();
    lease
}

/// The lease without a holder, for others to take at once.
pub fn released(mut lease: Lease) -> Lease {
    if let Some(spec) = &mut lease.spec {
        spec.holder_identity = None;
    }
    lease
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;

    use super::*;

    const OWN: &str = "node-1_b2";
    const OTHER: &str = "node-10_b7";

    fn identity() -> Identity {
        Identity::new("node-1", "b2")
    }

    fn time(second: i64) -> MicroTime {
        MicroTime(Timestamp::from_second(second).unwrap())
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// A lease of 15 seconds that was first seen at 100 seconds.
    fn seen(holder: &str) -> Option<Seen> {
        let spec = LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: Some(15),
            lease_transitions: Some(3),
            acquire_time: Some(time(1)),
            renew_time: Some(time(2)),
            ..LeaseSpec::default()
        };
        Some(Seen { lease: Lease { spec: Some(spec), ..Lease::default() }, since: seconds(100) })
    }

    #[test]
    fn a_lease_is_taken_when_nobody_can_rely_on_it() {
        let without_spec = Some(Seen { lease: Lease::default(), since: seconds(100) });
        let mut without_duration = seen(OTHER);
        without_duration.as_mut().unwrap().lease.spec.as_mut().unwrap().lease_duration_seconds = None;
        let wait = |wait: u64| Candidacy::Wait(seconds(wait));
        for (what, seen, now, expected) in [
            ("there is none", None, 100, Candidacy::Take),
            ("it says nothing", without_spec, 100, Candidacy::Take),
            ("it is free", seen(""), 100, Candidacy::Take),
            ("it was written by this run", seen(OWN), 100, Candidacy::Take),
            ("it was written before the machine was started again", seen("node-1_b1"), 100, Candidacy::Take),
            ("another holds it", seen(OTHER), 100, wait(5)),
            ("another has not renewed it for a while", seen(OTHER), 112, wait(3)),
            ("another has not renewed it in time", seen(OTHER), 115, Candidacy::Take),
            ("another holds it for no time", without_duration, 100, Candidacy::Take),
            ("a holder of another form", seen("node-1"), 100, wait(5)),
        ] {
            assert_eq!(candidacy(seen.as_ref(), &identity(), seconds(now)), expected, "{what}");
        }
    }

    #[test]
    fn a_renewal_is_a_change_that_is_seen() {
        let first = seen(OTHER).unwrap();
        let same = Seen::after(Some(first.clone()), first.lease.clone(), seconds(110));
        assert_eq!(same.since, seconds(100));
        let renewed = held(OPERATORS, Some(&first.lease), &Identity::new("node-10", "b7"), time(9));
        assert_eq!(Seen::after(Some(first), renewed, seconds(110)).since, seconds(110));
    }

    #[test]
    fn a_leader_gives_up_before_another_may_take_over() {
        assert!(RENEWAL * 2 <= DEADLINE && DEADLINE < DURATION);
        for (what, seen, now, expected) in [
            ("it is renewed in time", seen(OWN), 105, None),
            ("it is not", seen(OWN), 120, Some(Loss::Late)),
            ("another has it", seen(OTHER), 101, Some(Loss::Taken(OTHER.to_owned()))),
            ("somebody deleted it", None, 105, None),
            ("somebody freed it", seen(""), 105, None),
        ] {
            assert_eq!(loss(seen.as_ref(), &identity(), seconds(100), seconds(now)), expected, "{what}");
        }
    }

    #[test]
    fn an_api_server_that_takes_ten_seconds_to_answer_costs_nobody_the_lease() {
        for slow in (0..=10).map(seconds) {
            let mut asked = seconds(100);
            for _ in 0..5 {
                let answered = asked + slow;
                let next = answered + until_renewal(asked, answered);
                assert!(next >= asked + RENEWAL);
                assert_eq!(loss(seen(OWN).as_ref(), &identity(), asked, next), None, "{slow:?}");
                assert!(next + slow <= asked + DEADLINE, "{slow:?}");
                asked = next;
            }
        }
    }

    #[test]
    fn a_lease_tells_who_leads_since_when() {
        let made = held(OPERATORS, None, &identity(), time(5)).spec.unwrap();
        assert_eq!((made.holder_identity.as_deref(), made.lease_transitions), (Some(OWN), Some(0)));
        assert_eq!(
            (made.acquire_time, made.renew_time, made.lease_duration_seconds),
            (Some(time(5)), Some(time(5)), Some(30))
        );
        let taken = held(OPERATORS, Some(&seen(OTHER).unwrap().lease), &identity(), time(5)).spec.unwrap();
        assert_eq!((taken.lease_transitions, taken.acquire_time), (Some(4), Some(time(5))));
        let renewed = held(OPERATORS, Some(&seen(OWN).unwrap().lease), &identity(), time(5)).spec.unwrap();
        assert_eq!((renewed.lease_transitions, renewed.acquire_time), (Some(3), Some(time(1))));
        assert_eq!(renewed.renew_time, Some(time(5)));
    }

    #[test]
    fn what_others_write_into_a_lease_stays_and_guards_it() {
        let mut lease = seen(OTHER).unwrap().lease;
        lease.metadata.resource_version = Some("7".to_owned());
        lease.metadata.annotations = Some([("example.com/note".to_owned(), "mine".to_owned())].into());
        let held = held(OPERATORS, Some(&lease), &identity(), time(5));
        assert_eq!(
            held.metadata.resource_version, lease.metadata.resource_version,
            "another's change in between is seen"
        );
        assert_eq!(held.metadata.annotations, lease.metadata.annotations);
        let released = released(held);
        assert_eq!(Seen { lease: released, since: seconds(0) }.holder(), None);
    }
}
