//! What the cluster's duties have in common.

use std::error::Error;

use garboard_runtime::applier::chain;
use kube::runtime::controller;
use tracing::{debug, warn};

/// Tells what went wrong with an object that a duty looked at, after `failed`.
pub fn tell<T, R, Q>(result: Result<T, controller::Error<R, Q>>, failed: &str)
where
    R: Error + 'static,
    Q: Error + 'static,
{
    match result {
        Ok(_) => {}
        // That the API server does not answer is said by the client.
        Err(controller::Error::QueueError(error)) => debug!(error = chain(&error), "watch interrupted"),
        Err(error) => warn!(error = chain(&error), "{failed}"),
    }
}
