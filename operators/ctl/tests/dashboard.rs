//! The dashboard in a terminal, against the machine API's real server with a machine in memory behind it.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "shared with the other tests of the program")]
mod scene;

use std::fs::File;
use std::io::{Read, Write};
use std::sync::{Arc, Mutex};

use garboard_machine_api::proto::{LogLine, Service};
use nix::pty::{Winsize, openpty};

use scene::{Scene, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn it_shows_services_and_their_log_and_ends_when_asked() {
    let scene = Scene::new().await;
    let etcd = Service { name: "etcd".into(), state: "Running".into(), ready: true, ..Service::default() };
    scene.served.machine.state().services = vec![etcd];
    scene.served.machine.state().lines = vec![LogLine { unix_usec: 1, text: "the first line".into() }];
    let size = Winsize { ws_row: 30, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 };
    let terminal = openpty(&size, None).unwrap();
    let side = || File::from(terminal.slave.try_clone().unwrap());
    let mut dashboard = scene.command(&["dashboard"]).stdin(side()).stdout(side()).stderr(side()).spawn().unwrap();
    let mut person = File::from(terminal.master);
    let shown = Arc::new(Mutex::new(String::new()));
    let (seen, mut screen) = (shown.clone(), person.try_clone().unwrap());
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(length @ 1..) = screen.read(&mut bytes) {
            seen.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..length]));
        }
    });
    eventually("the machine, its service and the kernel's log", || {
        let shown = shown.lock().unwrap();
        // Words alone: what lies between them is moves of the cursor.
        ["node-1", "etcd", "first", "kernel"].iter().all(|part| shown.contains(part))
    })
    .await;
    let named = |shown: &Mutex<String>| shown.lock().unwrap().matches("etcd").count();
    let before = named(&shown);
    // To the services, and up to the one above the kernel.
    person.write_all(b"\tk").unwrap();
    eventually("the title of another log", || named(&shown) > before).await;
    person.write_all(b"q").unwrap();
    let ended = tokio::task::spawn_blocking(move || dashboard.wait()).await.unwrap().unwrap();
    assert!(ended.success(), "{ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_terminal_it_says_what_is_for_programs() {
    let scene = Scene::new().await;
    let error = scene.fails(&["dashboard"]);
    assert!(error.contains("for a terminal") && error.contains("services -o json"), "{error}");
}
