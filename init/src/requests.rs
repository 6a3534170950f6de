//! Answers to calls on the control socket. A caller that has gone in the meantime is no concern here.

use garboard_control::server::{Refusal, Request};
use garboard_control::{LogLine, LogSource, MachineInfo};
use garboard_sys::clock::boot_time;
use tokio::sync::mpsc;

use crate::kmsg;
use crate::pid1::{Pid1, moment};

/// Handles one call.
pub(crate) fn answer(pid1: &mut Pid1, request: Request) {
    match request {
        Request::SetServices { specs, reply } => {
            let result = if pid1.is_running() {
                match pid1.supervisor.set(specs, moment()) {
                    Ok((results, actions)) => {
                        pid1.act(actions);
                        let Pid1 { supervisor, logs, .. } = &*pid1;
                        logs.retain(|name| supervisor.spec(name).is_some());
                        Ok(results)
                    }
                    Err(error) => Err(Refusal::InvalidSet(error.to_string())),
                }
            } else {
                Err(Refusal::ShuttingDown)
            };
            let _ = reply.send(result);
        }
        Request::ListServices { reply } => {
            let _ = reply.send(pid1.report(true));
        }
        Request::RestartService { name, reply } => {
            let result = if !pid1.is_running() {
                Err(Refusal::ShuttingDown)
            } else {
                let (found, actions) = pid1.supervisor.restart(&name, "asked for", moment());
                pid1.act(actions);
                if found { Ok(()) } else { Err(Refusal::NoSuchService(name)) }
            };
            let _ = reply.send(result);
        }
        Request::Logs { source, lines, follow, reply } => {
            let _ = reply.send(logs(pid1, source, lines, follow));
        }
        Request::ReportProbe { service, kind, ok, message, reply } => {
            let _ = reply.send(pid1.probe_report(&service, kind, ok, message));
        }
        Request::Shutdown { kind, reason, reply } => {
            // The answer goes first, for it would not come after.
            let _ = reply.send(());
            pid1.shut_down(kind, &reason);
        }
        Request::Inhibit { who, why, held, reply } => {
            let _ = reply.send(pid1.inhibit(who, why, held));
        }
        Request::Console { text, reply } => {
            pid1.console.draw(&text);
            let _ = reply.send(());
        }
        Request::GetMachine { reply } => {
            let uptime_ms = u64::try_from(boot_time().as_millis()).unwrap_or(u64::MAX);
            let _ = reply.send(MachineInfo { uptime_ms, ..pid1.machine.clone() });
        }
        Request::Configure { upkeep, reply } => {
            let result = match upkeep.problem() {
                Some(problem) => Err(Refusal::InvalidUpkeep(problem)),
                None => Ok(pid1.configure(upkeep)),
            };
            let _ = reply.send(result);
        }
    }
}

fn logs(pid1: &Pid1, source: LogSource, lines: u32, follow: bool) -> Result<mpsc::Receiver<LogLine>, Refusal> {
    let count = usize::try_from(lines).unwrap_or(usize::MAX);
    match source {
        LogSource::Kernel => Ok(kmsg::read(count, follow)),
        LogSource::Service(name) if pid1.supervisor.spec(&name).is_some() => Ok(pid1.logs.read(&name, count, follow)),
        LogSource::Service(name) => Err(Refusal::NoSuchService(name)),
    }
}
