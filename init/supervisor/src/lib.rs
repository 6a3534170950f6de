//! Service specifications and the pure state machine that supervises them.
//!
//! - [`spec`]: what a service is. [`validate`]: which specifications are refused, and why.
//! - [`state`] and [`step`]: one service. `step(spec, service, event, moment)` gives its next state and the actions to carry out.
//! - [`supervisor`]: all services. It starts what has its requirements met, stops in reverse order, compares sets.
//! - [`status`]: what is reported. [`exit`]: how a process ended. [`slices`]: how the machine's memory is divided.
//!
//! Nothing here reads a clock or touches the system: time and jitter come in with each event, so every run can be repeated.

pub mod exit;
pub mod slices;
pub mod spec;
pub mod state;
pub mod status;
pub mod step;
pub mod supervisor;
#[cfg(feature = "testing")]
pub mod testing;
pub mod validate;

pub use exit::Exit;
pub use supervisor::Supervisor;
