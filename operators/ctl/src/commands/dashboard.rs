//! `dashboard`
//!
//! | part | input | output |
//! |---|---|---|
//! | [`board`] | what machines answer, keys | what is chosen and shown |
//! | [`view`] | that, and a screen | the screen |
//! | here | the machines and the terminal | both, as they change |

mod board;
mod view;

use std::time::Duration;

use anyhow::{Context, bail};
use futures::StreamExt as _;
use garboard_machine_api::client::Client;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use self::board::{Board, Chosen, News};
use super::logs::written;
use super::status::Status;
use crate::cli::Target;
use crate::config::Contact;
use crate::output::is_screen;

/// How often machines are asked: they tell nothing by themselves but logs.
const LOOK: Duration = Duration::from_secs(2);
/// Longest time that an answer may take.
const ANSWER: Duration = Duration::from_secs(10);
/// Lines of a log that are there at first.
const LINES: u32 = 200;
/// What comes between two screens.
const NEWS: usize = 64;

pub async fn run(target: &Target) -> anyhow::Result<()> {
    if !is_screen() {
        bail!(
            "the dashboard is for a terminal: `garboardctl status` and `garboardctl services -o json` are for programs"
        );
    }
    let contacts = Contact::each(target)?;
    let (news, received) = mpsc::channel(NEWS);
    let mut tasks = JoinSet::new();
    let names: Vec<_> = contacts.iter().map(|(name, _)| name.clone()).collect();
    let (chosen, choice) = watch::channel(Chosen::default());
    for (machine, (_, contact)) in contacts.into_iter().enumerate() {
        tasks.spawn(follow(machine, contact, news.clone(), choice.clone()));
    }
    // A thread of its own, because reading the terminal blocks; it ends with the program.
    std::thread::spawn(move || {
        while let Ok(event) = event::read() {
            if news.blocking_send(News::Terminal(event)).is_err() {
                return;
            }
        }
    });
    let mut terminal = ratatui::try_init().context("take over the terminal")?;
    let outcome = show(&mut terminal, Board::new(names), received, chosen).await;
    ratatui::restore();
    outcome
}

/// Until the person has seen enough.
async fn show(
    terminal: &mut DefaultTerminal,
    mut board: Board,
    mut news: mpsc::Receiver<News>,
    chosen: watch::Sender<Chosen>,
) -> anyhow::Result<()> {
    loop {
        chosen.send_if_modified(|chosen| {
            let now = board.chosen();
            let differs = *chosen != now;
            *chosen = now;
            differs
        });
        terminal.draw(|frame| view::draw(frame, &board)).context("draw")?;
        let Some(first) = news.recv().await else { return Ok(()) };
        board.take(first);
        // Whatever else is there is one screen.
        while let Ok(more) = news.try_recv() {
            board.take(more);
        }
        if board.is_left() {
            return Ok(());
        }
    }
}

/// Tells what a machine answers, and the log of its service that is chosen, as long as somebody listens.
async fn follow(
    machine: usize,
    contact: anyhow::Result<Contact>,
    news: mpsc::Sender<News>,
    mut choice: watch::Receiver<Chosen>,
) {
    let contact = match contact {
        Ok(contact) => contact,
        Err(error) => return drop(news.send(News::Failed { machine, why: format!("{error:#}") }).await),
    };
    loop {
        let why = match timeout(ANSWER, contact.connect()).await {
            Ok(Ok(client)) => match converse(machine, client, &news, &mut choice).await {
                Ok(()) => return,
                Err(error) => format!("{error:#}"),
            },
            Ok(Err(error)) => format!("{error:#}"),
            Err(_) => "it does not answer".to_owned(),
        };
        if news.send(News::Failed { machine, why }).await.is_err() {
            return;
        }
        sleep(LOOK).await;
    }
}

/// Until the connection fails, or nobody listens.
async fn converse(
    machine: usize,
    client: Client,
    news: &mpsc::Sender<News>,
    choice: &mut watch::Receiver<Chosen>,
) -> anyhow::Result<()> {
    let mut log = None;
    let states = look(machine, client.clone(), news);
    tokio::pin!(states);
    let mut service = None;
    loop {
        let wanted = choice.borrow_and_update().service_of(machine);
        if wanted != service {
            log = match &wanted {
                Some(name) => Some(client.clone().logs(name, LINES, true).await?.boxed()),
                None => None,
            };
            service = wanted;
        }
        let line = async {
            match &mut log {
                Some(log) => log.next().await,
                None => std::future::pending().await,
            }
        };
        // Cancel-safe: a batch of lines stays in the stream until it is taken.
        tokio::select! {
            ended = &mut states => return ended,
            batch = line => match (batch, &service) {
                (Some(lines), Some(service)) => {
                    let lines = lines?.into_iter().map(|line| written(line, false, true)).collect();
                    let told = news.send(News::Lines { machine, service: service.clone(), lines }).await;
                    if told.is_err() {
                        return Ok(());
                    }
                }
                // Its service is gone; another choice begins anew.
                (None, _) | (_, None) => log = None,
            },
            changed = choice.changed() => if changed.is_err() { return Ok(()) },
        }
    }
}

/// What the machine says of itself, again and again.
async fn look(machine: usize, mut client: Client, news: &mpsc::Sender<News>) -> anyhow::Result<()> {
    loop {
        let asked = async { anyhow::Ok(Status::new(client.status().await?, client.services().await?)) };
        let status = Box::new(timeout(ANSWER, asked).await.context("it does not answer")??);
        if news.send(News::Status { machine, status }).await.is_err() {
            return Ok(());
        }
        sleep(LOOK).await;
    }
}
