//! `stillage gc`.

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;

use indicatif::ProgressBar;
use stillage::config::{Gc, GcArgs};
use stillage::layout::{RealDisk, Tree};
use stillage::registry::{Registry, Settings, Views};
use stillage::upkeep::gc::{self, Event, Fate, Options, Summary, report};

use super::{Outcome, PARTLY, misused, owner};

/// Collects.
pub(crate) fn run(args: GcArgs) -> Outcome {
    let root = std::env::var_os("STILLAGE_ROOT").filter(|root| !root.is_empty());
    let Gc { root, options, verbose, json } = match args.check(root.map(Into::into)) {
        Ok(checked) => checked,
        Err(error) => return Ok(misused(&error)),
    };
    owner::become_owner(&root)?;
    let tree = Tree::open(&root, Arc::new(RealDisk))?;
    // What takes manifests out is a commit like any other.
    let registry = Registry::open(&root, Settings { views: Views::Keep, ..Settings::default() })?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let format = if json { report::Format::Json } else { report::Format::Text };
    let mut out = io::BufWriter::new(io::stdout().lock());
    let mut writer = report::Writer::new(&mut out, format, verbose, &options);
    writer.begin(&root);
    let mut untag = |repo: &_, stamp, digests: &[_]| {
        let taken = runtime.block_on(registry.take_out(repo, stamp, digests.to_vec()));
        taken.map_err(|error| error.to_string())
    };
    let mut progress = Progress::new(json || verbose);
    let mut report = |event: Event<'_>| {
        progress.take(&event);
        writer.take(&event);
    };
    let summary = gc::run(&tree, &options, &mut untag, &mut report)?;
    progress.end();
    writer.end(&summary)?;
    out.flush()?;
    Ok(if summary.is_whole() { ExitCode::SUCCESS } else { ExitCode::from(PARTLY) })
}

/// Collects for a server, and logs what a person would want to know.
pub(crate) fn logged(tree: &Tree, options: &Options) {
    let mut report = |event: Event<'_>| match event {
        Event::Left { repository, why } => {
            tracing::warn!(%repository, cause = ?why.to_string(), "a repository was not collected");
        }
        Event::Blocked(why) => {
            tracing::warn!(cause = ?why.to_string(), "nothing more is collected this time");
        }
        Event::Warning(error) | Event::PassedOver(error) => {
            tracing::warn!(cause = ?error.to_string(), "left out by the collection");
        }
        _ => {}
    };
    // No manifest is taken out without being asked for.
    let mut untag = |_: &_, _, _: &[_]| Ok(true);
    match gc::run(tree, options, &mut untag, &mut report) {
        Ok(Summary { repositories, looked, noted, removed, pooled, bytes, .. }) => {
            tracing::info!(
                repositories,
                looked,
                noted,
                removed,
                pooled,
                bytes,
                "collected garbage"
            );
        }
        Err(error) => tracing::error!(cause = ?error.to_string(), "nothing was collected"),
    }
}

/// How far it is, on a terminal.
struct Progress {
    bar: ProgressBar,
    looked: u64,
    removed: u64,
}

impl Progress {
    fn new(hidden: bool) -> Progress {
        // It draws itself on stderr, and only where that is a terminal.
        let bar = if hidden { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
        Progress { bar, looked: 0, removed: 0 }
    }

    fn take(&mut self, event: &Event<'_>) {
        match event {
            Event::Repository(name) => self.bar.set_prefix(name.to_string()),
            Event::Looked(names) => self.looked += names,
            Event::Digest { fate: Fate::Goes { .. }, .. } => self.removed += 1,
            // A line is about to be written.
            Event::Left { .. } | Event::Blocked(_) | Event::Warning(_) | Event::PassedOver(_) => {
                self.bar.suspend(|| ());
            }
            _ => return,
        }
        let Progress { bar, looked, removed } = self;
        bar.set_message(format!("{}: {looked} blobs looked at, {removed} gone", bar.prefix()));
        bar.tick();
    }

    fn end(&self) {
        self.bar.finish_and_clear();
    }
}
