//! What the tests of netlink share.

use std::time::Duration;

use garboard_sys::netlink::{MacAddress, Netlink};
use nix::sched::{CloneFlags, unshare};

/// Longest time that the kernel has for anything.
pub const LIMIT: Duration = Duration::from_secs(10);
/// Time within which nothing comes that is not to come.
pub const SILENCE: Duration = Duration::from_millis(100);
/// An address of hardware.
pub const MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 7]);

/// Runs a test in a network namespace that ends with it.
pub fn in_namespace(test: impl AsyncFnOnce(Netlink) + Send) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async { test(Netlink::open().unwrap()).await });
        });
    });
}
