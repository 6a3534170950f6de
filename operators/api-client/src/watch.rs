//! Watches without their failures.

use std::future::ready;
use std::time::Duration;

use futures::{Stream, StreamExt};
use kube::runtime::utils::{Backoff, ResetTimerBackoff};
use kube::runtime::{WatchStreamExt, watcher};
use tracing::warn;

/// First and longest wait after a failure. The API server of a machine that starts comes after its clients, and is waited
/// for closely.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// A watch that has lasted this long has succeeded.
const SUCCESS: Duration = Duration::from_secs(15);

/// A refusal is said when it has come this often: an API server that starts refuses for a moment what it allows later.
const PATIENCE: usize = 3;

/// HTTP's code for a watch that begins too far back, which is answered by listing again.
const GONE: u16 = 410;

/// What a watch of a kind brings, over all interruptions: it begins again after a wait that doubles. What the API server refuses is said once in the log; that it does
/// not answer is said by the client.
pub fn uninterrupted<T>(
    kind: &'static str,
    watch: impl Stream<Item = Result<T, watcher::Error>>,
) -> impl Stream<Item = T> {
    or_refused(kind, watch).filter_map(|event| ready(event.ok()))
}

/// The same, and among it each refusal of the API server that lasts.
pub fn or_refused<T>(
    kind: &'static str,
    watch: impl Stream<Item = Result<T, watcher::Error>>,
) -> impl Stream<Item = Result<T, Refused>> {
    let (mut refused, mut times) = (String::new(), 0);
    watch.backoff(ResetTimerBackoff::new(Waits(RETRY.0), SUCCESS)).filter_map(move |event| {
        let event = match event {
            Ok(event) => Some(Ok(event)),
            Err(error) if is_refusal(&error) => {
                let text = error.to_string();
                times = if text == refused { times + 1 } else { 1 };
                refused = text;
                (times == PATIENCE).then(|| {
                    warn!(kind, error = refused, "the API server refuses a watch");
                    Err(Refused(refused.clone()))
                })
            }
            Err(_) => None,
        };
        ready(event)
    })
}

/// The API server has answered, again and again, but not with what was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(String);

struct Waits(Duration);

impl Iterator for Waits {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let wait = self.0;
        self.0 = (wait * 2).min(RETRY.1);
        Some(wait)
    }
}

impl Backoff for Waits {
    fn reset(&mut self) {
        self.0 = RETRY.0;
    }
}

/// Whether the API server has answered, but not with what was asked for.
fn is_refusal(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => matches!(error, kube::Error::Api(_)),
        watcher::Error::WatchError(status) => status.code != GONE,
        watcher::Error::NoResourceVersion => true,
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use kube::core::Status;
    use tokio::runtime::Builder;

    use super::*;
    use crate::said::said;

    #[test]
    fn events_pass_and_a_lasting_refusal_is_said_once() {
        let refused = |code| Err(watcher::Error::WatchError(Box::new(Status { code, ..Status::failure("no", "No") })));
        let silent = || Err(watcher::Error::WatchFailed(kube::Error::LinesCodecMaxLineLengthExceeded));
        let cases = [
            ("for a moment", Vec::from([refused(403), refused(403), Ok(1)]), 0),
            ("lasting", (0..9).map(|_| refused(403)).chain([Ok(1)]).collect(), 1),
            ("too far back", (0..9).map(|_| refused(GONE)).chain([Ok(1)]).collect(), 0),
            ("no answer", (0..9).map(|_| silent()).chain([Ok(1)]).collect(), 0),
        ];
        for (name, watch, lines) in cases {
            let expected = vec![r#"WARN the API server refuses a watch kind="node""#; lines];
            let mut events = Vec::new();
            let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            let said = said(|| events = runtime.block_on(uninterrupted("node", stream::iter(watch)).collect()));
            assert_eq!((events, said), (vec![1], expected.iter().map(|line| (*line).to_owned()).collect()), "{name}");
        }
    }

    #[test]
    fn waits_double_up_to_the_longest() {
        let waits: Vec<u128> = Waits(RETRY.0).take(7).map(|wait| wait.as_millis()).collect();
        assert_eq!(waits, [250, 500, 1000, 2000, 4000, 5000, 5000]);
    }
}
