//! A sample workload with what a cluster's first checks need: a web page, a client for it, a DNS
//! query that shows the raw answer, and a process that eats memory or waits. One static program in
//! an otherwise empty image.

mod cut;
mod dns;
mod eat;
mod files;
mod fill;
mod get;
mod processes;
mod serve;
mod stop;

use std::process::ExitCode;

use nix::sys::signal::Signal;

const USAGE: &str = "\
Usage: sample COMMAND

    serve [--port PORT] [--grace SECONDS]  serve a page with the host's name (default port 8080), /healthz and
                                           /headers; after SIGTERM stay for the grace time and say so
    get URL                                print what is at an http:// URL; fail on a status of 400 or above
    resolve NAME [TYPE]                    print the answers to a DNS query (A, AAAA, CNAME, PTR, SRV, TXT)
    eat MIB [--hold]                       fill memory; with --hold keep it until stopped
    fill FILE                              fill the disk by a file, say so, and keep it until stopped
    sleep [SECONDS]                        wait, by default until stopped
    processes                              print number, proportional set size (KiB) and program of each process
    cat FILE                               print a file
    count FOLDER PART...                   print how often a text, the parts joined, is in the files of a folder and those
                                           below: in parts it is not in the logs that tell of this command
    write FILE TEXT                        write to a file that is there
    kill PID [stop]                        end a process at once, or only stop it where it is
    cut STEPS FOLDER                       let so many files below a folder get their names, or be removed, and restart the
                                           machine at the next, as after a power cut: nothing is written to its disk first";

/// An error in words for the person who ran the command.
type Outcome = Result<(), String>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match arguments.split_first() {
        Some((command, rest)) => run(command, rest),
        None => Err(USAGE.to_owned()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &str, arguments: &[String]) -> Outcome {
    match command {
        "serve" => {
            let options = Options::parse(arguments, &["--port", "--grace"])?;
            serve::serve(options.number("--port", 8080)?, options.number("--grace", 0)?)
        }
        "get" => get::get(&only(arguments, "get URL")?),
        "resolve" => match arguments {
            [name] => dns::resolve(name, "A"),
            [name, kind] => dns::resolve(name, kind),
            _ => Err("usage: sample resolve NAME [TYPE]".to_owned()),
        },
        "eat" => match arguments {
            [mib] => eat::eat(number(mib)?, false),
            [mib, hold] if hold == "--hold" => eat::eat(number(mib)?, true),
            _ => Err("usage: sample eat MIB [--hold]".to_owned()),
        },
        "fill" => fill::fill(&only(arguments, "fill FILE")?),
        "sleep" => match arguments {
            [] => stop::sleep(None),
            [seconds] => stop::sleep(Some(number(seconds)?)),
            _ => Err("usage: sample sleep [SECONDS]".to_owned()),
        },
        "processes" => processes::list(),
        "cat" => files::cat(&only(arguments, "cat FILE")?),
        "count" => match arguments {
            [folder, parts @ ..] if !parts.is_empty() => files::count(&parts.concat(), folder),
            _ => Err("usage: sample count FOLDER PART...".to_owned()),
        },
        "write" => match arguments {
            [file, text] => files::write(file, text),
            _ => Err("usage: sample write FILE TEXT".to_owned()),
        },
        "kill" => match arguments {
            [pid] => processes::signal(number(pid)?, Signal::SIGKILL),
            [pid, stop] if stop == "stop" => processes::signal(number(pid)?, Signal::SIGSTOP),
            _ => Err("usage: sample kill PID [stop]".to_owned()),
        },
        "cut" => match arguments {
            [steps, folder] => cut::cut(number(steps)?, folder),
            _ => Err("usage: sample cut STEPS FOLDER".to_owned()),
        },
        "--help" | "-h" | "help" => {
            println!("{USAGE}");
            Ok(())
        }
        other => Err(format!("{other:?} is no command\n\n{USAGE}")),
    }
}

/// The one argument of a command.
fn only(arguments: &[String], usage: &str) -> Result<String, String> {
    match arguments {
        [argument] => Ok(argument.clone()),
        _ => Err(format!("usage: sample {usage}")),
    }
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{text:?} is no number in range"))
}

/// Options of the form `--name VALUE`.
struct Options<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Options<'a> {
    fn parse(arguments: &'a [String], known: &[&str]) -> Result<Self, String> {
        let mut pairs = Vec::new();
        let mut rest = arguments.iter();
        while let Some(name) = rest.next() {
            if !known.contains(&name.as_str()) {
                return Err(format!("{name:?} is no option; known: {}", known.join(", ")));
            }
            let value = rest.next().ok_or_else(|| format!("{name} needs a value"))?;
            pairs.push((name.as_str(), value.as_str()));
        }
        Ok(Self(pairs))
    }

    fn number<T: std::str::FromStr>(&self, name: &str, default: T) -> Result<T, String> {
        match self.0.iter().rev().find(|(known, _)| *known == name) {
            Some((_, value)) => number(value),
            None => Ok(default),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_an_option_counts_and_unknown_ones_are_named() {
        let arguments: Vec<String> = ["--port", "1", "--port", "2"].map(str::to_owned).into();
        let options = Options::parse(&arguments, &["--port"]).unwrap_or(Options(Vec::new()));
        assert_eq!(options.number("--port", 8080_u16), Ok(2));
        assert_eq!(options.number("--grace", 7_u64), Ok(7));
        assert!(Options::parse(&arguments, &["--grace"]).err().is_some_and(|error| error.contains("--port")));
    }
}
