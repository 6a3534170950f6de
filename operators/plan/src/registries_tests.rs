use proptest::prelude::*;
use serde_json::json;

use super::*;

fn login(username: &str, password: &str) -> Login {
    Login { username: username.to_owned(), password: password.to_owned() }
}

fn logins(places: &[&str]) -> Logins {
    places.iter().map(|place| ((*place).to_owned(), login("keel", "s3cret"))).collect()
}

fn present(places: &[&str]) -> Seen {
    Seen::Present(Ok(logins(places)))
}

fn declare(pairs: &[(&str, &str)]) -> Declared {
    pairs.iter().map(|(host, secret)| ((*host).to_owned(), (*secret).to_owned())).collect()
}

#[test]
fn logins_are_read_as_kubectl_and_docker_write_them() {
    let cases = [
        ("registry.example", json!({ "username": "keel", "password": "s3cret" }), "registry.example"),
        // Base64 of keel:s3cret:x, with padding and without; a password may have a colon.
        ("registry.example:5000", json!({ "auth": "a2VlbDpzM2NyZXQ6eA==" }), "registry.example:5000"),
        ("registry.example", json!({ "auth": "a2VlbDpzM2NyZXQ6eA", "email": "keel@example.org" }), "registry.example"),
        ("https://registry.example/v2/", json!({ "username": "keel", "password": "s3cret" }), "registry.example"),
        ("http://registry.example/v1", json!({ "username": "keel", "password": "s3cret" }), "registry.example"),
        ("registry.example/v1beta/x/", json!({ "auth": "a2VlbDpzM2NyZXQ6eA==" }), "registry.example/v1beta/x"),
        ("https://index.docker.io/v1/", json!({ "auth": "a2VlbDpzM2NyZXQ6eA==", "username": "other" }), "docker.io"),
    ];
    for (server, entry, place) in cases {
        let text = json!({ "auths": { server: entry } }).to_string();
        let password = if text.contains("auth\":") { "s3cret:x" } else { "s3cret" };
        let expected = Logins::from([(place.to_owned(), login("keel", password))]);
        assert_eq!(read(REGISTRY_SECRET_TYPE, Some(text.as_bytes())), Ok(expected), "{text}");
    }
}

#[test]
fn what_cannot_be_used_is_told_without_any_value() {
    let large = " ".repeat(MAX_BYTES + 1);
    let cases: [(&str, Option<&str>, &str); 8] = [
        ("Opaque", Some("{}"), "type Opaque"),
        (REGISTRY_SECRET_TYPE, None, "no entry .dockerconfigjson"),
        (REGISTRY_SECRET_TYPE, Some(&large), "65537 bytes"),
        (REGISTRY_SECRET_TYPE, Some("{\"auths\": \"s3cret\"}"), "line 1, column 18"),
        (REGISTRY_SECRET_TYPE, Some("{}"), "line 1, column 2"),
        (
            REGISTRY_SECRET_TYPE,
            Some("{\"auths\": {\"r.example\": {\"password\": \"s3cret\"}}}"),
            "server \"r.example\"",
        ),
        (REGISTRY_SECRET_TYPE, Some("{\"auths\": {\"r.example\": {\"auth\": \"s3cret!\"}}}"), "server \"r.example\""),
        (REGISTRY_SECRET_TYPE, Some("{\"auths\": {\"r.example\": {\"auth\": \"czNjcmV0\"}}}"), "server \"r.example\""),
    ];
    for (type_, entry, words) in cases {
        let told = read(type_, entry.map(str::as_bytes)).unwrap_err().to_string();
        assert!(told.contains(words) && !told.contains("s3cret"), "{told}");
    }
    assert!(!format!("{:?}", login("keel", "s3cret")).contains("s3cret"));
}

#[test]
fn a_secret_serves_the_registries_that_it_is_named_for() {
    let mut known = Known::default();
    known.see("a", present(&["r.example", "r.example/team", "r.example.org", "r.example:5000", "other.example"]));
    let places = |declared: &Declared| known.logins(declared).into_keys().collect::<Vec<_>>();
    assert_eq!(places(&declare(&[("r.example", "a")])), ["r.example", "r.example/team"]);
    assert_eq!(
        places(&declare(&[("r.example:5000", "a"), ("other.example", "a")])),
        ["other.example", "r.example:5000"]
    );
    assert_eq!(places(&declare(&[("third.example", "a"), ("r.example", "b")])), Vec::<String>::new());
    assert_eq!(known.problems(&declare(&[("r.example", "a")])), Vec::<String>::new());
    assert_eq!(
        known.problems(&declare(&[("third.example", "a"), ("r.example", "b")])),
        [
            "credentials of r.example, Secret garboard-registries/b: it has not been seen yet",
            "credentials of third.example, Secret garboard-registries/a: third.example is not among its servers: \
             other.example, r.example, r.example.org, r.example/team, r.example:5000",
        ]
    );
}

#[test]
fn what_is_withdrawn_or_spoilt_counts_no_longer_and_what_is_not_shown_stays() {
    let declared = declare(&[("r.example", "a")]);
    let cases = [
        (Seen::Absent, false, "there is none"),
        (Seen::Present(Err(Unusable::Empty)), false, "no entry"),
        (Seen::Refused("forbidden".to_owned()), true, "does not show it: forbidden"),
    ];
    for (seen, counts, words) in cases {
        let mut known = Known::kept(BTreeMap::from([("a".to_owned(), logins(&["r.example"]))]));
        assert_eq!(known.problems(&declared), Vec::<String>::new(), "what was kept is no problem");
        known.see("a", seen.clone());
        assert_eq!(!known.logins(&declared).is_empty(), counts, "{seen:?}");
        let problems = known.problems(&declared);
        assert!(problems.len() == 1 && problems[0].contains(words), "{problems:?}");
        known.see("a", present(&["r.example"]));
        assert_eq!(known.problems(&declared), Vec::<String>::new(), "{seen:?} is over");
    }
}

#[test]
fn what_is_not_declared_is_forgotten() {
    let mut known = Known::default();
    known.see("a", present(&["r.example"]));
    known.see("b", present(&["r.example"]));
    known.see("c", Seen::Absent);
    known.forget_others(&declare(&[("r.example", "b")]));
    assert_eq!(known.logins.keys().collect::<Vec<_>>(), ["b"]);
    assert_eq!(known.problems, BTreeMap::new());
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = read(REGISTRY_SECRET_TYPE, Some(&bytes));
    }

    #[test]
    fn the_order_in_which_secrets_are_seen_is_irrelevant(order in Just(vec!["a", "b", "c"]).prop_shuffle()) {
        let declared = declare(&[("a.example", "a"), ("b.example", "b"), ("c.example", "c")]);
        let seen = |secrets: &[&str]| {
            let mut known = Known::default();
            for secret in secrets {
                known.see(secret, if *secret == "c" { Seen::Absent } else { present(&["a.example", "b.example"]) });
            }
            known
        };
        prop_assert_eq!(seen(&order), seen(&["a", "b", "c"]));
        prop_assert_eq!(seen(&order).logins(&declared).len(), 2);
    }
}
