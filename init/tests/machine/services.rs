//! Starting, readiness, restarts, sets and output.

use futures::StreamExt;
use garboard_control::{LogSource, ProbeKind, Upkeep};
use garboard_supervisor::spec::{Condition, Probe, ProbeAction, Reached, RenderedFile, ServiceName, ServiceSpec};
use garboard_supervisor::status::{Change, PublicState};
use libtest_mimic::Trial;

use crate::trial;
use crate::world::World;

pub fn trials() -> Vec<Trial> {
    vec![
        trial("dependents_start_when_what_they_require_is_ready", dependents_start_when_what_they_require_is_ready),
        trial("every_kind_of_probe_finds_readiness", every_kind_of_probe_finds_readiness),
        trial("a_killed_service_comes_back_and_others_are_undisturbed", a_killed_service_comes_back),
        trial("a_crash_loop_is_reported_with_the_last_lines", a_crash_loop_is_reported_with_the_last_lines),
        trial("a_failed_setup_names_its_step", a_failed_setup_names_its_step),
        trial("orphans_are_reaped", orphans_are_reaped),
        trial("a_hung_service_is_restarted", a_hung_service_is_restarted),
        trial("only_the_service_itself_can_say_that_it_is_ready", only_the_service_itself),
        trial("files_are_refreshed_without_a_restart", files_are_refreshed_without_a_restart),
        trial("a_deaf_service_is_killed_after_its_grace", a_deaf_service_is_killed_after_its_grace),
        trial("an_invalid_set_is_refused_whole", an_invalid_set_is_refused_whole),
        trial("output_can_be_followed", output_can_be_followed),
        trial("what_is_configured_has_its_bounds", what_is_configured_has_its_bounds),
    ]
}

fn name(name: &str) -> ServiceName {
    ServiceName::try_from(name).unwrap()
}

fn probe(action: ProbeAction) -> Option<Probe> {
    Some(Probe { action, period_ms: 20, timeout_ms: 5000, failure_threshold: 2 })
}

fn dependents_start_when_what_they_require_is_ready(world: World) {
    let gate = world.path("gate");
    let first = ServiceSpec {
        readiness: probe(ProbeAction::Notify {}),
        ..world.service("first", &[&format!("wait-for={gate}"), "notify=STATUS=done\nREADY=1", "sleep"])
    };
    let second = ServiceSpec {
        requires: vec![Condition { service: name("first"), state: Reached::Ready }],
        ..world.service("second", &["sleep"])
    };
    world.set(&[second, first]);
    world.wait_for("first", |status| matches!(status.state, PublicState::Running { ready: false }));
    assert_eq!(world.status("second").waiting_on, ["first to be ready"]);
    std::fs::write(gate, "").unwrap();
    world.wait_ready("second");
    assert_eq!(world.status("first").message, "done");
}

fn every_kind_of_probe_finds_readiness(world: World) {
    let (gate, socket) = (world.path("gate"), world.path("socket"));
    let wait = format!("wait-for={gate}");
    let tcp = "127.0.0.1:39401".parse().unwrap();
    let http = "127.0.0.1:39402".parse().unwrap();
    let program = std::env::current_exe().unwrap().display().to_string();
    let exec = [program, "--as-service".to_owned(), format!("exists={gate}")];
    let https = ProbeAction::Https { address: tcp, path: "/".to_owned(), ca_file: "/ca".into(), client: None };
    let specs = [
        ("tcp", ProbeAction::Tcp { address: tcp }, vec![wait.clone(), format!("tcp={tcp}")]),
        ("http", ProbeAction::Http { address: http, path: "/healthz".to_owned() }, vec![format!("http={http},{gate}")]),
        ("unix", ProbeAction::Unix { path: socket.clone().into() }, vec![wait.clone(), format!("unix={socket}")]),
        ("exec", ProbeAction::Exec { argv: exec.to_vec() }, vec![]),
        ("notify", ProbeAction::Notify {}, vec![wait, "notify=READY=1".to_owned()]),
        ("https", https, vec![]),
    ];
    let specs: Vec<ServiceSpec> = specs
        .into_iter()
        .map(|(name, action, words)| {
            let words: Vec<&str> = words.iter().map(String::as_str).chain(["sleep"]).collect();
            ServiceSpec { readiness: probe(action), ..world.service(name, &words) }
        })
        .collect();
    world.set(&specs);
    for spec in &specs {
        world.wait_for(spec.name.as_str(), |status| matches!(status.state, PublicState::Running { ready: false }));
    }
    std::fs::write(gate, "").unwrap();
    for kind in ["tcp", "http", "unix", "exec", "notify"] {
        world.wait_ready(kind);
    }
    assert!(!world.status("https").ready, "nobody has reported it");
    world.block(world.client().report_probe(&name("https"), ProbeKind::Readiness, true, "")).unwrap();
    world.wait_ready("https");
}

