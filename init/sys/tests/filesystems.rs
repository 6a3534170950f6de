//! Labelled file systems made by Debian's tools, found on loop devices' partitions and mounted.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use garboard_sys::filesystem::{Kind, Labelled, probe};
use garboard_sys::mount::{self, Unmount};

fn make(program: &str, arguments: &[&str], image: &Path) -> bool {
    File::create(image).unwrap().set_len(40 << 20).unwrap();
    let made = Command::new(program).args(arguments).arg(image).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").output();
    made.is_ok_and(|output| output.status.success())
}

#[test]
fn labels_of_real_file_systems_are_read() {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    let cases = [
        ("mkfs.ext4", &["-q", "-L", "GARBOARD"][..], (Kind::Ext4, "GARBOARD")),
        ("mkfs.vfat", &["-F", "32", "-s", "1", "-n", "CIDATA"], (Kind::Vfat, "CIDATA")),
        ("mkfs.vfat", &["-F", "16", "-n", "garboard"], (Kind::Vfat, "GARBOARD")),
    ];
    let mut tried = 0;
    for (program, arguments, (kind, label)) in cases {
        if make(program, arguments, &image) {
            tried += 1;
            let found = probe(&File::open(&image).unwrap()).unwrap().unwrap();
            assert_eq!(found.0, kind, "{program} {arguments:?}");
            assert!(found.1.eq_ignore_ascii_case(label), "{program} {arguments:?}: {}", found.1);
        }
    }
    assert!(tried > 0, "no mkfs is installed");
}

#[test]
fn media_are_mounted_without_power() {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    let source = directory.path().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("machine.yaml"), "kind: Machine").unwrap();
    assert!(make("mkfs.ext4", &["-q", "-L", "cidata", "-d", source.to_str().unwrap()], &image));
    let losetup = |arguments: &[&str]| {
        let output = Command::new("/sbin/losetup").args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let device = losetup(&["--find", "--show", image.to_str().unwrap()]);
    mount::private_namespace().unwrap();
    let target = directory.path().join("mounted");
    let medium = Labelled { device: (&device).into(), kind: Kind::Ext4, label: "cidata".to_owned() };
    let result = medium.mount(&target);
    let text = fs::read_to_string(target.join("machine.yaml"));
    let flags = mount::mounts().unwrap().into_iter().find(|m| m.mount_point == target).map(|m| m.options);
    mount::unmount(&target, Unmount::Clean).unwrap();
    losetup(&["--detach", &device]);
    result.unwrap();
    assert_eq!(text.unwrap(), "kind: Machine");
    assert!(flags.unwrap().starts_with("ro,nosuid,nodev,noexec"));
}
