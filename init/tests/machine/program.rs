//! What supervised processes do.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

/// Does what the words say, one after the other.
pub fn run(words: &[String]) {
    for word in words {
        let (verb, object) = word.split_once('=').unwrap_or((word, ""));
        match verb {
            "print" => println!("{object}"),
            "notify" => notify(object),
            // Runs until it is killed.
            "sleep" => loop {
                sleep(Duration::from_secs(1000));
            },
            "wait" => sleep(Duration::from_millis(object.parse().unwrap())),
            "exit" => std::process::exit(object.parse().unwrap()),
            "wait-for" => {
                while !Path::new(object).exists() {
                    sleep(Duration::from_millis(5));
                }
            }
            "touch" => std::fs::write(object, "").unwrap(),
            "exists" => std::process::exit(i32::from(!Path::new(object).exists())),
            "deaf" => {
                // Everything that runs without a handler of its own ignores it as well.
                let ignored = nix::sys::signal::SigSet::all();
                ignored.thread_block().unwrap();
            }
            "tcp" => keep(TcpListener::bind(object).unwrap()),
            "unix" => keep(UnixListener::bind(object).unwrap()),
            "http" => http(object),
            // A child that outlives this process, in a session of its own.
            "daemon" => drop(Command::new("setsid").args(["sleep", "1000"]).spawn().unwrap()),
            // A child that becomes an orphan and ends.
            "orphan" => drop(Command::new("sh").args(["-c", "(sleep 0.05; exit 3) &"]).spawn().unwrap().wait()),
            "try-write" => {
                let result = std::fs::write(Path::new(object).join("written"), "");
                println!(
                    "write {object}: {}",
                    result.map_or_else(|error| error.kind().to_string(), |()| "ok".to_owned())
                );
            }
            "list" => {
                let mut names: Vec<String> = std::fs::read_dir(object)
                    .unwrap()
                    .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
                    .collect();
                names.sort();
                println!("list {object}: {}", names.join(" "));
            }
            "show" => {
                let mut text = String::new();
                std::fs::File::open(object).unwrap().read_to_string(&mut text).unwrap();
                print!("{text}");
            }
            "env" => println!("{object}={}", std::env::var(object).unwrap_or_default()),
            "open-files" => {
                let (soft, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
                println!("open files {soft} {hard}");
            }
            "mount" => {
                let result =
                    nix::mount::mount(Some("none"), object, Some("tmpfs"), nix::mount::MsFlags::empty(), None::<&str>);
                println!("mount: {}", result.map_or_else(|error| error.to_string(), |()| "ok".to_owned()));
            }
            other => panic!("unknown word {other}"),
        }
        std::io::stdout().flush().unwrap();
    }
}

fn notify(text: &str) {
    let path = std::env::var("NOTIFY_SOCKET").unwrap();
    UnixDatagram::unbound().unwrap().send_to(text.as_bytes(), path).unwrap();
}

fn keep<T>(listener: T) {
    std::mem::forget(listener);
}

/// Answers 503 until the file "ready" lies beside the socket's description ADDRESS,FILE, then 200.
fn http(object: &str) {
    let (address, file) = object.split_once(',').unwrap();
    let file = file.to_owned();
    let listener = TcpListener::bind(address).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 512];
            let _ = stream.read(&mut request);
            let status = if Path::new(&file).exists() { "200 OK" } else { "503 Not Yet" };
            let _ = stream.write_all(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").as_bytes());
        }
    });
}
