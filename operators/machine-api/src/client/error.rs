//! What stands between a caller and a machine.

use std::error::Error;
use std::io;

use tonic::{Code, Status};

use crate::{Endpoint, Pin};

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The host's name has no address.
    #[error("find the address of {endpoint}")]
    Resolve {
        /// Where the machine should be.
        endpoint: Endpoint,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Nothing accepts connections there.
    #[error("connect to {endpoint}")]
    Connect {
        /// Where the machine should be.
        endpoint: Endpoint,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something is there and does not answer.
    #[error("{endpoint} does not answer")]
    Silent {
        /// Where the machine should be.
        endpoint: Endpoint,
    },
    /// The connection was closed before anything was said, as a port forwarder does for a machine that does not listen yet.
    #[error("{endpoint} closed the connection")]
    Closed {
        /// Where the machine should be.
        endpoint: Endpoint,
    },
    /// What is there does not speak the machine API.
    #[error("agree on TLS with {endpoint}")]
    Tls {
        /// Where the machine should be.
        endpoint: Endpoint,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// What is there is not the expected machine.
    #[error("{endpoint} has the key {presented}, and {expected} was expected")]
    OtherMachine {
        /// Where the machine should be.
        endpoint: Endpoint,
        /// The key that was asked for.
        expected: Pin,
        /// The key that was presented.
        presented: Pin,
    },
    /// The machine does not know our key.
    #[error("{endpoint} does not know the key {own}")]
    UnknownKey {
        /// The machine.
        endpoint: Endpoint,
        /// Our key.
        own: Pin,
    },
    /// The connection broke during a call, or the answer took too long.
    #[error("the connection to {endpoint} was lost: {message}")]
    Lost {
        /// The machine.
        endpoint: Endpoint,
        /// What is known, in words.
        message: String,
    },
    /// Our role does not allow the call.
    #[error("{message}")]
    Forbidden {
        /// Which role we have and which is needed.
        message: String,
    },
    /// The machine cannot do that yet.
    #[error("{message}")]
    NotYet {
        /// What it waits for.
        message: String,
    },
    /// The machine has no such thing.
    #[error("{message}")]
    NotFound {
        /// What it does not have.
        message: String,
    },
    /// The machine cannot accept what was given to it.
    #[error("{message}")]
    Invalid {
        /// What is wrong.
        message: String,
    },
    /// The machine failed.
    #[error("the machine failed ({code:?}): {message}")]
    Failed {
        /// The gRPC code.
        code: Code,
        /// What failed.
        message: String,
    },
}

impl ClientError {
    /// Whether the same may succeed later without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Resolve { .. }
            | Self::Connect { .. }
            | Self::Silent { .. }
            | Self::Closed { .. }
            | Self::Lost { .. }
            | Self::NotYet { .. } => true,
            Self::Tls { .. }
            | Self::OtherMachine { .. }
            | Self::UnknownKey { .. }
            | Self::Forbidden { .. }
            | Self::NotFound { .. }
            | Self::Invalid { .. }
            | Self::Failed { .. } => false,
        }
    }
}

/// What a status means. Only one that was made on our side has a source: then the connection, not the machine, failed.
pub(super) fn of(status: Status, endpoint: &Endpoint) -> ClientError {
    let message = status.message().to_owned();
    if let Some(source) = status.source() {
        let mut root = source;
        while let Some(deeper) = root.source() {
            root = deeper;
        }
        return ClientError::Lost { endpoint: endpoint.clone(), message: root.to_string() };
    }
    match status.code() {
        Code::PermissionDenied | Code::Unauthenticated => ClientError::Forbidden { message },
        Code::Unavailable | Code::FailedPrecondition => ClientError::NotYet { message },
        Code::NotFound => ClientError::NotFound { message },
        Code::InvalidArgument | Code::OutOfRange | Code::Unimplemented => ClientError::Invalid { message },
        Code::Cancelled | Code::DeadlineExceeded => ClientError::Lost { endpoint: endpoint.clone(), message },
        code => ClientError::Failed { code, message },
    }
}
