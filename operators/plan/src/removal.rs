//! How a machine leaves its cluster when its Machine is deleted: no new pods come, those that are there are asked to go, a control-plane
//! machine is taken out of etcd, then its node is taken away, and with its Machine its place in the cluster.
//!
//! Nothing is forced by the passing of time. A machine that does not answer cannot end its pods, and whether it is dead or only out of
//! reach a person has to say, by the annotation [`FORCE`].

use std::collections::BTreeMap;
use std::time::Duration;

use garboard_api::condition::{self, DRAINED, Observation};
use garboard_api::{EtcdMember, EtcdRole};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// The annotation by which somebody says that a machine will not answer any more, `true`.
pub const FORCE: &str = "garboard.dev/force-removal";
/// Time after which what does not go is told with the way out.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// What is seen of a machine and its node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// Whether it has joined a cluster that others founded.
    pub joins: bool,
    /// Its member of etcd, if it has one.
    pub member: Option<Member>,
    /// Whether other machines have members that count and stay.
    pub others: bool,
    /// Whether the finalizer is there.
    pub kept: bool,
    /// For how long its Machine has been deleted; none while it is not.
    pub deleted: Option<Duration>,
    /// Whether somebody has said that it will not answer.
    pub forced: bool,
    /// Its node, if it is there.
    pub node: Option<Node>,
    /// The pods on it.
    pub pods: Vec<Resident>,
}

/// A node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Whether new pods stay away.
    pub cordoned: bool,
    /// Whether it is Ready.
    pub ready: bool,
}

/// A member of etcd.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// Whether it is to leave.
    pub leaves: bool,
    /// Whether it has left.
    pub left: bool,
    /// How it stands, in words.
    pub standing: String,
}

/// A pod on the node that has to go first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resident {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Whether it is ending.
    pub ending: bool,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Keep the Machine from vanishing before its machine has left.
    Keep,
    /// Keep new pods away.
    Cordon,
    /// Ask a pod to go.
    Evict {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// Take its member out of etcd.
    LeaveEtcd,
    /// Let its certificates count no longer.
    Revoke,
    /// Take the node away.
    DeleteNode,
    /// Let the Machine vanish.
    Release,
}

/// What is due.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// In this order.
    pub steps: Vec<Step>,
    /// How the leaving is, once it has begun.
    pub condition: Option<Observation>,
}

/// What an EtcdMember says of itself.
pub fn member(member: &EtcdMember) -> Member {
    let status = member.status.clone().unwrap_or_default();
    let joined = condition::find(&status.conditions, condition::JOINED);
    Member {
        leaves: member.spec.leave,
        left: status.role == Some(EtcdRole::Left),
        standing: joined.map(|joined| joined.message.clone()).unwrap_or_default(),
    }
}

/// Whether an EtcdMember is one that counts and is not to leave.
pub fn stays(member: &EtcdMember) -> bool {
    !member.spec.leave && member.role() == Some(EtcdRole::Voter)
}

/// What a Node says of itself.
pub fn node(node: &core::Node) -> Node {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ready = conditions.into_iter().flatten().any(|found| found.type_ == "Ready" && found.status == "True");
    let cordoned = node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or_default();
    Node { cordoned, ready }
}

/// A pod that has to go before its node does. Those of DaemonSets and of the node itself go with it, as do those that have ended and that
/// nobody has asked to go; of one that was asked, the kubelet has something to clear away until the pod is gone.
pub fn resident(meta: &ObjectMeta, phase: Option<&str>) -> Option<Resident> {
    let owned = meta.owner_references.iter().flatten().any(|owner| owner.kind == "DaemonSet" || owner.kind == "Node");
    let mirror = meta
        .annotations
        .as_ref()
        .is_some_and(|notes: &BTreeMap<_, _>| notes.contains_key("kubernetes.io/config.mirror"));
    let ending = meta.deletion_timestamp.is_some();
    let ended = matches!(phase, Some("Succeeded" | "Failed")) && !ending;
    (!owned && !mirror && !ended).then(|| Resident {
        namespace: meta.namespace.clone().unwrap_or_default(),
        name: meta.name.clone().unwrap_or_default(),
        ending,
    })
}

