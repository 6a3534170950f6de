use rcgen::{CertificateParams, DnType, KeyPair, SanType};

use super::*;

const USER: &str = "system:node:node-1";

fn der(common: &str, organisation: &str, names: &[&str]) -> Vec<u8> {
    let mut params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::OrganizationName, organisation);
    params.distinguished_name.push(DnType::CommonName, common);
    params.serialize_request(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
}

fn strings(of: &[&str]) -> Vec<String> {
    of.iter().map(|each| (*each).to_owned()).collect()
}

fn node_names() -> NodeNames {
    NodeNames {
        names: ["node-1".to_owned()].into(),
        addresses: ["192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap()].into(),
    }
}

fn decide(username: &str, groups: &[&str], usages: &[&str], der: &[u8]) -> Result<(), Denial> {
    check(&Request { username, groups: &strings(groups), usages: &strings(usages), der }, &node_names())
}

#[test]
fn a_node_gets_a_certificate_for_its_own_names() {
    let good = der(USER, "system:nodes", &["node-1", "192.0.2.7", "2001:db8::7"]);
    assert_eq!(decide(USER, &["system:nodes"], &["digital signature", "server auth"], &good), Ok(()));
    assert_eq!(
        decide(USER, &["system:nodes"], &["digital signature", "key encipherment", "server auth"], &good),
        Ok(())
    );
}

#[test]
fn everything_else_is_denied_with_its_reason() {
    let own = |names: &[&str]| der(USER, "system:nodes", names);
    let usages: &[&str] = &["digital signature", "server auth"];
    type Case<'a> = (&'a str, &'a str, &'a [&'a str], &'a [&'a str], Vec<u8>, &'a str);
    let cases: Vec<Case<'_>> = vec![
        ("a person", "jane", &["system:nodes"], usages, own(&["node-1"]), "is no node"),
        ("a node without its group", USER, &["system:authenticated"], usages, own(&["node-1"]), "is no node"),
        ("no server", USER, &["system:nodes"], &["digital signature"], own(&["node-1"]), "server auth is needed"),
        ("a client too", USER, &["system:nodes"], &["server auth", "client auth"], own(&["node-1"]), "client auth"),
        (
            "another's subject",
            USER,
            &["system:nodes"],
            usages,
            der("system:node:node-2", "system:nodes", &["node-1"]),
            "CN=",
        ),
        ("another group", USER, &["system:nodes"], usages, der(USER, "system:masters", &["node-1"]), "system:masters"),
        ("another's name", USER, &["system:nodes"], usages, own(&["node-1", "node-2"]), "node-2 is no name"),
        ("another's address", USER, &["system:nodes"], usages, own(&["192.0.2.8"]), "192.0.2.8 is no name"),
        ("no name", USER, &["system:nodes"], usages, own(&[]), "no DNS name"),
        ("noise", USER, &["system:nodes"], usages, b"noise".to_vec(), "PKCS#10"),
    ];
    for (what, username, groups, usages, der, named) in cases {
        let denial = decide(username, groups, usages, &der).expect_err(what).to_string();
        assert!(denial.contains(named), "{what}: {denial}");
    }
}

#[test]
fn a_mail_address_is_no_name_of_a_server() {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    params.distinguished_name.push(DnType::CommonName, USER);
    params.subject_alt_names = vec![SanType::Rfc822Name("node-1@example.org".try_into().unwrap())];
    let der = params.serialize_request(&KeyPair::generate().unwrap()).unwrap().der().to_vec();
    assert_eq!(decide(USER, &["system:nodes"], &["server auth"], &der), Err(Denial::KindOfName));
}

#[test]
fn a_request_changed_after_signing_is_denied() {
    let mut der = der(USER, "system:nodes", &["node-1"]);
    if let Some(last) = der.last_mut() {
        *last ^= 1;
    }
    assert_eq!(decide(USER, &["system:nodes"], &["server auth"], &der), Err(Denial::Unreadable));
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_denied(der in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
        proptest::prop_assert!(decide(USER, &["system:nodes"], &["server auth"], &der).is_err());
    }
}
