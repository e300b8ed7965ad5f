//! `stillage gc`.

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;

use stillage::config::{Gc, GcArgs};
use stillage::layout::{RealDisk, Tree};
use stillage::registry::{Registry, Settings};
use stillage::upkeep::gc::{self, report};

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
    let registry = Registry::open(&root, Settings::default())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let format = if json { report::Format::Json } else { report::Format::Text };
    let mut out = io::BufWriter::new(io::stdout().lock());
    let mut writer = report::Writer::new(&mut out, format, verbose, &options);
    writer.begin(&root);
    let mut untag = |repo: &_, stamp, digests: &[_]| {
        let taken = runtime.block_on(registry.take_out(repo, stamp, digests.to_vec()));
        taken.map_err(|error| error.to_string())
    };
    let summary = gc::run(&tree, &options, &mut untag, &mut |event| writer.take(&event))?;
    writer.end(&summary)?;
    out.flush()?;
    Ok(if summary.is_whole() { ExitCode::SUCCESS } else { ExitCode::from(PARTLY) })
}
