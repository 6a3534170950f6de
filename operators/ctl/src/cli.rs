//! The command line's grammar and help.

mod etcd;

use std::path::PathBuf;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use garboard_machine_api::{Endpoint, Pin};

use crate::output::Format;
pub use etcd::{Etcd, EtcdCommand, EtcdRestore, EtcdSnapshot};

/// The name under which `kubectl` finds a plugin for `kubectl garboard`.
const PLUGIN: &str = "kubectl-garboard";

const EXAMPLES: &str = "\
Examples:
  garboardctl new lab                  Make manifests and keys in ./lab
  cd lab                               Here the other commands find config.yaml
  garboardctl kubeconfig --wait 300    Wait for the cluster, then use kubectl
  garboardctl status                   What the machine does, waits for, lacks
  garboardctl logs kubelet -f          Follow the log of a service
  garboardctl dmesg                    The kernel's log
  garboardctl join node-2 --at HOST    Make the manifests of a machine that joins
  garboardctl machines --waiting       Find machines that wait to be told what they should be
  garboardctl claim -f node-2.yaml -m node-2
                                       Give them to a machine that waits

The machine and you know each other by keys: config.yaml names the fingerprint of the machine's key, and spec.access \
of the Cluster names the fingerprint of yours. There is no password, no certificate authority, and nothing expires.

Installed under the name kubectl-garboard this program is the plugin `kubectl garboard`.

Exit status: 0 when it is done, 1 when it failed, 2 when the command line is wrong.";

/// Talks to machines that run Garboard, also before and without a Kubernetes API.
#[derive(Debug, Parser)]
#[command(name = "garboardctl", version, after_help = EXAMPLES, propagate_version = true, max_term_width = 100)]
#[command(disable_help_subcommand = true)]
pub struct Cli {
    #[command(flatten)]
    pub target: Target,
    #[command(subcommand)]
    pub command: Command,
}

/// Which machine, and how to know it.
#[derive(Debug, Args)]
#[command(next_help_heading = "Which machine")]
pub struct Target {
    /// The config.yaml that `garboardctl new` wrote, or its folder
    /// [default: ./config.yaml, then ~/.config/garboard/config.yaml]
    #[arg(long, global = true, value_name = "DIR|FILE", env = "GARBOARDCTL_CONFIG", hide_env_values = true)]
    pub config: Option<PathBuf>,
    /// The machine's name in config.yaml, when it names several
    #[arg(short, long, global = true, value_name = "NAME")]
    pub machine: Option<String>,
    /// Where the machine is, instead of what config.yaml says; the port is 7443 unless given
    #[arg(short, long, global = true, value_name = "HOST[:PORT]")]
    pub endpoint: Option<Endpoint>,
    /// Fingerprint of the machine's key, as its console shows it, instead of what config.yaml says
    #[arg(long, global = true, value_name = "sha256:HEX")]
    pub fingerprint: Option<Pin>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    New(New),
    Kubeconfig(Kubeconfig),
    /// Watch machines, their services, trials and logs in the terminal
    ///
    /// All machines of config.yaml are asked every two seconds, and the log of the service that is chosen comes as it is written.
    Dashboard,
    /// Show what the machine is, what it waits for and what is wrong
    ///
    /// Conditions are those of the Machine and the Cluster, as `kubectl describe` shows them; here they are also seen
    /// before there is a Kubernetes API. Problems are what a person must mend: manifests that were refused, a disk that
    /// cannot be used.
    Status(Show),
    /// List the services that the machine supervises
    ///
    /// States:
    ///   Waiting    for what it requires, as the remark says
    ///   Starting   it is being set up
    ///   Running    its program runs; READY says whether it serves
    ///   Stopping   it was asked to end
    ///   Finished   it has done its work
    ///   Failed     it ended badly and is not started again by itself
    ///   BackOff    it ended and is started again after a pause
    #[command(verbatim_doc_comment)]
    Services(Show),
    Service(Service),
    Logs(Logs),
    Dmesg(Dmesg),
    Apply(Apply),
    Machines(Machines),
    Claim(Claim),
    Join(Join),
    Trial(Trial),
    Etcd(Etcd),
    Reboot(Reboot),
    Shutdown(Shutdown),
    Support(Support),
    Version(Version),
    Completion(Completion),
}

