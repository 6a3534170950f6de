//! The container images that a release brings, imported into containerd.
//!
//! Each archive is imported once: the images that it holds are labelled with its digest, and looked for by that label. They
//! are pinned, so kubelet's garbage collection leaves them alone.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use containerd_client::services::v1::streaming_client::StreamingClient;
use containerd_client::services::v1::transfer_client::TransferClient;
use containerd_client::services::v1::{
    CreateRequest as CreateLease, DeleteRequest as DeleteLease, ListImagesRequest, StreamInit, TransferRequest,
};
use containerd_client::tonic::metadata::MetadataValue;
use containerd_client::tonic::transport::Channel;
use containerd_client::tonic::{Code, Request, Status};
use containerd_client::types::Platform;
use containerd_client::types::transfer::{
    Data, ImageImportStream, ImageReference, ImageStore, UnpackConfiguration, WindowUpdate,
};
use containerd_client::{Client, to_any};
use futures::stream;
use prost::Message;
use tokio::sync::mpsc;
use tracing::info;

/// The namespace that the container runtime interface works in.
const NAMESPACE: &str = "k8s.io";
/// Label that holds the digest of the archive that an image came from.
const ARCHIVE_LABEL: &str = "garboard.dev/archive";
/// Beginning of the names of images that a release may bring.
const NAME_PREFIX: &str = "garboard.dev";
/// Bytes in one message, as containerd's own client sends them.
const CHUNK_BYTES: usize = 32 * 1024;
/// Life of what is kept from containerd's garbage collection during an import that is then cut off, seconds.
const LEASE_SECONDS: u32 = 600;

/// Why an archive could not be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImagesError {
    /// containerd does not accept a connection.
    #[error("cannot connect to containerd")]
    Connect(#[source] containerd_client::tonic::transport::Error),
    /// The archives cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// containerd refused.
    #[error("containerd cannot {operation}")]
    Refused {
        /// What it was asked to do.
        operation: &'static str,
        /// Its answer.
        #[source]
        source: Box<Status>,
    },
}

impl ImagesError {
    fn refused(operation: &'static str) -> impl FnOnce(Status) -> Self {
        move |source| Self::Refused { operation, source: Box::new(source) }
    }
}

/// Imports those archives (`*.tar`, OCI image layouts) in `folder` that containerd at `socket` does not hold yet, and returns them.
///
/// Repeating it does nothing; one that is cut off begins anew.
///
/// # Errors
/// [`ImagesError`] of the first archive that failed; those before it are imported.
pub async fn import(folder: &Path, socket: &Path) -> Result<Vec<PathBuf>, ImagesError> {
    let client = Client::from_path(socket).await.map_err(ImagesError::Connect)?;
    let mut imported = Vec::new();
    for path in archives(folder)? {
        let archive = std::fs::read(&path).map_err(|source| ImagesError::Read { path: path.clone(), source })?;
        let digest = digest(&archive);
        if !is_imported(&client, &digest).await? {
            import_archive(&client, &archive, &digest).await?;
            info!(archive = %path.display(), "image imported");
            imported.push(path);
        }
    }
    Ok(imported)
}

