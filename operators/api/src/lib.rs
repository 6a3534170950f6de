//! The custom resources of garboard.dev/v1alpha1.
