//! What is on the disk, and how long it takes to be a cluster.

use std::time::Instant;

use anyhow::{Context, Result};
use garboard_tests::cluster::READY_LIMIT;
use garboard_tests::fresh::Fresh;
use garboard_tests::image::Image;
use garboard_tests::machine::Hardware;
use garboard_tests::wait;
use serde_json::Value;

use crate::report::{Reference, Report};

const MB: f64 = 1_000_000.0;

/// Sizes of what is on the disk.
pub fn sizes(image: &Image, report: &mut Report) -> Result<()> {
    let release = image.release()?;
    for (name, pointer, goal) in [
        ("root", "/rootSize", Some(120.0)),
        ("UKI", "/artifacts/garboard.efi/size", Some(16.0)),
        ("qcow2", "/artifacts/garboard.qcow2/size", None),
    ] {
        let bytes = release
            .pointer(pointer)
            .and_then(Value::as_f64)
            .with_context(|| format!("release.json has no {pointer}"))?;
        let goal =
            goal.map(|value| Reference { what: "goal of a release, at most".to_owned(), value, same_call: false });
        report.add(format!("size: {name}"), "MB", &[bytes / MB], goal);
    }
    Ok(())
}

/// From power-on to each point of a first boot.
pub fn times(image: &Image, runs: u32, report: &mut Report) -> Result<()> {
    let mut points: Vec<(&str, Vec<f64>)> = vec![
        ("kernel", Vec::new()),
        ("machine API", Vec::new()),
        ("API ready", Vec::new()),
        ("node Ready", Vec::new()),
    ];
    let mut phases: Vec<(String, Vec<f64>)> = Vec::new();
    for _ in 0..runs {
        let Fresh { machine, cluster, .. } = &mut Fresh::new(image, Hardware::default())?;
        let on = Instant::now();
        machine.start()?;
        machine.wait_console("\n", READY_LIMIT)?;
        let mut reached = vec![on.elapsed()];
        cluster.fetch_kubeconfig(READY_LIMIT)?;
        reached.push(on.elapsed());
        wait::until("the API server to be ready", READY_LIMIT, || {
            cluster.kubectl_ok(&["get", "--raw", "/readyz"]).map(drop).map_err(|error| error.to_string())
        })?;
        reached.push(on.elapsed());
        cluster.wait_ready(READY_LIMIT)?;
        reached.push(on.elapsed());
        for (point, at) in points.iter_mut().zip(&reached) {
            point.1.push(at.as_secs_f64());
        }
        for service in cluster.services()? {
            let name = service["name"].as_str().unwrap_or_default().to_owned();
            let since = service["sinceMs"].as_f64().unwrap_or_default() / 1000.0;
            match phases.iter_mut().find(|(known, _)| *known == name) {
                Some((_, values)) => values.push(since),
                None => phases.push((name, vec![since])),
            }
        }
    }
    for (point, values) in &points {
        let reference = (*point == "node Ready").then(|| Reference {
            what: "a bare script as init 37 s, Debian with systemd".to_owned(),
            value: 52.0,
            same_call: false,
        });
        report.add(format!("boot: power-on to {point}"), "s", values, reference);
    }
    phases.sort_by(|a, b| a.1.iter().sum::<f64>().total_cmp(&b.1.iter().sum()));
    for (name, values) in &phases {
        report.add(format!("boot: kernel start to {name} ready"), "s", values, None);
    }
    Ok(())
}
