//! What is worth an Event: a change that somebody who looks later wants to have been told.

use std::net::IpAddr;
use std::sync::Arc;

use garboard_api::{About, Refusals};
use garboard_supervisor::status::ServiceStatus;

use crate::machine::summary;
use crate::pki::{Reason, Step};

/// Something worth an Event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notable {
    /// What it is about.
    pub about: About,
    /// Whether a person may have to do something.
    pub warning: bool,
    /// A word in CamelCase for programs.
    pub reason: &'static str,
    /// A sentence for people.
    pub note: String,
}

/// What is watched for changes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Generation of the Machine that counts.
    pub machine: Option<i64>,
    /// Generation of the Cluster that counts.
    pub cluster: Option<i64>,
    /// Declarations that were refused.
    pub refusals: Refusals,
    /// The machine's addresses.
    pub addresses: Vec<IpAddr>,
    /// The services.
    pub services: Arc<Vec<ServiceStatus>>,
}

/// What is worth an Event in the step from one snapshot to the next.
pub fn changes(before: &Snapshot, after: &Snapshot) -> Vec<Notable> {
    let Snapshot { machine, cluster, refusals: refused, addresses: now, services: states } = after;
    let mut notable = Vec::new();
    notable.extend(accepted(About::Machine, before.machine, *machine));
    notable.extend(accepted(About::Cluster, before.cluster, *cluster));
    notable.extend(refusals(&before.refusals, refused));
    notable.extend(addresses(&before.addresses, now));
    notable.extend(services(&before.services, states));
    notable
}

/// A declaration that counts from now on. What counts when somebody begins to look is no change.
fn accepted(about: About, before: Option<i64>, after: Option<i64>) -> Option<Notable> {
    let after = after.filter(|after| before.is_some_and(|before| before != *after))?;
    let note = format!("generation {after} of the declaration is in force");
    Some(Notable { about, warning: false, reason: "DeclarationAccepted", note })
}

/// Other addresses than before. The first are no change.
fn addresses(before: &[IpAddr], after: &[IpAddr]) -> Option<Notable> {
    if before.is_empty() || before == after {
        return None;
    }
    let words = |addresses: &[IpAddr]| match addresses {
        [] => "none".to_owned(),
        addresses => addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    };
    let note = format!("addresses: {}; before: {}", words(after), words(before));
    Some(Notable { about: About::Machine, warning: after.is_empty(), reason: "AddressesChanged", note })
}

/// The certificates that were issued, in one Event, as they are often issued together.
pub fn certificates(steps: &[Step]) -> Option<Notable> {
    let issued: Vec<String> = steps
        .iter()
        .filter_map(|step| match step {
            Step::Issue { leaf, reason, profile: _, validity: _ } => {
                Some(format!("{} ({})", leaf.name(), why(*reason)))
            }
            Step::CreateAuthority { .. } | Step::CreateKey(_) | Step::Request { .. } | Step::Deploy(_) => None,
        })
        .collect();
    let note = format!("new certificates: {}", issued.join(", "));
    let notable = Notable { about: About::Machine, warning: false, reason: "CertificatesIssued", note };
    (!issued.is_empty()).then_some(notable)
}

fn why(reason: Reason) -> &'static str {
    match reason {
        Reason::Missing => "there was none",
        Reason::Authority => "another authority had signed it",
        Reason::Changed => "its names have changed",
        Reason::Renewal => "it was due",
        Reason::NotYetValid => "it was not valid yet",
    }
}

/// What is worth an Event in the step from one state of the services to the next.
///
/// Services that wait and start are not: the status tells that. A service that fails again and again is, once, and when it
/// serves again.
fn services(before: &[ServiceStatus], after: &[ServiceStatus]) -> Vec<Notable> {
    let former = |status: &ServiceStatus| before.iter().find(|each| each.name == status.name);
    let mut notable = Vec::new();
    for status in after {
        let was_looping = former(status).is_some_and(|former| former.crash_looping);
        let restarts = status.restarts.saturating_sub(former(status).map_or(status.restarts, |former| former.restarts));
        let why = summary(status).message.unwrap_or_else(|| "it has not said why".to_owned());
        if status.crash_looping && !was_looping {
            let note = format!("{} fails again and again: {why}", status.name);
            notable.push(Notable { about: About::Machine, warning: true, reason: "ServiceFailing", note });
        } else if was_looping && !status.crash_looping && status.ready {
            let note = format!("{} serves again", status.name);
            notable.push(Notable { about: About::Machine, warning: false, reason: "ServiceServing", note });
        } else if restarts > 0 && !status.crash_looping {
            let exit = status.last_exit.as_ref().map(|exit| format!(": {exit}")).unwrap_or_default();
            let note = format!("{} ended and is started again{exit}", status.name);
            notable.push(Notable { about: About::Machine, warning: true, reason: "ServiceRestarted", note });
        }
    }
    notable
}

/// What is worth an Event in the step from some refused declarations to others.
fn refusals(before: &Refusals, after: &Refusals) -> Vec<Notable> {
    let new = after.iter().filter(|(origin, problem)| before.get(*origin) != Some(*problem));
    new.map(|(origin, problem)| Notable {
        about: origin.about().unwrap_or(About::Machine),
        warning: true,
        reason: "DeclarationRefused",
        note: format!("{origin}: {problem}"),
    })
    .collect()
}

