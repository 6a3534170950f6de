//! The source of one kind: the declaration that counts, wherever it comes from.
//!
//! [`Source::start`] decides between the ledger and a local manifest ([`crate::precedence`]) without waiting for
//! anything. [`Source::run`] then follows the API server whenever there is one, and takes submissions. What is refused
//! is reported and changes nothing; what was accepted last stays, in the ledger too.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use garboard_api::field_error::{self, FieldError};
use garboard_api::refusal::{self, Origin, Refusals};
use kube::Client;
use kube::api::{Api, PostParams};
use kube::runtime::watcher;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::applier::chain;
use crate::backoff::Backoff;
use crate::kind::Kind;
use crate::ledger::{Entry, Ledger, LedgerError, digest};
use crate::precedence::{Choice, Sync, choose, sync};
use crate::status::{NoAnswer, in_time};

/// A submission is answered before the next is taken, so few can wait; a full channel makes the sender wait.
const SUBMISSIONS: usize = 4;
/// Events are taken at once by the applier, which merges what it cannot handle yet.
const EVENTS: usize = 16;
/// First and longest wait after the API server did not take an object.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));
/// Most times that an object is edited which somebody else writes meanwhile.
const EDITS: u32 = 10;
/// Who holds a refused object.
const API_SERVER: &str = "API server";
const LOCAL: &str = "local manifest";

/// An object handed to the machine is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// It is not valid here.
    #[error("{}", field_error::join(.0))]
    Invalid(Vec<FieldError>),
    /// The API server refused it.
    #[error("the API server refused it")]
    Api(#[source] Box<kube::Error>),
    /// The API server did not answer in time.
    #[error(transparent)]
    Timeout(#[from] NoAnswer),
    /// It could not be recorded.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The agent is stopping.
    #[error("the agent is stopping")]
    Stopping,
}

struct Submission<K> {
    object: K,
    dry_run: bool,
    answer: oneshot::Sender<Result<bool, SubmitError>>,
}

/// What a [`Source`] declares, to be read anywhere.
pub struct Declared<K: Kind> {
    /// The object that counts; none when nothing is declared.
    pub object: watch::Receiver<Option<Arc<K>>>,
    /// The status that the API server has, whoever wrote it; none before the API server was asked.
    pub status: watch::Receiver<Option<K::Status>>,
    /// Whether somebody has deleted it, and with it this machine's place in the cluster.
    pub ended: watch::Receiver<bool>,
    submissions: mpsc::Sender<Submission<K>>,
}

impl<K: Kind> Clone for Declared<K> {
    fn clone(&self) -> Self {
        Self {
            object: self.object.clone(),
            status: self.status.clone(),
            ended: self.ended.clone(),
            submissions: self.submissions.clone(),
        }
    }
}

impl<K: Kind> std::fmt::Debug for Declared<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Declared").finish_non_exhaustive()
    }
}

impl<K: Kind> Declared<K> {
    /// The object that counts now.
    pub fn current(&self) -> Option<Arc<K>> {
        self.object.borrow().clone()
    }

    /// Declares an object: through the API server when there is one, else by way of the ledger. Says whether it differs
    /// from what counted. With `dry_run` nothing is changed.
    ///
    /// # Errors
    /// [`SubmitError`]; then nothing has changed.
    pub async fn submit(&self, object: K, dry_run: bool) -> Result<bool, SubmitError> {
        let (answer, outcome) = oneshot::channel();
        let submission = Submission { object, dry_run, answer };
        self.submissions.send(submission).await.map_err(|_| SubmitError::Stopping)?;
        outcome.await.map_err(|_| SubmitError::Stopping)?
    }
}

/// The source of one kind.
pub struct Source<K: Kind> {
    ledger: Ledger,
    entry: Option<Entry<K>>,
    current: watch::Sender<Option<Arc<K>>>,
    status: watch::Sender<Option<K::Status>>,
    ended: watch::Sender<bool>,
    refusals: watch::Sender<Refusals>,
    events: mpsc::Sender<watcher::Event<K>>,
    submissions: mpsc::Receiver<Submission<K>>,
    api: watch::Receiver<Option<Client>>,
}

