//! What a service may see and do.

use garboard_supervisor::spec::{Directory, Isolation, Seccomp, ServiceSpec};
use libtest_mimic::Trial;

use crate::trial;
use crate::world::World;

pub fn trials() -> Vec<Trial> {
    vec![
        trial("the_default_is_strict", the_default_is_strict),
        trial("another_user_keeps_only_named_capabilities", another_user_keeps_only_named_capabilities),
        trial("what_may_be_written_can_be_written", what_may_be_written_can_be_written),
        trial("system_calls_are_filtered", system_calls_are_filtered),
        trial("nothing_is_inherited", nothing_is_inherited),
    ]
}

fn isolated(world: &World, words: &[&str], change: impl FnOnce(&mut Isolation)) -> ServiceSpec {
    let mut isolation = Isolation::default();
    change(&mut isolation);
    ServiceSpec { isolation, ..world.service("isolated", words) }
}

fn value<'a>(lines: &'a [String], key: &str) -> &'a str {
    lines.iter().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).unwrap_or_default().trim()
}

fn the_default_is_strict(world: World) {
    let lines = world.output_of(isolated(
        &world,
        &["show=/proc/self/status", "try-write=/", "try-write=/var", "try-write=/run", "try-write=/tmp", "list=/dev"],
        |_| {},
    ));
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(value(&lines, set), "0000000000000000", "{set}");
    }
    assert_eq!((value(&lines, "NoNewPrivs"), value(&lines, "Seccomp")), ("1", "2"));
    let refused = "read-only filesystem or storage medium";
    for path in ["/", "/var", "/run"] {
        assert_eq!(value(&lines, &format!("write {path}")), refused);
    }
    assert_eq!(value(&lines, "write /tmp"), "ok");
    assert!(!std::path::Path::new("/tmp/written").exists(), "its /tmp is its own");
    assert_eq!(value(&lines, "list /dev"), "fd full null random stderr stdin stdout tty urandom zero");
}

fn another_user_keeps_only_named_capabilities(world: World) {
    let spec = isolated(&world, &["show=/proc/self/status"], |isolation| {
        isolation.capabilities = Some(vec!["CAP_NET_BIND_SERVICE".to_owned()]);
    });
    let lines = world.output_of(ServiceSpec { user: "nobody".to_owned(), ..spec });
    assert!(value(&lines, "Uid").starts_with("65534\t65534\t65534"));
    assert!(value(&lines, "Gid").starts_with("65534\t65534\t65534"));
    assert_eq!(value(&lines, "Groups"), "");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(value(&lines, set), "0000000000000400", "{set}");
    }
}

fn what_may_be_written_can_be_written(world: World) {
    let (own, hidden) = (world.path("own"), world.path("hidden"));
    std::fs::create_dir(&hidden).unwrap();
    std::fs::write(format!("{hidden}/secret"), "").unwrap();
    let words = [format!("try-write={own}"), format!("try-write={}", world.path("")), format!("list={hidden}")];
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let spec = isolated(&world, &words, |isolation| {
        isolation.read_write = vec![own.clone().into()];
        isolation.inaccessible = vec![hidden.clone().into()];
        // To look into a directory that nobody may read.
        isolation.capabilities = Some(vec!["CAP_DAC_OVERRIDE".to_owned()]);
    });
    let directories = vec![Directory { path: own.clone().into(), mode: 0o750, owner: None }];
    let lines = world.output_of(ServiceSpec { directories, ..spec });
    assert_eq!(value(&lines, &format!("write {own}")), "ok");
    assert_eq!(value(&lines, &format!("write {}", world.path(""))), "read-only filesystem or storage medium");
    assert_eq!(value(&lines, &format!("list {hidden}")), "");
}

fn system_calls_are_filtered(world: World) {
    let free = world.output_of(isolated(&world, &["mount=/tmp"], |isolation| {
        isolation.capabilities = None;
        isolation.seccomp = Seccomp::Unconfined;
    }));
    assert_eq!(free, ["mount: ok"]);
    let filtered = world.output_of(isolated(&world, &["print=filtered", "mount=/tmp"], |isolation| {
        isolation.capabilities = None;
        isolation.seccomp = Seccomp::Service;
    }));
    assert_eq!(filtered.last().map(String::as_str), Some("mount: EPERM: Operation not permitted"));
}

fn nothing_is_inherited(world: World) {
    let spec = world.service("clean", &["open-files", "list=/proc/self/fd", "env=HOME"]);
    let lines = world.output_of(ServiceSpec { rlimit_nofile: 321, ..spec });
    assert_eq!(lines[0], "open files 321 321");
    // The fourth is the directory being listed; what the test itself was started with is not PID 1's to close.
    let plain = std::process::Command::new("ls").arg("/proc/self/fd").output().unwrap();
    let plain = String::from_utf8(plain.stdout).unwrap();
    let surplus = value(&lines, "list /proc/self/fd").split(' ').find(|fd| !plain.lines().any(|line| line == *fd));
    assert_eq!(surplus, None);
    assert!(lines.contains(&"HOME=".to_owned()));
    // By a program that changes nothing of this itself.
    let argv = ["/bin/cat", "/proc/self/status"].map(str::to_owned).to_vec();
    let lines = world.output_of(ServiceSpec { argv, ..world.service("signals", &[]) });
    assert_eq!(value(&lines, "SigBlk"), "0000000000000000");
    // What the test itself was started with (by nohup, say) is not PID 1's to undo, nor are the C library's own signals, from 32 on;
    // SIGPIPE is, which Rust's start ignores.
    let ignored = |lines: &[String]| u64::from_str_radix(value(lines, "SigIgn"), 16).unwrap();
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    let own: Vec<String> = own.lines().map(str::to_owned).collect();
    const SIGPIPE: u64 = 1 << (13 - 1);
    let surplus = ignored(&lines) & 0x7fff_ffff & !(ignored(&own) & !SIGPIPE);
    assert_eq!(surplus, 0, "{surplus:#x}");
}
