//! Power: orderly ends, and cuts at any moment.

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use garboard_tests::cluster::READY_LIMIT;
use garboard_tests::cluster::sample_pod;
use garboard_tests::machine::Hardware;
use garboard_tests::wait;

use crate::scene::{POD_LIMIT, Scenario, Scene, cold, on_ready};

pub fn scenarios() -> Vec<Scenario> {
    vec![
        on_ready(
            "power::the_button_gives_pods_their_grace_and_powers_off",
            the_button_gives_pods_their_grace_and_powers_off,
        ),
        on_ready("power::a_reboot_keeps_everything", a_reboot_keeps_everything),
        on_ready("power::the_watchdog_resets_a_machine_whose_first_process_hangs", the_watchdog_resets),
        on_ready(
            "power::certificates_that_expired_while_it_was_off_are_renewed",
            certificates_that_expired_are_renewed,
        ),
        on_ready("power::a_clock_ten_years_behind_goes_on_from_the_time_that_is_known", a_clock_behind_goes_on),
        cold("power::cuts_at_first_boot_and_at_work_lose_nothing", cuts_at_first_boot_and_at_work_lose_nothing),
    ]
}

/// Power cuts during first boot.
const FIRST_CUTS: u32 = 15;
/// Power cuts during work. After each the machine has to come up far enough to show what it has.
const WORK_CUTS: u32 = 5;
/// Most of what happens once only in the life of a machine happens within this time.
const FIRST_BOOT: Duration = Duration::from_secs(30);

/// What the agent brings into the API before anything of its own.
const FIRST_DEFINITION: [&str; 2] = ["customresourcedefinition", "clusters.garboard.dev"];

const NODE: [&str; 2] = ["node", "node-1"];

/// The longest an orderly shutdown may take: the pods' grace and the services' deadlines.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(180);

fn the_button_gives_pods_their_grace_and_powers_off(scene: &mut Scene) -> Result<()> {
    let pod = sample_pod(&scene.cluster.sample_image()?, "graceful", &["serve", "--grace", "5"]);
    scene.cluster.apply(&pod.to_string())?;
    scene.cluster.wait_condition(&["pod", "graceful"], "Ready", POD_LIMIT)?;
    let mut follow =
        scene.cluster.kubectl_command(&["logs", "-f", "graceful"]).stdout(std::process::Stdio::piped()).spawn()?;
    let said = follow.stdout.take().context("no pipe")?;
    let reader = std::thread::spawn(move || std::io::read_to_string(said));
    scene.machine.press_power_button()?;
    scene.machine.wait_off(SHUTDOWN_LIMIT)?;
    // QEMU is gone, so the connection that is followed ends by itself or by this.
    follow.kill().ok();
    follow.wait()?;
    let said = reader.join().map_err(|_| anyhow::anyhow!("the reader broke off"))??;
    ensure!(said.contains("stopped"), "the pod was not given its five seconds; it said:\n{said}");
    Ok(())
}

fn a_reboot_keeps_everything(scene: &mut Scene) -> Result<()> {
    scene.cluster.kubectl_ok(&["create", "configmap", "kept", "--from-literal=key=value"])?;
    let before = boot_id(scene)?;
    scene.cluster.garboardctl_ok(&["reboot"])?;
    wait_boot_after(scene, &before)?;
    let kept = scene.cluster.get(&["configmap", "kept"])?;
    ensure!(kept["data"]["key"] == "value", "{kept}");
    Ok(())
}

fn the_watchdog_resets(scene: &mut Scene) -> Result<()> {
    let before = boot_id(scene)?;
    scene.cluster.start_intruder(POD_LIMIT)?;
    // No signal stops the first process; the freezer of its cgroup does.
    let freezer = "/proc/1/root/sys/fs/cgroup/init/cgroup.freeze";
    scene.cluster.intrude(&["write", freezer, "1"])?;
    wait_boot_after(scene, &before)
}

/// Waits until the machine has booted since the boot `before`, and is Ready.
fn wait_boot_after(scene: &mut Scene, before: &str) -> Result<()> {
    scene.cluster.until("another boot", &NODE, READY_LIMIT, |node| {
        if node["status"]["nodeInfo"]["bootID"] == before { Err("the same boot".to_owned()) } else { Ok(()) }
    })?;
    scene.wait_ready()
}

