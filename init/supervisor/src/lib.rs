//! Service specifications and the pure state machine that supervises them.

pub mod exit;
pub mod spec;
pub mod status;