fn a_killed_service_comes_back(world: World) {
    world.set(&[world.service("victim", &["sleep"]), world.service("other", &["sleep"])]);
    let (before, other) = (world.wait_ready("victim"), world.wait_ready("other"));
    // From inside, where process numbers mean what the status says.
    let kill = ServiceSpec {
        oneshot: true,
        argv: ["/bin/kill", "-9", &before.pid.unwrap().to_string()].map(str::to_owned).to_vec(),
        ..world.service("killer", &[])
    };
    world.set(&[world.service("victim", &["sleep"]), world.service("other", &["sleep"]), kill]);
    let after = world.wait_for("victim", |status| status.ready && status.pid != before.pid);
    assert_eq!(after.restarts, 1);
    assert_eq!(after.last_exit.unwrap().to_string(), "killed by SIGKILL");
    assert_eq!(world.status("other").pid, other.pid);
}

fn a_crash_loop_is_reported_with_the_last_lines(world: World) {
    world.set(&[
        world.service("bad", &["print=first line", "print=it is broken", "exit=3"]),
        world.service("good", &["sleep"]),
    ]);
    let status = world.wait_for("bad", |status| status.crash_looping && !status.last_lines.is_empty());
    assert_eq!(status.last_lines.last().map(String::as_str), Some("it is broken"));
    assert_eq!(status.last_exit.unwrap().to_string(), "exited with 3");
    let (_, reason) = world.wait_back_off("bad");
    assert_eq!(reason, "exited with 3");
    assert!(world.wait_ready("good").restarts == 0);
}

fn a_failed_setup_names_its_step(world: World) {
    let nobody = ServiceSpec { user: "no-such-user".to_owned(), ..world.service("nobody", &[]) };
    let missing = ServiceSpec { argv: vec!["/no/such/program".to_owned()], ..world.service("missing", &[]) };
    let capability = world.service("capability", &[]);
    let isolation = garboard_supervisor::spec::Isolation {
        capabilities: Some(vec!["CAP_FLY".to_owned()]),
        ..capability.isolation.clone()
    };
    world.set(&[nobody, missing, ServiceSpec { isolation, ..capability }]);
    assert_eq!(world.wait_back_off("nobody").1, "cannot look up user no-such-user: there is no user \"no-such-user\"");
    assert!(world.wait_back_off("missing").1.starts_with("cannot execute /no/such/program: No such file"));
    assert!(world.wait_back_off("capability").1.contains("CAP_FLY"));
}

fn orphans_are_reaped(world: World) {
    world.set(&[world.service("parent", &["orphan", "orphan", "notify=STATUS=born", "sleep"])]);
    world.wait_for("parent", |status| status.message == "born");
    let orphans =
        || world.processes().into_iter().filter(|(line, state)| line.contains("0.05") || *state == 'Z').count();
    world.until("the orphans' end", || orphans() == 0);
    assert_eq!(world.status("parent").restarts, 0);
}

fn a_hung_service_is_restarted(world: World) {
    let alive = world.path("alive");
    std::fs::write(&alive, "").unwrap();
    let address = "127.0.0.1:39403".parse().unwrap();
    let probed = ServiceSpec {
        liveness: probe(ProbeAction::Http { address, path: "/".to_owned() }),
        ..world.service("probed", &[&format!("http={address},{alive}"), "sleep"])
    };
    let watched = ServiceSpec {
        readiness: probe(ProbeAction::Notify {}),
        watchdog_ms: Some(300),
        ..world.service("watched", &["env=WATCHDOG_USEC", "notify=READY=1", "notify=WATCHDOG=1", "sleep"])
    };
    world.set(&[probed, watched]);
    world.wait_ready("probed");
    let (_, reason) = world.wait_back_off("watched");
    assert_eq!(reason, "no sign of life in time");
    assert_eq!(world.output("watched")[0], "WATCHDOG_USEC=300000");
    assert_eq!(world.status("probed").restarts, 0);
    std::fs::remove_file(alive).unwrap();
    let (_, reason) = world.wait_back_off("probed");
    assert!(reason.starts_with("it hangs: ") && reason.ends_with("status 503"), "{reason}");
}

