//! The kernel's log against this kernel.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::fs;

use garboard_sys::kmsg::{self, KmsgError};

const LIMIT: &str = "/proc/sys/kernel/printk_devkmsg";

#[test]
fn the_limit_on_messages_of_processes_is_taken_away() {
    let before = fs::read_to_string(LIMIT).unwrap();
    if fs::write(LIMIT, "ratelimit\n").is_err() {
        // Fixed on the kernel's command line, or in a container.
        assert!(matches!(kmsg::unlimit_processes(), Err(KmsgError::Limit(_))));
        return;
    }
    let taken = kmsg::unlimit_processes();
    let after = fs::read_to_string(LIMIT).unwrap();
    fs::write(LIMIT, before).unwrap();
    taken.unwrap();
    assert_eq!(after, "on\n");
}
