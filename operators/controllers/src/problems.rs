//! What is wrong with a part of the machine that no resource is about, for the console and the machine API.

use std::collections::BTreeMap;

use garboard_api::refusal;
use tokio::sync::watch;

/// What is wrong, by the part that it is about.
pub type Listed = BTreeMap<&'static str, String>;

/// Where each task says what is wrong with its part, and that nothing is any more.
#[derive(Clone, Debug)]
pub struct Problems(watch::Sender<Listed>);

impl Problems {
    /// The list, empty, and the channel on which it is published.
    pub fn new() -> (Self, watch::Receiver<Listed>) {
        let (sender, receiver) = watch::channel(Listed::new());
        (Self(sender), receiver)
    }

    /// What is wrong with a part now; none when nothing is.
    pub fn set(&self, part: &'static str, problem: Option<String>) {
        self.0.send_if_modified(|listed| refusal::note(listed, part, problem));
    }
}

/// The problems as lines for people.
pub fn lines(listed: &Listed) -> impl Iterator<Item = String> {
    listed.iter().map(|(part, problem)| format!("{part}: {problem}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_told_until_it_is_gone() {
        let (problems, mut listed) = Problems::new();
        let other = problems.clone();
        problems.set("images", Some("no space".to_owned()));
        other.set("release", Some("not found".to_owned()));
        let told: Vec<_> = lines(&listed.borrow_and_update()).collect();
        assert_eq!(told, ["images: no space", "release: not found"]);
        problems.set("images", Some("no space".to_owned()));
        assert!(!listed.has_changed().unwrap(), "nothing new");
        problems.set("images", None);
        assert_eq!(lines(&listed.borrow()).collect::<Vec<_>>(), ["release: not found"]);
    }
}