/// What is due.
pub fn plan(observed: &Observed) -> Plan {
    let Observed { joins, member, others, kept, deleted, forced, node, pods } = observed;
    let Some(deleted) = deleted else {
        // The machine that founded the cluster can leave it to others, and not otherwise.
        let step = match (*joins || *others, kept) {
            (true, false) => Some(Step::Keep),
            (false, true) => Some(Step::Release),
            _ => None,
        };
        return Plan { steps: step.into_iter().collect(), condition: None };
    };
    if !kept {
        return Plan::default();
    }
    if member.as_ref().is_some_and(|member| !member.left) && !others {
        let message = "it is the last of the control plane: another has to join before it leaves";
        return Plan { steps: vec![], condition: Some(Observation::new(DRAINED, false, "LastControlPlane", message)) };
    }
    let drained = pods.is_empty() || *forced;
    if let Some(member) = member.as_ref().filter(|member| !member.left)
        && (node.is_none() || drained)
    {
        let steps = if member.leaves { vec![] } else { vec![Step::LeaveEtcd] };
        let message = format!("its member of etcd leaves: {}", member.standing);
        return Plan { steps, condition: Some(Observation::new(DRAINED, false, "LeavingEtcd", message)) };
    }
    let Some(node) = node else {
        return Plan { steps: vec![Step::Revoke, Step::Release], condition: None };
    };
    if drained {
        return Plan { steps: vec![Step::Revoke, Step::DeleteNode, Step::Release], condition: None };
    }
    let cordon = (!node.cordoned).then_some(Step::Cordon);
    let evict = pods
        .iter()
        .filter(|pod| !pod.ending)
        .map(|pod| Step::Evict { namespace: pod.namespace.clone(), name: pod.name.clone() });
    let steps = cordon.into_iter().chain(evict).collect();
    let names: Vec<_> = pods.iter().map(|pod| format!("{}/{}", pod.namespace, pod.name)).collect();
    let names = names.join(", ");
    let condition = match (node.ready, *deleted < PATIENCE) {
        (false, _) => Observation::new(
            DRAINED,
            false,
            "NodeNotReady",
            format!(
                "the machine does not answer, so these pods cannot end: {names}; when it is gone for good, annotate {FORCE}=true"
            ),
        ),
        (true, true) => Observation::new(DRAINED, false, "Draining", format!("these pods are asked to go: {names}")),
        (true, false) => Observation::new(
            DRAINED,
            false,
            "Blocked",
            format!("these pods do not go: {names}; see to them, or annotate {FORCE}=true to give them up"),
        ),
    };
    Plan { steps, condition: Some(condition) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, ending: bool) -> Resident {
        Resident { namespace: "default".into(), name: name.into(), ending }
    }

    fn worker() -> Observed {
        Observed {
            joins: true,
            kept: true,
            node: Some(Node { cordoned: false, ready: true }),
            pods: vec![pod("a", false), pod("b", true)],
            ..Observed::default()
        }
    }

    #[test]
    fn a_pod_counts_until_it_is_gone_if_it_was_asked_to_go() {
        let seen = |meta: Value, phase: &str| resident(&serde_json::from_value(meta).unwrap(), Some(phase)).is_some();
        let asked = json!({ "name": "a", "deletionTimestamp": "2026-01-01T00:00:00Z" });
        let of = |kind: &str| json!({ "name": "a", "ownerReferences": [{ "apiVersion": "v1", "kind": kind, "name": "x", "uid": "1" }] });
        let cases = [
            ("one that runs", json!({ "name": "a" }), "Running", true),
            ("one that has ended", json!({ "name": "a" }), "Succeeded", false),
            ("one that ends", asked.clone(), "Running", true),
            ("one that has ended as it was asked", asked, "Succeeded", true),
            ("one of a DaemonSet", of("DaemonSet"), "Running", false),
            ("one of a ReplicaSet", of("ReplicaSet"), "Running", true),
        ];
        for (name, meta, phase, expected) in cases {
            assert_eq!(seen(meta, phase), expected, "{name}");
        }
    }

    #[test]
    fn each_state_has_its_steps() {
        let evict = Step::Evict { namespace: "default".into(), name: "a".into() };
        let deleted = || Observed { deleted: Some(Duration::ZERO), ..worker() };
        let cases = [
            ("a new worker", Observed { kept: false, ..worker() }, vec![Step::Keep], None),
            ("one that stays", worker(), vec![], None),
            ("a founder", Observed { joins: false, kept: false, ..worker() }, vec![], None),
            (
                "a founder beside others",
                Observed { joins: false, others: true, kept: false, ..worker() },
                vec![Step::Keep],
                None,
            ),
            ("a founder that is alone again", Observed { joins: false, ..worker() }, vec![Step::Release], None),
            (
                "the last of the control plane",
                Observed { member: Some(Member::default()), pods: vec![], forced: true, ..deleted() },
                vec![],
                Some("LastControlPlane"),
            ),
            ("one that is deleted", deleted(), vec![Step::Cordon, evict.clone()], Some("Draining")),
            (
                "one that takes long",
                Observed { deleted: Some(PATIENCE), ..deleted() },
                vec![Step::Cordon, evict.clone()],
                Some("Blocked"),
            ),
            (
                "one that does not answer",
                Observed { node: Some(Node { cordoned: true, ready: false }), ..deleted() },
                vec![evict.clone()],
                Some("NodeNotReady"),
            ),
            (
                "an empty one",
                Observed { pods: vec![], ..deleted() },
                vec![Step::Revoke, Step::DeleteNode, Step::Release],
                None,
            ),
            (
                "one that is given up",
                Observed { forced: true, ..deleted() },
                vec![Step::Revoke, Step::DeleteNode, Step::Release],
                None,
            ),
            (
                "one of the control plane, with pods",
                Observed { member: Some(Member::default()), others: true, ..deleted() },
                vec![Step::Cordon, evict.clone()],
                Some("Draining"),
            ),
            (
                "one of the control plane",
                Observed { member: Some(Member::default()), others: true, pods: vec![], ..deleted() },
                vec![Step::LeaveEtcd],
                Some("LeavingEtcd"),
            ),
            (
                "one of the control plane that is given up and leaves",
                Observed {
                    member: Some(Member { leaves: true, ..Member::default() }),
                    others: true,
                    forced: true,
                    ..deleted()
                },
                vec![],
                Some("LeavingEtcd"),
            ),
            (
                "one of the control plane that has left",
                Observed {
                    member: Some(Member { leaves: true, left: true, ..Member::default() }),
                    pods: vec![],
                    ..deleted()
                },
                vec![Step::Revoke, Step::DeleteNode, Step::Release],
                None,
            ),
            ("one without a node", Observed { node: None, ..deleted() }, vec![Step::Revoke, Step::Release], None),
            ("one that is not ours", Observed { kept: false, ..deleted() }, vec![], None),
        ];
        for (what, observed, steps, reason) in cases {
            let plan = plan(&observed);
            assert_eq!(
                (plan.steps, plan.condition.map(|condition| condition.reason)),
                (steps, reason.map(str::to_owned)),
                "{what}"
            );
        }
    }

    proptest! {
        #[test]
        fn a_node_with_pods_goes_only_when_somebody_says_so(
            deleted in proptest::option::of(0u64..1000), ready: bool, cordoned: bool, ending: bool, kept: bool
        ) {
            let observed = Observed {
                deleted: deleted.map(Duration::from_secs),
                kept,
                node: Some(Node { cordoned, ready }),
                pods: vec![pod("a", ending)],
                ..worker()
            };
            prop_assert!(!plan(&observed).steps.contains(&Step::DeleteNode));
            prop_assert!(!plan(&observed).steps.contains(&Step::Release));
        }
    }
}
