//! Mounts in a mount namespace of the test's own thread.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::Path;

use garboard_sys::mount::{self, Mount, MountError, MountFlags, Unmount};

#[test]
fn mounts_are_made_once_changed_moved_and_removed() {
    let directory = tempfile::tempdir().unwrap();
    mount::private_namespace().unwrap();
    let base = directory.path().to_str().unwrap();
    let target = format!("{base}/a b/deep");
    let tmpfs = Mount {
        source: "test",
        target: &target,
        fs_type: "tmpfs",
        flags: MountFlags::NOSUID | MountFlags::NODEV,
        data: "size=64k,mode=700",
    };
    tmpfs.apply().unwrap();
    tmpfs.apply().unwrap();
    let ours =
        |target: &str| mount::mounts().unwrap().into_iter().filter(|m| m.mount_point == Path::new(target)).count();
    assert_eq!(ours(&target), 1, "applying a list again changes nothing");
    fs::write(format!("{target}/file"), "x").unwrap();

    // Read only through one mount, still writable through the other; flags stay.
    let view = format!("{base}/view");
    fs::create_dir(&view).unwrap();
    mount::bind(Path::new(&target), Path::new(&view), false).unwrap();
    mount::remount_bind_read_only(Path::new(&view)).unwrap();
    assert!(fs::write(format!("{view}/other"), "x").is_err());
    fs::write(format!("{target}/other"), "x").unwrap();
    let seen = mount::mounts().unwrap().into_iter().find(|m| m.mount_point == Path::new(&view)).unwrap();
    assert!(seen.read_only() && seen.flags().contains(MountFlags::NOSUID | MountFlags::NODEV));

    // An open file keeps a file system from going read only or away, and says that it is busy.
    let open = fs::File::create(format!("{target}/open")).unwrap();
    assert!(mount::remount_read_only(Path::new(&target)).unwrap_err().is_busy());
    assert!(mount::unmount(Path::new(&target), Unmount::Clean).unwrap_err().is_busy());
    drop(open);
    mount::unmount(Path::new(&view), Unmount::Clean).unwrap();
    mount::remount_read_only(Path::new(&target)).unwrap();

    let moved = format!("{base}/moved");
    fs::create_dir(&moved).unwrap();
    mount::move_to(Path::new(&target), Path::new(&moved)).unwrap();
    assert!(mount::is_mounted(Path::new(&moved)).unwrap() && !mount::is_mounted(Path::new(&target)).unwrap());
    mount::unmount(Path::new(&moved), Unmount::Detach).unwrap();
    mount::unmount(Path::new(&moved), Unmount::Clean).unwrap();

    let unknown = Mount { fs_type: "nofs", ..tmpfs };
    let error = unknown.apply().unwrap_err();
    assert!(matches!(&error, MountError::Mount { fs_type, .. } if fs_type == "nofs"), "{error}");
}