/// Whether the API server's answer to an event, a status of HTTP, is a refusal for good. An API server that has just started knows nobody's
/// rights yet.
pub fn is_refused(code: u16) -> bool {
    (400..500).contains(&code) && ![401, 403, 408, 429].contains(&code)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::SystemTime;

    use garboard_api::refusal::Origin;
    use garboard_catalog::pki::Leaf;
    use garboard_supervisor::status::PublicState;

    use super::*;
    use crate::pki::{Profile, Validity};
    use garboard_supervisor::testing::status;

    fn service(restarts: u32, crash_looping: bool, ready: bool) -> ServiceStatus {
        ServiceStatus { restarts, crash_looping, ..status("etcd", PublicState::Running { ready }) }
    }

    #[test]
    fn an_api_server_that_starts_has_refused_nothing_for_good() {
        for (code, refused) in [
            (400, true),
            (404, true),
            (413, true),
            (422, true),
            (401, false),
            (403, false),
            (429, false),
            (500, false),
            (503, false),
        ] {
            assert_eq!(is_refused(code), refused, "{code}");
        }
    }

    #[test]
    fn a_failing_service_is_told_once_and_when_it_serves_again() {
        let reasons = |before: &[ServiceStatus], after: ServiceStatus| -> Vec<_> {
            services(before, &[after]).into_iter().map(|notable| (notable.reason, notable.warning)).collect()
        };
        assert_eq!(reasons(&[], service(0, false, false)), [], "a start is no event");
        assert_eq!(reasons(&[], service(3, false, true)), [], "what happened before anybody looked is not told");
        assert_eq!(reasons(&[service(0, false, true)], service(1, false, false)), [("ServiceRestarted", true)]);
        assert_eq!(reasons(&[service(2, false, false)], service(3, true, false)), [("ServiceFailing", true)]);
        assert_eq!(reasons(&[service(3, true, false)], service(4, true, false)), []);
        assert_eq!(reasons(&[service(4, true, false)], service(4, false, true)), [("ServiceServing", false)]);
        assert_eq!(reasons(&[service(4, false, true)], service(4, false, true)), []);
    }

    #[test]
    fn a_refusal_is_told_once_of_the_object_that_it_is_about() {
        let refused = |origin| Refusals::from([(origin, "no".to_owned())]);
        let told = |before: &Refusals, after: &Refusals| -> Vec<_> {
            refusals(before, after).into_iter().map(|notable| (notable.about, notable.note)).collect()
        };
        let [machine, cluster] =
            [About::Machine, About::Cluster].map(|about| refused(Origin::Object { about, holder: "API server" }));
        let none = Refusals::new();
        assert_eq!(told(&none, &machine), [(About::Machine, "Machine of the API server: no".to_owned())]);
        assert_eq!(told(&machine, &cluster), [(About::Cluster, "Cluster of the API server: no".to_owned())]);
        assert_eq!(told(&cluster, &cluster), []);
        assert_eq!(told(&cluster, &none), []);
        assert_eq!(
            told(&none, &refused(Origin::Text("fw_cfg".to_owned()))),
            [(About::Machine, "fw_cfg: no".to_owned())]
        );
    }

    #[test]
    fn what_counts_and_the_addresses_are_told_when_they_change() {
        let snapshot = |machine, cluster, addresses: &[u8]| Snapshot {
            machine,
            cluster,
            addresses: addresses.iter().map(|last| IpAddr::from([192, 0, 2, *last])).collect(),
            ..Snapshot::default()
        };
        let before = snapshot(Some(1), Some(4), &[7]);
        for (what, before, after, expected) in [
            ("the first look", Snapshot::default(), before.clone(), vec![]),
            ("nothing new", before.clone(), before.clone(), vec![]),
            (
                "a new Machine",
                before.clone(),
                snapshot(Some(2), Some(4), &[7]),
                vec![(About::Machine, false, "generation 2 of the declaration is in force")],
            ),
            (
                "a new Cluster",
                before.clone(),
                snapshot(Some(1), Some(5), &[7]),
                vec![(About::Cluster, false, "generation 5 of the declaration is in force")],
            ),
            (
                "another address",
                before.clone(),
                snapshot(Some(1), Some(4), &[8, 7]),
                vec![(About::Machine, false, "addresses: 192.0.2.8, 192.0.2.7; before: 192.0.2.7")],
            ),
            (
                "no address",
                before.clone(),
                snapshot(Some(1), Some(4), &[]),
                vec![(About::Machine, true, "addresses: none; before: 192.0.2.7")],
            ),
        ] {
            let told = changes(&before, &after);
            let told: Vec<_> = told.iter().map(|notable| (notable.about, notable.warning, &*notable.note)).collect();
            assert_eq!(told, expected, "{what}");
        }
    }

    #[test]
    fn certificates_that_are_issued_together_are_told_together() {
        let validity = Validity { not_before: SystemTime::UNIX_EPOCH, not_after: SystemTime::UNIX_EPOCH };
        let profile = || Profile {
            common_name: String::new(),
            organization: None,
            names: BTreeSet::new(),
            server: false,
            client: true,
        };
        let issue = |leaf, reason| Step::Issue { leaf, profile: profile(), validity, reason };
        let steps = [issue(Leaf::Kubelet, Reason::Renewal), issue(Leaf::Agent, Reason::Changed)];
        let note = "new certificates: kubelet (it was due), agent (its names have changed)";
        assert_eq!(certificates(&steps).unwrap().note, note);
        assert_eq!(certificates(&[]), None);
    }
}
