//! The short form: counts that noise cannot move, of a server of any build. What is expected stands in
//! bench/expected.toml, with the reason for each.

mod calls;
mod expected;
mod instructions;
mod quiet;
mod scenarios;
mod shared;

use std::path::Path;

use anyhow::{Result, bail};

use crate::content;
use crate::place::Place;
use expected::Expected;

/// Where the expected counts stand.
const FILE: &str = "bench/expected.toml";

/// Counts, and compares with what is expected, or writes that anew.
pub(crate) fn run(write: bool, instructions: bool) -> Result<()> {
    // The same digests each time: shelves of the pool and all else that depends on them are the same.
    content::repeat();
    let place = Place::new()?;
    let counted = scenarios::count(&place)?;
    let mut complaints = shared::complaints(&place)?;
    if instructions {
        complaints.extend(instructions::complaints(&place)?);
    }
    let mut expected = Expected::read(Path::new(FILE))?;
    if write {
        expected.replace(&counted);
        expected.write(Path::new(FILE))?;
    }
    complaints.extend(expected.complaints(&counted));
    let scenarios = counted.len();
    if complaints.is_empty() {
        println!("{scenarios} scenarios: every count is as expected");
        return Ok(());
    }
    for complaint in &complaints {
        eprintln!("{complaint}");
    }
    bail!(
        "{} counts differ from {FILE}; if that is right, bench/run --short --write writes them there, and a new \
         one wants its reason",
        complaints.len()
    )
}
