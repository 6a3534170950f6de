//! Proof on whole machines.
