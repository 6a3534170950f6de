use proptest::prelude::*;

use super::*;
use garboard_supervisor::testing::status;

fn running(name: &str) -> ServiceStatus {
    status(name, PublicState::Running { ready: true })
}

fn view() -> View {
    View {
        name: Some("keel".to_owned()),
        version: "0.1.0".to_owned(),
        phase: "Running".to_owned(),
        reason: None,
        addresses: vec![IpAddr::from([192, 0, 2, 7])],
        link: Some("eth0".to_owned()),
        endpoint: Some("192.0.2.7:6443".to_owned()),
        kubernetes: Some("v1.37.2".to_owned()),
        machine_api_port: 7443,
        fingerprint: format!("sha256:{}", "ab".repeat(32)),
        problems: vec![],
        waiting: vec![],
        services: ["etcd", "kube-apiserver", "kubelet"].map(running).to_vec(),
    }
}

/// The screen as it is seen: without the sequences for colour.
fn seen(view: &View, size: Size) -> Vec<String> {
    let mut text = render(view, size);
    for code in [BOLD, RED, YELLOW, GREEN, PLAIN] {
        text = text.replace(code, "");
    }
    text.lines().map(str::to_owned).collect()
}

#[test]
fn a_healthy_machine_fits_a_few_lines() {
    let key = format!("key     sha256:{}", "ab".repeat(32));
    let expected = [
        "Garboard 0.1.0 - keel - Running",
        "address 192.0.2.7 on eth0",
        "machine 192.0.2.7:7443 (garboardctl)",
        "cluster https://192.0.2.7:6443 (Kubernetes v1.37.2)",
        &key,
        "",
        "3 of 3 services ready: etcd, kube-apiserver, kubelet",
    ];
    assert_eq!(seen(&view(), Size::default()), expected);
    assert!(key.len() < Size::default().columns, "the fingerprint is never cut");
}

#[test]
fn a_machine_that_knows_nothing_yet_says_who_it_is_and_what_it_waits_for() {
    let view = View {
        version: "0.1.0".to_owned(),
        phase: "Starting".to_owned(),
        fingerprint: "sha256:00".to_owned(),
        waiting: vec!["a carrier on one of the links eth0, eth1".to_owned()],
        ..View::default()
    };
    let expected = [
        "Garboard 0.1.0 - machine without a name - Starting",
        "address none yet",
        "key     sha256:00",
        "",
        "waits   for a carrier on one of the links eth0, eth1",
    ];
    assert_eq!(seen(&view, Size::default()), expected);
}

#[test]
fn what_fails_comes_first_with_its_last_lines() {
    let mut view = view();
    view.problems = vec!["manifest document 2: kind \"Pod\" of \"v1\" is not allowed".to_owned()];
    let reason = "exited with 1".to_owned();
    let mut failing = status("kube-proxy", PublicState::BackOff { until_ms: 1, reason });
    failing.restarts = 4;
    failing.last_lines = (1..=5).map(|line| format!("line {line}\x1b[2J\ttab")).collect();
    let mut waiting = status("dns", PublicState::Waiting { on: vec![] });
    waiting.waiting_on = vec!["cni to be ready".to_owned()];
    view.services.insert(0, waiting);
    view.services.push(failing);
    let expected = [
        "error   manifest document 2: kind \"Pod\" of \"v1\" is not allowed",
        "kube-proxy - backoff: exited with 1 (restarts: 4)",
        "  | line 3 [2J tab",
        "  | line 4 [2J tab",
        "  | line 5 [2J tab",
        "dns - waiting: waits for cni to be ready",
        "3 of 5 services ready: etcd, kube-apiserver, kubelet",
    ];
    assert_eq!(seen(&view, Size::default())[6..], expected);
}

#[test]
fn what_does_not_fit_is_counted() {
    let mut view = view();
    view.services = (0..40).map(|n| status(&format!("service-{n}"), PublicState::Starting)).collect();
    let lines = seen(&view, Size::default());
    assert_eq!(lines.len(), 23);
    assert_eq!(lines[22], "... and 24 more lines: garboardctl services");
    let lines = seen(&view, Size { columns: 100, rows: 60 });
    assert_eq!(lines.len(), 46, "a larger screen shows all");
}

#[test]
fn long_errors_are_broken_and_end() {
    let mut view = view();
    view.problems = vec!["word ".repeat(200)];
    view.services.clear();
    let lines = seen(&view, Size::default());
    assert_eq!(lines.len(), 6 + MAX_TEXT_LINES);
    assert!(lines[6].starts_with("error   word word") && lines[7].starts_with("        word"));
    assert!(lines[6 + MAX_TEXT_LINES - 1].ends_with('>'));
}

#[test]
fn what_was_stopped_is_not_counted_as_ready() {
    let mut view = view();
    view.services[2] = status("kubelet", PublicState::Finished);
    let text = seen(&view, Size::default()).join("\n");
    assert!(text.contains("2 of 3 services ready: etcd, kube-apiserver\n1 of 3 services ended: kubelet"), "{text}");
}

fn texts() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z .\\x1b\\[0-9;mJ\\n\\r\\tü]{0,300}", "[a-z]{0,200}", Just("deux mots".to_owned())]
}

fn services_() -> impl Strategy<Value = Vec<ServiceStatus>> {
    let state = prop_oneof![
        Just(PublicState::Starting),
        Just(PublicState::Running { ready: true }),
        Just(PublicState::Running { ready: false }),
        texts().prop_map(|reason| PublicState::Failed { reason }),
        texts().prop_map(|reason| PublicState::BackOff { until_ms: 0, reason }),
        Just(PublicState::Waiting { on: vec![] }),
    ];
    let one = ("[a-z]{1,30}", state, any::<bool>(), texts(), proptest::collection::vec(texts(), 0..6));
    let one = one.prop_map(|(name, state, crash_looping, message, last_lines)| ServiceStatus {
        crash_looping,
        message,
        last_lines,
        ..status(&name, state)
    });
    proptest::collection::vec(one, 0..30)
}

proptest! {
    #[test]
    fn whatever_is_said_stays_inside_of_the_screen(
        services in services_(),
        problems in proptest::collection::vec(texts(), 0..6),
        waiting in proptest::collection::vec(texts(), 0..4),
        name in texts(),
        reason in texts(),
        columns in 0..140_usize,
        rows in 0..60_usize,
    ) {
        let view = View { name: Some(name), reason: Some(reason), problems, waiting, services, ..view() };
        let lines = seen(&view, Size { columns, rows });
        prop_assert!(lines.len() < rows.max(12), "{} lines", lines.len());
        for line in &lines {
            prop_assert!(line.chars().count() < columns.max(40), "{line:?}");
            prop_assert!(!line.contains(char::is_control), "{line:?}");
        }
    }
}
