//! Does what is done once for the whole cluster, while this machine leads; the decision is
//! [`plan::leader`](garboard_plan::leader).
//!
//! A lease is replaced only as it was read, so of two machines that take it at once the API server refuses one. The crates
//! that hold leases compare the times of day of different machines, or overwrite what they did not read.

use std::fmt;
use std::time::Duration;

use garboard_plan::leader::{self as plan, Candidacy, DEADLINE, Loss, NAMESPACE, Seen};
pub use garboard_plan::leader::{ETCD, Identity, OPERATORS};
use garboard_runtime::applier::chain;
use garboard_runtime::status::in_time;
use garboard_sys::clock::boot_time;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, PostParams};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// Time between two tries after a failure.
const RETRY: Duration = Duration::from_secs(1);
/// Longest time that giving the lease back may take: without it the others wait until it expires.
const RELEASE: Duration = Duration::from_secs(2);

/// What a machine is doing about the lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It led, and does not know who does now.
    Lost(Loss),
    /// It stands by while that holder leads.
    StandsBy(String),
    /// It leads.
    Leads,
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost(loss) => write!(f, "leads no longer: {loss}"),
            Self::StandsBy(holder) => write!(f, "stands by while {holder} leads"),
            Self::Leads => f.write_str("leads"),
        }
    }
}

/// Does the `duties` whenever this machine leads, which is while it holds the `lease`, until `stop` ends them, and gives the lease back.
///
/// When the lease is lost, the duties are dropped where they are: another machine may begin with them. `tell` is called with
/// each new standing.
pub async fn lead<Duties: Future<Output = ()>>(
    client: Client,
    lease: &'static str,
    identity: Identity,
    mut tell: impl FnMut(Standing),
    duties: impl Fn(CancellationToken) -> Duties,
    stop: CancellationToken,
) {
    let mut candidate = Candidate { leases: Api::namespaced(client, NAMESPACE), lease, identity, seen: None };
    while let Some(renewed) = stop.run_until_cancelled(candidate.stand_by(&mut tell)).await {
        tell(Standing::Leads);
        tokio::select! {
            loss = candidate.hold(renewed) => tell(Standing::Lost(loss)),
            () = duties(stop.clone()) => return candidate.release().await,
        }
    }
}

/// What became of trying to take the lease.
enum Attempt {
    /// It is this machine's; it was asked for then.
    Taken(Duration),
    /// It is another's; look again after a while.
    Wait(Duration),
}

struct Candidate {
    leases: Api<Lease>,
    lease: &'static str,
    identity: Identity,
    /// The lease as it was read or written last; none when there is none.
    seen: Option<Seen>,
}

impl Candidate {
    /// Waits until the lease is this machine's, and returns when it was asked for.
    async fn stand_by(&mut self, tell: &mut impl FnMut(Standing)) -> Duration {
        let (mut leader, mut reported) = (String::new(), String::new());
        loop {
            let error = match in_time(self.try_take()).await {
                Ok(Ok(Attempt::Taken(asked))) => return asked,
                Ok(Ok(Attempt::Wait(wait))) => {
                    let holder = self.seen.as_ref().and_then(Seen::holder);
                    if let Some(holder) = holder.filter(|holder| *holder != leader) {
                        holder.clone_into(&mut leader);
                        tell(Standing::StandsBy(leader.clone()));
                    }
                    reported.clear();
                    sleep(wait).await;
                    continue;
                }
                Ok(Err(error)) => chain(&error),
                Err(silence) => silence.to_string(),
            };
            if error != reported {
                warn!(error, "cannot take the lease");
                reported = error;
            }
            sleep(RETRY).await;
        }
    }

    async fn try_take(&mut self) -> Result<Attempt, kube::Error> {
        self.read().await?;
        // Nobody sees the lease before it is written, and counts from then.
        let asked = boot_time();
        if let Candidacy::Wait(wait) = plan::candidacy(self.seen.as_ref(), &self.identity, asked) {
            return Ok(Attempt::Wait(wait));
        }
        match self.write().await {
            Err(kube::Error::Api(status)) if status.code == 409 => {
                debug!("another was faster");
                self.seen = None;
                Ok(Attempt::Wait(RETRY))
            }
            written => written.map(|()| Attempt::Taken(asked)),
        }
    }

    /// Renews the lease, which was asked for at `renewed`, until it is lost.
    async fn hold(&mut self, mut renewed: Duration) -> Loss {
        let mut doubtful = false;
        loop {
            sleep(if doubtful { RETRY } else { plan::until_renewal(renewed, boot_time()) }).await;
            let round = async {
                if doubtful {
                    self.read().await?;
                }
                let asked = boot_time();
                match plan::loss(self.seen.as_ref(), &self.identity, renewed, asked) {
                    Some(loss) => Ok(Err(loss)),
                    None => self.write().await.map(|()| Ok(asked)),
                }
            };
            match timeout((renewed + DEADLINE).saturating_sub(boot_time()), round).await {
                Ok(Ok(Ok(asked))) => (renewed, doubtful) = (asked, false),
                Ok(Ok(Err(loss))) => return loss,
                Ok(Err(error)) => {
                    if !doubtful {
                        warn!(error = chain(&error), "the lease is not renewed");
                    }
                    doubtful = true;
                }
                Err(_) => return Loss::Late,
            }
        }
    }

    async fn release(self) {
        let Some(Seen { lease, .. }) = self.seen else { return };
        let (parameters, lease) = (PostParams::default(), plan::released(lease));
        match timeout(RELEASE, self.leases.replace(self.lease, &parameters, &lease)).await {
            Ok(Ok(_)) => info!("the lease is given back"),
            Ok(Err(error)) => debug!(error = chain(&error), "the lease is not given back"),
            Err(_) => debug!("the lease is not given back in time"),
        }
    }

    async fn read(&mut self) -> Result<(), kube::Error> {
        let lease = self.leases.get_opt(self.lease).await?;
        self.seen = lease.map(|lease| Seen::after(self.seen.take(), lease, boot_time()));
        Ok(())
    }

    async fn write(&mut self) -> Result<(), kube::Error> {
        let former = self.seen.as_ref().map(|seen| &seen.lease);
        let lease = plan::held(self.lease, former, &self.identity, MicroTime(Timestamp::now()));
        let parameters = PostParams::default();
        let written = match former {
            Some(_) => self.leases.replace(self.lease, &parameters, &lease).await?,
            None => self.leases.create(&parameters, &lease).await?,
        };
        self.seen = Some(Seen::after(None, written, boot_time()));
        Ok(())
    }
}
