//! Asks the cluster for a client's certificate: a CertificateSigningRequest that the cluster operators decide on, and that
//! kube-controller-manager signs.

use std::collections::BTreeMap;
use std::time::Duration;

use garboard_plan::join::{LIFETIME, SIGNER, USAGES};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestSpec, CertificateSigningRequestStatus,
};
use kube::api::{ObjectMeta, PostParams};
use kube::runtime::wait;
use kube::{Api, Client, ResourceExt as _};

/// Longest time until a request is decided and signed. What is approved by hand takes as long as people do.
const DECISION: Duration = Duration::from_secs(600);

/// A certificate was not issued.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The API server did not take the request, or could not be asked.
    #[error("the API server has not taken the request")]
    Api(#[source] Box<kube::Error>),
    /// The request could not be followed.
    #[error("the request {name} cannot be followed")]
    Watch {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: Box<wait::Error>,
    },
    /// It was denied, or could not be signed.
    #[error("request {name}: {reason}: {message}")]
    Refused {
        /// Its name.
        name: String,
        /// Denied or Failed.
        reason: String,
        /// Why.
        message: String,
    },
    /// Nobody has decided on it.
    #[error("request {0} is not decided yet: `kubectl certificate approve {0}` approves it by hand")]
    Undecided(String),
}

impl RequestError {
    /// Whether the API server does not know who asks.
    pub fn is_unauthorized(&self) -> bool {
        matches!(self, Self::Api(error) if matches!(&**error, kube::Error::Api(status) if status.code == 401))
    }
}

/// The certificate for a request of the machine of this name, which says who it is in `annotations`; both are PEM.
///
/// # Errors
/// [`RequestError`].
pub async fn certificate(
    client: &Client,
    machine: &str,
    annotations: BTreeMap<String, String>,
    request_pem: &str,
) -> Result<String, RequestError> {
    let requests: Api<CertificateSigningRequest> = Api::all(client.clone());
    let request = CertificateSigningRequest {
        metadata: ObjectMeta {
            generate_name: Some(format!("{machine}-")),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        },
        spec: CertificateSigningRequestSpec {
            request: ByteString(request_pem.as_bytes().to_vec()),
            signer_name: SIGNER.to_owned(),
            usages: Some(USAGES.map(str::to_owned).to_vec()),
            expiration_seconds: i32::try_from(LIFETIME.as_secs()).ok(),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    };
    let api = |error| RequestError::Api(Box::new(error));
    let name = requests.create(&PostParams::default(), &request).await.map_err(api)?.name_any();
    let decided = wait::await_condition(requests, &name, |request: Option<&CertificateSigningRequest>| {
        request.and_then(outcome).is_some()
    });
    match tokio::time::timeout(DECISION, decided).await {
        Ok(Ok(request)) => request.as_ref().and_then(outcome).unwrap_or(Err(RequestError::Undecided(name))),
        Ok(Err(source)) => Err(RequestError::Watch { name, source: Box::new(source) }),
        Err(_) => Err(RequestError::Undecided(name)),
    }
}

/// What became of a request; none while it is open.
fn outcome(request: &CertificateSigningRequest) -> Option<Result<String, RequestError>> {
    let CertificateSigningRequestStatus { certificate, conditions } = request.status.as_ref()?;
    let refusal = conditions.iter().flatten().find(|condition| matches!(condition.type_.as_str(), "Denied" | "Failed"));
    if let Some(refusal) = refusal {
        return Some(Err(RequestError::Refused {
            name: request.name_any(),
            reason: refusal.type_.clone(),
            message: refusal.message.clone().unwrap_or_default(),
        }));
    }
    let certificate = certificate.as_ref()?;
    Some(Ok(String::from_utf8_lossy(&certificate.0).into_owned()))
}
