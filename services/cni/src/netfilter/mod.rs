//! nftables and connection tracking over netlink: one blocking socket, and messages in batches.
//!
//! Requests are encoded by `netlink-bindings`; this module adds the message headers, waits for one acknowledgement per
//! message and turns refusals into errors that carry the kernel's own words (extended acknowledgements).

pub mod conntrack;
pub mod nft;
pub mod nft_expression;

use std::io;
use std::time::Duration;

use netlink_bindings::consts::{NETLINK_NETFILTER, NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP, NLM_F_REQUEST};
use netlink_bindings::utils::{align, find_attr};
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};

/// `struct nlmsghdr`, bytes.
const HEADER_LEN: usize = 16;
/// `struct nlmsgerr` after its header: the code and the header of the message that it answers, bytes.
const ERROR_LEN: usize = 4 + HEADER_LEN;
/// Message types below this one are control messages.
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// `NLMSGERR_ATTR_MSG`: the reason in words.
const ATTR_MESSAGE: u16 = 1;
/// The kernel sends at most this much in one dump datagram (`NLMSG_GOODSIZE` rounded up), bytes.
const RECEIVE_BYTES: usize = 64 * 1024;
/// The kernel answers requests before `send` returns; a longer silence means that the answer was dropped.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// A request that the kernel refused, or a socket that failed.
#[derive(Debug, thiserror::Error)]
pub enum NetfilterError {
    /// The socket could not be opened, written or read.
    #[error("netlink {operation}")]
    Socket {
        /// What was being done.
        operation: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a message.
    #[error("{what}: {}{}", .errno.desc(), .message.as_deref().map(|m| format!(" ({m})")).unwrap_or_default())]
    Refused {
        /// What the message was to do.
        what: String,
        /// The kernel's error number.
        errno: Errno,
        /// The kernel's explanation, when it gave one.
        message: Option<String>,
    },
    /// An answer that does not follow the protocol.
    #[error("malformed netlink answer: {0}")]
    Malformed(&'static str),
}

impl NetfilterError {
    /// Whether the kernel said that the object does not exist.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Refused { errno: Errno::ENOENT, .. })
    }
}

/// Messages that are sent together and answered one by one, in order.
#[derive(Debug, Default)]
pub struct Batch {
    buffer: Vec<u8>,
    entries: Vec<Entry>,
}

/// What is known of a sent message when its answer comes.
#[derive(Debug)]
struct Entry {
    what: String,
    acknowledged: bool,
}

/// The kernel's answer to one message: done, or an error number with its explanation.
type Answer = Result<(), (Errno, Option<String>)>;

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a message of `kind` (the `nlmsg_type`) whose payload `encode` appends; `flags` are added to REQUEST and ACK;
    /// `what` names its effect in errors.
    pub fn push(&mut self, kind: u16, flags: i32, what: impl Into<String>, encode: impl FnOnce(&mut Vec<u8>)) {
        self.push_message(kind, flags | NLM_F_ACK, encode);
        self.entries.push(Entry { what: what.into(), acknowledged: true });
    }

    /// Adds a message that is not acknowledged: the brackets of an nftables transaction, whose own acknowledgement kernels
    /// before 6.10 leave out.
    fn push_silent(&mut self, kind: u16, what: &str, encode: impl FnOnce(&mut Vec<u8>)) {
        self.push_message(kind, 0, encode);
        self.entries.push(Entry { what: what.to_owned(), acknowledged: false });
    }

