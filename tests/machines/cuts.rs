//! Power cuts at each step of what a machine writes, one after the other and not at random: what comes of it is the same.
//!
//! A step is a file that gets its name or is removed: before that it is in nobody's way. What is cut off of a file's own writing is told
//! by the tests of those who write them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use garboard_tests::cluster::{READY_LIMIT, condition_of};
use garboard_tests::image::Image;
use garboard_tests::initrd;
use garboard_tests::machine::{Hardware, Kernel, Machine, is_emulated};
use garboard_tests::wait;
use serde_json::Value;

use crate::scene::{POD_LIMIT, READY, Scenario, Scene, cold, on_ready};
use crate::trial::{BACK_LIMIT, CUT_OFF, MACHINE, wait_known};

pub fn scenarios() -> Vec<Scenario> {
    // Each cut takes a start of a machine, and there are dozens.
    vec![
        on_ready("cuts::a_join_comes_to_the_same", a_join_comes_to_the_same).ignored(is_emulated()),
        cold("cuts::a_trial_comes_to_the_same", a_trial_comes_to_the_same).ignored(is_emulated()),
    ]
}

/// Where a machine writes what its trials need, as a pod sees it that shares its processes.
const LEDGER: &str = "/proc/1/root/state/ledger";

/// Fewest steps of a trial: the change is declared, its trial begins, and it ends. With each file the one before it is another.
const TRIAL_STEPS: usize = 6;
/// Fewest steps of a worker that joins: the claimant, the token, the Cluster, the Machine and its trial, the authority, and the keys and
/// certificates of the machine and of each of its services.
const JOIN_STEPS: usize = 15;

/// The saved state of a machine that knows what works.
const KNOWN: &str = "known";

/// The worker's name.
const WORKER: &str = "node-2";
/// Longest time until a worker belongs to the cluster that is started twice meanwhile.
const JOIN_LIMIT: Duration = Duration::from_secs(600);