fn archives(folder: &Path) -> Result<Vec<PathBuf>, ImagesError> {
    let failed = |source| ImagesError::Read { path: folder.to_owned(), source };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|extension| extension == "tar") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn digest(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn is_imported(client: &Client, digest: &str) -> Result<bool, ImagesError> {
    let filter = format!("labels.\"{ARCHIVE_LABEL}\"=={digest}");
    let request = request(ListImagesRequest { filters: vec![filter] }, None);
    let answer = client.images().list(request).await.map_err(ImagesError::refused("list images"))?;
    Ok(!answer.into_inner().images.is_empty())
}

/// Imports an archive under a lease, without which the stream would be garbage.
async fn import_archive(client: &Client, archive: &[u8], digest: &str) -> Result<(), ImagesError> {
    let id = format!("garboard-import-{digest}");
    let expire = ("containerd.io/gc.expire".to_owned(), expiry());
    let lease = CreateLease { id: id.clone(), labels: HashMap::from([expire]) };
    match client.leases().create(request(lease, None)).await {
        // An import that was cut off left it.
        Err(status) if status.code() == Code::AlreadyExists => {}
        result => {
            result.map_err(ImagesError::refused("make a lease"))?;
        }
    }
    let result = transfer(client.channel(), archive, digest, &id).await;
    let release = client.leases().delete(request(DeleteLease { id, sync: false }, None)).await;
    result?;
    release.map(drop).map_err(ImagesError::refused("end a lease"))
}

fn expiry() -> String {
    let now = time::OffsetDateTime::now_utc() + time::Duration::seconds(LEASE_SECONDS.into());
    // RFC 3339 of a time in this era cannot fail; without the label the lease lasts until it is deleted.
    now.format(&time::format_description::well_known::Rfc3339).unwrap_or_default()
}

async fn transfer(channel: Channel, archive: &[u8], digest: &str, lease: &str) -> Result<(), ImagesError> {
    let (outgoing, queue) = mpsc::channel(2);
    let closed = || ImagesError::refused("take an archive")(Status::cancelled("the stream was closed"));
    let init = StreamInit { id: lease.to_owned() };
    outgoing.send(to_any(&init)).await.map_err(|_| closed())?;
    let messages = stream::unfold(queue, async |mut queue| queue.recv().await.map(|message| (message, queue)));
    let mut incoming = StreamingClient::new(channel.clone())
        .stream(request(messages, Some(lease)))
        .await
        .map_err(ImagesError::refused("open a stream"))?
        .into_inner();
    // The first message says that the stream is known by its name.
    incoming.message().await.map_err(ImagesError::refused("open a stream"))?;

    let mut client = TransferClient::new(channel);
    let command = client.transfer(request(command(digest, lease), Some(lease)));
    let send = async {
        let mut window = 0usize;
        let mut rest = archive;
        while !rest.is_empty() {
            if window == 0 {
                let message =
                    incoming.message().await.map_err(ImagesError::refused("take an archive"))?.ok_or_else(closed)?;
                let update = WindowUpdate::decode(message.value.as_slice())
                    .map_err(|error| ImagesError::refused("take an archive")(Status::internal(error.to_string())))?;
                window += usize::try_from(update.update).unwrap_or(0);
                continue;
            }
            let (chunk, after) = rest.split_at(CHUNK_BYTES.min(window).min(rest.len()));
            outgoing.send(to_any(&Data { data: chunk.to_vec() })).await.map_err(|_| closed())?;
            window -= chunk.len();
            rest = after;
        }
        drop(outgoing);
        Ok::<_, ImagesError>(())
    };
    tokio::pin!(command);
    // Both arms may be dropped: then the import as a whole has failed and is begun anew.
    let answer = tokio::select! {
        answer = &mut command => answer,
        sent = send => {
            sent?;
            command.await
        }
    };
    answer.map(drop).map_err(ImagesError::refused("import an archive"))
}

fn command(digest: &str, stream: &str) -> TransferRequest {
    let platform = Platform { os: "linux".to_owned(), architecture: ARCHITECTURE.to_owned(), ..Platform::default() };
    let source = ImageImportStream { stream: stream.to_owned(), ..ImageImportStream::default() };
    let labels =
        [("io.cri-containerd.image", "managed"), ("io.cri-containerd.pinned", "pinned"), (ARCHIVE_LABEL, digest)];
    let destination = ImageStore {
        labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        platforms: vec![platform.clone()],
        extra_references: vec![ImageReference {
            name: NAME_PREFIX.to_owned(),
            is_prefix: true,
            ..ImageReference::default()
        }],
        unpacks: vec![UnpackConfiguration { platform: Some(platform), snapshotter: "overlayfs".to_owned() }],
        ..ImageStore::default()
    };
    TransferRequest { source: Some(to_any(&source)), destination: Some(to_any(&destination)), options: None }
}

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: &str = "amd64";
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: &str = "arm64";

fn request<T>(message: T, lease: Option<&str>) -> Request<T> {
    let mut request = Request::new(message);
    let metadata = request.metadata_mut();
    metadata.insert("containerd-namespace", MetadataValue::from_static(NAMESPACE));
    if let Some(Ok(lease)) = lease.map(MetadataValue::try_from) {
        metadata.insert("containerd-lease", lease);
    }
    request
}
