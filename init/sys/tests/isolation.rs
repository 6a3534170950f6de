//! A service's isolation, seen from inside: each test starts this program again as a process of its own that isolates itself and reports.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use garboard_sys::isolate::{Account, Capabilities, MountView, Sandbox};

const CASE: &str = "GARBOARD_ISOLATION_CASE";

fn sandbox() -> Sandbox {
    Sandbox {
        account: Account { uid: 201, gid: 201, groups: vec![206] },
        view: Some(MountView {
            read_write: vec![writable()],
            inaccessible: vec!["/root".into(), "/etc/hostname".into(), "/does/not/exist".into()],
            private_tmp: true,
            private_devices: true,
        }),
        capabilities: Some(Capabilities::from_names(&["CAP_NET_BIND_SERVICE"]).unwrap()),
        no_new_privileges: true,
        seccomp: true,
        open_files: 4096,
        oom_score_adj: 123,
    }
}

fn writable() -> PathBuf {
    PathBuf::from("/var/tmp/garboard-isolation-test")
}

/// Runs in a process of its own, started by the tests below; does nothing when the test runner meets it by itself.
#[test]
#[ignore = "started by the other tests in a process of its own"]
fn isolated() {
    let Ok(case) = std::env::var(CASE) else { return };
    match case.as_str() {
        "service" => sandbox().enter().unwrap(),
        "root" => Sandbox {
            account: Account::ROOT,
            capabilities: Some(Capabilities::NONE),
            view: None,
            seccomp: false,
            ..sandbox()
        }
        .enter()
        .unwrap(),
        "missing" => {
            let view = MountView { read_write: vec!["/not/there".into()], ..MountView::default() };
            let error = Sandbox { view: Some(view), ..sandbox() }.enter().unwrap_err();
            println!("\n@{error}");
            return;
        }
        other => panic!("unknown case {other}"),
    }
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    for name in ["Uid", "Gid", "Groups", "CapEff", "CapPrm", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"] {
        println!("\n@{name}={}", field(name));
    }
    println!(
        "\n@mount={}",
        outcome(garboard_sys::mount::bind(Path::new("/"), Path::new("/"), false).map_err(std::io::Error::other))
    );
    if case == "root" {
        return;
    }
    println!("\n@oom={}", fs::read_to_string("/proc/self/oom_score_adj").unwrap().trim());
    let limits = fs::read_to_string("/proc/self/limits").unwrap();
    println!(
        "\n@files={}",
        limits.lines().any(|l| l.starts_with("Max open files") && l.contains("4096                 4096"))
    );
    println!("\n@write-etc={}", outcome(fs::write("/etc/garboard-isolation", "")));
    println!("\n@write-var={}", outcome(fs::write("/var/garboard-isolation", "")));
    println!("\n@write-own={}", outcome(fs::write(writable().join("file"), "")));
    println!("\n@write-tmp={}", outcome(fs::write("/tmp/file", "")));
    println!("\n@write-null={}", outcome(fs::write("/dev/null", "x")));
    println!("\n@hostname={}", fs::read("/etc/hostname").map_or(usize::MAX, |bytes| bytes.len()));
    println!("\n@root={}", outcome(fs::read_dir("/root").map(drop)));
    let mut devices: Vec<String> =
        fs::read_dir("/dev").unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    devices.sort();
    println!("\n@devices={}", devices.join(","));
    println!("\n@unshare={}", outcome(nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER).map_err(Into::into)));
    println!("\n@thread={}", std::thread::spawn(|| "runs").join().unwrap());
    println!("\n@child={}", Command::new("/bin/true").status().is_ok_and(|status| status.success()));
}

fn outcome(result: std::io::Result<()>) -> String {
    result.map_or_else(
        |error| error.raw_os_error().map_or_else(|| "refused".to_owned(), |n| n.to_string()),
        |()| "ok".into(),
    )
}

fn run(case: &str) -> Vec<(String, String)> {
    fs::create_dir_all(writable()).unwrap();
    nix::unistd::chown(&writable(), Some(201.into()), Some(201.into())).unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["isolated", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .env(CASE, case)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    text.lines()
        .filter_map(|line| line.strip_prefix('@'))
        .map(|line| {
            line.split_once('=').map_or((line.to_owned(), String::new()), |(k, v)| (k.to_owned(), v.to_owned()))
        })
        .collect()
}

fn assert_seen(seen: &[(String, String)], expected: &[(&str, &str)]) {
    for (name, value) in expected {
        let found = seen.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        assert_eq!(found, Some(*value), "{name} in {seen:?}");
    }
}

#[test]
fn service_sees_and_may_only_what_is_named() {
    const NET_BIND_SERVICE: &str = "0000000000000400";
    assert_seen(
        &run("service"),
        &[
            ("Uid", "201 201 201 201"),
            ("Gid", "201 201 201 201"),
            ("Groups", "206"),
            ("CapEff", NET_BIND_SERVICE),
            ("CapPrm", NET_BIND_SERVICE),
            ("CapBnd", NET_BIND_SERVICE),
            ("CapAmb", NET_BIND_SERVICE),
            ("NoNewPrivs", "1"),
            ("Seccomp", "2"),
            ("oom", "123"),
            ("files", "true"),
            ("write-etc", "30"),
            ("write-var", "30"),
            ("write-own", "ok"),
            ("write-tmp", "ok"),
            ("write-null", "ok"),
            ("hostname", "0"),
            ("root", "13"),
            ("devices", "fd,full,null,random,stderr,stdin,stdout,tty,urandom,zero"),
            ("unshare", "1"),
            ("mount", "refused"),
            ("thread", "runs"),
            ("child", "true"),
        ],
    );
    assert!(!Path::new("/tmp/file").exists(), "the private /tmp is not the machine's");
}

#[test]
fn root_without_capabilities_cannot_regain_them() {
    const NONE: &str = "0000000000000000";
    assert_seen(
        &run("root"),
        &[("Uid", "0 0 0 0"), ("CapEff", NONE), ("CapBnd", NONE), ("Seccomp", "0"), ("mount", "refused")],
    );
}

#[test]
fn missing_writable_path_is_named() {
    let seen = run("missing");
    assert_eq!(seen, [("/not/there, which the service may write, does not exist".to_owned(), String::new())]);
}
