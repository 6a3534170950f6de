//! Calls about the machine's etcd.

use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use tonic::Response;

use super::{Client, ClientError, error};
use crate::proto::{
    EtcdDefragmentRequest, EtcdDefragmentResponse, EtcdMembersRequest, EtcdMembersResponse, EtcdRestoreRequest,
    EtcdSnapshotRequest, EtcdSnapshotResponse,
};

impl Client {
    /// The members of etcd, and how the machine's own is.
    ///
    /// # Errors
    /// When the machine has no etcd, refuses or the connection is lost.
    pub async fn etcd_members(&mut self) -> Result<EtcdMembersResponse, ClientError> {
        let answer = self.calls.etcd_members(EtcdMembersRequest {}).await;
        answer.map(Response::into_inner).map_err(|status| error::of(status, &self.endpoint))
    }

    /// A snapshot of etcd, piece by piece. Whether it is whole is for [`crate::snapshot::Check`] to say.
    ///
    /// # Errors
    /// When the machine has no etcd, refuses or the connection is lost, now or within the stream.
    pub async fn etcd_snapshot(
        &mut self,
    ) -> Result<impl Stream<Item = Result<EtcdSnapshotResponse, ClientError>> + Unpin + use<>, ClientError> {
        let answer = self.calls.etcd_snapshot(EtcdSnapshotRequest {}).await;
        let endpoint = self.endpoint.clone();
        let pieces = answer.map_err(|status| error::of(status, &endpoint))?.into_inner();
        Ok(pieces.map(move |piece| piece.map_err(|status| error::of(status, &endpoint))))
    }

    /// Makes a new store of one member, the machine's, from what `source` brings, and returns what the machine does, step by step. It is
    /// done when the stream ends; the machine goes on when the connection is lost after the first step.
    ///
    /// # Errors
    /// When the source is refused, the machine refuses or the connection is lost, now or within the stream.
    pub async fn etcd_restore(
        &mut self,
        source: BoxStream<'static, EtcdRestoreRequest>,
    ) -> Result<impl Stream<Item = Result<String, ClientError>> + Unpin + use<>, ClientError> {
        let answer = self.calls.etcd_restore(source).await;
        let endpoint = self.endpoint.clone();
        let steps = answer.map_err(|status| error::of(status, &endpoint))?.into_inner();
        Ok(steps.map(move |step| step.map(|step| step.progress).map_err(|status| error::of(status, &endpoint))))
    }

    /// Has the machine's member give back the space that it does not use.
    ///
    /// # Errors
    /// When the machine has no etcd, refuses or the connection is lost.
    pub async fn etcd_defragment(&mut self) -> Result<EtcdDefragmentResponse, ClientError> {
        let failed = |status| error::of(status, &self.endpoint);
        let mut answer = self.calls.etcd_defragment(EtcdDefragmentRequest {}).await.map_err(failed)?.into_inner();
        let done = answer.message().await.map_err(|status| error::of(status, &self.endpoint))?;
        let silent = || ClientError::Lost { endpoint: self.endpoint.clone(), message: "no answer came".to_owned() };
        done.ok_or_else(silent)
    }
}
