//! Snapshots: the whole content of a store, as a stream.

use tonic::{Request, Streaming};

use crate::proto::{SnapshotRequest, SnapshotResponse};
use crate::{Client, EtcdError};

/// A snapshot that comes.
#[derive(Debug)]
pub struct Snapshot(Streaming<SnapshotResponse>);

impl Snapshot {
    /// The next piece, and how much comes after it as far as etcd knows; none at the end.
    ///
    /// # Errors
    /// [`EtcdError`].
    pub async fn next(&mut self) -> Result<Option<(Vec<u8>, u64)>, EtcdError> {
        let piece = self.0.message().await?;
        Ok(piece.map(|SnapshotResponse { remaining_bytes, blob }| (blob, remaining_bytes)))
    }
}

impl Client {
    /// The member's content: also without a majority.
    ///
    /// # Errors
    /// [`EtcdError`].
    pub async fn snapshot(&mut self) -> Result<Snapshot, EtcdError> {
        // Its duration is that of whoever takes it, so no limit is set.
        let answer = self.maintenance.snapshot(Request::new(SnapshotRequest {})).await?;
        Ok(Snapshot(answer.into_inner()))
    }
}
