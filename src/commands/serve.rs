//! `stillage serve`.

use std::error::Error;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::{Stream, stream};
use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use stillage::access;
use stillage::auth::Auth;
use stillage::config::{Certificate, Serve, ServeArgs};
use stillage::http::{self, Accel, Own, Server, Tls, webhooks};
use stillage::layout::{RealDisk, Tree, Watcher};
use stillage::registry::{Registry, Views};
use stillage::upkeep::gc;
use stillage::wipe;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Outcome, misused};

/// No more descriptors than this are kept back for files, however many there may be.
const FILES: u64 = 16 * 1024;

/// How long the server sleeps before it looks again at when the last collection was, or at a tree of
/// which the kernel cannot tell what changes.
const LOOK_AGAIN: Duration = Duration::from_secs(60 * 60);

/// How long requests come before the watch on the tree.
const HEAD_START: Duration = Duration::from_secs(1);

/// Serves until it is told to stop.
pub(crate) fn run(args: ServeArgs) -> Outcome {
    let settings = match args.check() {
        Ok(settings) => settings,
        Err(error) => return Ok(misused(&error)),
    };
    let settings = within_file_limit(settings);
    // Every file and directory is made with the mode that it is to have.
    rustix::process::umask(Mode::empty());
    wipe::keep_buffers();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(serve(settings))?;
    // Whatever the blocking pool still does was given up by those who asked for it.
    runtime.shutdown_background();
    Ok(ExitCode::SUCCESS)
}

async fn serve(settings: Serve) -> Result<(), Box<dyn Error>> {
    let stop = told_to_stop()?;
    let registry = Registry::open(&settings.root, settings.registry)?;
    let auth = Auth::new(settings.auth(http::token_keys(&registry)))?;
    // Whatever writes beside requests: not to a tree that is only read.
    let kept = (!registry.is_read_only()).then(|| registry.clone());
    let mut http = settings.http.clone();
    if let Some((prefix, account)) = settings.accel.clone() {
        http.accel = Some(Arc::new(Accel::new(&registry, prefix, account.as_deref())?));
    }
    let accel = http.accel.clone();
    let own = certificate(&settings, &registry, &mut http)?;
    let server = Server::bind(settings.listen, registry, auth, http).await;
    let server =
        server.map_err(|error| format!("cannot listen at {}: {error}", settings.listen))?;
    report(&settings, &server, accel.as_deref(), own.as_ref())?;
    if let Some(registry) = kept {
        tokio::spawn(registry.clone().keep_swept());
        let views = registry.clone();
        tokio::spawn(async move { views.keep_views(wipe::give_back).await });
        collect(&settings)?;
        watch(&settings, &server, registry)?;
    }
    server.run(Box::pin(stop)).await;
    Ok(())
}

/// Collects garbage again and again, in a thread of its own, which ends with the process: a collection
/// may be cut short anywhere.
fn collect(settings: &Serve) -> Result<(), Box<dyn Error>> {
    let Some(every) = settings.gc_every else { return Ok(()) };
    let tree = Tree::open(&settings.root, Arc::new(RealDisk))?;
    let (options, earliest) = (settings.gc.clone(), SystemTime::now() + settings.gc_delay);
    let collect = move || {
        let mut tried = None;
        loop {
            // Somebody else may collect meanwhile.
            let due = gc::next(&tree, every, earliest, tried);
            match due.duration_since(SystemTime::now()) {
                Ok(left) if !left.is_zero() => std::thread::sleep(left.min(LOOK_AGAIN)),
                _ => {
                    super::gc::logged(&tree, &options);
                    // What it remembered of all blobs lies between what the server keeps.
                    wipe::give_back();
                    tried = Some(SystemTime::now());
                }
            }
        }
    };
    std::thread::Builder::new().name("gc".to_owned()).spawn(collect)?;
    Ok(())
}

/// Tells views and receivers of events what changes in the tree, by whomever, in threads that end with
/// the process: what was not told is told after the next start.
fn watch(settings: &Serve, server: &Server, registry: Registry) -> Result<(), Box<dyn Error>> {
    let for_views = settings.look_every.filter(|_| settings.registry.views == Views::Make);
    if settings.webhooks.is_empty() && for_views.is_none() {
        return Ok(());
    }
    let tree = Tree::open(&settings.root, Arc::new(RealDisk))?;
    let told = webhooks::start(&tree, &settings.webhooks, &server.url()?)?;
    let every = settings.look_every.unwrap_or(LOOK_AGAIN);
    // The clock of files may be behind by a tick.
    let started = SystemTime::now() - HEAD_START;
    let watch = move || {
        // The first requests have the machine for themselves. What changes until all directories are
        // watched is told all the same.
        std::thread::sleep(HEAD_START);
        let mut watcher = Watcher::start(&tree.root, every, tree.is_remote(), started);
        told.iter().for_each(|pending| pending.add_all());
        loop {
            let changed = watcher.wait();
            if for_views.is_some() {
                registry.may_have_changed(&changed);
            }
            told.iter().for_each(|pending| pending.add(&changed));
        }
    };
    std::thread::Builder::new().name("watch".to_owned()).spawn(watch)?;
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
fn report(
    settings: &Serve,
    server: &Server,
    accel: Option<&Accel>,
    own: Option<&Own>,
) -> io::Result<()> {
    let [mut create, pull] = access::start(&settings.start()).map_err(io::Error::other)?;
    if settings.registry.read_only {
        "read-only: pushes and deletes are refused, and nothing is written here"
            .clone_into(&mut create);
    }
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
    if let Some(accel) = accel {
        let (line, warning) = accel.report().map_err(io::Error::other)?;
        if let Some(warning) = warning {
            tracing::warn!("{warning}");
        }
        text.push_str(&format!("stillage: {line}\n"));
    }
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
///
/// A quarter of the descriptors is kept back for files, and no more than are of use: where a
/// connection took the last one, nobody's blob could be opened any more.
fn within_file_limit(mut settings: Serve) -> Serve {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let limit = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    let Some(limit) = limit else { return settings };
    let left = limit.saturating_sub((limit / 4).clamp(64, FILES));
    // An eighth is for those who are told that there is no place.
    let most = usize::try_from(left - left / 8).unwrap_or(usize::MAX).max(1);
    if settings.http.connections > most {
        tracing::info!(most, "the limit of open files leaves room for so many connections");
        settings.http.connections = most;
    }
    settings
}