impl<K: Kind> std::fmt::Debug for Source<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").finish_non_exhaustive()
    }
}

/// A source that is ready to run, what it declares, and its watch events for [`crate::applier`].
pub type Started<K> = (Source<K>, Declared<K>, mpsc::Receiver<watcher::Event<K>>);

/// A watch of the API server: the object, or that there is none.
type Watch<K> = BoxStream<'static, Option<K>>;

impl<K: Kind> Source<K> {
    /// Decides what counts now and returns the source, what it declares, and its watch events.
    ///
    /// # Errors
    /// [`LedgerError`] when the ledger cannot be read and no local manifest can stand in for it.
    pub fn start(
        ledger: Ledger,
        local: Option<&K>,
        refusals: watch::Sender<Refusals>,
        api: watch::Receiver<Option<Client>>,
    ) -> Result<Started<K>, LedgerError> {
        let entry = match ledger.load::<K>() {
            Ok(entry) => entry,
            Err(error) if local.is_some() => {
                warn!(error = chain(&error), "the local manifest stands in for the ledger");
                None
            }
            Err(error) => return Err(error),
        };
        let (current, object) = watch::channel(None);
        let (status, status_seen) = watch::channel(None);
        let (ended, has_ended) = watch::channel(false);
        let (events, receiver) = mpsc::channel(EVENTS);
        let (sender, submissions) = mpsc::channel(SUBMISSIONS);
        let mut source = Self { ledger, entry, current, status, ended, refusals, events, submissions, api };
        source.choose(local)?;
        source.current.send_replace(source.entry.as_ref().map(|entry| Arc::new(entry.object.clone())));
        let declared = Declared { object, status: status_seen, ended: has_ended, submissions: sender };
        Ok((source, declared, receiver))
    }

    fn choose(&mut self, local: Option<&K>) -> Result<(), LedgerError> {
        let local = local.map(|object| (object, digest(&serde_json::to_vec(object).unwrap_or_default())));
        let recorded = self.entry.as_ref().map(Entry::recorded);
        match (choose(recorded.as_ref(), local.as_ref().map(|(_, digest)| digest.as_str())), local) {
            (Choice::Local, Some((object, digest))) => match self.check(object) {
                Ok(()) => {
                    info!(kind = K::FILE, name = object.object_name(), "local manifest accepted");
                    self.declare(object, Some(digest))
                }
                Err(errors) => {
                    self.refuse(LOCAL, Some(field_error::join(&errors)));
                    Ok(())
                }
            },
            (Choice::Nothing | Choice::Ledger | Choice::Local, _) => Ok(()),
        }
    }

    /// Follows the API server and takes submissions until `stop`.
    #[tracing::instrument(name = "source", skip_all, fields(kind = K::FILE))]
    pub async fn run(mut self, stop: CancellationToken) {
        self.emit(watcher::Event::Init).await;
        if let Some(object) = self.entry.as_ref().map(|entry| entry.object.clone()) {
            self.emit(watcher::Event::InitApply(object)).await;
        }
        self.emit(watcher::Event::InitDone).await;
        let mut watch = self.watch();
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        // What the API server has and this source has not come to terms with; the inner none: it has no object.
        let mut due: Option<(Instant, Option<K>)> = None;
        loop {
            let at = due.as_ref().map(|(at, _)| *at);
            let retry = async {
                if let Some(at) = at { tokio::time::sleep_until(at).await } else { std::future::pending().await }
            };
            // Every arm is cancel-safe: it only waits, and what it waits for stays until it is taken.
            tokio::select! {
                () = stop.cancelled() => return,
                Some(submission) = self.submissions.recv() => {
                    let Submission { object, dry_run, answer } = submission;
                    let outcome = self.take_submission(&object, dry_run).await;
                    if watch.is_none() {
                        watch = self.watch();
                    }
                    // Whoever asked may be gone.
                    let _ = answer.send(outcome);
                }
                Ok(()) = self.api.changed() => watch = self.watch(),
                Some(found) = next(&mut watch) => {
                    self.show(found.as_ref().and_then(K::status));
                    due = Some((Instant::now(), found));
                }
                () = retry => if let Some((_, found)) = due.take() {
                    match self.meet(found.clone()).await {
                        Ok(()) => backoff.reset(),
                        Err(error) => {
                            warn!(error = chain(&error), "cannot come to terms with the API server");
                            due = Some((Instant::now() + backoff.wait(), found));
                        }
                    }
                },
            }
        }
    }

