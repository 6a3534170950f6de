//! The machine API.
