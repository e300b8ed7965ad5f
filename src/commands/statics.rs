//! `stillage static`.

use std::io::{self, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode};

use stillage::config::StaticArgs;

use super::{Outcome, misused};

/// Prints the configuration or the script; or runs the script.
pub(crate) fn run(args: &StaticArgs) -> Outcome {
    let text = match args.what.text() {
        Ok(text) => text,
        Err(error) => return Ok(misused(&error)),
    };
    if args.what.is_to_run() {
        return run_script(&text);
    }
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// Root stays root, unlike in other commands that change a tree: only root can keep owners and groups, and
/// what is written is no registry's. Whatever the script ends with, it is an error of ours: rsync's own
/// codes mean something else here.
fn run_script(text: &str) -> Outcome {
    let ended = Command::new("sh").args(["-c", text, "stillage static mirror"]).status();
    let ended = ended.map_err(|error| format!("sh: {error}"))?;
    match (ended.code(), ended.signal()) {
        (Some(0), _) => Ok(ExitCode::SUCCESS),
        (Some(code), _) => Err(format!("the round ended early, with exit code {code}").into()),
        (_, signal) => Err(format!("the round was ended by signal {signal:?}").into()),
    }
}
