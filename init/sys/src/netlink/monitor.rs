use futures::StreamExt;
use futures::channel::mpsc::UnboundedReceiver;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::NetlinkMessage;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::sys::SocketAddr;

use super::{Connection, NetlinkError};

/// Tells when a link, an address, a route or a rule changes in its network namespace.
///
/// It does not tell what: after a change the reader observes everything anew, so notifications that the kernel dropped,
/// which it says, are just one more change.
pub struct Monitor {
    connection: Connection,
    notifications: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
}

impl Monitor {
    /// Starts to monitor the calling thread's network namespace.
    ///
    /// # Errors
    /// When the socket cannot be made.
    ///
    /// # Panics
    /// Outside of a tokio runtime with I/O.
    pub fn open() -> Result<Self, NetlinkError> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Ipv4Rule,
            MulticastGroup::Ipv6Rule,
        ];
        let (connection, _, notifications) =
            rtnetlink::new_multicast_connection(&groups).map_err(NetlinkError::Open)?;
        Ok(Self { connection, notifications })
    }

    /// Waits until something has changed since the last time, or the opening. Changes that are read together count once. A
    /// call that is given up loses nothing.
    ///
    /// # Errors
    /// When the socket cannot be read.
    pub async fn changed(&mut self) -> Result<(), NetlinkError> {
        tokio::select! {
            () = &mut self.connection => return Err(NetlinkError::Notifications),
            _ = self.notifications.next() => {}
        }
        while self.notifications.try_recv().is_ok() {}
        Ok(())
    }
}