    /// Tells what status the API server has.
    fn show(&self, status: Option<&K::Status>) {
        self.status.send_if_modified(|shown| {
            let differs = shown.as_ref() != status;
            *shown = status.cloned();
            differs
        });
    }

    /// A watch of the one object, if there is an API server and a name to watch.
    fn watch(&mut self) -> Option<Watch<K>> {
        let client = self.api.borrow_and_update().clone()?;
        let declared = self.entry.as_ref().map(|entry| entry.object.object_name());
        let name = declared.or(K::ONLY)?.to_owned();
        let watch = watcher::watch_object(Api::<K>::all(client), &name);
        Some(garboard_api_client::uninterrupted(K::FILE, watch).boxed())
    }

    /// Comes to terms with what the API server has.
    async fn meet(&mut self, found: Option<K>) -> Result<(), SubmitError> {
        let recorded = self.entry.as_ref().map(Entry::recorded);
        match (sync(recorded.as_ref(), found.is_some()), found) {
            (Sync::Take, Some(object)) => self.accept(object).await,
            (Sync::Push, Some(object)) => {
                let declared = self.entry.as_ref().map(|entry| entry.object.clone());
                let outcome = match declared {
                    Some(declared) => self.replace(object.clone(), &declared, false).await,
                    None => Ok(object.clone()),
                };
                match outcome {
                    Ok(object) => self.accept(object).await,
                    // It refuses for good, so its own object counts, as it would have without the edit.
                    Err(SubmitError::Api(error)) if is_refusal(&error) => {
                        self.refuse(LOCAL, Some(chain(&*error)));
                        self.accept(object).await
                    }
                    Err(error) => Err(error),
                }
            }
            (Sync::Create, _) => {
                let Some(entry) = &self.entry else { return Ok(()) };
                let mut object = entry.object.clone();
                let meta = object.meta_mut();
                (meta.uid, meta.generation, meta.creation_timestamp) = (None, None, None);
                let parameters = PostParams { field_manager: Some("garboard".to_owned()), dry_run: false };
                let created = answered(self.objects()?.create(&parameters, &object)).await?;
                info!(name = object.object_name(), "object created in the API");
                self.accept(created).await
            }
            (Sync::Leave, _) => {
                self.ended.send_replace(true);
                Ok(())
            }
            (Sync::Wait | Sync::Take | Sync::Push, _) => Ok(()),
        }
    }

    fn objects(&self) -> Result<Api<K>, SubmitError> {
        self.api.borrow().clone().map(Api::all).ok_or(SubmitError::Stopping)
    }

    /// Takes an object of the API server, if it is valid here.
    async fn accept(&mut self, object: K) -> Result<(), SubmitError> {
        let mut object = object.without_status();
        let meta = object.meta_mut();
        (meta.managed_fields, meta.resource_version) = (None, None);
        if let Err(errors) = self.check(&object) {
            self.refuse(API_SERVER, Some(field_error::join(&errors)));
            return Ok(());
        }
        self.refuse(API_SERVER, None);
        let local_digest = self.entry.as_ref().and_then(|entry| entry.local_digest.clone());
        let entry = Entry { object, local_digest, pending: false };
        if self.entry.as_ref() != Some(&entry) {
            self.record(entry)?;
            self.announce().await;
        }
        Ok(())
    }

