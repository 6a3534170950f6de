//! Figures and how they are printed.

use anyhow::Result;
use serde::Serialize;

/// One measured figure.
#[derive(Serialize)]
struct Figure {
    name: String,
    unit: &'static str,
    /// Lowest, median and highest; all the same for what was measured once.
    min: f64,
    median: f64,
    max: f64,
    runs: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    reference: Option<Reference>,
}

/// What a figure is compared with.
#[derive(Clone, Serialize)]
pub struct Reference {
    /// What was measured.
    pub what: String,
    /// Its value, in the figure's unit.
    pub value: f64,
    /// Whether it was measured in this call; otherwise it is a published or earlier figure.
    pub same_call: bool,
}

impl Reference {
    /// The median of what was measured beside a figure in this call; none when there is no value.
    pub fn beside(what: impl Into<String>, values: &[f64]) -> Option<Self> {
        median(values).map(|value| Self { what: what.into(), value, same_call: true })
    }
}

/// All figures of one call.
pub struct Report {
    json: bool,
    figures: Vec<Figure>,
}

impl Report {
    /// One without figures. As lines they are printed as they come; JSON comes at the end.
    pub fn new(json: bool) -> Self {
        Self { json, figures: Vec::new() }
    }

    /// Adds what was measured; nothing when there is no value.
    pub fn add(&mut self, name: impl Into<String>, unit: &'static str, values: &[f64], reference: Option<Reference>) {
        let (Some(median), Some(min), Some(max)) =
            (median(values), values.iter().copied().reduce(f64::min), values.iter().copied().reduce(f64::max))
        else {
            return;
        };
        let figure = Figure { name: name.into(), unit, min, median, max, runs: values.len(), reference };
        if self.json {
            eprintln!("{}", line(&figure));
        } else {
            println!("{}", line(&figure));
        }
        self.figures.push(figure);
    }

    /// Prints what was not printed yet.
    ///
    /// # Errors
    /// When the figures cannot be written as JSON.
    pub fn finish(&self) -> Result<()> {
        if self.json {
            println!("{}", serde_json::to_string_pretty(&self.figures)?);
        }
        Ok(())
    }
}

/// The middle of the values, the upper one of an even number.
fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

fn line(figure: &Figure) -> String {
    let Figure { name, unit, min, median, max, runs, reference } = figure;
    let spread = if *runs > 1 { format!(" ({min:.2} to {max:.2}, {runs} runs)") } else { String::new() };
    let reference = match reference {
        Some(Reference { what, value, same_call: true }) => format!("; {what}, same call: {value:.2}"),
        Some(Reference { what, value, same_call: false }) => format!("; reference, {what}: {value:.2}"),
        None => String::new(),
    };
    format!("{name:<44} {median:>9.2} {unit}{spread}{reference}")
}
