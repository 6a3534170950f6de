//! Makes the data of a new member of etcd, the only one of its cluster, from a snapshot or from data that no etcd uses: a one-shot.
//!
//! It writes beside what is there. Whoever declares it puts the new data in the place of the old.

use garboard_supervisor::spec::{RestartPolicy, ServiceSpec, Slice};

use crate::base::{Args, blank, cgroup, private_directory};
use crate::etcd::{DATA_DIR, peer_url};
use crate::users;
use crate::{CatalogError, CatalogInput, EtcdSource};

/// The service's name, and that under which the program does this.
pub const NAME: &str = "etcd-restore";
/// Where everything about a restore lies: on one filesystem with the member's data.
pub const DIR: &str = "/var/lib/etcd-restore";
/// The snapshot that was given to the machine.
pub const SNAPSHOT: &str = "/var/lib/etcd-restore/snapshot.db";
/// The data that are made.
pub const NEW_DIR: &str = "/var/lib/etcd-restore/new";
/// The data that were in the place of the latest ones.
pub const SET_ASIDE_DIR: &str = "/var/lib/etcd-restore/set-aside";
/// How far revisions jump, so that none which a client has seen comes again with another content: more than a cluster writes in
/// years (etcd: disaster recovery).
const BUMP: u64 = 1_000_000_000;

/// The file of which a new store is made.
pub fn source_file(source: EtcdSource) -> String {
    match source {
        EtcdSource::Snapshot => SNAPSHOT.to_owned(),
        EtcdSource::OwnData => format!("{DATA_DIR}/member/snap/db"),
        EtcdSource::SetAside => format!("{SET_ASIDE_DIR}/member/snap/db"),
    }
}

/// The specification of the one-shot.
///
/// # Errors
/// [`CatalogError::NoAddress`] when the node has no address at which others could reach the member.
pub(crate) fn service(input: &CatalogInput, source: EtcdSource, token: &str) -> Result<ServiceSpec, CatalogError> {
    let args = Args::new("/usr/bin/etcd")
        .flag("snapshot", source_file(source))
        // Only what etcd has sent ends with a hash.
        .flag("skip-hash-check", source != EtcdSource::Snapshot)
        .flag("data-dir", NEW_DIR)
        .flag("name", &input.node.name)
        .flag("initial-advertise-peer-urls", peer_url(input.node_address()?))
        .flag("initial-cluster-token", token)
        .flag("bump-revision", BUMP)
        // Those who watch from a revision before are told to list everything again.
        .flag("mark-compacted", true);
    let mut spec = blank(NAME, users::ETCD, cgroup(Slice::ControlPlane, 0, 64, 0, 0), args.into_vec())?;
    spec.argv0 = Some(NAME.to_owned());
    spec.directories.push(private_directory(DIR));
    spec.isolation.read_write.push(DIR.into());
    spec.umask = 0o077;
    spec.oneshot = true;
    // It refuses to write into what a try before has left, and whoever declares it is to know of a failure.
    spec.restart.policy = RestartPolicy::Never;
    // Eight gigabytes on a slow disk.
    spec.start_timeout_ms = 3_600_000;
    Ok(spec)
}
