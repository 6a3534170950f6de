//! What is worth an Event: a change that somebody who looks later wants to have been told.

use std::collections::BTreeMap;

use garboard_supervisor::status::ServiceStatus;

use crate::machine::summary;

/// Something worth an Event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notable {
    /// Whether a person may have to do something.
    pub warning: bool,
    /// A word in CamelCase for programs.
    pub reason: &'static str,
    /// A sentence for people.
    pub note: String,
}

/// What is worth an Event in the step from one state of the services to the next.
///
/// Services that wait and start are not: the status tells that. A service that fails again and again is, once, and when it
/// serves again.
pub fn services(before: &[ServiceStatus], after: &[ServiceStatus]) -> Vec<Notable> {
    let former = |status: &ServiceStatus| before.iter().find(|each| each.name == status.name);
    let mut notable = Vec::new();
    for status in after {
        let was_looping = former(status).is_some_and(|former| former.crash_looping);
        let restarts = status.restarts.saturating_sub(former(status).map_or(status.restarts, |former| former.restarts));
        let why = summary(status).message.unwrap_or_else(|| "it has not said why".to_owned());
        if status.crash_looping && !was_looping {
            let note = format!("{} fails again and again: {why}", status.name);
            notable.push(Notable { warning: true, reason: "ServiceFailing", note });
        } else if was_looping && !status.crash_looping && status.ready {
            let note = format!("{} serves again", status.name);
            notable.push(Notable { warning: false, reason: "ServiceServing", note });
        } else if restarts > 0 && !status.crash_looping {
            let exit = status.last_exit.as_ref().map(|exit| format!(": {exit}")).unwrap_or_default();
            let note = format!("{} ended and is started again{exit}", status.name);
            notable.push(Notable { warning: true, reason: "ServiceRestarted", note });
        }
    }
    notable
}

/// What is worth an Event in the step from some refused declarations to others.
pub fn refusals(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) -> Vec<Notable> {
    let new = after.iter().filter(|(place, problem)| before.get(*place) != Some(*problem));
    new.map(|(place, problem)| Notable {
        warning: true,
        reason: "DeclarationRefused",
        note: format!("{place}: {problem}"),
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use garboard_supervisor::status::PublicState;

    use super::*;
    use crate::testing::status;

    fn service(restarts: u32, crash_looping: bool, ready: bool) -> ServiceStatus {
        ServiceStatus { restarts, crash_looping, ..status("etcd", PublicState::Running { ready }) }
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
    fn a_refusal_is_told_once() {
        let refused = BTreeMap::from([("local manifest".to_owned(), "no".to_owned())]);
        assert_eq!(refusals(&BTreeMap::new(), &refused).len(), 1);
        assert_eq!(refusals(&refused, &refused), []);
        assert_eq!(refusals(&refused, &BTreeMap::new()), []);
    }
}
