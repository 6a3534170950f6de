//! Where declarations come from and where statuses go, before and after there is an API server.
//!
//! | task | input | output |
//! |---|---|---|
//! | [`local`] | files of manifests, as bytes with their origin | one checked set of [`Manifests`], or what is wrong |
//! | [`ledger`] | what was accepted | the same after a power cut |
//! | [`source`] | local manifests, the ledger, the API server when it answers, submissions | watch events, and the object that counts |
//! | [`applier`] | watch events, other reasons to look again | calls of a reconciler |
//! | [`status`] | statuses | files below `/run`, and the status subresource when the API server answers |
//! | [`crds`] | a client | the custom resource definitions, established |
//!
//! A reconciler sees none of this: it gets an object and hands back a status.
//!
//! [`Manifests`]: garboard_api::manifest::Manifests

pub mod applier;
pub mod backoff;
pub mod crds;
pub mod kind;
pub mod ledger;
pub mod local;
pub mod precedence;
pub mod source;
pub mod status;