    async fn take_submission(&mut self, object: &K, dry_run: bool) -> Result<bool, SubmitError> {
        self.check(object).map_err(SubmitError::Invalid)?;
        let mut wanted = self.entry.as_ref().map_or_else(|| object.clone(), |entry| entry.object.clone());
        wanted.declare(object);
        let differs = self.entry.as_ref().is_none_or(|entry| entry.object != wanted);
        let client = self.api.borrow().clone();
        match client {
            Some(client) => {
                let api = Api::<K>::all(client);
                match answered(api.get_opt(object.object_name())).await? {
                    Some(found) => {
                        let replaced = self.replace(found, object, dry_run).await?;
                        if !dry_run {
                            self.accept(replaced).await?;
                        }
                    }
                    None if dry_run => {}
                    None => self.declare(object, self.local_digest())?,
                }
            }
            None if dry_run => {}
            None => self.declare(object, self.local_digest())?,
        }
        if differs && !dry_run {
            self.announce().await;
        }
        Ok(differs)
    }

    /// Gives an object of the API server what is declared here, as one who edits it does. What somebody writes into it meanwhile is in
    /// nobody's way: statuses are written at any time.
    async fn replace(&self, mut object: K, declared: &K, dry_run: bool) -> Result<K, SubmitError> {
        let (api, name) = (self.objects()?, object.object_name().to_owned());
        let parameters = PostParams { field_manager: Some("garboard".to_owned()), dry_run };
        let mut edits = 0;
        loop {
            object.declare(declared);
            object.meta_mut().managed_fields = None;
            edits += 1;
            match answered(api.replace(&name, &parameters, &object)).await {
                Err(SubmitError::Api(error)) if is_conflict(&error) && edits < EDITS => {
                    object = answered(api.get(&name)).await?;
                }
                outcome => return outcome,
            }
        }
    }

    fn local_digest(&self) -> Option<String> {
        self.entry.as_ref().and_then(|entry| entry.local_digest.clone())
    }

    fn check(&self, object: &K) -> Result<(), Vec<FieldError>> {
        let errors = object.refuse(self.entry.as_ref().map(|entry| &entry.object));
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    /// Records a declaration that was made at the machine. Its generation counts on, as the API server's does.
    fn declare(&mut self, object: &K, local_digest: Option<String>) -> Result<(), LedgerError> {
        let mut declared = self.entry.as_ref().map_or_else(|| object.clone(), |entry| entry.object.clone());
        declared.declare(object);
        if self.entry.as_ref().is_none_or(|entry| entry.object != declared) {
            let meta = declared.meta_mut();
            meta.generation = Some(meta.generation.unwrap_or_default() + 1);
        }
        self.record(Entry { object: declared, local_digest, pending: true })
    }

    fn record(&mut self, entry: Entry<K>) -> Result<(), LedgerError> {
        self.ledger.store(&entry)?;
        self.entry = Some(entry);
        Ok(())
    }

    /// Tells everybody what counts now.
    async fn announce(&mut self) {
        let Some(entry) = &self.entry else { return };
        let object = entry.object.clone();
        info!(name = object.object_name(), generation = object.meta().generation, "declaration changed");
        self.current.send_replace(Some(Arc::new(object.clone())));
        self.emit(watcher::Event::Apply(object)).await;
    }

    async fn emit(&self, event: watcher::Event<K>) {
        // Nobody listens once the agent stops.
        let _ = self.events.send(event).await;
    }

    fn refuse(&self, holder: &'static str, problem: Option<String>) {
        let origin = Origin::Object { about: K::ABOUT, holder };
        if let Some(problem) = &problem {
            warn!(%origin, problem, "declaration refused");
        }
        self.refusals.send_if_modified(|refusals| refusal::note(refusals, origin, problem));
    }
}

/// The API server's answer, if it comes in time.
async fn answered<T>(question: impl Future<Output = Result<T, kube::Error>>) -> Result<T, SubmitError> {
    in_time(question).await?.map_err(|error| SubmitError::Api(Box::new(error)))
}

async fn next<K>(watch: &mut Option<Watch<K>>) -> Option<Option<K>> {
    match watch {
        Some(watch) => watch.next().await,
        None => std::future::pending().await,
    }
}

/// Whether somebody has written the object since it was read.
fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

/// Whether trying again cannot help.
fn is_refusal(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 400 | 422))
}
