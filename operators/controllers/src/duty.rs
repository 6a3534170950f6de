//! What the cluster's duties have in common: how they look at many objects, and how they are called for them.

use std::convert::Infallible;
use std::error::Error;
use std::fmt::Debug;
use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt as _, Stream, StreamExt as _, stream};
use garboard_runtime::applier::chain;
use kube::runtime::controller::{self, Action, ReconcileReason, ReconcileRequest};
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::{WatchStreamExt as _, applier, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// Objects that are dealt with at a time. Each request at a time is a connection of its own, and there may be a thousand objects.
pub const AT_ONCE: u16 = 8;
/// How soon what has failed is tried again.
const ERROR_RETRY: Duration = Duration::from_secs(5);

/// All objects of a kind, and a stream that tells of each change of what `strip` leaves of them: nothing else is kept.
///
/// Nothing is read before the stream is polled.
pub fn all<K>(
    client: &Client,
    kind: &'static str,
    strip: fn(&mut K),
) -> (Store<K>, impl Stream<Item = ()> + Send + use<K>)
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + PartialEq + Send + Sync + 'static,
{
    let (store, writer) = reflector::store();
    // A list that comes at once would be in memory at once, with all that is stripped.
    let watch = watcher(Api::all(client.clone()), watcher::Config::default().streaming_lists());
    let changes = news(watch, store.clone(), strip).reflect(writer).touched_objects().map(|object| object.map(drop));
    (store, garboard_api_client::uninterrupted(kind, changes))
}

/// What a watch brings, stripped, without that which changes nothing of what the store has.
fn news<K>(
    watch: impl Stream<Item = Result<watcher::Event<K>, watcher::Error>> + Send,
    store: Store<K>,
    strip: fn(&mut K),
) -> impl Stream<Item = Result<watcher::Event<K>, watcher::Error>> + Send
where
    K: Resource<DynamicType = ()> + Clone + PartialEq + Send + Sync + 'static,
{
    watch.modify(strip).filter(move |event| {
        let known = match event {
            Ok(watcher::Event::Apply(object)) => {
                store.get(&ObjectRef::from_obj(object)).is_some_and(|known| *known == *object)
            }
            _ => false,
        };
        ready(!known)
    })
}

/// One for all changes that come within `span` of the first.
///
/// The controllers of kube-runtime wait until nothing has changed for a while, which with many machines is never so.
pub fn gathered(changes: impl Stream<Item = ()> + Send, span: Duration) -> impl Stream<Item = ()> + Send {
    stream::unfold(Box::pin(changes), move |mut changes| async move {
        changes.next().await?;
        // What comes later is of the next span. The end of the stream is seen there, too.
        let _ = timeout(span, changes.by_ref().for_each(|()| ready(()))).await;
        Some(((), changes))
    })
}

/// Calls `reconcile` for the objects of `store` that are `due` or that an earlier call has asked for, until `stop`; for one object only
/// once at a time. A failure is told in the log, after `failed`, and followed by another call.
pub async fn run<K, Ctx, Future, E>(
    store: Store<K>,
    due: impl Stream<Item = ObjectRef<K>> + Send + 'static,
    context: Arc<Ctx>,
    mut reconcile: impl FnMut(Arc<K>, Arc<Ctx>) -> Future,
    failed: &str,
    stop: CancellationToken,
) where
    K: Resource<DynamicType = ()> + Clone + Send + Sync + 'static,
    Future: std::future::Future<Output = Result<Action, E>> + Send + 'static,
    E: Error + 'static,
{
    let request = |obj_ref| Ok::<_, Infallible>(ReconcileRequest { obj_ref, reason: ReconcileReason::ObjectUpdated });
    let queue = Box::pin(due.map(request).take_until(stop.cancelled_owned()));
    let reconcile = move |object, context| reconcile(object, context).boxed();
    let config = controller::Config::default().concurrency(AT_ONCE);
    applier(reconcile, |_, _, _| Action::requeue(ERROR_RETRY), context, store, queue, config)
        .for_each(async |result| tell(result, failed))
        .await;
}

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
        Err(controller::Error::ObjectNotFound(object)) => debug!(object = %object, "there no more"),
        Err(error) => warn!(error = chain(&error), "{failed}"),
    }
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;
    use garboard_api::Machine;
    use kube::runtime::watcher::Event;
    use tokio::time::{Instant, interval};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn changes_that_never_cease_are_told_again_and_again() {
        let start = Instant::now();
        let changes = stream::unfold(interval(Duration::from_millis(100)), |mut ticks| async {
            ticks.tick().await;
            Some(((), ticks))
        });
        let told = gathered(changes, Duration::from_millis(550)).map(|()| start.elapsed().as_millis());
        assert_eq!(told.take(3).collect::<Vec<_>>().await, [550, 1150, 1750]);
    }

    #[tokio::test(start_paused = true)]
    async fn every_change_is_told_also_the_last() {
        let changes = stream::iter([(), ()]).chain(stream::once(tokio::time::sleep(Duration::from_secs(9))));
        assert_eq!(gathered(changes, Duration::from_secs(1)).count().await, 2);
    }

    #[test]
    fn only_what_changes_something_is_news() {
        let machine = |label: &str, version: &str| {
            let mut machine = Machine::new("a", Default::default());
            machine.metadata.labels = Some([("label".to_owned(), label.to_owned())].into());
            machine.metadata.resource_version = Some(version.to_owned());
            machine
        };
        let strip = |machine: &mut Machine| machine.metadata.resource_version = None;
        let (store, writer) = reflector::store();
        let watch = [
            Event::Init,
            Event::InitApply(machine("1", "1")),
            Event::InitDone,
            Event::Apply(machine("1", "2")),
            Event::Apply(machine("2", "3")),
            Event::Delete(machine("2", "4")),
            Event::Apply(machine("2", "5")),
            Event::Apply(machine("2", "6")),
        ];
        let told = news(stream::iter(watch.map(Ok)), store.clone(), strip).reflect(writer).touched_objects();
        let labels: Vec<_> =
            block_on(told.map(|object| object.unwrap().metadata.labels.unwrap()["label"].clone()).collect());
        // It is there, changes, goes, and is there again.
        assert_eq!(labels, ["1", "2", "2", "2"]);
        assert_eq!(store.state().len(), 1);
    }
}