/// Make the manifests and keys of a new cluster
///
/// Writes into DIR:
///   cluster.yaml   the Cluster: networks, and who may do what
///   machine.yaml   the Machine, and the machine's own key
///   admin.key      your key: whoever has it is admin, so it stays with you
///   config.yaml    where the machine is, its fingerprint, and which key is yours
///
/// Nothing that exists is overwritten. For a machine that waits without manifests, give the key that its console shows: then it keeps
/// that key, and takes the manifests by `garboardctl claim`.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment, after_help = NEW_EXAMPLES)]
pub struct New {
    /// Folder for the files; made when it is not there
    pub dir: PathBuf,
    /// Name of the machine and of its Node
    #[arg(long, default_value = "node-1", value_name = "NAME")]
    pub name: String,
    /// Where you will reach the machine; the port is 7443 unless given
    #[arg(long, default_value = "127.0.0.1", value_name = "HOST[:PORT]")]
    pub endpoint: Endpoint,
    /// Where you will reach the Kubernetes API [default: the machine's host, port 6443]
    #[arg(long, value_name = "HOST[:PORT]")]
    pub api_endpoint: Option<String>,
    /// The key that the console of a waiting machine shows
    #[arg(long, value_name = "sha256:HEX")]
    pub key: Option<Pin>,
}

const NEW_EXAMPLES: &str = "\
Examples:
  A virtual machine whose ports are forwarded to 127.0.0.1:
    garboardctl new lab
  A machine in a rack:
    garboardctl new rack1 --name rack1 --endpoint 192.0.2.10
  One that waits:
    garboardctl new rack1 --name rack1 --endpoint 192.0.2.10 --key sha256:...
    garboardctl --config rack1 claim -f rack1/cluster.yaml -f rack1/machine.yaml";

/// Fetch credentials for kubectl
///
/// The machine signs a certificate for your own key, which never leaves this computer. The entries are merged into FILE,
/// and the context that it already had under this name is replaced and made current. The certificate is valid for a
/// limited time; run this again to renew it.
#[derive(Debug, Args)]
#[command(after_help = KUBECONFIG_EXAMPLES)]
pub struct Kubeconfig {
    /// The kubeconfig to write, or - for standard output [default: $KUBECONFIG, or ~/.kube/config]
    #[arg(short, long, value_name = "FILE|-")]
    pub file: Option<PathBuf>,
    /// Wait so long for the machine to start and for its API server to answer, telling what is waited for
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub wait: Option<u64>,
}

const KUBECONFIG_EXAMPLES: &str = "\
Examples:
  garboardctl kubeconfig --wait 300
  garboardctl kubeconfig -f lab/kubeconfig
  kubectl --kubeconfig lab/kubeconfig get nodes";

#[derive(Debug, Args)]
pub struct OutputArgs {
    /// text and wide are for people; json and yaml are for programs and keep their fields
    #[arg(short, long, value_enum, default_value_t = Format::Text, value_name = "FORMAT")]
    pub output: Format,
}

#[derive(Debug, Args)]
pub struct Show {
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Act on one supervised service
#[derive(Debug, Args)]
pub struct Service {
    #[command(subcommand)]
    pub command: ServiceCommand,
}

#[derive(Debug, Subcommand)]
pub enum ServiceCommand {
    /// Stop a service and start it again, also when it waits for its next try
    Restart {
        /// Name of the service, as `garboardctl services` shows it
        name: String,
    },
}

/// Show the log of a service
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  garboardctl logs kubelet -n 50\n  garboardctl logs etcd -f\n  garboardctl logs kernel"
)]
pub struct Logs {
    /// Name of the service, as `garboardctl services` shows it, or `kernel`
    pub service: String,
    #[command(flatten)]
    pub lines: Lines,
}

/// Show the kernel's log
#[derive(Debug, Args)]
pub struct Dmesg {
    #[command(flatten)]
    pub lines: Lines,
}

