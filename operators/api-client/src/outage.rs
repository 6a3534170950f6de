//! Whether the API server answers.

use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};

use tower::BoxError;
use tracing::{info, warn};

/// Says in the log when the API server begins and ceases to answer: once, however many requests notice. Clones are one.
#[derive(Clone, Debug, Default)]
pub struct Outage(Arc<Mutex<State>>);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Nothing was asked yet.
    #[default]
    Unknown,
    /// It has not answered since this program started.
    Awaited,
    Answers,
    Away,
}

impl Outage {
    pub(crate) fn notice<T>(&self, answer: Result<T, BoxError>) -> Result<T, BoxError> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match (&answer, *state) {
            (Ok(_), State::Answers) | (Err(_), State::Awaited | State::Away) => {}
            (Ok(_), State::Unknown | State::Awaited | State::Away) => {
                info!("the API server answers");
                *state = State::Answers;
            }
            (Err(error), State::Unknown) => {
                info!(error = error.as_ref() as &dyn Error, "waiting for the API server");
                *state = State::Awaited;
            }
            (Err(error), State::Answers) => {
                warn!(error = error.as_ref() as &dyn Error, "the API server does not answer");
                *state = State::Away;
            }
        }
        drop(state);
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::said::said;

    #[test]
    fn each_change_is_said_once() {
        let cases: [(&str, &[&str]); 4] = [
            ("++", &["INFO the API server answers"]),
            ("--", &["INFO waiting for the API server"]),
            ("--++", &["INFO waiting for the API server", "INFO the API server answers"]),
            (
                "+--++-",
                &[
                    "INFO the API server answers",
                    "WARN the API server does not answer",
                    "INFO the API server answers",
                    "WARN the API server does not answer",
                ],
            ),
        ];
        for (answers, expected) in cases {
            let outage = Outage::default();
            let lines = said(|| {
                for answer in answers.chars() {
                    let _ = outage.clone().notice(if answer == '+' { Ok(()) } else { Err("refused".into()) });
                }
            });
            assert_eq!(lines, expected, "{answers}");
        }
    }
}
