//! What was measured, for programs (JSON) and for people (a table, pictures).

mod docs;
mod svg;
mod table;

use std::rc::Rc;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::args::Args;
use crate::goals::{self, Verdict};
use crate::machine::Machine;
use crate::measure::{Bench, Row};
use crate::place::Place;
use crate::works;

/// All of a run.
#[derive(Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) rounds: usize,
    pub(crate) rows: Vec<Row>,
    pub(crate) goals: Vec<Verdict>,
}

impl Report {
    fn of(machine: &Machine, bench: &Bench) -> Report {
        let (rounds, rows) = (bench.rounds, bench.rows.clone());
        let goals = goals::judge(&rows);
        Report { machine: machine.clone(), rounds, rows, goals }
    }
}

/// Measures what is asked for and reports it.
pub(crate) fn run(args: &Args) -> Result<()> {
    let report = match &args.from {
        Some(file) => {
            let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
            let mut report: Report =
                serde_json::from_str(&text).with_context(|| file.display().to_string())?;
            report.goals = goals::judge(&report.rows);
            report
        }
        None => measure(args)?,
    };
    print!("{}", table::text(&report));
    if args.docs {
        docs::write(&report)?;
    }
    Ok(())
}

/// What is measured is written after each work, so that a long run that is cut short leaves something.
fn measure(args: &Args) -> Result<Report> {
    let place = Rc::new(Place::new()?);
    let machine = Machine::here(&place);
    let rows = Vec::new();
    let mut bench = Bench { place, rounds: args.rounds, rows, work: "" };
    for work in works::ALL.iter().filter(|work| args.wants(work.name)) {
        bench.work = work.name;
        (work.run)(&mut bench).with_context(|| work.name)?;
        write(args, &Report::of(&machine, &bench))?;
    }
    Ok(Report::of(&machine, &bench))
}

fn write(args: &Args, report: &Report) -> Result<()> {
    if let Some(dir) = args.json.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let text = serde_json::to_string_pretty(report)? + "\n";
    std::fs::write(&args.json, text).with_context(|| args.json.display().to_string())
}