fn only_the_service_itself(world: World) {
    let real = ServiceSpec { readiness: probe(ProbeAction::Notify {}), ..world.service("real", &["sleep"]) };
    let liar = world.service("liar", &["notify=READY=1", "print=sent", "sleep"]);
    world.set(&[real, liar]);
    world.until("the lie", || world.output("liar").contains(&"sent".to_owned()));
    assert!(!world.status("real").ready);
}

fn files_are_refreshed_without_a_restart(world: World) {
    let path = "/run/garboard/services/a/config";
    let spec = |content: &str| ServiceSpec {
        files: vec![RenderedFile { path: path.into(), mode: 0o440, owner: None, content: content.to_owned() }],
        watches_files: true,
        ..world.service("a", &["sleep"])
    };
    world.set(&[spec("one")]);
    let before = world.wait_ready("a");
    let results = world.block(world.client().set_services(&[spec("two")])).unwrap();
    assert_eq!(results[0].change, Change::Refreshed);
    let show = ServiceSpec { oneshot: true, ..world.service("show", &[&format!("show={path}")]) };
    world.until("the new file", || {
        world.set(&[spec("two")]);
        world.set(&[spec("two"), show.clone()]);
        world.wait_ready("show");
        world.output("show").contains(&"two".to_owned())
    });
    assert_eq!(world.status("a").pid, before.pid);
}

fn a_deaf_service_is_killed_after_its_grace(world: World) {
    world.set(&[world.service("deaf", &["deaf", "notify=STATUS=deaf", "sleep"])]);
    world.wait_for("deaf", |status| status.message == "deaf");
    world.set(&[]);
    world.until("its end", || world.block(world.client().list_services()).unwrap().is_empty());
    assert!(!world.processes().iter().any(|(line, _)| line.contains("deaf")));
}

fn an_invalid_set_is_refused_whole(world: World) {
    world.set(&[world.service("a", &["sleep"])]);
    let before = world.wait_ready("a");
    let broken = ServiceSpec { argv: Vec::new(), ..world.service("b", &[]) };
    let error = world.block(world.client().set_services(&[broken])).unwrap_err();
    assert!(error.is_refusal() && !error.is_retryable());
    assert_eq!(error.to_string(), "SetServices failed: service b: it has no program");
    assert_eq!(world.status("a").pid, before.pid);
    let unknown = world.block(world.client().restart_service(&name("nobody"))).unwrap_err();
    assert_eq!(unknown.to_string(), "RestartService failed: there is no service nobody");
}

fn output_can_be_followed(world: World) {
    let gate = world.path("gate");
    world.set(&[world.service("a", &["print=one", "print=two", &format!("wait-for={gate}"), "print=three", "sleep"])]);
    world.until("the first lines", || world.output("a").len() == 2);
    let lines: Vec<String> = world.block(async {
        let stream = world.client().logs(&LogSource::Service(name("a")), 1, true).await.unwrap();
        std::fs::write(gate, "").unwrap();
        stream.take(2).map(|line| line.unwrap().text).collect().await
    });
    assert_eq!(lines, ["two", "three"]);
    assert!(world.block(world.client().get_machine()).unwrap().uptime_ms > 0);
}

fn what_is_configured_has_its_bounds(world: World) {
    // No watchdog is asked for: there may be a real one here.
    let upkeep = Upkeep { watchdog_seconds: None, log_file_bytes: 1 << 20, log_files: 2 };
    assert_eq!(world.block(world.client().configure(&upkeep)).unwrap(), Vec::<String>::new());
    let error = world.block(world.client().configure(&Upkeep { log_files: 99, ..upkeep })).unwrap_err();
    assert!(error.is_refusal() && error.to_string().contains("logFiles is 99"), "{error}");
}
