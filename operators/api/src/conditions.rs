//! Types and reasons of conditions.

/// The whole object serves: everything below holds.
pub const READY: &str = "Ready";
/// The declared links are up and the machine has an address.
pub const NETWORK_READY: &str = "NetworkReady";
/// Every supervised process serves.
pub const SERVICES_READY: &str = "ServicesReady";
/// The manifests that lie on the machine were all accepted.
pub const MANIFESTS_ACCEPTED: &str = "ManifestsAccepted";

/// Reasons, by the condition that they explain.
pub mod reason {
    /// Ready, NetworkReady, ServicesReady: it holds.
    pub const AS_DECLARED: &str = "AsDeclared";
    /// NetworkReady: no link has an address yet.
    pub const NO_ADDRESS: &str = "NoAddress";
    /// ServicesReady: some process does not serve; the message names it and why.
    pub const SERVICE_NOT_READY: &str = "ServiceNotReady";
    /// ManifestsAccepted: a manifest was refused; the message names field, value and what is allowed.
    pub const REFUSED: &str = "Refused";
    /// Ready: the API server does not answer.
    pub const API_UNAVAILABLE: &str = "APIUnavailable";
    /// Ready: the declared object is not valid; what was declared before stays in force.
    pub const INVALID: &str = "Invalid";
}
