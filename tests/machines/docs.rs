//! The README's first hour, as written.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use garboard_tests::image::top;

use crate::scene::{Scenario, cold};

pub fn scenarios() -> Vec<Scenario> {
    vec![cold("docs::the_first_hour_works_as_written", the_first_hour_works_as_written)]
}

/// The heading whose commands are run, and the commands before it that start it.
const SECTION: &str = "## The first hour";
const START: &str = "./image/boot";

fn the_first_hour_works_as_written() -> Result<()> {
    let readme = fs::read_to_string(top().join("README.md")).context("read README.md")?;
    ensure!(commands(&readme).iter().any(|command| command == START), "the README no longer starts with {START}");
    let section = readme.split(SECTION).nth(1).with_context(|| format!("the README has no {SECTION:?}"))?;
    let section = section.split("\n## ").next().unwrap_or_default();
    let hour = commands(section);
    ensure!(hour.len() >= 8, "only these commands: {hour:?}");
    let script = ["set -eux", START].into_iter().map(str::to_owned).chain(hour).collect::<Vec<_>>().join("\n");
    let output = Command::new("bash").arg("-c").arg(&script).current_dir(top()).output().context("run bash")?;
    if !output.status.success() {
        // What is still on must not be in the way of the next scenario.
        Command::new(top().join("image/boot")).arg("stop").status().context("stop the machine")?;
    }
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{}: {}",
        output.status,
        said.lines().rev().take(30).collect::<Vec<_>>().join("\n")
    );
    Ok(())
}

/// The lines of console blocks that begin with `$ `, without their comments.
fn commands(text: &str) -> Vec<String> {
    let mut inside = false;
    let mut commands = Vec::new();
    for line in text.lines() {
        match line.strip_prefix("```") {
            Some(language) => inside = !inside && language == "console",
            None if inside => {
                let command = line.strip_prefix("$ ").map(|command| command.split("  #").next().unwrap_or(command));
                commands.extend(command.map(|command| command.trim().to_owned()));
            }
            None => {}
        }
    }
    commands
}
