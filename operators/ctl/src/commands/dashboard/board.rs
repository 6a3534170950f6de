//! What the dashboard knows, and what is chosen on it.

use std::collections::VecDeque;

use ratatui::crossterm::event::{Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use crate::commands::logs::KERNEL;
use crate::commands::status::Status;

/// Lines of the log that are kept.
const KEPT: usize = 2000;

/// What happens.
pub enum News {
    /// A machine has answered.
    Status { machine: usize, status: Box<Status> },
    /// A machine does not answer.
    Failed { machine: usize, why: String },
    /// A service has written.
    Lines { machine: usize, service: String, lines: Vec<String> },
    /// The person has done something.
    Terminal(Event),
}

/// A machine, and what is known of it.
pub struct Entry {
    pub name: String,
    /// What it answered last.
    pub status: Option<Box<Status>>,
    /// Why it does not answer now.
    pub failure: Option<String>,
}

/// Which list the arrow keys move in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pane {
    Machines,
    Services,
}

/// Whose log is shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chosen {
    machine: usize,
    service: String,
}

impl Chosen {
    /// The service of a machine whose log is shown, if it is one of its own.
    pub fn service_of(&self, machine: usize) -> Option<String> {
        (self.machine == machine && !self.service.is_empty()).then(|| self.service.clone())
    }
}

/// Everything on the screen.
pub struct Board {
    machines: Vec<Entry>,
    machine: usize,
    service: String,
    pane: Pane,
    log: VecDeque<String>,
    left: bool,
}

impl Board {
    pub fn new(names: Vec<String>) -> Self {
        let machines = names.into_iter().map(|name| Entry { name, status: None, failure: None }).collect();
        Self {
            machines,
            machine: 0,
            service: KERNEL.to_owned(),
            pane: Pane::Machines,
            log: VecDeque::new(),
            left: false,
        }
    }

    pub fn machines(&self) -> &[Entry] {
        &self.machines
    }

    /// The machine that is chosen, by its place in the list.
    pub fn machine(&self) -> usize {
        self.machine
    }

    pub fn pane(&self) -> Pane {
        self.pane
    }

    /// The last lines of the log that is shown, oldest first.
    pub fn log(&self, count: usize) -> impl Iterator<Item = &str> {
        self.log.iter().skip(self.log.len().saturating_sub(count)).map(String::as_str)
    }

    /// Whether the person has seen enough.
    pub fn is_left(&self) -> bool {
        self.left
    }

    pub fn chosen(&self) -> Chosen {
        Chosen { machine: self.machine, service: self.service.clone() }
    }

    /// The name of the log that is shown.
    pub fn service(&self) -> &str {
        &self.service
    }

    /// The services of the chosen machine, and the kernel.
    pub fn services(&self) -> Vec<&str> {
        let status = self.machines.get(self.machine).and_then(|entry| entry.status.as_ref());
        let services = status.iter().flat_map(|status| &status.services).map(|service| service.name.as_str());
        services.chain([KERNEL]).collect()
    }

    pub fn take(&mut self, news: News) {
        match news {
            News::Status { machine, status } => {
                if let Some(entry) = self.machines.get_mut(machine) {
                    entry.status = Some(status);
                    entry.failure = None;
                }
            }
            News::Failed { machine, why } => {
                if let Some(entry) = self.machines.get_mut(machine) {
                    entry.failure = Some(why);
                }
            }
            News::Lines { machine, service, lines } => {
                // What was on its way when another was chosen is not of that one.
                if machine == self.machine && service == self.service {
                    self.log.extend(lines.iter().map(|line| line.trim_end().to_owned()));
                    self.log.drain(..self.log.len().saturating_sub(KEPT));
                }
            }
            News::Terminal(Event::Key(key)) if key.kind != KeyEventKind::Release => self.press(key),
            News::Terminal(_) => {}
        }
    }

