use rcgen::{CertificateParams, DnType, KeyPair};

use super::*;

fn der(common: &str, organization: Option<&str>, names: &[&str]) -> Vec<u8> {
    let mut params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
    params.distinguished_name.remove(DnType::CommonName);
    if let Some(organization) = organization {
        params.distinguished_name.push(DnType::OrganizationName, organization);
    }
    params.distinguished_name.push(DnType::CommonName, common);
    params.serialize_request(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
}

fn strings(of: &[&str]) -> Vec<String> {
    of.iter().map(|each| (*each).to_owned()).collect()
}

/// The answer to a request of a user in groups; none when it is not ours.
fn decide(user: (&str, &[&str]), usages: &[&str], der: &[u8]) -> Option<Result<(), Denial>> {
    let request = Request { username: user.0, groups: &strings(user.1), usages: &strings(usages), der };
    Requester::of(&request).map(|requester| requester.check(&request))
}

const CLIENT: [&str; 2] = USAGES;
const JOINER: (&str, &[&str]) = (
    "system:bootstrap:abcdef",
    &["system:bootstrappers", "system:bootstrappers:garboard", "system:bootstrappers:garboard:machine:node-2"],
);
const CONTROL_PLANE_JOINER: (&str, &[&str]) = (
    "system:bootstrap:abcdef",
    &["system:bootstrappers", "system:bootstrappers:garboard", "system:bootstrappers:garboard:control-plane:node-2"],
);
const WORKER: (&str, &[&str]) = ("garboard:worker:node-2", &["garboard:workers", "system:authenticated"]);

#[test]
fn a_machine_gets_what_is_its_own() {
    let agent = der("garboard:worker:node-2", Some("garboard:workers"), &[]);
    assert_eq!(decide(JOINER, &CLIENT, &agent), Some(Ok(())));
    let of_control_plane = der("garboard:agent:node-2", Some("garboard:agent"), &[]);
    assert_eq!(decide(CONTROL_PLANE_JOINER, &CLIENT, &of_control_plane), Some(Ok(())));
    for own in [
        agent,
        der("system:node:node-2", Some("system:nodes"), &[]),
        der("garboard:kube-proxy:node-2", Some("garboard:kube-proxies"), &[]),
        der("garboard:dns:node-2", Some("garboard:dns"), &[]),
    ] {
        assert_eq!(decide(WORKER, &CLIENT, &own), Some(Ok(())));
    }
}

#[test]
fn a_machine_gets_nothing_else() {
    for (what, user, usages, der, named) in [
        (
            "another machine",
            JOINER,
            &CLIENT[..],
            der("garboard:worker:node-1", Some("garboard:workers"), &[]),
            "node-1",
        ),
        ("more than it joins with", JOINER, &CLIENT, der("system:node:node-2", Some("system:nodes"), &[]), "may ask"),
        ("another node", WORKER, &CLIENT, der("system:node:node-1", Some("system:nodes"), &[]), "node-1"),
        ("everything", WORKER, &CLIENT, der("garboard:worker:node-2", Some("system:masters"), &[]), "system:masters"),
        (
            "the agent of a control plane",
            WORKER,
            &CLIENT,
            der("garboard:agent:node-2", Some("garboard:agent"), &[]),
            "may ask",
        ),
        (
            "the agent of a control plane, as a worker",
            JOINER,
            &CLIENT,
            der("garboard:agent:node-2", Some("garboard:agent"), &[]),
            "may ask",
        ),
        (
            "another of the control plane",
            CONTROL_PLANE_JOINER,
            &CLIENT,
            der("garboard:agent:node-1", Some("garboard:agent"), &[]),
            "node-1",
        ),
        ("no group", WORKER, &CLIENT, der("garboard:dns:node-2", None, &[]), "may ask"),
        ("a server", WORKER, &["server auth"], der("system:node:node-2", Some("system:nodes"), &[]), "usages"),
        (
            "names",
            WORKER,
            &CLIENT,
            der("system:node:node-2", Some("system:nodes"), &["node-1"]),
            "names are for servers",
        ),
        ("noise", WORKER, &CLIENT, b"noise".to_vec(), "PKCS#10"),
    ] {
        let denial = decide(user, usages, &der).unwrap().expect_err(what).to_string();
        assert!(denial.contains(named), "{what}: {denial}");
    }
}

#[test]
fn others_requests_are_left_to_others() {
    let request = der("jane", None, &[]);
    for user in [
        ("jane", &["system:authenticated"][..]),
        ("garboard:worker:node-2", &["system:authenticated"]),
        ("system:bootstrap:abcdef", &["system:bootstrappers", "system:bootstrappers:kubeadm"]),
    ] {
        assert_eq!(decide(user, &CLIENT, &request), None, "{user:?}");
    }
}

#[test]
fn a_token_is_the_keys_that_was_first_to_ask_with_it() {
    let [own, other] = [1, 2].map(|byte| PublicKeyPin::new([byte; 32]));
    for (what, first, expected) in [
        ("nobody before", None, Asks::First),
        ("the same before", Some(own.to_string()), Asks::Again),
        ("another before", Some(other.to_string()), Asks::Late),
        ("nonsense", Some("key".to_owned()), Asks::Late),
    ] {
        assert_eq!(Asks::of(own, first.as_deref()), expected, "{what}");
    }
}

#[test]
fn the_right_to_a_token_is_for_that_token_and_goes_with_it() {
    let roles = token_role("abcdef", "uid");
    for object in &roles {
        assert_eq!(object["metadata"]["ownerReferences"][0]["uid"], "uid");
        assert_eq!(object["metadata"]["ownerReferences"][0]["name"], "bootstrap-token-abcdef");
    }
    let [role, binding] = &roles;
    assert_eq!(role["rules"][0]["resourceNames"], json!(["bootstrap-token-abcdef"]));
    assert_eq!(role["rules"][0]["verbs"], json!(["get", "patch"]));
    assert_eq!(binding["subjects"][0]["kind"], "Group");
    assert_eq!(binding["subjects"][0]["name"], "garboard:operators");
}

#[test]
fn a_tokens_groups_name_its_machine() {
    let token = Token::parse("abcdef.0123456789abcdef").unwrap();
    for role in [MachineRole::ControlPlane, MachineRole::Worker] {
        let secret = token_secret("node-2", role, token, "2026-01-01T00:00:00Z");
        assert_eq!(secret["metadata"]["name"], "bootstrap-token-abcdef");
        let groups: Vec<String> =
            secret["stringData"]["auth-extra-groups"].as_str().unwrap().split(',').map(str::to_owned).collect();
        let request = Request { username: "system:bootstrap:abcdef", groups: &groups, usages: &[], der: &[] };
        assert_eq!(Requester::of(&request), Some(Requester::Joiner { token: "abcdef", machine: "node-2", role }));
    }
}
