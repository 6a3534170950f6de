//! Trials whose machine loses power: at every step of what it writes, each of them once. What is declared, decided and tried is the same
//! each time, and so must be what comes of it.
//!
//! The probes are the agent's own; what they find is how a service of the test is. Time is the runtime's and passes when nothing else
//! happens. Needs root, for a network without anything that probes would find.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test fails by panicking")]

mod machine;

use std::collections::BTreeMap;

use garboard_api::machine::TrialState::{self, Failed, Proved};
use garboard_controllers::trial::Decision;
use garboard_plan::trial::Configuration;
use nix::sched::{CloneFlags, unshare};

use machine::{Action, Machine, Seen, configuration};

/// What happens: each begins with configuration 0 and a change to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Story {
    TheChangeWorks,
    TheChangeDoesNot,
    SomebodyConfirmsWhatDoesNotWork,
    SomebodyAbortsWhatWorks,
    ItWorksInTheTimeThatSomebodyHasGiven,
    ItIsTakenBack,
    ItIsChangedAgain,
    TheMachineIsRestarted,
}

use Story::*;

/// A name and what comes of it: the configuration that is in force at the end, and what is said of the last change.
const STORIES: [(Story, u32, TrialState); 8] = [
    (TheChangeWorks, 1, Proved),
    (TheChangeDoesNot, 0, Failed),
    (SomebodyConfirmsWhatDoesNotWork, 1, Proved),
    (SomebodyAbortsWhatWorks, 0, Failed),
    (ItWorksInTheTimeThatSomebodyHasGiven, 1, Proved),
    (ItIsTakenBack, 0, Proved),
    (ItIsChangedAgain, 2, Proved),
    (TheMachineIsRestarted, 1, Proved),
];

/// Time that a change has, seconds; and that it takes to work when it is given more.
const DEADLINE: u32 = 60;
const LATE: u32 = 90;

impl Story {
    /// From when on everything works with a configuration, seconds from when it is in force; never if none.
    fn works_after(self, number: u32) -> Option<u32> {
        match (number, self) {
            (1, TheChangeDoesNot | SomebodyConfirmsWhatDoesNotWork | ItIsChangedAgain) => None,
            (1, ItWorksInTheTimeThatSomebodyHasGiven) => Some(LATE),
            _ => Some(0),
        }
    }

    /// What somebody does next, by what the machine says of itself and what was done before.
    fn next(self, seen: &Seen, machine: &Machine) -> Action {
        let (number, state) = (seen.in_force, seen.state);
        match self {
            _ if !machine.has_declared(1) => match state {
                Some(Proved) if seen.knows_what_works => Action::Declare(1),
                _ => Action::Wait,
            },
            // What was answered outlasts whatever comes after it.
            SomebodyConfirmsWhatDoesNotWork if state == Some(TrialState::Running) => Action::Decide(Decision::Confirm),
            SomebodyAbortsWhatWorks if state == Some(TrialState::Running) => Action::Decide(Decision::Abort),
            ItWorksInTheTimeThatSomebodyHasGiven if state == Some(TrialState::Running) && !machine.was_answered() => {
                Action::Decide(Decision::Extend(10 * DEADLINE))
            }
            ItIsTakenBack if !machine.has_declared_again(0) && state == Some(TrialState::Running) => Action::Declare(0),
            ItIsTakenBack if !machine.has_declared_again(0) => Action::Wait,
            ItIsChangedAgain if !machine.has_declared(2) && state == Some(TrialState::Running) => Action::Declare(2),
            TheMachineIsRestarted if machine.boots() == 0 && state == Some(TrialState::Running) => Action::Restart,
            _ => {
                let (_, expected, outcome) = STORIES.into_iter().find(|(story, ..)| *story == self).unwrap();
                if number == Some(expected) && state == Some(outcome) { Action::End } else { Action::Wait }
            }
        }
    }
}

/// Tells the story with a power cut after so many steps; says whether there were so many.
fn tell(story: Story, cut: usize) -> bool {
    let mut machine = Machine::new();
    let gone = machine.live(|seen, machine| story.next(seen, machine), |number| story.works_after(number), cut);
    let (_, expected, outcome) = STORIES.into_iter().find(|(other, ..)| *other == story).unwrap();
    let record = machine.record().unwrap();
    let is =
        |found: &Option<Configuration>| found.as_ref().is_some_and(|found| found.is_same(&configuration(expected)));
    assert!(is(&record.good), "{story:?}, cut {cut}: what is in force can be returned to: {record:?}");
    assert_eq!(record.trial, None, "{story:?}, cut {cut}");
    assert_eq!(record.failed.is_some(), outcome == Failed, "{story:?}, cut {cut}");
    gone
}

#[test]
fn a_power_cut_at_any_step_of_a_trial_changes_nothing_of_what_comes_of_it() {
    let told = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        STORIES.map(|(story, ..)| (0..).take_while(|cut| tell(story, *cut)).count())
    });
    let counts: BTreeMap<_, _> =
        STORIES.map(|(story, ..)| format!("{story:?}")).into_iter().zip(told.join().unwrap()).collect();
    eprintln!("power cuts: {counts:?}");
    // The first configuration, what works with it, the change, and what comes of it: four steps of the first, six of each of the others.
    assert!(counts.values().all(|count| *count >= 4 + 3 * 6), "{counts:?}");
}
