//! A connection whose peer is known.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin as Pinned;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use crate::pin::public_key;
use crate::{Access, AccessList, Pin, Role};

/// Who makes a request: proved in the handshake, found in the extensions of every request.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The name in the access list.
    pub name: String,
    /// The role in the access list.
    pub role: Role,
    /// The DER-encoded `SubjectPublicKeyInfo` of the key that the caller holds.
    pub public_key: Arc<[u8]>,
    /// Where the caller is.
    pub address: SocketAddr,
}

impl Caller {
    /// Who makes this request.
    ///
    /// # Errors
    /// `Unauthenticated`, which a server that [`super::serve`] runs never gives.
    pub fn of<T>(request: &tonic::Request<T>) -> Result<&Self, tonic::Status> {
        request.extensions().get().ok_or_else(|| tonic::Status::unauthenticated("the caller is unknown"))
    }
}

pub(super) struct Connection {
    stream: TlsStream<TcpStream>,
    caller: Caller,
    /// Ends when the caller's entry in the access list is no longer what it was, or gone.
    withdrawn: Pinned<Box<dyn Future<Output = ()> + Send>>,
    _place: OwnedSemaphorePermit,
}

impl Connection {
    /// Looks the peer up; none when its key is not in the list.
    pub(super) fn new(
        stream: TlsStream<TcpStream>,
        address: SocketAddr,
        access: watch::Receiver<AccessList>,
        place: OwnedSemaphorePermit,
    ) -> Option<Self> {
        let public_key: Arc<[u8]> = public_key(stream.get_ref().1.peer_certificates()?.first()?).ok()?.into();
        let pin = Pin::of_public_key(&public_key);
        let entry = access.borrow().get(&pin)?.clone();
        let Access { name, role } = entry.clone();
        let caller = Caller { name, role, public_key, address };
        Some(Self { stream, caller, withdrawn: Box::pin(changed(access, pin, entry)), _place: place })
    }
}

/// A claimant that has become somebody is let be, so that its claim is answered.
async fn changed(mut access: watch::Receiver<AccessList>, pin: Pin, entry: Access) {
    let holds = |now: &Access| entry.role == Role::Claimant || *now == entry;
    if access.wait_for(|list| !list.get(&pin).is_some_and(holds)).await.is_err() {
        // Nobody can change the list any more.
        std::future::pending().await
    }
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pinned<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // Looked at before each read, so that no request is taken from a key that has lost its access.
        if self.withdrawn.as_mut().poll(cx).is_ready() {
            let error = io::Error::new(io::ErrorKind::PermissionDenied, "the caller's access has changed");
            self.withdrawn = Box::pin(std::future::ready(()));
            return Poll::Ready(Err(error));
        }
        Poll::Ready(ready!(Pinned::new(&mut self.stream).poll_read(cx, buf)))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pinned<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pinned::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pinned<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pinned::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pinned<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pinned::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pinned<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pinned::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
