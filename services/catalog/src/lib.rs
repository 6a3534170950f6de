//! Typed resources rendered to service specifications.
