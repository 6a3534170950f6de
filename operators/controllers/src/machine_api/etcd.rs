//! The calls about etcd: they ask the machine's own member, by its socket, so they serve while the Kubernetes API does not.

use std::sync::Arc;

use futures::stream::{self, BoxStream, StreamExt};
use garboard_api::machine::MachineRole;
use garboard_catalog::EtcdSource;
use garboard_etcd_client::{Client, EtcdError, Health, Member, Snapshot};
use garboard_machine_api::proto::etcd_restore_request::Source;
use garboard_machine_api::proto::{
    EtcdDefragmentResponse, EtcdHealth, EtcdMember, EtcdMembersResponse, EtcdOwnData, EtcdRestoreRequest,
    EtcdRestoreResponse, EtcdSetAside, EtcdSnapshotResponse,
};
use garboard_machine_api::snapshot::Check;
use tokio::io::AsyncWriteExt;
use tokio::sync::{Mutex, mpsc};
use tonic::{Status, Streaming};

use super::View;
use super::registered::Search;
use super::service::chain;
use crate::etcd::restore::{Ask, Folders};
use crate::etcd::{store, upkeep};

/// Largest snapshot that is taken, bytes: more than the database may have (`quota-backend-bytes`).
const MAX_BYTES: u64 = 9 << 30;
/// Steps that wait for the caller to take them: there are few.
const STEPS: usize = 8;

/// What restores need.
#[derive(Clone, Debug)]
pub struct Restoring {
    asks: mpsc::Sender<Ask>,
    folders: Folders,
    /// One at a time, from the first piece to the end.
    one: Arc<Mutex<()>>,
}

impl Restoring {
    /// Restores that the task at the other end of `asks` carries out in `folders`.
    pub fn new(asks: mpsc::Sender<Ask>, folders: Folders) -> Self {
        Self { asks, folders, one: Arc::default() }
    }
}

pub(super) async fn members() -> Result<EtcdMembersResponse, Status> {
    let mut etcd = connect().await?;
    let members = etcd.known_members().await.map_err(failed)?;
    let health = etcd.health().await.map_err(failed)?;
    let member = |Member { id, name, peer_urls, learner }| EtcdMember { id, name, peer_urls, learner };
    Ok(EtcdMembersResponse { members: members.into_iter().map(member).collect(), health: Some(in_message(health)) })
}

pub(super) async fn snapshot() -> Result<BoxStream<'static, Result<EtcdSnapshotResponse, Status>>, Status> {
    let snapshot = connect().await?.snapshot().await.map_err(failed)?;
    let piece = |(piece, remaining_bytes)| EtcdSnapshotResponse { piece, remaining_bytes };
    let pieces = stream::unfold(Some(snapshot), async |snapshot: Option<Snapshot>| {
        let mut snapshot = snapshot?;
        match snapshot.next().await {
            Ok(next) => next.map(|next| (Ok(next), Some(snapshot))),
            Err(error) => Some((Err(failed(error)), None)),
        }
    });
    Ok(pieces.map(move |next| next.map(piece)).boxed())
}

pub(super) fn defragment() -> BoxStream<'static, Result<EtcdDefragmentResponse, Status>> {
    let work = async {
        let (before, after) = upkeep::defragment(&mut connect().await?).await.map_err(failed)?;
        Ok(EtcdDefragmentResponse { before: Some(in_message(before)), after: Some(in_message(after)) })
    };
    stream::once(work).boxed()
}

/// Takes what a new store is to be made of, and has it made. Goes on when the caller goes away after it has given everything.
pub(super) fn restore(
    restoring: &Restoring,
    view: &View,
    given: Streaming<EtcdRestoreRequest>,
) -> Result<BoxStream<'static, Result<EtcdRestoreResponse, Status>>, Status> {
    let machine = view.machine.as_ref().ok_or_else(|| Status::unavailable("no Machine is declared yet"))?;
    if machine.role() == MachineRole::Worker {
        return Err(Status::invalid_argument("this machine is a worker: a control-plane machine has etcd"));
    }
    let one = restoring.one.clone().try_lock_owned();
    let one = one.map_err(|_| Status::failed_precondition("a restore is being done already"))?;
    let (steps, seen) = mpsc::channel(STEPS);
    let restoring = restoring.clone();
    // The machine that has founded the cluster belongs to it in any case.
    let joined = machine.joins().then(|| machine.node_name().to_owned());
    tokio::spawn(async move {
        let outcome = async {
            let source = receive(&restoring.folders, joined.as_deref(), given).await?;
            let (progress, mut told) = mpsc::channel(STEPS);
            let ending = |_| Status::unavailable("the node agent is ending");
            restoring.asks.send(Ask { source, progress }).await.map_err(ending)?;
            while let Some(step) = told.recv().await {
                let progress = step.map_err(Status::internal)?;
                // The caller may be gone; the machine goes on.
                drop(steps.send(Ok(EtcdRestoreResponse { progress })).await);
            }
            Ok(())
        };
        if let Err(status) = outcome.await {
            drop(steps.send(Err(status)).await);
        }
        drop(one);
    });
    let seen = stream::unfold(seen, async |mut seen| seen.recv().await.map(|step| (step, seen)));
    Ok(seen.boxed())
}

