//! `stillage check`.

use std::io::{self, Write};
use std::process::ExitCode;

use stillage::config::CheckArgs;
use stillage::upkeep::check;

use super::{DAMAGE, Outcome};

/// Reports what is wrong.
pub(crate) fn run(args: &CheckArgs) -> Outcome {
    let options = check::Options { allow_sparse: args.allow_sparse };
    let format = if args.json { check::report::Format::Json } else { check::report::Format::Text };
    let mut out = io::stdout().lock();
    let summary = check::report::run(&args.root, options, format, &mut out)?;
    out.flush()?;
    Ok(if summary.is_damaged() { ExitCode::from(DAMAGE) } else { ExitCode::SUCCESS })
}
