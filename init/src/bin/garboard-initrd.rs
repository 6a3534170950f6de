//! The first stage: the only program of the initrd. It finds the root that belongs to the kernel's own root hash, verifies it, mounts it and
//! hands over to its `/sbin/init`. It never waits without a limit: what is missing after a minute is said on the consoles in words, and the
//! machine restarts, so that the boot loader can fall back to the other slot.

#[path = "../boot.rs"]
mod boot;
#[path = "../initrd/mod.rs"]
mod initrd;

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::process::id() == 1 {
        initrd::run();
    }
    // The kernel runs this program too when it wants a module: INIT -q -- NAME.
    initrd::devices::load_for_kernel(std::env::args().skip(1))
}