/// Begins the worker's first start with what cuts its power, in a root of its own, which stays when the first root is erased.
const INIT: &str = "\
#!/cuts/busybox sh
set -e
busybox() { /cuts/busybox \"$@\"; }
# The shell reads from it for what runs beside it.
busybox mkdir -p /dev
busybox mknod /dev/null c 1 3
busybox mkdir /cuts/root
busybox mount -t tmpfs tmpfs /cuts/root
busybox mkdir /cuts/root/proc
busybox mount -t proc proc /cuts/root/proc
busybox cp /cuts/busybox /cuts/sample /cuts/wait /cuts/root
busybox chroot /cuts/root /busybox sh /wait &
exec /init
";

/// Waits until the worker has its disk.
const WAIT: &str = "\
until [ -e /proc/1/root/state/machine-id ]; do /busybox usleep 10000; done
exec /sample cut \"$steps\" /proc/1/root/state
";

/// A change, and what comes of it.
struct Story {
    change: String,
    has_ended: fn(&Value) -> bool,
}

/// A machine that starts again is a machine that is off, so that nobody takes the one for the other.
fn hardware() -> Hardware {
    Hardware { extra: vec!["-no-reboot".to_owned()], ..Hardware::default() }
}

/// Cuts after no step, after one, and so on, until there are no more of them: at least so many.
fn cut_at_each_step(what: &str, least: usize, mut is_cut: impl FnMut(usize) -> Result<bool>) -> Result<()> {
    let mut steps = 0;
    loop {
        let start = Instant::now();
        let more = is_cut(steps)?;
        eprintln!("{steps} steps: {} s", start.elapsed().as_secs());
        if !more {
            break;
        }
        steps += 1;
    }
    eprintln!("{steps} power cuts of {what}");
    ensure!(steps >= least, "only {steps} steps of {what}");
    Ok(())
}

fn a_trial_comes_to_the_same() -> Result<()> {
    let mut scene = Scene::new(hardware())?;
    scene.boot()?;
    wait_known(&scene)?;
    scene.machine.save(KNOWN)?;
    let stories = [
        Story {
            change: r#"{"spec": {"kernel": {"sysctls": {"vm.swappiness": "11"}}}}"#.to_owned(),
            has_ended: |machine| {
                machine
                    .pointer("/status/effective/spec/kernel/sysctls/vm.swappiness")
                    .is_some_and(|value| value == "11")
                    && machine.pointer("/status/trial/state").is_some_and(|state| state == "Proved")
            },
        },
        Story {
            change: CUT_OFF.to_owned(),
            has_ended: |machine| {
                condition_of(machine, "ChangeProved").is_some_and(|found| found["reason"] == "Returned")
                    && machine.pointer("/status/effective/spec/network/links").is_none_or(Value::is_null)
            },
        },
    ];
    for Story { change, has_ended } in stories {
        cut_at_each_step(&change, TRIAL_STEPS, |steps| is_cut(&mut scene, &change, has_ended, steps))?;
    }
    Ok(())
}

/// Makes the change with a power cut after so many steps, and sees what comes of it. Says whether there were more of them.
fn is_cut(scene: &mut Scene, change: &str, has_ended: fn(&Value) -> bool, steps: usize) -> Result<bool> {
    scene.machine.load(KNOWN)?;
    scene.cluster.wait_ready(READY_LIMIT)?;
    scene.cluster.start_privileged("cutter", &["cut", &steps.to_string(), LEDGER], POD_LIMIT)?;
    wait::until("the folder to be watched", POD_LIMIT, || {
        let said = scene.cluster.kubectl_ok(&["logs", "-n", "kube-system", "cutter"]);
        if said.is_ok_and(|said| said.contains("watching")) { Ok(()) } else { Err("not yet".to_owned()) }
    })?;
    scene.cluster.kubectl_ok(&["patch", &MACHINE.join("/"), "--type=merge", "-p", change])?;
    let ended = |scene: &Scene| match scene.cluster.get(&MACHINE) {
        Ok(machine) if has_ended(&machine) => Ok(()),
        Ok(machine) => Err(machine["status"]["trial"].to_string()),
        Err(error) => Err(error.to_string()),
    };
    let is_off = wait::until("the power to go or the trial to end", BACK_LIMIT, || match scene.machine.is_on() {
        false => Ok(true),
        true => ended(scene).map(|()| false),
    })?;
    if is_off {
        scene.machine.wait_off(POD_LIMIT)?;
        scene.machine.start()?;
        wait::until("the trial to end", BACK_LIMIT, || ended(scene))
            .with_context(|| format!("after a power cut at step {steps}: {}", scene.account()))?;
        scene.cluster.wait_ready(READY_LIMIT)?;
    }
    Ok(is_off)
}

fn a_join_comes_to_the_same(scene: &mut Scene) -> Result<()> {
    let kernel = cutting_kernel(scene)?;
    let config = fs::read(scene.cluster.directory().join("config.yaml"))?;
    let is_cut = |steps| joins_after_cut(scene, &kernel, &config, steps);
    let outcome = cut_at_each_step("a worker that joins", JOIN_STEPS, is_cut);
    // The next scenario knows one machine.
    forget_worker(scene, &config)?;
    outcome
}

/// Nothing is left of the worker in the user's folder.
fn forget_worker(scene: &Scene, config: &[u8]) -> Result<()> {
    let folder = scene.cluster.directory();
    fs::write(folder.join("config.yaml"), config)?;
    match fs::remove_file(folder.join(format!("{WORKER}.yaml"))) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// The image's own, with what cuts the power.
fn cutting_kernel(scene: &Scene) -> Result<Kernel> {
    let image = Image::latest()?;
    let (tree, folder) = (scene.folder().join("cuts-tree"), scene.folder().join("cuts"));
    fs::create_dir_all(tree.join("cuts"))?;
    fs::create_dir_all(&folder)?;
    let file = |name: &str| tree.join("cuts").join(name);
    fs::copy("/bin/busybox", file("busybox")).context("copy busybox")?;
    fs::copy(image.sample_program(), file("sample")).context("copy the sample program")?;
    fs::write(file("wait"), WAIT)?;
    fs::write(file("init"), INIT)?;
    fs::set_permissions(file("init"), fs::Permissions::from_mode(0o755))?;
    let mut kernel = initrd::with_files(&image, &tree, &folder)?;
    kernel.command_line += " rdinit=/cuts/init";
    Ok(kernel)
}

/// Has a worker join whose power is cut after so many steps. Says whether there were more of them.
fn joins_after_cut(scene: &mut Scene, kernel: &Kernel, config: &[u8], steps: usize) -> Result<bool> {
    scene.machine.load(READY)?;
    scene.cluster.wait_ready(READY_LIMIT)?;
    let mut worker =
        scene.another(&format!("cut-{steps}"), scene.places[0], Hardware { memory_mib: 1536, ..hardware() })?;
    let mut kernel = kernel.clone();
    kernel.command_line += &format!(" steps={steps}");
    worker.set_kernel(Some(kernel));
    worker.start()?;
    let (mut is_cut, mut is_claimed) = (false, false);
    wait::until("the worker to join", JOIN_LIMIT, || {
        if !worker.is_on() {
            (is_cut, is_claimed) = (true, false);
            start_again(&mut worker).map_err(|error| format!("{error:#}"))?;
        }
        if !is_claimed && let Ok((_, key)) = worker.wait_waiting(Duration::ZERO) {
            claim(scene, config, &key).map_err(|error| format!("{error:#}"))?;
            is_claimed = true;
        }
        let node = scene.cluster.get(&["node", WORKER]).map_err(|error| error.to_string())?;
        let machine = scene.cluster.get(&["machine", WORKER]).map_err(|error| error.to_string())?;
        let is_ready = |object| condition_of(object, "Ready").is_some_and(|found| found["status"] == "True");
        if is_ready(&node) && is_ready(&machine) { Ok(()) } else { Err(machine["status"].to_string()) }
    })
    .with_context(|| format!("after a power cut at step {steps}: the console's end:\n{}", worker.console_end()))?;
    Ok(is_cut)
}

fn start_again(worker: &mut Machine) -> Result<()> {
    worker.wait_off(POD_LIMIT)?;
    worker.set_kernel(None);
    worker.start()
}

/// With a token of its own: until the machine has its key on its disk it has another one after each start.
fn claim(scene: &Scene, config: &[u8], key: &str) -> Result<()> {
    forget_worker(scene, config)?;
    scene.claim(WORKER, scene.places[0], key, &[])
}
