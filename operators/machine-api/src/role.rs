//! Roles, and the one table of what each may call.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a key may do; a greater role may do all that a lesser one may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// May tell a machine what it should be that nobody has told yet.
    Claimant,
    /// May look.
    Reader,
    /// May also restart services and the machine.
    Operator,
    /// May also declare.
    Admin,
}

impl Role {
    /// The name in manifests and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Claimant => "claimant",
            Self::Reader => "reader",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What the server knows about an RPC before it runs it.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// The RPC's name in the protocol.
    pub rpc: &'static str,
    /// The least role that may call it.
    pub role: Role,
    /// Whether each call is written to the log with who made it, because it changes the machine or gives a credential.
    pub audited: bool,
}

const fn open(rpc: &'static str) -> Rule {
    Rule { rpc, role: Role::Claimant, audited: false }
}

const fn reads(rpc: &'static str) -> Rule {
    Rule { rpc, role: Role::Reader, audited: false }
}

const fn audited(rpc: &'static str, role: Role) -> Rule {
    Rule { rpc, role, audited: true }
}

/// Every RPC. What is not in it cannot be called.
pub const RULES: &[Rule] = &[
    // What a claimant learns of the machine: that it answers, its version, and which TPM it has.
    open("Version"),
    reads("Status"),
    reads("Services"),
    reads("Logs"),
    // The groups in the certificate that it gives follow from the caller's role.
    audited("Kubeconfig", Role::Reader),
    audited("ServiceRestart", Role::Operator),
    audited("Reboot", Role::Operator),
    audited("Shutdown", Role::Operator),
    audited("ApplyManifest", Role::Admin),
    audited("Claim", Role::Claimant),
    open("Endorsement"),
    open("ProveEndorsement"),
    audited("TrialDecide", Role::Admin),
    audited("JoinToken", Role::Admin),
    reads("EtcdMembers"),
    audited("EtcdSnapshot", Role::Admin),
    audited("EtcdRestore", Role::Admin),
    audited("EtcdDefragment", Role::Operator),
];

/// The rule for a request's path, `/garboard.machine.v1alpha1.Machine/RPC`.
pub(crate) fn rule(path: &str) -> Option<&'static Rule> {
    let rpc = path.strip_prefix('/')?.strip_prefix(crate::proto::machine_server::SERVICE_NAME)?.strip_prefix('/')?;
    RULES.iter().find(|rule| rule.rpc == rpc)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_rpc_of_the_protocol_has_exactly_one_rule() {
        let protocol: BTreeSet<_> = include_str!("../proto/machine.proto")
            .lines()
            .filter_map(|line| line.trim().strip_prefix("rpc ")?.split_once('('))
            .map(|(name, _)| name)
            .collect();
        let table: BTreeSet<_> = RULES.iter().map(|rule| rule.rpc).collect();
        assert_eq!(table, protocol);
        assert_eq!(RULES.len(), protocol.len());
    }

    #[test]
    fn only_the_exact_path_has_a_rule() {
        let exact = "/garboard.machine.v1alpha1.Machine/Reboot";
        assert_eq!(rule(exact).map(|rule| rule.role), Some(Role::Operator));
        for path in ["", "/", "Reboot", "/Reboot", "/garboard.machine.v1alpha1.Machine/", &exact[1..]] {
            assert!(rule(path).is_none(), "{path:?}");
        }
        for suffix in ["/", "x", " ", "?x"] {
            assert!(rule(&format!("{exact}{suffix}")).is_none(), "{suffix:?}");
        }
    }

    #[test]
    fn roles_are_ordered_and_a_claimant_sees_nothing() {
        assert!(Role::Claimant < Role::Reader && Role::Reader < Role::Operator && Role::Operator < Role::Admin);
        let open: Vec<_> = RULES.iter().filter(|rule| rule.role == Role::Claimant).map(|rule| rule.rpc).collect();
        assert_eq!(open, ["Version", "Claim", "Endorsement", "ProveEndorsement"]);
    }
}
