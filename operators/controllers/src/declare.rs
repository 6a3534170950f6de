//! Connects the machine API with what is declared: shows it, and takes what is handed over.

use std::sync::Arc;

use garboard_api::manifest::{JoinToken, Manifests};
use garboard_api::{Cluster, Machine, Refusals, refusal};
use garboard_machine_api::Pin;
use garboard_machine_api::proto::AppliedObject;
use garboard_runtime::applier::chain;
use garboard_runtime::kind::Kind;
use garboard_runtime::source::Declared;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::claim::{ClaimError, Claims};
use crate::context::Published;
use crate::join::TokenFile;
use crate::machine_api::{Declare, View};
use crate::problems::{self, Listed};

/// Keeps what the machine API shows, until `stop`.
pub async fn keep_view(
    view: watch::Sender<View>,
    mut published: watch::Receiver<Published>,
    mut refusals: watch::Receiver<Refusals>,
    mut problems: watch::Receiver<Listed>,
    stop: CancellationToken,
) {
    loop {
        let Published { machine, cluster } = published.borrow_and_update().clone();
        let refused = refusals.borrow_and_update().clone();
        let problems_now = refusal::lines(&refused).chain(problems::lines(&problems.borrow_and_update())).collect();
        view.send_replace(View { machine, cluster, problems: problems_now });
        // Cancel-safe: each arm only waits.
        tokio::select! {
            () = stop.cancelled() => return,
            Ok(()) = published.changed() => {}
            Ok(()) = refusals.changed() => {}
            Ok(()) = problems.changed() => {}
        }
    }
}

/// Takes what is handed over by the machine API.
#[derive(Debug)]
pub struct Declarations {
    /// What the machine should be.
    pub machine: Declared<Machine>,
    /// The cluster.
    pub cluster: Declared<Cluster>,
    /// Who may claim the machine.
    pub claims: Claims,
    /// Where the token with which it joins is kept.
    pub join_token: Arc<TokenFile>,
    /// Whether the machine has joined, and needs no token any more.
    pub joined: watch::Receiver<bool>,
}

impl Declarations {
    /// Declares one after the other, until `stop`.
    pub async fn run(self, mut declares: mpsc::Receiver<Declare>, stop: CancellationToken) {
        loop {
            let Declare { manifests, claimant, dry_run, reply } = tokio::select! {
                () = stop.cancelled() => return,
                declare = declares.recv() => match declare {
                    Some(declare) => declare,
                    None => return stop.cancelled().await,
                },
            };
            let outcome = match claimant {
                Some(by) => self.claim(&manifests, by, dry_run).await,
                None => self.declare(&manifests, dry_run).await,
            };
            // Whoever asked may be gone.
            let _ = reply.send(outcome);
        }
    }

    async fn declare(&self, manifests: &Manifests, dry_run: bool) -> Result<Vec<AppliedObject>, String> {
        let outcome = self.check(manifests).await?;
        if dry_run { Ok(outcome) } else { self.submit(manifests, false).await }
    }

    /// What would become of manifests: whatever is wrong with any of them is found before anything is changed.
    async fn check(&self, manifests: &Manifests) -> Result<Vec<AppliedObject>, String> {
        if let Some(JoinToken { machine, token: _ }) = &manifests.join_token {
            let (own, declared) = (self.machine.current(), manifests.machine.as_ref());
            let name = own.as_deref().or(declared).map_or("none yet", Machine::node_name);
            if machine != name {
                return Err(format!("Secret {machine}: the token is for the machine {machine}, and this is {name}"));
            }
        }
        self.submit(manifests, true).await
    }

    /// Declares for who claims the machine; the token counts only with the Machine that it is for.
    async fn claim(&self, manifests: &Manifests, by: Pin, dry_run: bool) -> Result<Vec<AppliedObject>, String> {
        if self.cluster.current().is_some() {
            return Err(ClaimError::NotWaiting.to_string());
        }
        self.claims.admit(by).map_err(|error| chain(&error))?;
        let outcome = self.check(manifests).await?;
        if dry_run {
            return Ok(outcome);
        }
        let former = self.claims.take(by).map_err(|error| chain(&error))?;
        let outcome = self.submit(manifests, false).await;
        if outcome.is_err() {
            self.claims.give_back(former);
        }
        outcome
    }

    /// Gives the machine the token with which it joins, if it has yet to.
    fn give_token(&self, token: Option<&JoinToken>, dry_run: bool) -> Result<Option<AppliedObject>, String> {
        let Some(token) = token else { return Ok(None) };
        let kept = self.join_token.holds(token).map_err(|error| chain(&error))?;
        let changes = !kept && !*self.joined.borrow();
        if changes && !dry_run {
            self.join_token.keep(token).map_err(|error| chain(&error))?;
        }
        let outcome = if changes { "changed" } else { "unchanged" };
        Ok(Some(AppliedObject { kind: "Secret".into(), name: token.machine.clone(), outcome: outcome.into() }))
    }

    async fn submit(&self, manifests: &Manifests, dry_run: bool) -> Result<Vec<AppliedObject>, String> {
        let mut applied = Vec::new();
        // Before the Machine that it is for begins to join.
        let token = self.give_token(manifests.join_token.as_ref(), dry_run)?;
        submit_one(manifests.cluster.as_ref(), &self.cluster, dry_run, &mut applied).await?;
        submit_one(manifests.machine.as_ref(), &self.machine, dry_run, &mut applied).await?;
        applied.extend(token);
        Ok(applied)
    }
}

async fn submit_one<K: Kind>(
    object: Option<&K>,
    declared: &Declared<K>,
    dry_run: bool,
    applied: &mut Vec<AppliedObject>,
) -> Result<(), String> {
    let Some(object) = object else { return Ok(()) };
    let created = declared.current().is_none();
    let (kind, name) = (K::kind(&()).into_owned(), object.object_name().to_owned());
    let differs = declared
        .submit(object.clone(), dry_run)
        .await
        .map_err(|error| format!("{kind} {name:?}: {}", chain(&error)))?;
    let outcome = match (created, differs) {
        (true, _) => "created",
        (false, true) => "changed",
        (false, false) => "unchanged",
    };
    applied.push(AppliedObject { kind, name, outcome: outcome.to_owned() });
    Ok(())
}
