//! The screen of the dashboard.

use std::time::Duration;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::Line;
use ratatui::widgets::{Block, Cell, Paragraph, Row, Table, TableState};

use super::board::{Board, Entry, Pane};
use crate::commands::service::Service;
use crate::commands::status::Status;
use crate::output::{age, printable, size};

/// Rows of the list of machines, with its frame and head.
const MACHINES: u16 = 8;
const KEYS: &str = "arrows: choose   tab: machines or services   q: leave";

/// Draws everything.
pub fn draw(frame: &mut Frame<'_>, board: &Board) {
    let [machines, services, log, keys] = Layout::vertical([
        Constraint::Length(MACHINES.min(u16::try_from(board.machines().len()).unwrap_or(MACHINES).saturating_add(3))),
        Constraint::Fill(3),
        Constraint::Fill(2),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    draw_machines(frame, machines, board);
    draw_services(frame, services, board);
    draw_log(frame, log, board);
    frame.render_widget(Line::from(KEYS).dim(), keys);
}

fn draw_machines(frame: &mut Frame<'_>, area: Rect, board: &Board) {
    let rows = board.machines().iter().map(machine);
    let widths = [16, 10, 9, 12].map(Constraint::Length).into_iter().chain([Constraint::Fill(1)]);
    let table = Table::new(rows, widths).header(head(["MACHINE", "PHASE", "SERVICES", "TRIAL", "REMARK"]));
    list(frame, area, table, " Machines ", board.pane() == Pane::Machines, Some(board.machine()));
}

fn machine(Entry { name, status, failure }: &Entry) -> Row<'static> {
    let status = status.as_deref();
    let services = status.map(|status| {
        let ready = status.services.iter().filter(|service| service.ready).count();
        format!("{ready}/{}", status.services.len())
    });
    let (remark, colour) = match (failure, status) {
        (Some(why), _) => (why.clone(), Color::Red),
        (None, None) => ("asked".to_owned(), Color::DarkGray),
        (None, Some(status)) => match unmet(status) {
            Some(why) => (why, Color::Yellow),
            None => (status.addresses.join(", "), Color::Green),
        },
    };
    let of = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    Row::new([
        name.clone(),
        of(status.map(|status| printable(&status.phase))),
        of(services),
        of(status.and_then(trial)),
        printable(&remark),
    ])
    .fg(colour)
}

/// Why the machine is not Ready, or what a person must mend.
fn unmet(status: &Status) -> Option<String> {
    let ready = status.conditions.iter().find(|found| found.kind == "Machine" && found.type_ == "Ready");
    let why = ready.filter(|ready| ready.status != "True").map(|ready| format!("{}: {}", ready.reason, ready.message));
    why.or_else(|| status.problems.first().cloned())
}

/// How the latest change of the configuration stands, in a word.
fn trial(status: &Status) -> Option<String> {
    let proved = status.conditions.iter().find(|found| found.type_ == "ChangeProved");
    proved.map(|proved| printable(&proved.reason))
}

fn draw_services(frame: &mut Frame<'_>, area: Rect, board: &Board) {
    let status = board.machines().get(board.machine()).and_then(|entry| entry.status.as_deref());
    let services = status.map(|status| status.services.as_slice()).unwrap_or_default();
    let kernel = Row::new(["kernel", "", "", "", "", "its log"]).dim();
    let rows = services.iter().map(service).chain([kernel]);
    let widths = [26, 9, 6, 7, 9].map(Constraint::Length).into_iter().chain([Constraint::Fill(1)]);
    let table = Table::new(rows, widths).header(head(["SERVICE", "STATE", "READY", "FOR", "MEMORY", "REMARK"]));
    let chosen = board.services().iter().position(|name| *name == board.service());
    list(frame, area, table, " Services ", board.pane() == Pane::Services, chosen);
}

fn service(service: &Service) -> Row<'static> {
    let colour = match (service.ready, service.state.as_str()) {
        (true, _) => Color::Green,
        (false, "Failed" | "BackOff") => Color::Red,
        (false, _) => Color::Yellow,
    };
    let ready = if service.ready { "yes" } else { "no" };
    Row::new([
        printable(&service.name),
        printable(&service.state),
        ready.to_owned(),
        age(Duration::from_millis(service.in_state_ms)),
        size(service.memory_bytes),
        printable(&service.remark()),
    ])
    .fg(colour)
}

fn draw_log(frame: &mut Frame<'_>, area: Rect, board: &Board) {
    let block = Block::bordered().title(format!(" Log of {} ", printable(board.service())));
    let rows = usize::from(block.inner(area).height);
    let lines: Vec<_> = board.log(rows).map(Line::from).collect();
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

fn head<const N: usize>(titles: [&'static str; N]) -> Row<'static> {
    Row::new(titles.map(Cell::from)).dim()
}

fn list(frame: &mut Frame<'_>, area: Rect, table: Table<'_>, title: &str, focused: bool, chosen: Option<usize>) {
    let style = if focused { Style::new().bold() } else { Style::new() };
    let table = table
        .block(Block::bordered().title(title).border_style(style))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    frame.render_stateful_widget(table, area, &mut TableState::new().with_selected(chosen));
}

#[cfg(test)]
mod tests {
    use garboard_machine_api::proto;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::board::News;
    use super::*;

    fn screen(board: &Board) -> String {
        let mut terminal = Terminal::new(TestBackend::new(100, 24)).unwrap();
        terminal.draw(|frame| draw(frame, board)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn machines_services_trials_and_the_log_are_on_the_screen() {
        let mut board = Board::new(vec!["node-1".into(), "node-2".into()]);
        let condition = |type_: &str, holds: &str, reason: &str, message: &str| proto::Condition {
            kind: "Machine".into(),
            name: "node-1".into(),
            r#type: type_.into(),
            status: holds.into(),
            reason: reason.into(),
            message: message.into(),
            since_unix_ms: 0,
        };
        let status = proto::StatusResponse {
            phase: "Degraded".into(),
            conditions: vec![
                condition("Ready", "False", "NotServing", "not ready: etcd"),
                condition("ChangeProved", "False", "Running", ""),
            ],
            ..proto::StatusResponse::default()
        };
        let etcd = proto::Service {
            name: "etcd".into(),
            state: "BackOff".into(),
            message: "exited with 1".into(),
            ..proto::Service::default()
        };
        let kubelet =
            proto::Service { name: "kubelet".into(), state: "Running".into(), ready: true, ..Default::default() };
        let status = Box::new(Status::new(status, vec![etcd, kubelet]));
        board.take(News::Status { machine: 0, status });
        board.take(News::Failed { machine: 1, why: "it does not answer".into() });
        let lines = vec!["the kernel has\x1b[2J booted".into()];
        board.take(News::Lines { machine: 0, service: "kernel".into(), lines });
        let screen = screen(&board);
        for part in [
            "node-1",
            "Degraded",
            "1/2",
            "Running",
            "NotServing: not ready: etcd",
            "it does not answer",
            "BackOff",
            "exited with 1",
            "Log of kernel",
            "q: leave",
        ] {
            assert!(screen.contains(part), "{part:?} is not on\n{screen}");
        }
        assert!(!screen.contains('\x1b'));
    }

    #[test]
    fn a_small_screen_is_no_failure() {
        let board = Board::new(Vec::new());
        let mut terminal = Terminal::new(TestBackend::new(10, 3)).unwrap();
        terminal.draw(|frame| draw(frame, &board)).unwrap();
    }
}
