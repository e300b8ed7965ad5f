//! The commands: each turns what was typed into one call, and what came of it into an exit code.

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use stillage::config::ConfigError;

pub(crate) mod access;
pub(crate) mod check;
pub(crate) mod gc;
mod owner;
pub(crate) mod serve;
pub(crate) mod snapshot;
pub(crate) mod statics;
pub(crate) mod watch;

/// What `stillage` exits with where arguments contradict each other, as clap does for others.
const USAGE: u8 = 2;

/// What a command exits with that left undone, and named, what it was kept from.
const PARTLY: u8 = 3;

/// What `stillage check` exits with where it found damage.
pub(crate) const DAMAGE: u8 = 4;

/// What a command exits with.
pub(crate) type Outcome = Result<ExitCode, Box<dyn Error>>;

/// The error and what caused it, on one line.
pub(crate) fn complain(error: &dyn Error) {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let more = inner.to_string();
        if !text.contains(&more) {
            text.push_str(&format!(": {more}"));
        }
        cause = inner.source();
    }
    let _ = writeln!(io::stderr(), "stillage: {text}");
}

/// The command line makes no sense.
fn misused(error: &ConfigError) -> ExitCode {
    complain(error);
    ExitCode::from(USAGE)
}