fn certificates_that_expired_are_renewed(scene: &mut Scene) -> Result<()> {
    // Every certificate but the authorities' is good for a year.
    let later = jiff::Timestamp::now() + jiff::Span::new().hours(400 * 24);
    start_again_at(scene, later)?;
    // To kubectl, which has this host's clock, the new certificates are not valid yet; keys have no time.
    let wanted = [("Machine/node-1", "CertificatesReady"), ("Machine/node-1", "Ready"), ("Cluster/cluster", "Ready")];
    wait::until("the machine and the cluster to be Ready", READY_LIMIT, || {
        let said = scene.cluster.garboardctl_ok(&["status"]).map_err(|error| error.to_string())?;
        let holds = |(object, condition): &(&str, &str)| {
            said.lines().any(|line| line.split_whitespace().take(3).eq([*object, *condition, "True"]))
        };
        if wanted.iter().all(holds) { Ok(()) } else { Err(said) }
    })?;
    let log = scene.cluster.garboardctl_ok(&["dmesg", "--timestamps", "-n", "1"])?;
    ensure!(log.starts_with(&later.strftime("%Y-").to_string()), "the clock is not a year on: {log}");
    Ok(())
}

/// Shuts the machine down in order, and starts it with the hardware's clock at this time.
fn start_again_at(scene: &mut Scene, clock: jiff::Timestamp) -> Result<()> {
    scene.cluster.garboardctl_ok(&["shutdown"])?;
    scene.machine.wait_off(SHUTDOWN_LIMIT)?;
    scene.machine.start_at(clock)
}

fn a_clock_behind_goes_on(scene: &mut Scene) -> Result<()> {
    let known = jiff::Timestamp::now();
    start_again_at(scene, known - jiff::Span::new().hours(10 * 365 * 24))?;
    scene.wait_ready()?;
    let log = scene.cluster.garboardctl_ok(&["logs", "agent", "--timestamps", "-n", "1"])?;
    let said: jiff::Timestamp = log.split(' ').next().unwrap_or_default().parse().with_context(|| log.clone())?;
    // It ran until it was shut down, a moment ago; in between it stands.
    ensure!(said > known - jiff::Span::new().hours(1), "the clock went on from {said}, at {known}");
    Ok(())
}

fn boot_id(scene: &Scene) -> Result<String> {
    let node = scene.cluster.get(&NODE)?;
    node["status"]["nodeInfo"]["bootID"].as_str().map(str::to_owned).context("no boot id")
}

/// A small generator, seeded by the clock and printed, so that a failure can be run again.
struct Random(u64);

impl Random {
    fn seeded() -> Result<Self> {
        let seed = match std::env::var("GARBOARD_TEST_SEED") {
            Ok(seed) => seed.parse().context("GARBOARD_TEST_SEED must be a whole number")?,
            Err(_) => u64::from(SystemTime::now().duration_since(UNIX_EPOCH)?.subsec_nanos()) + 1,
        };
        eprintln!("GARBOARD_TEST_SEED={seed}");
        Ok(Self(seed))
    }

    /// A time below `limit`, by xorshift (Marsaglia 2003).
    fn below(&mut self, limit: Duration) -> Duration {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let limit = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX).max(1);
        Duration::from_millis(self.0 % limit)
    }
}

fn cut_power_after(scene: &mut Scene, moment: Duration) -> Result<()> {
    wait::throughout("the machine to stay on until its power is cut", moment, || {
        if scene.machine.is_on() { Ok(()) } else { Err("off".to_owned()) }
    })?;
    scene.machine.cut_power()
}

fn cuts_at_first_boot_and_at_work_lose_nothing() -> Result<()> {
    let mut random = Random::seeded()?;
    let mut scene = Scene::new(Hardware::default())?;
    scene.machine.start()?;
    scene.cluster.fetch_kubeconfig(READY_LIMIT)?;
    // The API server forgets what it was about to do with a definition when it ends meanwhile.
    scene.cluster.wait_exists(&FIRST_DEFINITION, READY_LIMIT)?;
    cut_power_after(&mut scene, random.below(Duration::from_millis(2500)))?;
    for _ in 0..FIRST_CUTS {
        scene.machine.start()?;
        cut_power_after(&mut scene, random.below(FIRST_BOOT))?;
    }
    scene.boot()?;

    let mut acknowledged = BTreeSet::new();
    for cut in 0..WORK_CUTS {
        let until = Instant::now() + random.below(Duration::from_secs(8));
        let mut number = 0;
        while Instant::now() < until {
            let name = format!("work-{cut}-{number}");
            if scene.cluster.kubectl_ok(&["create", "configmap", &name]).is_ok() {
                acknowledged.insert(name);
            }
            number += 1;
        }
        scene.machine.cut_power()?;
        scene.machine.start()?;
        let there = wait::until("the API server to answer again", READY_LIMIT, || {
            scene
                .cluster
                .get(&["configmaps"])
                .map_err(|error| format!("{error}; the console's end:\n{}", scene.machine.console_end()))
        })?;
        let there: BTreeSet<String> = there["items"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|item| item["metadata"]["name"].as_str().map(str::to_owned))
            .collect();
        let lost: Vec<_> = acknowledged.difference(&there).collect();
        ensure!(lost.is_empty(), "after cut {cut}, acknowledged but gone: {lost:?}");
    }
    scene.wait_ready()
}
