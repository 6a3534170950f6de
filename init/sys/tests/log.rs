//! The kernel's log against this kernel.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::fs;

use garboard_sys::kmsg::{self, Event, KmsgError, Level, Reader, Writer};

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

#[test]
fn a_message_is_there_at_once_and_not_only_when_the_next_one_comes() {
    let (Ok(mut writer), Ok(mut reader)) = (Writer::open("log-test"), Reader::open()) else {
        eprintln!("skipped: the kernel's log is not to be had");
        return;
    };
    while reader.next_event().unwrap().is_some() {}
    writer.log(Level::Info, "first line\nlast line");
    let mut seen = Vec::new();
    while let Some(event) = reader.next_event().unwrap() {
        if let Event::Record(record) = event {
            seen.push(record.text);
        }
    }
    for line in ["log-test: first line", "log-test: last line"] {
        assert!(seen.iter().any(|text| text == line), "{line} is not in {seen:?}");
    }
}
