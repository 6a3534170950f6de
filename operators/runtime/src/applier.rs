//! Calls a reconciler for what a source declares, with kube-runtime's applier, which needs no API server.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::{FutureExt, Stream, StreamExt, stream};
use kube::runtime::controller::{self, Action, ReconcileReason, ReconcileRequest};
use kube::runtime::reflector::{self, ObjectRef};
use kube::runtime::{WatchStreamExt, applier, watcher};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use crate::backoff::Backoff;
use crate::kind::Kind;

/// Reasons to look again that come together make one look.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// First and longest wait after a failure.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));

/// Calls `reconcile` whenever an object comes, changes, is asked for again by an earlier call, or `again` says so; one
/// call at a time. Ends when `stop` is cancelled, after a running call.
///
/// A failure is logged with its causes, once until something changes, and followed by another call after a wait that doubles.
pub async fn run<K, Ctx, Future, Error>(
    events: impl Stream<Item = watcher::Event<K>> + Send + 'static,
    again: impl Stream<Item = ()> + Send + 'static,
    context: Arc<Ctx>,
    mut reconcile: impl FnMut(Arc<K>, Arc<Ctx>) -> Future,
    stop: CancellationToken,
) where
    K: Kind,
    Future: std::future::Future<Output = Result<Action, Error>> + Send + 'static,
    Error: std::error::Error + Send + 'static,
{
    let (store, writer) = reflector::store::<K>();
    let objects = store.clone();
    let changed = events
        .map(Ok::<_, watcher::Error>)
        .reflect(writer)
        .touched_objects()
        .map(|object| object.map(|object| request(&object, ReconcileReason::ObjectUpdated)));
    let again = again.flat_map(move |()| {
        let requests: Vec<_> =
            objects.state().iter().map(|object| request(&**object, ReconcileReason::Unknown)).collect();
        stream::iter(requests).map(Ok)
    });
    let queue = Box::pin(stream::select(changed, again).take_until(stop.cancelled_owned()));
    let backoff = Arc::new(Mutex::new(Backoff::new(RETRY.0, RETRY.1)));
    let succeeded = Arc::clone(&backoff);
    let mut said = String::new();
    let policy = move |_: Arc<K>, _: &Error, _: Arc<Ctx>| {
        Action::requeue(backoff.lock().unwrap_or_else(PoisonError::into_inner).wait())
    };
    applier(
        move |object, context| reconcile(object, context).boxed(),
        policy,
        context,
        store,
        queue,
        controller::Config::default().debounce(DEBOUNCE).concurrency(1),
    )
    .for_each(|outcome| {
        match outcome {
            Ok(_) => {
                succeeded.lock().unwrap_or_else(PoisonError::into_inner).reset();
                said.clear();
            }
            Err(controller::Error::ReconcilerFailed(failure, object)) => {
                let error = chain(&failure);
                if error != said {
                    warn!(object = %object, error, "reconcile failed");
                    said = error;
                }
            }
            Err(controller::Error::ObjectNotFound(object)) => debug!(object = %object, "no longer declared"),
            Err(failure) => error!(error = chain(&failure), "reconcile queue failed"),
        }
        std::future::ready(())
    })
    .await;
}

fn request<K: Kind>(object: &K, reason: ReconcileReason) -> ReconcileRequest<K> {
    ReconcileRequest { obj_ref: ObjectRef::from_obj(object), reason }
}

/// An error with its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some libraries repeat the cause in their own message.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
