//! `org.freedesktop.login1.Manager`, as far as it is about delaying a shutdown (org.freedesktop.login1(5)).

use std::time::Duration;

use tracing::{debug, warn};
use zbus::fdo::{self, DBusProxy};
use zbus::message::Header;
use zbus::names::BusName;
use zbus::object_server::SignalEmitter;
use zbus::proxy::CacheProperties;
use zbus::{Connection, OwnedFd, interface};

use crate::inhibitors::{Holder, InhibitError, Inhibitors};

/// The name on the bus.
pub const NAME: &str = "org.freedesktop.login1";
/// The object's path.
pub const PATH: &str = "/org/freedesktop/login1";

/// The only operation that can be delayed.
const SHUTDOWN: &str = "shutdown";
/// The only way to do it.
const DELAY: &str = "delay";
/// Longest name or reason that is passed on, bytes.
const MAX_TEXT_BYTES: usize = 256;

/// The object.
#[derive(Debug)]
pub struct Manager {
    inhibitors: Inhibitors,
    delay: Duration,
    preparing: bool,
}

impl Manager {
    /// An object that delays shutdowns by at most `delay`.
    pub fn new(inhibitors: Inhibitors, delay: Duration) -> Self {
        Self { inhibitors, delay, preparing: false }
    }

    /// Notes whether a shutdown is being prepared. Says whether that is new.
    pub fn set_preparing(&mut self, preparing: bool) -> bool {
        std::mem::replace(&mut self.preparing, preparing) != preparing
    }

    fn inhibited(&self) -> String {
        if self.inhibitors.holders().is_empty() { String::new() } else { SHUTDOWN.to_owned() }
    }
}

/// Errors of logind that its clients know.
#[derive(Debug, zbus::DBusError)]
#[zbus(prefix = "org.freedesktop.login1")]
enum LoginError {
    #[zbus(error)]
    ZBus(zbus::Error),
    /// A shutdown is under way: nothing delays it any more.
    OperationInProgress(String),
}

#[interface(name = "org.freedesktop.login1.Manager")]
impl Manager {
    /// Delays a shutdown until the last copy of the returned descriptor is closed.
    async fn inhibit(
        &self,
        what: &str,
        who: &str,
        why: &str,
        mode: &str,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedFd, LoginError> {
        let invalid = |message: String| LoginError::ZBus(fdo::Error::InvalidArgs(message).into());
        if what != SHUTDOWN || mode != DELAY {
            return Err(invalid(format!("only {SHUTDOWN} can be inhibited, and only by {DELAY}")));
        }
        if self.preparing {
            return Err(LoginError::OperationInProgress("the machine is shutting down".to_owned()));
        }
        let (uid, pid) = sender(&header, connection).await?;
        let holder = Holder { who: shortened(who), why: shortened(why), uid, pid };
        match self.inhibitors.hold(holder).await {
            Ok(descriptor) => Ok(descriptor.into()),
            Err(error) => {
                warn!(%error, who, "cannot delay a shutdown");
                let message = match &error {
                    InhibitError::Control(source) => format!("{error}: {source}"),
                    InhibitError::Pipe(source) => format!("{error}: {source}"),
                    InhibitError::TooMany => error.to_string(),
                };
                Err(LoginError::ZBus(fdo::Error::Failed(message).into()))
            }
        }
    }

    /// What is inhibited, by whom, why, how, and the user and process of each.
    fn list_inhibitors(&self) -> Vec<(String, String, String, String, u32, u32)> {
        let entry = |Holder { who, why, uid, pid }| (SHUTDOWN.to_owned(), who, why, DELAY.to_owned(), uid, pid);
        self.inhibitors.holders().into_iter().map(entry).collect()
    }

    /// Longest time that a shutdown is delayed, microseconds.
    #[zbus(property(emits_changed_signal = "const"), name = "InhibitDelayMaxUSec")]
    fn inhibit_delay_max_usec(&self) -> u64 {
        u64::try_from(self.delay.as_micros()).unwrap_or(u64::MAX)
    }

    /// What cannot be done now; always nothing, since nothing can be blocked.
    #[zbus(property(emits_changed_signal = "const"))]
    fn block_inhibited(&self) -> String {
        String::new()
    }

    /// What is delayed now.
    #[zbus(property(emits_changed_signal = "false"))]
    fn delay_inhibited(&self) -> String {
        self.inhibited()
    }

    /// Whether a shutdown is being prepared.
    #[zbus(property)]
    fn preparing_for_shutdown(&self) -> bool {
        self.preparing
    }

    /// A shutdown is being prepared (`start`), or is not any more.
    #[zbus(signal)]
    pub async fn prepare_for_shutdown(emitter: &SignalEmitter<'_>, start: bool) -> zbus::Result<()>;
}

/// The user and the process that sent a message, as the broker saw them when they connected.
async fn sender(header: &Header<'_>, connection: &Connection) -> Result<(u32, u32), LoginError> {
    let sender = header.sender().ok_or_else(|| LoginError::ZBus(zbus::Error::MissingField))?;
    let bus = DBusProxy::builder(connection).cache_properties(CacheProperties::No).build().await?;
    let credentials =
        bus.get_connection_credentials(BusName::Unique(sender.clone())).await.map_err(zbus::Error::from)?;
    debug!(?credentials, "caller");
    Ok((credentials.unix_user_id().unwrap_or(u32::MAX), credentials.process_id().unwrap_or(0)))
}

fn shortened(text: &str) -> String {
    let mut text = text.replace(char::is_control, " ");
    let mut end = MAX_TEXT_BYTES.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}
