//! How Garboard's own programs reach the Kubernetes API: by TLS 1.3, as the bearer of a certificate.
//!
//! | task | from | to |
//! |---|---|---|
//! | [`client`] | address, [`Identity`] | requests with deadlines, answers |
//! | [`Identity`] | PEM files, read for each connection | the TLS configuration of each connection |
//! | [`Outage`] | answers and their absence | one line in the log when that changes |
//! | [`uninterrupted`] | a watch that fails now and then | one that does not |
//!
//! Kubeconfigs, tokens and credential plugins are for programs that do not know what they will meet. Ours do, and without
//! the parsers for those they are smaller by a fifth.

mod identity;
mod outage;
#[cfg(test)]
mod said;
#[cfg(feature = "tpm")]
mod sealed;
mod watch;

use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{Request, Uri};
use hyper_rustls::HttpsConnector;
use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::Client;
use kube::client::Body;
use kube::client::middleware::BaseUriLayer;
use kube::client::retry::RetryPolicy;
use tower::retry::RetryLayer;
use tower::{BoxError, Service, ServiceBuilder};

pub use identity::{Identity, IdentityError};
pub use outage::Outage;
pub use watch::{Refused, or_refused, uninterrupted};

/// Longest time until a connection is made.
const CONNECT: Duration = Duration::from_secs(5);
/// Longest silence of a connection. Watches end by themselves after 290 seconds (kube-runtime), and may be silent till then.
const SILENCE: Duration = Duration::from_secs(295);

/// A client of the API server at `server`. Nothing is read and no connection is made before the first request. Must be
/// used within a tokio runtime.
pub fn client(server: Uri, identity: Identity, outage: Outage) -> Client {
    let authorization = identity.authorization();
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    let connector = tower::service_fn(move |to: Uri| {
        let (http, tls) = (http.clone(), identity.tls());
        async move { HttpsConnector::from((http, tls?)).call(to).await }
    });
    let mut connector = TimeoutConnector::new(connector);
    connector.set_connect_timeout(Some(CONNECT));
    connector.set_read_timeout(Some(SILENCE));
    connector.set_write_timeout(Some(SILENCE));
    let http = legacy::Client::builder(TokioExecutor::new()).build::<_, Body>(connector);
    let service = ServiceBuilder::new()
        .layer(BaseUriLayer::new(server))
        .layer(RetryLayer::new(RetryPolicy::default()))
        .map_request(move |mut request: Request<Body>| {
            if let Some(authorization) = &authorization {
                request.headers_mut().insert(AUTHORIZATION, authorization.clone());
            }
            request
        })
        .map_result(move |answer: Result<_, legacy::Error>| outage.notice(answer.map_err(BoxError::from)))
        .service(http);
    Client::new(service, "default")
}
