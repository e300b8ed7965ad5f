//! `stillage access`.

use std::io::{self, Write};
use std::process::ExitCode;

use stillage::access;
use stillage::config::AccessArgs;

use super::{Outcome, misused};

/// Answers who may do what.
pub(crate) fn run(args: AccessArgs) -> Outcome {
    let root = std::env::var_os("STILLAGE_ROOT").filter(|root| !root.is_empty());
    let (question, json) = match args.check(root.map(Into::into)) {
        Ok(checked) => checked,
        Err(error) => return Ok(misused(&error)),
    };
    let report = access::report(&question)?;
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, &report)?;
        writeln!(out)?;
    } else {
        write!(out, "{report}")?;
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}
