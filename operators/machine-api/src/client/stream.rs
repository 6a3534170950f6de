//! Keeps what TLS said when a connection breaks: HTTP/2 passes only the text of an error on.

use std::io::{self, IoSlice};
use std::pin::Pin as Pinned;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use rustls::AlertDescription;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// The TLS error within an I/O error.
pub(super) fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// The alert with which the machine ended the connection, if it did.
///
/// A client of TLS 1.3 has ended its handshake before the server has seen the client's certificate, so a refused key shows
/// only when the connection is read.
#[derive(Clone, Default)]
pub(super) struct Fault(Arc<OnceLock<AlertDescription>>);

impl Fault {
    pub(super) fn alert(&self) -> Option<AlertDescription> {
        self.0.get().copied()
    }

    fn observe<T>(&self, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(error)) = &outcome
            && let Some(rustls::Error::AlertReceived(alert)) = tls_error(error)
        {
            // Only the first alert says why.
            self.0.get_or_init(|| *alert);
        }
        outcome
    }
}

pub(super) struct Observed {
    stream: TlsStream<TcpStream>,
    fault: Fault,
}

impl Observed {
    pub(super) fn new(stream: TlsStream<TcpStream>, fault: Fault) -> Self {
        Self { stream, fault }
    }
}

impl AsyncRead for Observed {
    fn poll_read(mut self: Pinned<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let outcome = Pinned::new(&mut self.stream).poll_read(cx, buf);
        self.fault.observe(outcome)
    }
}

impl AsyncWrite for Observed {
    fn poll_write(mut self: Pinned<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pinned::new(&mut self.stream).poll_write(cx, buf);
        self.fault.observe(outcome)
    }

    fn poll_flush(mut self: Pinned<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pinned::new(&mut self.stream).poll_flush(cx);
        self.fault.observe(outcome)
    }

    fn poll_shutdown(mut self: Pinned<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pinned::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pinned<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pinned::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.fault.observe(outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
