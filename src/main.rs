//! The command line: parses arguments, calls one command, prints the error.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Before anything else: a worker reads passwords from its standard input, and nothing more.
    if std::env::args_os().nth(1).is_some_and(|argument| argument == "pam-worker") {
        return stillage::auth::worker::run();
    }
    ExitCode::SUCCESS
}
