//! What the runtime needs to know of a kind.

use std::fmt::Debug;

use garboard_api::field_error::FieldError;
use garboard_api::manifest::Manifests;
use garboard_api::{About, Cluster, Machine, REMOVAL_FINALIZER, validate};
use k8s_openapi::ClusterResourceScope;
use kube::Resource;
use kube::core::object::HasStatus;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A kind of ours: cluster-scoped, and one object of it concerns this machine.
pub trait Kind:
    Resource<DynamicType = (), Scope = ClusterResourceScope>
    + Clone
    + Debug
    + PartialEq
    + Serialize
    + DeserializeOwned
    + Send
    + Sync
    + HasStatus<Status: Clone + Debug + PartialEq + Serialize + DeserializeOwned + Send + Sync>
    + 'static
{
    /// Which it is.
    const ABOUT: About;

    /// Its name in lower case, for files.
    const FILE: &'static str;

    /// The name of the object of this kind when there can be only one in a cluster.
    const ONLY: Option<&'static str> = None;

    /// What is wrong with an object, also as a successor of `before`; empty when it can be accepted.
    fn refuse(&self, before: Option<&Self>) -> Vec<FieldError>;

    /// Whether the machine has nothing more to do here once this object, which the API server had, is no longer there.
    fn ends_with_its_object(&self) -> bool {
        false
    }

    /// The object of this kind in a set of manifests.
    fn of(manifests: &Manifests) -> Option<&Self>;

    /// Gives the object what `other` declares.
    fn declare(&mut self, other: &Self);

    /// Takes the status away, which is none of a declaration's business.
    fn without_status(mut self) -> Self {
        *self.status_mut() = None;
        self
    }

    /// Its name; empty if it has none.
    fn object_name(&self) -> &str {
        self.meta().name.as_deref().unwrap_or_default()
    }
}

impl Kind for Machine {
    const ABOUT: About = About::Machine;

    const FILE: &'static str = "machine";

    fn refuse(&self, before: Option<&Self>) -> Vec<FieldError> {
        let mut errors = validate::machine(self);
        let Some(before) = before else { return errors };
        if before.metadata.name != self.metadata.name {
            let words = format!("it cannot be changed from {}", before.object_name());
            errors.push(FieldError::new("metadata.name", &self.object_name().into(), words));
        }
        errors.extend(validate::machine_change(&before.spec, &self.spec));
        errors
    }

    fn ends_with_its_object(&self) -> bool {
        // One that founded its cluster leaves it to others if it is let go; without them the Machine is made again.
        let is_let_go = || {
            let finalizers = self.metadata.finalizers.as_deref().unwrap_or_default();
            self.metadata.deletion_timestamp.is_some() && finalizers.iter().any(|one| one == REMOVAL_FINALIZER)
        };
        self.metadata.uid.is_some() && (self.joins() || is_let_go())
    }

    fn of(manifests: &Manifests) -> Option<&Self> {
        manifests.machine.as_ref()
    }

    fn declare(&mut self, other: &Self) {
        self.spec = other.spec.clone();
        self.metadata.labels.clone_from(&other.metadata.labels);
        self.metadata.annotations.clone_from(&other.metadata.annotations);
    }
}

impl Kind for Cluster {
    const ABOUT: About = About::Cluster;

    const FILE: &'static str = "cluster";

    const ONLY: Option<&'static str> = Some(garboard_api::cluster::NAME);

    fn refuse(&self, before: Option<&Self>) -> Vec<FieldError> {
        let mut errors = validate::cluster(self);
        if let Some(before) = before {
            errors.extend(validate::cluster_change(&before.spec, &self.spec));
        }
        errors
    }

    fn of(manifests: &Manifests) -> Option<&Self> {
        manifests.cluster.as_ref()
    }

    fn declare(&mut self, other: &Self) {
        self.spec = other.spec.clone();
        self.metadata.labels.clone_from(&other.metadata.labels);
        self.metadata.annotations.clone_from(&other.metadata.annotations);
    }
}
