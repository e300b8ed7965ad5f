//! The command line: parses arguments, calls one command, prints the error.

use std::error::Error;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use futures_util::{Stream, stream};
use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use stillage::access;
use stillage::auth::{self, Auth};
use stillage::config::{
    AccessArgs, Certificate, CheckArgs, Cli, Command, ConfigError, Serve, ServeArgs,
};
use stillage::http::{self, Own, Server, Tls};
use stillage::registry::Registry;
use stillage::upkeep::check;
use stillage::wipe::Wiping;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Passwords pass through buffers of others: what is freed is wiped.
#[global_allocator]
static ALLOCATOR: Wiping = Wiping;

/// What `stillage` exits with where arguments contradict each other, as clap does for others.
const USAGE: u8 = 2;

/// What `stillage check` exits with where it found damage.
const DAMAGE: u8 = 4;

type Outcome = Result<ExitCode, Box<dyn Error>>;

fn main() -> ExitCode {
    // A worker that checks a password: before there is any thread, any runtime, any argument.
    if std::env::args_os().nth(1).is_some_and(|first| first == "pam-worker") {
        return auth::worker::run();
    }
    let cli = Cli::parse();
    let outcome = start_log(cli.log_level.as_deref()).and_then(|()| match cli.command {
        Command::Serve(args) => serve(*args),
        Command::Check(args) => check(&args),
        Command::Access(args) => access(args),
    });
    outcome.unwrap_or_else(|error| {
        // Who closed our stdout, as head(1) does, does not want to hear about it.
        let closed = error.downcast_ref::<io::Error>();
        if closed.is_none_or(|error| error.kind() != io::ErrorKind::BrokenPipe) {
            complain(error.as_ref());
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
    log.with_writer(io::stderr).with_ansi(io::IsTerminal::is_terminal(&io::stderr())).init();
    Ok(())
}

/// The error and what caused it, on one line.
fn complain(error: &dyn Error) {
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

fn serve(args: ServeArgs) -> Outcome {
    let settings = match args.check() {
        Ok(settings) => settings,
        Err(error) => return Ok(misused(&error)),
    };
    raise_file_limit();
    // Every file and directory is made with the mode that it is to have.
    rustix::process::umask(Mode::empty());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(run(settings))?;
    // Whatever the blocking pool still does was given up by those who asked for it.
    runtime.shutdown_background();
    Ok(ExitCode::SUCCESS)
}

async fn run(settings: Serve) -> Result<(), Box<dyn Error>> {
    let stop = told_to_stop()?;
    let registry = Registry::open(&settings.root, settings.registry)?;
    let auth = Auth::new(settings.auth(http::token_keys(&registry)))?;
    let sweeper = registry.clone().keep_swept();
    let mut http = settings.http.clone();
    let own = certificate(&settings, &registry, &mut http)?;
    let server = Server::bind(settings.listen, registry, auth, http).await;
    let server =
        server.map_err(|error| format!("cannot listen at {}: {error}", settings.listen))?;
    report(&settings, &server, own.as_ref())?;
    tokio::spawn(sweeper);
    server.run(Box::pin(stop)).await;
    Ok(())
}

/// Loads the certificate that the listener is to show. One that the server made is given back: the
/// person who started the server has to make clients trust it.
fn certificate(
    settings: &Serve,
    registry: &Registry,
    http: &mut http::Settings,
) -> Result<Option<Own>, Box<dyn Error>> {
    match &settings.certificate {
        None => Ok(None),
        Some(Certificate::Files(files)) => {
            http.tls = Some(Tls::from_files(files.clone())?);
            Ok(None)
        }
        Some(Certificate::SelfSigned) => {
            let own = Own::of(registry, settings.listen.ip())?;
            http.tls = Some(own.tls.clone());
            Ok(Some(own))
        }
    }
}

/// What the person who started the server wants to know.
fn report(settings: &Serve, server: &Server, own: Option<&Own>) -> io::Result<()> {
    let [create, pull] = access::start(&settings.start()).map_err(io::Error::other)?;
    if let Some(warning) = access::renamers(&settings.start()).map_err(io::Error::other)? {
        tracing::warn!("{warning}");
    }
    let root = Path::display(&settings.root);
    let scheme = if settings.certificate.is_some() { "https" } else { "http" };
    let address = server.address()?;
    let mut text = format!(
        "stillage: serving {root} at {scheme}://{address}\nstillage: {}\nstillage: {create}\nstillage: {pull}\n",
        server.who_can_log_in(),
    );
    if let Some(own) = own {
        text.push_str(&own.how_to_trust(address));
    }
    let mut stdout = io::stdout();
    // Who closed our stdout does not want to know; that is no reason not to serve.
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    Ok(())
}

/// Yields for every SIGTERM and SIGINT.
fn told_to_stop() -> io::Result<impl Stream<Item = ()>> {
    let signals = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(stream::unfold(signals, |mut signals: (Signal, Signal)| async {
        tokio::select! {
            _ = signals.0.recv() => {}
            _ = signals.1.recv() => {}
        }
        Some(((), signals))
    }))
}

/// Every connection and every download holds a file open; the soft limit of most systems is made
/// for programs that do not.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let _ = setrlimit(Resource::Nofile, raised);
}

fn check(args: &CheckArgs) -> Outcome {
    let options = check::Options { allow_sparse: args.allow_sparse };
    let format = if args.json { check::report::Format::Json } else { check::report::Format::Text };
    let mut out = io::stdout().lock();
    let summary = check::report::run(&args.root, options, format, &mut out)?;
    out.flush()?;
    Ok(if summary.is_damaged() { ExitCode::from(DAMAGE) } else { ExitCode::SUCCESS })
}

fn access(args: AccessArgs) -> Outcome {
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
