use garboard_api::manifest;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use super::*;

const NOW: Duration = Duration::from_secs(1_800_000_000);

fn pin(byte: u8) -> PublicKeyPin {
    PublicKeyPin::new([byte; 32])
}

fn endpoint() -> Endpoint {
    serde_json::from_value(json!({ "host": "192.0.2.10", "port": 6443 })).unwrap()
}

fn access() -> Vec<Access> {
    serde_json::from_value(json!([{ "name": "admin", "role": "admin", "publicKey": pin(3) }])).unwrap()
}

fn machine(join: Value) -> Machine {
    let object = json!({
        "apiVersion": API_VERSION,
        "kind": "Machine",
        "metadata": { "name": "node-2", "labels": { "rack": "a" } },
        "spec": { "role": "Worker", "join": join },
    });
    serde_json::from_value(object).unwrap()
}

fn waiting() -> Machine {
    machine(json!({ "waiting": { "host": "192.0.2.12", "fingerprint": pin(2) } }))
}

fn with_condition(mut machine: Machine, observation: Observation, age: Duration) -> Machine {
    let since = Timestamp::from_second(i64::try_from((NOW - age).as_secs()).unwrap()).unwrap();
    let conditions = condition::merge(&[], [observation], None, &Time(since));
    machine.status.get_or_insert_default().conditions = conditions;
    machine
}

fn due_of(machine: &Machine) -> Due {
    let access = access();
    let cluster = Told { endpoint: &endpoint(), ca_pin: pin(1), access: &access };
    due(machine, cluster, SystemTime::UNIX_EPOCH + NOW)
}

/// The Machine with what a step adds to it.
fn completed(machine: &Machine) -> Machine {
    let Due::Complete(patch) = due_of(machine) else { panic!("nothing is to be completed") };
    let mut join = serde_json::to_value(&machine.spec.join).unwrap();
    join.as_object_mut().unwrap().extend(patch["spec"]["join"].as_object().unwrap().clone());
    let mut machine = machine.clone();
    machine.spec.join = serde_json::from_value(join).unwrap();
    machine
}

#[test]
fn a_machine_is_told_where_its_cluster_is_and_what_it_should_be() {
    let machine = completed(&waiting());
    assert_eq!(due_of(&machine), Due::HandOver);
    assert_eq!(machine.spec.join.as_ref().unwrap().access, access());
    let read = manifest::parse(&manifests(&machine, Some("abcdef.0123456789abcdef"))).unwrap();
    let told = read.machine.unwrap();
    assert_eq!((&told.spec, &told.metadata.labels), (&machine.spec, &machine.metadata.labels));
    assert_eq!(read.join_token.unwrap().token, "abcdef.0123456789abcdef");
    assert_eq!(told.spec.join.unwrap().ca_pin, Some(pin(1)));
    assert!(manifest::parse(&manifests(&machine, None)).unwrap().join_token.is_none());
}

#[test]
fn what_is_declared_of_the_cluster_stays() {
    let mut partly = waiting();
    partly.spec.join.as_mut().unwrap().ca_pin = Some(pin(7));
    assert_eq!(completed(&partly).spec.join.unwrap().ca_pin, Some(pin(7)));
}

#[test]
fn nothing_is_due_for_those_that_do_not_wait_have_come_leave_or_were_just_told() {
    let whole = json!({ "endpoints": [endpoint()], "caPin": pin(1) });
    assert_eq!(due_of(&machine(whole)), Due::Nothing);
    let ready = completed(&waiting());
    let mut come = ready.clone();
    come.status.get_or_insert_default().fingerprint = Some(pin(2).to_string());
    assert_eq!(due_of(&come), Due::Nothing);
    let mut leaves = ready.clone();
    leaves.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
    assert_eq!(due_of(&leaves), Due::Nothing);
    let minute = Duration::from_secs(60);
    for (observation, age, expected) in [
        (told("", ""), minute, Due::Nothing),
        (told("", ""), LIFETIME, Due::HandOver),
        (not_told("Unreachable", String::new()), minute, Due::HandOver),
    ] {
        assert_eq!(due_of(&with_condition(ready.clone(), observation, age)), expected);
    }
}

#[test]
fn everything_that_is_known_of_a_machine_must_be_so() {
    let mac = |text: &str| text.parse::<MacAddress>().unwrap();
    let announced = Announced {
        fingerprint: pin(2),
        endorsement_key: Some(pin(4)),
        mac_addresses: vec![mac("52:54:00:00:00:01"), mac("52:54:00:00:00:02")],
        serial_number: Some("A1".into()),
        system_uuid: None,
    };
    let known = |value: Value| serde_json::from_value::<WaitingMachine>(value).unwrap();
    for (waiting, expected) in [
        (json!({}), false),
        (json!({ "fingerprint": pin(2) }), true),
        (json!({ "fingerprint": pin(3) }), false),
        (json!({ "macAddress": "52:54:00:00:00:02" }), true),
        (json!({ "macAddress": "52:54:00:00:00:03" }), false),
        (json!({ "serialNumber": "A1", "macAddress": "52:54:00:00:00:01" }), true),
        (json!({ "serialNumber": "A1", "macAddress": "52:54:00:00:00:03" }), false),
        (json!({ "endorsementKey": pin(4) }), true),
        (json!({ "endorsementKey": pin(5) }), false),
        (json!({ "endorsementKey": pin(5), "serialNumber": "A1" }), false),
        (json!({ "serialNumber": "a1" }), false),
        (json!({ "systemUUID": "4c4c4544-0000-2010-8020-80c04f202020" }), false),
    ] {
        assert_eq!(is_meant(&known(waiting.clone()), &announced), expected, "{waiting}");
    }
}
