//! The parts of this program that run as services of their own (see [`crate::builtin`]): what they wait for holds PID 1 up no more than
//! any other service would, and their failures are reported and tried again like any other's.

use std::error::Error;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use garboard_sys::gpt::Guid;

use crate::disks::{Mounted, Volume, provide};
use crate::{builtin, devices, identity, startup};

/// A task's own error is whatever failed.
type TaskResult = Result<(), Box<dyn Error>>;

/// The task with this name, if there is one.
pub fn find(name: &str) -> Option<fn() -> TaskResult> {
    match name {
        builtin::STATE => Some(state),
        builtin::DATA => Some(data),
        builtin::DEVICES => Some(load_devices),
        _ => None,
    }
}

/// Mounts STATE; then the machine has its id, its randomness and a plausible time.
fn state() -> TaskResult {
    mount(Volume::State)?;
    let state = Path::new(Volume::State.mount_point());
    // Each of these is worth having without the others.
    if let Err(error) = identity::stir_random(state) {
        eprintln!("random seed: {error}");
    }
    match identity::set_clock_floor(state, Path::new("/usr/lib/os-release")) {
        Ok(Some(_)) => eprintln!("the clock was behind the last time known and was set forward"),
        Ok(None) => {}
        Err(error) => eprintln!("clock: {error}"),
    }
    identity::machine_id(state, Path::new("/run/garboard/etc"))?;
    Ok(())
}

fn data() -> TaskResult {
    mount(Volume::Data)?;
    // What everybody expects below /var.
    for directory in ["/var/lib", "/var/log/garboard", "/var/log/pods", "/var/cache", "/var/tmp"] {
        fs::create_dir_all(directory)?;
    }
    fs::set_permissions("/var/tmp", std::os::unix::fs::PermissionsExt::from_mode(0o1777))?;
    for (link, target) in [("/var/run", "/run"), ("/var/lock", "/run/lock")] {
        if fs::symlink_metadata(link).is_err() {
            std::os::unix::fs::symlink(target, link)?;
        }
    }
    Ok(())
}

fn mount(volume: Volume) -> TaskResult {
    let facts = startup::facts();
    let disk = facts.as_ref().map(|facts| Path::new(&facts.disk));
    match provide(volume, booted_root()?, disk)? {
        Mounted::Disk(device) => println!("{} is mounted from {}", volume.mount_point(), device.display()),
        Mounted::Memory => println!(
            "the boot medium cannot hold {}: it lies in memory, and is lost with the power",
            volume.mount_point()
        ),
    }
    Ok(())
}

fn load_devices() -> TaskResult {
    match devices::run(notify_ready)? {}
}

/// The identifier of the booted root partition: the first half of its verity hash (Discoverable Partitions Specification).
fn booted_root() -> Result<Guid, Box<dyn Error>> {
    let cmdline = fs::read_to_string("/proc/cmdline")?;
    let hash = startup::argument(&cmdline, "roothash").ok_or("the kernel's command line has no roothash=")?;
    let half = hash.get(..32).ok_or("roothash= is too short")?;
    let mut bytes = [0; 16];
    for (byte, at) in bytes.iter_mut().zip((0..32).step_by(2)) {
        *byte = u8::from_str_radix(half.get(at..at + 2).ok_or("roothash= is not hexadecimal")?, 16)?;
    }
    Ok(Guid::from_bytes(bytes))
}

fn notify_ready() {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = UnixDatagram::unbound().and_then(|socket| socket.send_to(b"READY=1", path)) {
        eprintln!("cannot tell PID 1: {error}");
    }
}
