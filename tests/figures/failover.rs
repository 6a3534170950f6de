//! How long the virtual address of the API leads nowhere when the machine that has it is gone.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use garboard_tests::cluster::READY_LIMIT;
use garboard_tests::image::Image;
use garboard_tests::lan::Lan;
use garboard_tests::machine::{Hardware, Machine};
use garboard_tests::wait;
use serde_json::{Value, json};

use crate::founded::Founded;
use crate::report::{Reference, Report};

/// Longest time for one try to reach an API server, and time between two.
const TRY: Duration = Duration::from_millis(200);
const LOOK: Duration = Duration::from_millis(20);

/// Two control-plane machines: the cable of the one that has the address is taken out, and put in again when the other has it.
///
/// # Errors
/// When the machines do not become a control plane, or the address does not move.
pub fn times(image: &Image, runs: u32, report: &mut Report) -> Result<()> {
    let founded = Founded::start(image)?;
    // Its resources come after its first node.
    founded.cluster.wait_condition(&["clusters.garboard.dev", "cluster"], "Ready", READY_LIMIT)?;
    let declared = json!({ "spec": { "virtualAddress": { "address": Lan::VIRTUAL } } }).to_string();
    founded.cluster.kubectl_ok(&["patch", "clusters.garboard.dev", "cluster", "--type=merge", "-p", &declared])?;
    founded.cluster.wait_virtual_address(founded.virtual_port, "node-1")?;
    let hardware = Hardware { memory_mib: 2560, ..Hardware::default() };
    let mut second = founded.declare(2, hardware, &["--control-plane"])?;
    second.start()?;
    let joined = || {
        founded.cluster.wait_for(&["etcdmember", "node-2"], "/status/role", &json!("Voter"), READY_LIMIT)?;
        founded.cluster.wait_condition(&["etcdmember", "node-2"], "Healthy", READY_LIMIT)?;
        founded.cluster.wait_condition(&["machine", "node-2"], "Ready", READY_LIMIT * 2)
    };
    joined().with_context(|| second.console_end())?;
    let machines = [("node-1", &founded.machine), ("node-2", &second)];
    let mut times = Vec::new();
    for run in 0..runs {
        let holder = usize::from(run % 2 == 1);
        let (other, _) = machines[1 - holder];
        times.push(gap(founded.virtual_port, machines[holder].1)?.as_secs_f64());
        machines[holder].1.plug(true)?;
        founded.cluster.wait_virtual_address(founded.virtual_port, other)?;
        wait_whole(&founded)?;
    }
    let reference = Reference {
        what: "three advertisements missed by VRRP's defaults (RFC 9568, 6.1)".to_owned(),
        value: 3.0 + 156.0 / 256.0,
        same_call: false,
    };
    report.add("failover: cable out to an API server answers", "s", &times, Some(reference));
    Ok(())
}

/// Takes the cable out; gives the time until an API server answers at the address.
fn gap(port: u16, holder: &Machine) -> Result<Duration> {
    wait::until("an API server to answer", READY_LIMIT, || match answers(port) {
        true => Ok(()),
        false => Err("none does".to_owned()),
    })?;
    holder.plug(false)?;
    let out = Instant::now();
    while !answers(port) {
        ensure!(out.elapsed() < READY_LIMIT, "the address has not moved");
        sleep(LOOK);
    }
    Ok(out.elapsed())
}

/// Whether something at the port says that it speaks TLS only, as an API server does. The router of the network takes connections by itself.
fn answers(port: u16) -> bool {
    let asked = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), TRY)?;
        stream.set_read_timeout(Some(TRY))?;
        stream.write_all(b"GET /livez HTTP/1.0\r\n\r\n")?;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer)?;
        Ok(answer.ends_with(b" 400"))
    };
    asked().unwrap_or(false)
}

/// Waits until both machines say that they serve.
fn wait_whole(founded: &Founded) -> Result<()> {
    wait::until("both machines to be back", READY_LIMIT, || {
        let machines = ["get", "machines", "-o", "json"];
        let machines =
            founded.cluster.kubectl_at(founded.virtual_port, &machines).map_err(|error| error.to_string())?;
        let machines: Value = serde_json::from_str(&machines).map_err(|error| error.to_string())?;
        let phases: Vec<_> = machines["items"].as_array().into_iter().flatten().map(phase).collect();
        if phases == ["Running", "Running"] { Ok(()) } else { Err(format!("{phases:?}")) }
    })
}

fn phase(machine: &Value) -> &str {
    machine["status"]["phase"].as_str().unwrap_or_default()
}
