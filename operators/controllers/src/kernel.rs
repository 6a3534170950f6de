//! Keeps kernel parameters and modules as declared.
//!
//! The kernel tells nobody when a parameter changes, so declared ones are looked at every few seconds. What they were before Garboard set
//! them is kept until the machine restarts, when they are that again by themselves.

use std::path::PathBuf;
use std::time::Duration;

use garboard_api::About;
use garboard_api::machine::MachineKernel;
use garboard_plan::events::Notable;
use garboard_plan::kernel::{Cause, Parameters, Step};
use garboard_runtime::applier::chain;
use garboard_sys::modules::Modules;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::events;
use crate::parameters::Kept;

/// Time between two looks at declared parameters.
const LOOK: Duration = Duration::from_secs(3);

/// Where the kernel's settings are.
#[derive(Clone, Debug)]
pub struct KernelPaths {
    /// The kernel's parameters.
    pub parameters: PathBuf,
    /// What was set, and what it was before; it lasts as long as the kernel runs.
    pub record: PathBuf,
}

impl Default for KernelPaths {
    fn default() -> Self {
        Self { parameters: "/proc/sys".into(), record: "/run/garboard/kernel.json".into() }
    }
}

/// The task that keeps the kernel's settings.
#[derive(Debug)]
pub struct Kernel {
    config: watch::Receiver<Option<MachineKernel>>,
    problems: watch::Sender<Vec<String>>,
    notables: mpsc::Sender<Notable>,
    parameters: Kept,
    modules: Vec<String>,
}

impl Kernel {
    /// Prepares the task, and the channel on which it publishes what is not as declared. Until it is told of a declaration, it touches
    /// nothing: an earlier run of the agent may have set what is declared still.
    pub fn new(
        config: watch::Receiver<Option<MachineKernel>>,
        notables: mpsc::Sender<Notable>,
        paths: KernelPaths,
    ) -> (Self, watch::Receiver<Vec<String>>) {
        let parameters = Kept::new(paths.parameters, paths.record);
        let (problems, receiver) = watch::channel(Vec::new());
        (Self { config, problems, notables, parameters, modules: Vec::new() }, receiver)
    }

    /// Keeps the settings until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            let declared = self.config.borrow_and_update().clone();
            let keeps = declared.as_ref().is_some_and(|declared| !declared.sysctls.is_empty());
            if let Some(declared) = declared {
                self.keep(&declared);
            }
            let again = async {
                match keeps {
                    true => tokio::time::sleep(LOOK).await,
                    false => std::future::pending().await,
                }
            };
            // Each arm only waits.
            tokio::select! {
                () = stop.cancelled() => return,
                Ok(()) = self.config.changed() => {}
                () = again => {}
            }
        }
    }

    fn keep(&mut self, declared: &MachineKernel) {
        let mut problems = self.keep_parameters(&declared.sysctls);
        problems.extend(self.load_modules(&declared.modules));
        self.problems.send_if_modified(|current| {
            let differs = *current != problems;
            problems.iter().filter(|problem| !current.contains(problem)).for_each(|problem| warn!(problem, "kernel"));
            *current = problems;
            differs
        });
    }

    fn keep_parameters(&mut self, declared: &Parameters) -> Vec<String> {
        let (done, problems) = self.parameters.keep(declared);
        for Step { name, before, value, cause } in done {
            if cause == Cause::Drifted {
                let before = before.unwrap_or_default();
                let note = format!("kernel parameter {name} was {before}, and is {value} again as declared");
                let notable = Notable { about: About::Machine, warning: true, reason: "DriftRepaired", note };
                events::hand_over(&self.notables, notable);
            }
        }
        problems
    }

    /// Loads what is declared now and was not before.
    fn load_modules(&mut self, declared: &[String]) -> Vec<String> {
        let mut problems = Vec::new();
        let modules = Modules::of_running_kernel();
        let mut loaded = Vec::new();
        for name in declared {
            if self.modules.contains(name) {
                loaded.push(name.clone());
                continue;
            }
            match modules.load_requested(name) {
                Ok(()) => {
                    info!(name, "kernel module loaded");
                    loaded.push(name.clone());
                }
                Err(error) => problems.push(format!("module {name}: {}", chain(&error))),
            }
        }
        self.modules = loaded;
        problems
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn kernel(root: &Path) -> (Kernel, mpsc::Receiver<Notable>) {
        let (_, config) = watch::channel(None);
        let (notables, handed) = mpsc::channel(4);
        let paths = KernelPaths { parameters: root.join("sys"), record: root.join("kernel.json") };
        (Kernel::new(config, notables, paths).0, handed)
    }

    fn declared(pairs: &[(&str, &str)]) -> Parameters {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn parameters_are_kept_and_given_back_over_a_restart_of_the_agent() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("sys/net/core/somaxconn");
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, "128\n").unwrap();
        let value = || fs::read_to_string(&file).unwrap();

        let (mut first, mut told) = kernel(root.path());
        assert_eq!(first.keep_parameters(&declared(&[("net.core.somaxconn", "4096")])), Vec::<String>::new());
        assert_eq!(value(), "4096");
        assert!(told.try_recv().is_err(), "a declaration is no drift");

        fs::write(&file, "1").unwrap();
        let (mut second, mut told) = kernel(root.path());
        second.keep_parameters(&declared(&[("net.core.somaxconn", "4096")]));
        assert_eq!(value(), "4096");
        assert_eq!(told.try_recv().unwrap().reason, "DriftRepaired");

        second.keep_parameters(&Parameters::new());
        assert_eq!(value(), "128", "what it was before Garboard set it");
    }

    #[test]
    fn a_restarted_agent_touches_nothing_before_it_is_told_what_is_declared() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("sys/vm/swappiness");
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, "60").unwrap();
        let (mut first, _told) = kernel(root.path());
        first.keep_parameters(&declared(&[("vm.swappiness", "10")]));

        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let (config, receiver) = watch::channel(None);
            let (notables, _handed) = mpsc::channel(4);
            let paths = KernelPaths { parameters: root.path().join("sys"), record: root.path().join("kernel.json") };
            let (second, _problems) = Kernel::new(receiver, notables, paths);
            let stop = CancellationToken::new();
            let task = tokio::spawn(second.run(stop.clone()));
            tokio::time::sleep(10 * LOOK).await;
            assert_eq!(fs::read_to_string(&file).unwrap(), "10");
            config.send_replace(Some(MachineKernel::default()));
            tokio::time::sleep(LOOK).await;
            assert_eq!(fs::read_to_string(&file).unwrap(), "60", "nothing is declared any more");
            stop.cancel();
            task.await.unwrap();
        });
    }

    #[test]
    fn a_parameter_that_is_not_there_is_told() {
        let root = tempfile::tempdir().unwrap();
        let (mut kernel, _told) = kernel(root.path());
        let problems = kernel.keep_parameters(&declared(&[("net.core.nothing", "1")]));
        assert!(problems[0].starts_with("net.core.nothing: cannot be set to \"1\": "), "{problems:?}");
    }

    #[test]
    fn a_module_that_is_not_there_is_told() {
        let root = tempfile::tempdir().unwrap();
        let (mut kernel, _told) = kernel(root.path());
        let problems = kernel.load_modules(&["no-such-module".to_owned()]);
        assert!(problems[0].starts_with("module no-such-module: "), "{problems:?}");
    }
}