    fn push_message(&mut self, kind: u16, flags: i32, encode: impl FnOnce(&mut Vec<u8>)) {
        let start = self.buffer.len();
        let sequence = self.entries.len() as u32 + 1;
        self.buffer.extend_from_slice(&[0; 4]);
        self.buffer.extend_from_slice(&kind.to_ne_bytes());
        self.buffer.extend_from_slice(&((flags | NLM_F_REQUEST) as u16).to_ne_bytes());
        self.buffer.extend_from_slice(&sequence.to_ne_bytes());
        self.buffer.extend_from_slice(&[0; 4]);
        encode(&mut self.buffer);
        let length = (self.buffer.len() - start) as u32;
        self.buffer[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        align(&mut self.buffer);
    }
}

/// A netlink socket, bound to the network namespace of the thread that opened it for as long as it lives.
#[derive(Debug)]
pub struct Connection {
    socket: Socket,
}

impl Connection {
    /// Opens a socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// When the kernel refuses the socket or its options.
    pub fn open() -> Result<Self, NetfilterError> {
        let failed = |operation| move |source| NetfilterError::Socket { operation, source };
        let mut socket = Socket::new(NETLINK_NETFILTER as isize).map_err(failed("open"))?;
        socket.bind_auto().map_err(failed("bind"))?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(failed("connect"))?;
        // Without these an error repeats the whole request and gives no reason.
        socket.set_ext_ack(true).map_err(failed("set extended acknowledgements"))?;
        socket.set_cap_ack(true).map_err(failed("set capped acknowledgements"))?;
        set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER_TIMEOUT))
            .map_err(|errno| failed("set timeout")(errno.into()))?;
        Ok(Self { socket })
    }

    /// Sends a batch and waits for every answer. What was made by [`nft::transaction`] takes effect whole or not at all, the
    /// messages of another batch one by one, and all are tried.
    ///
    /// # Errors
    /// The first refusal.
    pub fn run(&self, batch: &Batch) -> Result<(), NetfilterError> {
        for (entry, answer) in batch.entries.iter().zip(self.answers(batch)?) {
            if let Err((errno, message)) = answer {
                return Err(NetfilterError::Refused { what: entry.what.clone(), errno, message });
            }
        }
        Ok(())
    }

    /// Sends a batch and returns the answer to each message.
    fn answers(&self, batch: &Batch) -> Result<Vec<Answer>, NetfilterError> {
        self.send(&batch.buffer)?;
        let mut answers: Vec<Option<Answer>> =
            batch.entries.iter().map(|entry| (!entry.acknowledged).then_some(Ok(()))).collect();
        // A refused bracket ends a transaction without answers to what is in it.
        let mut transaction_refused = false;
        while !transaction_refused && answers.iter().any(Option::is_none) {
            let datagram = self.receive()?;
            for message in Messages(&datagram) {
                let message = message?;
                let index = (message.sequence as usize).wrapping_sub(1);
                let (NLMSG_ERROR, Some(entry)) = (message.kind, batch.entries.get(index)) else { continue };
                let answer = decode_error(&message)?;
                transaction_refused |= !entry.acknowledged && answer.is_err();
                answers[index] = Some(answer);
            }
        }
        Ok(answers.into_iter().map(|answer| answer.unwrap_or(Ok(()))).collect())
    }

    /// Sends one dump request and hands the payload of each object to `each`.
    ///
    /// # Errors
    /// When the kernel refuses the dump, or `each` fails.
    pub fn dump(
        &self,
        kind: u16,
        what: &str,
        encode: impl FnOnce(&mut Vec<u8>),
        mut each: impl FnMut(&[u8]) -> Result<(), NetfilterError>,
    ) -> Result<(), NetfilterError> {
        let mut batch = Batch::new();
        batch.push_message(kind, NLM_F_DUMP, encode);
        self.send(&batch.buffer)?;
        loop {
            let datagram = self.receive()?;
            for message in Messages(&datagram) {
                let message = message?;
                match message.kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => {
                        let refused =
                            |(errno, message)| NetfilterError::Refused { what: what.to_owned(), errno, message };
                        return decode_error(&message)?.map_err(refused);
                    }
                    _ => each(message.payload)?,
                }
            }
        }
    }

    fn send(&self, buffer: &[u8]) -> Result<(), NetfilterError> {
        self.socket.send(buffer, 0).map_err(|source| NetfilterError::Socket { operation: "send", source })?;
        Ok(())
    }

    fn receive(&self) -> Result<Vec<u8>, NetfilterError> {
        loop {
            let mut buffer = Vec::with_capacity(RECEIVE_BYTES);
            match self.socket.recv(&mut buffer, 0) {
                Ok(_) => return Ok(buffer),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(NetfilterError::Socket { operation: "receive", source }),
            }
        }
    }
}

struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    payload: &'a [u8],
}

/// The messages of one datagram.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Result<Message<'a>, NetfilterError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let (header, _) = self.0.split_first_chunk::<HEADER_LEN>()?;
        let word = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let half = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        let length = word(0) as usize;
        if length < HEADER_LEN || length > self.0.len() {
            self.0 = &[];
            return Some(Err(NetfilterError::Malformed("message length")));
        }
        let payload = &self.0[HEADER_LEN..length];
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Ok(Message { kind: half(4), flags: half(6), sequence: word(8), payload }))
    }
}

fn decode_error(message: &Message<'_>) -> Result<Answer, NetfilterError> {
    let (code, _) = message.payload.split_first_chunk::<4>().ok_or(NetfilterError::Malformed("short error"))?;
    let code = i32::from_ne_bytes(*code);
    if code == 0 {
        return Ok(Ok(()));
    }
    let mut text = None;
    let flags = i32::from(message.flags);
    if flags & NLM_F_ACK_TLVS != 0 && flags & NLM_F_CAPPED != 0 {
        text = message
            .payload
            .get(ERROR_LEN..)
            .and_then(|attributes| find_attr(attributes, ATTR_MESSAGE))
            .map(|text| String::from_utf8_lossy(text).trim_end_matches('\0').to_owned());
    }
    Ok(Err((Errno::from_raw(-code), text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_stop_at_a_length_that_the_datagram_does_not_hold() {
        let mut datagram = vec![0; HEADER_LEN];
        datagram[..4].copy_from_slice(&200u32.to_ne_bytes());
        let mut messages = Messages(&datagram);
        assert!(matches!(messages.next(), Some(Err(NetfilterError::Malformed(_)))));
        assert!(messages.next().is_none());
    }

    #[test]
    fn each_message_of_a_batch_has_its_own_sequence_and_length() {
        let mut batch = Batch::new();
        batch.push(1, 0, "first", |buffer| buffer.extend_from_slice(&[1, 2, 3]));
        batch.push(2, 0, "second", |_| {});
        let messages: Vec<_> = Messages(&batch.buffer).collect::<Result<_, _>>().unwrap();
        assert_eq!(
            messages.iter().map(|m| (m.kind, m.sequence, m.payload.len())).collect::<Vec<_>>(),
            [(1, 1, 3), (2, 2, 0)]
        );
    }
}
