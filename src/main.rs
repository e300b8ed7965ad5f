//! The command line: parses arguments, calls one command, prints the error.

use std::error::Error;
use std::io;
use std::process::ExitCode;

use clap::Parser;
use stillage::auth;
use stillage::config::{Cli, Command};
use stillage::wipe::Wiping;
use tracing_subscriber::EnvFilter;

mod commands;

/// Passwords pass through buffers of others: what is freed is wiped.
#[global_allocator]
static ALLOCATOR: Wiping = Wiping;

fn main() -> ExitCode {
    // A worker that checks a password: before there is any thread, any runtime, any argument.
    if std::env::args_os().nth(1).is_some_and(|first| first == "pam-worker") {
        return auth::worker::run();
    }
    let cli = Cli::parse();
    let outcome = start_log(cli.log_level.as_deref()).and_then(|()| match cli.command {
        Command::Serve(args) => commands::serve::run(*args),
        Command::Check(args) => commands::check::run(&args),
        Command::Gc(args) => commands::gc::run(args),
        Command::Snapshot(args) => commands::snapshot::run(&args),
        Command::Watch(args) => commands::watch::run(&args),
        Command::Access(args) => commands::access::run(args),
        Command::Static(args) => commands::statics::run(&args),
    });
    outcome.unwrap_or_else(|error| {
        // Who closed our stdout, as head(1) does, does not want to hear about it.
        let closed = error.downcast_ref::<io::Error>();
        if closed.is_none_or(|error| error.kind() != io::ErrorKind::BrokenPipe) {
            commands::complain(error.as_ref());
        }
        ExitCode::FAILURE
    })
}

/// Logs go to stderr. The flag counts before `RUST_LOG`.
fn start_log(level: Option<&str>) -> Result<(), Box<dyn Error>> {
    let rust_log = std::env::var("RUST_LOG").ok();
    let filter = level.or(rust_log.as_deref()).unwrap_or("info");
    let filter = EnvFilter::builder()
        .parse(filter)
        .map_err(|error| format!("--log-level {filter:?}: {error}"))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter);
    // It would tell of a failed write to stderr on stderr, and panic when that fails too: a full disk
    // under the log must cost lines, not requests.
    let log = log.log_internal_errors(false);
    log.with_writer(io::stderr).with_ansi(io::IsTerminal::is_terminal(&io::stderr())).init();
    Ok(())
}
