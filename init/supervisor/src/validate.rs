//! Which specifications are refused, and why.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use crate::spec::{Probe, ProbeAction, ServiceName, ServiceSpec};

/// Where services may have files written.
const RENDERED_ROOT: &str = "/run/garboard";

/// A set of services that is refused as a whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSet {
    /// A name appears twice.
    #[error("service {0} is declared twice")]
    Twice(ServiceName),
    /// A name belongs to a built-in service.
    #[error("service {0} is built in")]
    BuiltIn(ServiceName),
    /// A specification is wrong.
    #[error("service {name}: {fault}")]
    Spec {
        /// The service.
        name: ServiceName,
        /// What is wrong.
        fault: String,
    },
    /// Requirements go in a circle, so that none of these could ever start.
    #[error("services require each other in a circle: {}", .0.iter().map(ServiceName::as_str).collect::<Vec<_>>().join(" -> "))]
    Circle(Vec<ServiceName>),
}

/// Whether a set can be supervised.
///
/// # Errors
/// The first fault found.
pub fn validate_set(specs: &[ServiceSpec], builtin: &BTreeSet<ServiceName>) -> Result<(), InvalidSet> {
    let mut seen = BTreeMap::new();
    for spec in specs {
        if builtin.contains(&spec.name) {
            return Err(InvalidSet::BuiltIn(spec.name.clone()));
        }
        if seen.insert(&spec.name, spec).is_some() {
            return Err(InvalidSet::Twice(spec.name.clone()));
        }
        validate(spec).map_err(|fault| InvalidSet::Spec { name: spec.name.clone(), fault })?;
    }
    match circle(&seen) {
        Some(names) => Err(InvalidSet::Circle(names)),
        None => Ok(()),
    }
}

fn validate(spec: &ServiceSpec) -> Result<(), String> {
    match spec.argv.first() {
        Some(program) if is_plain(Path::new(program)) => {}
        Some(program) => return Err(format!("program {program:?} is not an absolute path")),
        None => return Err("it has no program".to_owned()),
    }
    let texts = spec.argv.iter().chain(&spec.argv0).chain(spec.env.keys()).chain(spec.env.values());
    if texts.into_iter().any(|text| text.contains('\0')) {
        return Err("arguments and environment cannot hold a NUL character".to_owned());
    }
    if let Some(key) = spec.env.keys().find(|key| key.is_empty() || key.contains('=')) {
        return Err(format!("environment variable {key:?} has no valid name"));
    }
    if let Some(file) = spec.files.iter().find(|file| !is_plain(&file.path) || !file.path.starts_with(RENDERED_ROOT)) {
        return Err(format!("file {} is not below {RENDERED_ROOT}", file.path.display()));
    }
    let isolation = &spec.isolation;
    let directories = spec.directories.iter().map(|directory| directory.path.as_path());
    let paths = directories.chain([spec.working_directory.as_path()]);
    let paths = paths.chain(isolation.read_write.iter().chain(&isolation.inaccessible).map(|path| path.as_path()));
    if let Some(path) = paths.into_iter().find(|path| !is_plain(path)) {
        return Err(format!("{} is not an absolute path", path.display()));
    }
    let modes = spec.files.iter().map(|file| file.mode).chain(spec.directories.iter().map(|directory| directory.mode));
    if let Some(mode) = modes.into_iter().find(|mode| *mode > 0o7777) {
        return Err(format!("{mode:#o} is not a mode"));
    }
    if let Some(name) = isolation.capabilities.iter().flatten().find(|name| !name.starts_with("CAP_")) {
        return Err(format!("{name:?} is not a capability"));
    }
    let cgroup = &spec.cgroup;
    if let Some(weight) =
        [cgroup.cpu_weight, cgroup.io_weight].into_iter().flatten().find(|w| !(1..=10_000).contains(w))
    {
        return Err(format!("weight {weight} is not in 1..=10000"));
    }
    if !(-1000..=1000).contains(&cgroup.oom_score_adj) {
        return Err(format!("oom_score_adj {} is not in -1000..=1000", cgroup.oom_score_adj));
    }
    if let Some(signal) =
        [Some(spec.stop.signal), spec.reload_signal].into_iter().flatten().find(|s| !(1..=64).contains(s))
    {
        return Err(format!("{signal} is not a signal"));
    }
    if spec.start_timeout_ms == 0 || spec.watchdog_ms == Some(0) || spec.restart.initial_ms == 0 {
        return Err("a time is zero".to_owned());
    }
    if spec.restart.max_ms < spec.restart.initial_ms {
        return Err("the longest wait is shorter than the first".to_owned());
    }
    for probe in spec.readiness.iter().chain(&spec.liveness) {
        validate_probe(probe)?;
    }
    if matches!(&spec.liveness, Some(Probe { action: ProbeAction::Notify {}, .. })) {
        return Err("liveness cannot be notified: watchdog_ms is for that".to_owned());
    }
    Ok(())
}

