//! `stillage snapshot`.

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;

use indicatif::{ProgressBar, ProgressStyle};
use stillage::config::SnapshotArgs;
use stillage::layout::RealDisk;
use stillage::upkeep::snapshot::{self, report};
use stillage::upkeep::words;

use super::{Outcome, PARTLY};

/// Makes a snapshot and says what is in it.
///
/// Root stays root, unlike in commands that change the tree: only root can keep owners and groups, and
/// link what others put there. Nothing is written in ROOT, no symlink is followed, and until it is
/// whole nobody else comes to what is made.
pub(crate) fn run(args: &SnapshotArgs) -> Outcome {
    rustix::process::umask(rustix::fs::Mode::empty());
    let bar = progress();
    let (previous, dry_run, wait) = (args.previous.clone(), args.dry_run, args.wait);
    let options = snapshot::Options { previous, dry_run, wait };
    let mut tell = |repository: &str, so_far: &snapshot::Summary| {
        let blobs = so_far.blobs_linked + so_far.blobs_copied;
        let repository = words::printable(repository);
        bar.set_message(format!(
            "{} repositories, {blobs} blobs: {repository}",
            so_far.repositories
        ));
        bar.tick();
    };
    let made = snapshot::snapshot(&args.root, &args.dest, &options, Arc::new(RealDisk), &mut tell);
    bar.finish_and_clear();
    let made = made?;
    let mut out = io::stdout().lock();
    let tell = if args.json { report::json } else { report::text };
    tell(&args.root, &args.dest, args.dry_run, &made, &mut out)?;
    out.flush()?;
    Ok(if made.is_whole() { ExitCode::SUCCESS } else { ExitCode::from(PARTLY) })
}

/// A line on the terminal that says where it is; nothing where stderr is none.
fn progress() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{elapsed} {wide_msg}") {
        bar.set_style(style);
    }
    bar
}