    fn press(&mut self, key: KeyEvent) {
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => self.left = true,
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => self.left = true,
            KeyCode::Tab | KeyCode::Left | KeyCode::Right => {
                self.pane = match self.pane {
                    Pane::Machines => Pane::Services,
                    Pane::Services => Pane::Machines,
                };
            }
            KeyCode::Up | KeyCode::Char('k') => self.step(false),
            KeyCode::Down | KeyCode::Char('j') => self.step(true),
            _ => {}
        }
    }

    fn step(&mut self, down: bool) {
        let before = self.chosen();
        match self.pane {
            Pane::Machines => self.machine = next(self.machine, self.machines.len(), down),
            Pane::Services => {
                let services = self.services();
                let now = services.iter().position(|name| *name == self.service).unwrap_or_default();
                if let Some(name) = services.get(next(now, services.len(), down)) {
                    self.service = (*name).to_owned();
                }
            }
        }
        if self.chosen() != before {
            self.log.clear();
        }
    }
}

/// The place beside this one; at an end it stays.
fn next(now: usize, count: usize, down: bool) -> usize {
    if down { (now + 1).min(count.saturating_sub(1)) } else { now.saturating_sub(1) }
}

#[cfg(test)]
mod tests {
    use garboard_machine_api::proto;

    use super::*;

    fn status(services: &[&str]) -> Box<Status> {
        let service = |name: &&str| proto::Service { name: (*name).to_owned(), ..proto::Service::default() };
        Box::new(Status::new(proto::StatusResponse::default(), services.iter().map(service).collect()))
    }

    fn press(board: &mut Board, codes: &[KeyCode]) {
        for code in codes {
            board.take(News::Terminal(Event::Key((*code).into())));
        }
    }

    fn board() -> Board {
        let mut board = Board::new(vec!["node-1".into(), "node-2".into()]);
        board.take(News::Status { machine: 0, status: status(&["etcd", "kubelet"]) });
        board
    }

    fn lines(board: &mut Board, machine: usize, service: &str, line: &str) {
        board.take(News::Lines { machine, service: service.into(), lines: vec![format!("{line}\n")] });
    }

    #[test]
    fn keys_choose_a_machine_and_a_service_and_stay_at_the_ends() {
        let mut board = board();
        assert_eq!((board.machine(), board.service()), (0, KERNEL));
        press(&mut board, &[KeyCode::Tab, KeyCode::Up]);
        assert_eq!(board.service(), "kubelet");
        press(&mut board, &[KeyCode::Up, KeyCode::Up, KeyCode::Up]);
        assert_eq!((board.service(), board.chosen().service_of(0)), ("etcd", Some("etcd".into())));
        press(&mut board, &[KeyCode::Tab, KeyCode::Down, KeyCode::Down]);
        assert_eq!((board.machine(), board.chosen().service_of(0)), (1, None));
        press(&mut board, &[KeyCode::Char('q')]);
        assert!(board.is_left());
    }

    #[test]
    fn the_log_is_that_of_the_chosen_service_alone() {
        let mut board = board();
        lines(&mut board, 0, KERNEL, "first");
        lines(&mut board, 0, "etcd", "of another");
        lines(&mut board, 1, KERNEL, "of another machine");
        assert_eq!(board.log(10).collect::<Vec<_>>(), ["first"]);
        press(&mut board, &[KeyCode::Tab, KeyCode::Up]);
        assert_eq!(board.log(10).count(), 0);
        for number in 0..KEPT + 5 {
            lines(&mut board, 0, "kubelet", &number.to_string());
        }
        assert_eq!(board.log(usize::MAX).next(), Some("5"));
        assert_eq!(board.log(1).collect::<Vec<_>>(), [(KEPT + 4).to_string()]);
    }

    #[test]
    fn a_machine_that_is_away_keeps_what_it_said() {
        let mut board = board();
        board.take(News::Failed { machine: 0, why: "it does not answer".into() });
        assert_eq!(board.machines()[0].failure.as_deref(), Some("it does not answer"));
        assert_eq!(board.services(), ["etcd", "kubelet", KERNEL]);
        board.take(News::Status { machine: 0, status: status(&["etcd"]) });
        assert!(board.machines()[0].failure.is_none());
    }
}