fn validate_probe(probe: &Probe) -> Result<(), String> {
    if probe.period_ms == 0 || probe.timeout_ms == 0 || probe.failure_threshold == 0 {
        return Err("a probe's period, timeout or threshold is zero".to_owned());
    }
    match &probe.action {
        ProbeAction::Http { path, .. } | ProbeAction::Https { path, .. } => {
            let valid = path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic());
            if valid { Ok(()) } else { Err(format!("probe path {path:?} is not valid")) }
        }
        ProbeAction::Unix { path } if !is_plain(path) => Err(format!("{} is not an absolute path", path.display())),
        ProbeAction::Exec { argv } if !argv.first().is_some_and(|program| is_plain(Path::new(program))) => {
            Err("a probe's program is not an absolute path".to_owned())
        }
        ProbeAction::Notify {} | ProbeAction::Tcp { .. } | ProbeAction::Unix { .. } | ProbeAction::Exec { .. } => {
            Ok(())
        }
    }
}

/// Whether a path is absolute and goes only downwards.
fn is_plain(path: &Path) -> bool {
    path.is_absolute() && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
}

/// A circle among the requirements, from one service back to itself.
fn circle(specs: &BTreeMap<&ServiceName, &ServiceSpec>) -> Option<Vec<ServiceName>> {
    let mut done = BTreeSet::new();
    specs.keys().find_map(|name| visit(name, specs, &mut Vec::new(), &mut done))
}

fn visit<'a>(
    name: &'a ServiceName,
    specs: &BTreeMap<&'a ServiceName, &'a ServiceSpec>,
    path: &mut Vec<&'a ServiceName>,
    done: &mut BTreeSet<&'a ServiceName>,
) -> Option<Vec<ServiceName>> {
    if let Some(start) = path.iter().position(|visited| *visited == name) {
        return Some(path[start..].iter().chain([&name]).map(|name| (*name).clone()).collect());
    }
    let spec = specs.get(name)?;
    if done.contains(name) {
        return None;
    }
    path.push(name);
    let found = spec.requires.iter().find_map(|condition| visit(&condition.service, specs, path, done));
    path.pop();
    done.insert(name);
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Condition, Reached};
    use crate::supervisor::tests::{name, service};

    fn check(change: impl FnOnce(&mut ServiceSpec)) -> Result<(), InvalidSet> {
        let mut spec = service("a");
        change(&mut spec);
        validate_set(&[spec], &BTreeSet::from([name("agent")]))
    }

    #[test]
    fn faults_are_named() {
        assert_eq!(check(|_| {}), Ok(()));
        type Fault = (&'static str, fn(&mut ServiceSpec));
        let cases: [Fault; 12] = [
            ("it has no program", |spec| spec.argv.clear()),
            ("not an absolute path", |spec| spec.argv[0] = "true".to_owned()),
            ("NUL", |spec| spec.argv.push("a\0b".to_owned())),
            ("has no valid name", |spec| drop(spec.env.insert("A=B".to_owned(), String::new()))),
            ("is not an absolute path", |spec| spec.working_directory = "/a/../b".into()),
            ("is not below /run/garboard", |spec| {
                spec.files.push(crate::spec::RenderedFile {
                    path: "/run/garboard/../x".into(),
                    mode: 0o600,
                    owner: None,
                    content: String::new(),
                });
            }),
            ("is not a capability", |spec| spec.isolation.capabilities = Some(vec!["NET_ADMIN".to_owned()])),
            ("not in 1..=10000", |spec| spec.cgroup.cpu_weight = Some(0)),
            ("is not a signal", |spec| spec.stop.signal = 0),
            ("a time is zero", |spec| spec.start_timeout_ms = 0),
            ("shorter than the first", |spec| spec.restart.max_ms = 1),
            ("cannot be notified", |spec| {
                spec.liveness =
                    Some(Probe { action: ProbeAction::Notify {}, period_ms: 1, timeout_ms: 1, failure_threshold: 1 });
            }),
        ];
        for (text, change) in cases {
            let error = check(change).unwrap_err().to_string();
            assert!(error.contains(text) && error.starts_with("service a: "), "{text}: {error}");
        }
    }

    #[test]
    fn circles_twins_and_taken_names_are_refused() {
        let requiring = |who: &str, whom: &[&str]| {
            let mut spec = service(who);
            spec.requires = whom.iter().map(|whom| Condition { service: name(whom), state: Reached::Ready }).collect();
            spec
        };
        let none = BTreeSet::new();
        let set = [requiring("a", &["d", "b"]), requiring("b", &["c"]), requiring("c", &["b"]), requiring("d", &[])];
        let error = validate_set(&set, &none).unwrap_err();
        assert_eq!(error.to_string(), "services require each other in a circle: b -> c -> b");
        assert!(matches!(validate_set(&[requiring("a", &["a"])], &none), Err(InvalidSet::Circle(_))));
        assert_eq!(validate_set(&[service("a"), service("a")], &none), Err(InvalidSet::Twice(name("a"))));
        assert_eq!(
            validate_set(&[service("agent")], &BTreeSet::from([name("agent")])),
            Err(InvalidSet::BuiltIn(name("agent")))
        );
        assert_eq!(validate_set(&[requiring("a", &["b", "c"]), requiring("b", &["c"]), service("c")], &none), Ok(()));
    }
}
