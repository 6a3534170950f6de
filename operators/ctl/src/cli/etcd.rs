//! The grammar of `etcd`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::Show;

/// Look after the cluster's store, etcd, on the machine itself: also while the Kubernetes API is down
#[derive(Debug, Args)]
#[command(after_help = ETCD_EXAMPLES)]
pub struct Etcd {
    #[command(subcommand)]
    pub command: EtcdCommand,
}

const ETCD_EXAMPLES: &str = "\
Examples:
  garboardctl etcd members
  garboardctl etcd snapshot store.db              Keep a copy of everything in the cluster
  garboardctl -m node-2 etcd restore --from-own-data
                                                  The other control-plane machines are lost: go on with node-2 alone";

/// What is done with etcd.
#[derive(Debug, Subcommand)]
pub enum EtcdCommand {
    /// List the members, and tell how the machine's own is
    ///
    /// It is what the machine's etcd knows, without asking the others: so it answers without a majority too, and then nobody leads.
    Members(Show),
    Snapshot(EtcdSnapshot),
    Restore(EtcdRestore),
    /// Give back the space that the database of the machine's member does not use
    ///
    /// The member does nothing else meanwhile, seconds for each gigabyte: one machine after the other, the leader last. The machines do
    /// this by themselves when more than half of a database and 100 MB are free. When etcd takes no changes any more (alarm NOSPACE), old
    /// revisions are forgotten first, and the alarm is taken back if the database is below its limit then. Needs the role operator.
    Defragment(Show),
}

/// Keep everything in the cluster's store in a file
///
/// The file has every secret of the cluster: only you can read it, and it needs the role admin. It is there only when it is whole, as
/// etcd's own hash says. What encrypts Secrets in the store is not in it: only machines that have the cluster's keys can use it.
#[derive(Debug, Args)]
pub struct EtcdSnapshot {
    /// The file to write
    pub file: PathBuf,
    /// Replace a file that is there
    #[arg(long)]
    pub force: bool,
}

/// Make the store anew, with this machine's member alone: when the majority is lost, or everything is to be as it was
///
/// The machine checks what it is given, stops its control plane, makes a new store and starts
/// again, in about a minute. Nothing changes when that fails. A power cut on the way does no
/// harm: the machine goes on with it.
///
/// The store before is set aside on the machine until the next restore, and --from-set-aside goes
/// back to it. What has changed since the snapshot is gone: objects that were deleted are back,
/// machines that joined since then leave the cluster, and machines that were removed since then
/// are let in again, so remove them again.
///
/// What comes next:
///   1. The other control-plane machines are no members of the new store, and do not come back
///      by themselves: their data are those of another. Switch them off before, if they can
///      still reach each other: else they may go on as a second cluster.
///   2. `kubectl get etcdmembers` shows them as Left. For each, `kubectl delete machine NAME`
///      lets it go; when it is gone for good, the condition Drained says what to annotate.
///   3. `garboardctl join NAME --control-plane` lets it join again, with nothing of what it had.
///
/// Needs the role admin, at a control-plane machine that was in the cluster when the snapshot was
/// taken.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment, after_help = RESTORE_EXAMPLES)]
#[command(group = clap::ArgGroup::new("source").required(true).args(["file", "from_own_data", "from_set_aside"]))]
pub struct EtcdRestore {
    /// A snapshot that `garboardctl etcd snapshot` or etcdctl wrote
    pub file: Option<PathBuf>,
    /// What this machine has: the newest, where its disk is intact and only the others are lost
    #[arg(long)]
    pub from_own_data: bool,
    /// What the latest restore on this machine has set aside
    #[arg(long)]
    pub from_set_aside: bool,
    /// Do it without asking
    #[arg(short, long)]
    pub yes: bool,
}

const RESTORE_EXAMPLES: &str = "\
Examples:
  garboardctl -m node-1 etcd restore store.db
  garboardctl -m node-1 etcd restore --from-own-data --yes";
