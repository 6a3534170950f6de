//! One file per command, or per group of commands that share what they do.

mod apply;
mod claim;
mod dashboard;
mod etcd;
mod join;
mod kubeconfig;
mod logs;
mod machines;
mod new;
mod power;
mod service;
mod status;
mod support;
mod trial;
mod version;

use crate::cli::{self, Cli, Command};
use crate::config::Contact;

/// Carries out a command line.
pub async fn run(Cli { target, command }: Cli) -> anyhow::Result<()> {
    match command {
        Command::New(arguments) => new::run(&arguments),
        Command::Completion(arguments) => {
            let mut command = cli::command();
            clap_complete::generate(arguments.shell, &mut command, "garboardctl", &mut std::io::stdout());
            Ok(())
        }
        Command::Support(arguments) => support::run(&target, &arguments).await,
        Command::Version(arguments) => version::run(&target, &arguments).await,
        Command::Kubeconfig(arguments) => kubeconfig::run(&Contact::of_cluster(&target)?, &arguments).await,
        Command::Dashboard => dashboard::run(&target).await,
        Command::Status(arguments) => status::run(&Contact::find(&target)?, arguments.output.output).await,
        Command::Services(arguments) => service::list(&Contact::find(&target)?, arguments.output.output).await,
        Command::Service(arguments) => service::act(&Contact::find(&target)?, &arguments.command).await,
        Command::Logs(arguments) => logs::run(&Contact::find(&target)?, &arguments.service, &arguments.lines).await,
        Command::Dmesg(arguments) => logs::run(&Contact::find(&target)?, logs::KERNEL, &arguments.lines).await,
        Command::Apply(arguments) => apply::run(&Contact::find(&target)?, &arguments).await,
        Command::Machines(arguments) => machines::run(&target, &arguments).await,
        Command::Claim(arguments) => claim::run(&Contact::find(&target)?, &arguments).await,
        Command::Join(arguments) => join::run(&target, &arguments).await,
        Command::Trial(arguments) => trial::run(&Contact::find(&target)?, &arguments.command).await,
        Command::Etcd(arguments) => etcd::run(&Contact::find(&target)?, &arguments.command).await,
        Command::Reboot(arguments) => power::reboot(&Contact::find(&target)?, &arguments).await,
        Command::Shutdown(arguments) => power::shutdown(&Contact::find(&target)?, &arguments).await,
    }
}