/// What is given, once all of it is on the disk and whole.
async fn receive(
    folders: &Folders,
    joined: Option<&str>,
    mut given: Streaming<EtcdRestoreRequest>,
) -> Result<EtcdSource, Status> {
    let source = match given.message().await?.and_then(|first| first.source) {
        Some(Source::Piece(first)) => {
            if let Err(status) = receive_snapshot(folders, joined, first, given).await {
                // What is wrong with the snapshot says more than what is wrong with its removal.
                drop(folders.drop_snapshot());
                return Err(status);
            }
            EtcdSource::Snapshot
        }
        Some(Source::OwnData(EtcdOwnData {})) => EtcdSource::OwnData,
        Some(Source::SetAside(EtcdSetAside {})) => EtcdSource::SetAside,
        None => return Err(Status::invalid_argument("source: give one of piece, own_data and set_aside")),
    };
    if !folders.has(source) {
        return Err(Status::invalid_argument(match source {
            EtcdSource::Snapshot => "piece: nothing was given",
            EtcdSource::OwnData => "own_data: this machine has no data of etcd",
            EtcdSource::SetAside => "set_aside: no restore has set data aside on this machine",
        }));
    }
    Ok(source)
}

async fn receive_snapshot(
    folders: &Folders,
    joined: Option<&str>,
    first: Vec<u8>,
    mut given: Streaming<EtcdRestoreRequest>,
) -> Result<(), Status> {
    let unwritten = |error: &dyn std::error::Error| Status::internal(chain(error));
    let mut file = tokio::fs::File::from_std(folders.receive().map_err(|error| unwritten(&error))?);
    let (mut check, mut piece) = (Check::default(), first);
    let mut search = joined.map(Search::new);
    loop {
        check.update(&piece);
        if let Some(search) = &mut search {
            search.update(&piece);
        }
        if check.bytes() > MAX_BYTES {
            return Err(Status::invalid_argument(format!("piece: more than {MAX_BYTES} bytes come")));
        }
        file.write_all(&piece).await.map_err(|error| unwritten(&error))?;
        piece = match given.message().await? {
            None => break,
            Some(EtcdRestoreRequest { source: Some(Source::Piece(next)) }) => next,
            Some(_) => {
                return Err(Status::invalid_argument("source: pieces of a snapshot are followed by pieces only"));
            }
        };
    }
    check.finish().map_err(|damage| Status::invalid_argument(format!("piece: {damage}")))?;
    if let (Some(name), Some(false)) = (joined, search.map(|search| search.found())) {
        return Err(Status::invalid_argument(format!(
            "piece: the snapshot is older than this machine's part in the cluster: it has no Machine {name}; give it to a machine that was \
             there before"
        )));
    }
    file.flush().await.map_err(|error| unwritten(&error))?;
    let (file, folders) = (file.into_std().await, folders.clone());
    let kept = tokio::task::spawn_blocking(move || folders.keep_snapshot(&file)).await;
    kept.map_err(|error| Status::internal(error.to_string()))?.map_err(|error| unwritten(&error))
}

async fn connect() -> Result<Client, Status> {
    store::connect().await.map_err(failed)
}

fn failed(error: EtcdError) -> Status {
    match &error {
        EtcdError::Connect(_) => {
            Status::failed_precondition("etcd does not serve on this machine: it may be starting, or a worker")
        }
        EtcdError::Refused(_) => Status::failed_precondition(chain(&error)),
    }
}

fn in_message(health: Health) -> EtcdHealth {
    let Health { id, leader_id, version, database_bytes, used_bytes, quota_bytes, revision, alarms, errors } = health;
    let alarms = alarms.into_iter().map(str::to_owned).collect();
    EtcdHealth { id, leader_id, version, database_bytes, used_bytes, quota_bytes, revision, alarms, errors }
}