#[derive(Debug, Args)]
pub struct Lines {
    /// Go on with lines as they come, until interrupted
    #[arg(short, long)]
    pub follow: bool,
    /// How many of the last lines
    #[arg(short = 'n', long = "lines", default_value_t = 200, value_name = "COUNT")]
    pub count: u32,
    /// Begin each line with its time
    #[arg(short, long)]
    pub timestamps: bool,
}

/// Declare objects on the machine itself, as a manifest on its config drive does
///
/// For a machine without an API server, or one that has not joined its cluster and needs another token; otherwise `kubectl apply` is the
/// way. Needs the role admin.
#[derive(Debug, Args)]
pub struct Apply {
    /// The manifest (YAML, one or more documents), or - for standard input
    #[arg(short, long, value_name = "FILE|-")]
    pub file: PathBuf,
    /// Only check it and say what would happen
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// List your machines, or find those that wait to be claimed
///
/// Without --waiting, the machines of config.yaml are asked as whom they know you and what they run. With it, machines that were started
/// without manifests are looked for on the networks that this computer is on: each announces itself by multicast DNS, with the key that its
/// console shows. What they say of their hardware is not proved by anything.
#[derive(Debug, Args)]
#[command(after_help = MACHINES_EXAMPLES)]
pub struct Machines {
    /// Find machines that wait
    #[arg(long)]
    pub waiting: bool,
    /// How long to look for them
    #[arg(long, default_value_t = 3, value_name = "SECONDS", requires = "waiting", value_parser = clap::value_parser!(u64).range(1..=600))]
    pub seconds: u64,
    #[command(flatten)]
    pub output: OutputArgs,
}

const MACHINES_EXAMPLES: &str = "\
Examples:
  garboardctl machines
  garboardctl machines --waiting -o wide";

/// Tell a machine that waits what it should be
///
/// A machine that was started without manifests waits for the first who claims it, and its console shows where it is and its key. `new` and
/// `join` with that key make manifests for it. Until it belongs to a cluster, only who has claimed it may claim it again, as with another
/// token.
#[derive(Debug, Args)]
#[command(after_help = CLAIM_EXAMPLES)]
pub struct Claim {
    /// The manifests (YAML, one or more documents); may be given several times
    #[arg(short, long = "file", value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// Only find out whether the machine would accept it
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub output: OutputArgs,
}

const CLAIM_EXAMPLES: &str = "\
Examples:
  The first machine of a cluster:
    garboardctl new lab --endpoint 192.0.2.10 --key sha256:...
    garboardctl --config lab claim -f lab/cluster.yaml -f lab/machine.yaml
  Another one:
    garboardctl join node-2 --at 192.0.2.12 --key sha256:...
    garboardctl -m node-2 claim -f node-2.yaml";

/// Let another machine join the cluster: make its manifests, with a one-time token
///
/// Writes into the folder of config.yaml:
///   NAME.yaml    the Machine, its own key, and the token with which it joins
/// and adds the machine to config.yaml.
///
/// For a machine that waits without manifests, give the key that its console shows; it keeps that key, and takes NAME.yaml by
/// `garboardctl -m NAME claim -f NAME.yaml`. Otherwise give NAME.yaml to the machine as the manifests of the first one: on a config
/// drive, by fw_cfg or SMBIOS. The token lets this one machine in, once, within its time. Run the command again for a machine that
/// has not joined in time: it renews the token in NAME.yaml, which `garboardctl -m NAME apply -f NAME.yaml` gives to a machine that
/// is on.
/// The token of a control-plane machine opens the cluster's own keys: whoever has it has the cluster.
/// Needs the role admin, at a control-plane machine: the first of config.yaml unless another is named.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment, after_help = JOIN_EXAMPLES)]
pub struct Join {
    /// Name of the new machine and of its Node
    pub name: String,
    /// Where you will reach the new machine; the port is 7443 unless given
    #[arg(long, value_name = "HOST[:PORT]")]
    pub at: Option<Endpoint>,
    /// The key that the console of the new machine shows, if it waits
    #[arg(long, value_name = "sha256:HEX")]
    pub key: Option<Pin>,
    /// Let it run a part of the control plane; else it is a worker
    #[arg(long)]
    pub control_plane: bool,
    /// How long the machine may take to join
    #[arg(long, default_value_t = 86_400, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(60..=604_800))]
    pub valid: u32,
}

const JOIN_EXAMPLES: &str = "\
Examples:
  garboardctl join node-2 --at 192.0.2.12
  garboardctl join node-3 --at 192.0.2.13 --control-plane
  garboardctl join node-4 --at 192.0.2.14 --key sha256:...
  garboardctl join node-2                     The token has expired: make another";

/// Decide about the change of the machine's configuration that is on trial
///
/// What worked before a change must work with it in time, or the machine returns to the configuration before it. `garboardctl status`
/// tells how it is (ChangeProved), and what does not work yet.
#[derive(Debug, Args)]
#[command(after_help = TRIAL_EXAMPLES)]
pub struct Trial {
    #[command(subcommand)]
    pub command: TrialCommand,
}

const TRIAL_EXAMPLES: &str = "\
Examples:
  The default gateway is gone, and that is as it should be:
    garboardctl trial confirm
  A large image has to come over a slow line first:
    garboardctl trial extend 600";

/// What is decided.
#[derive(Debug, Subcommand)]
pub enum TrialCommand {
    /// Keep the change, whatever does not work
    Confirm,
    /// Return to the configuration before the change now
    Abort,
    /// Give it more time
    Extend {
        /// How much, seconds
        #[arg(value_parser = clap::value_parser!(u32).range(1..=86400))]
        seconds: u32,
    },
}

/// Restart the machine in order: pods and services get their time to end
#[derive(Debug, Args)]
pub struct Reboot {
    /// Why, for the machine's log
    #[arg(long, default_value = "", value_name = "TEXT")]
    pub reason: String,
    /// Wait so long for the machine to be back
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub wait: Option<u64>,
}

/// Switch the machine off in order: pods and services get their time to end
#[derive(Debug, Args)]
pub struct Shutdown {
    /// Why, for the machine's log
    #[arg(long, default_value = "", value_name = "TEXT")]
    pub reason: String,
}

/// Collect what a maintainer needs to find out what is wrong
///
/// Writes into a folder, for each machine of config.yaml or for the one that -m names: what it is, waits for and lacks (status.json), the
/// log of each of its services and of the kernel, and for a machine that does not answer why. What is secret by its form (tokens, passwords
/// in addresses, private keys) is taken out of the logs.
#[derive(Debug, Args)]
pub struct Support {
    /// Folder for the files; made when it is not there
    pub dir: PathBuf,
    /// How many of the last lines of each log
    #[arg(short = 'n', long, default_value_t = 5000, value_name = "COUNT")]
    pub lines: u32,
}

/// Show the versions of this program and of the machine, and as whom the machine knows you
#[derive(Debug, Args)]
pub struct Version {
    /// Only this program's version; asks no machine
    #[arg(long)]
    pub client: bool,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Print a completion script for a shell
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  source <(garboardctl completion bash)")]
pub struct Completion {
    /// The shell
    pub shell: clap_complete::Shell,
}

/// Whether `kubectl` started this program as its plugin.
fn is_plugin() -> bool {
    let name = std::env::args_os().next().map(PathBuf::from);
    name.as_deref().and_then(|path| path.file_stem()).is_some_and(|stem| stem == PLUGIN)
}

/// The grammar, named as the person called it.
pub fn command() -> clap::Command {
    let command = Cli::command();
    if is_plugin() { command.bin_name("kubectl garboard") } else { command }
}

/// Reads the command line; on an error, and for help, writes and ends the process.
pub fn parse() -> Cli {
    let matches = command().get_matches();
    Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grammar_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn every_command_says_what_it_does() {
        for command in command().get_subcommands() {
            let about = command.get_about().map(ToString::to_string).unwrap_or_default();
            assert!(!about.is_empty(), "{}", command.get_name());
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{} {}", command.get_name(), argument.get_id());
            }
        }
    }
}
