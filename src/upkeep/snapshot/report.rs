//! How a snapshot is told of: lines for people, one JSON document for programs.

use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;

use super::{Snapshot, Summary, Warning};
use crate::upkeep::words::{many, printable};

#[derive(Serialize)]
struct Document<'a> {
    root: &'a Path,
    dest: &'a Path,
    previous: Option<&'a Path>,
    dry_run: bool,
    whole: bool,
    summary: &'a Summary,
    warnings: &'a [Warning],
}

/// Writes one JSON document.
pub fn json(
    root: &Path,
    dest: &Path,
    dry_run: bool,
    made: &Snapshot,
    out: &mut dyn Write,
) -> io::Result<()> {
    let Snapshot { previous, summary, warnings } = made;
    let (previous, whole) = (previous.as_deref(), made.is_whole());
    let document = Document { root, dest, previous, dry_run, whole, summary, warnings };
    serde_json::to_writer_pretty(&mut *out, &document)?;
    writeln!(out)
}

/// Writes a line for each warning, and the sums.
pub fn text(
    root: &Path,
    dest: &Path,
    dry_run: bool,
    made: &Snapshot,
    out: &mut dyn Write,
) -> io::Result<()> {
    for warning in &made.warnings {
        let path = root.join(&warning.path);
        let path = path.to_string_lossy();
        let line = format!("{}: {}", path.trim_end_matches('/'), warning.message);
        writeln!(out, "{}", printable(&line))?;
    }
    let Summary { repositories, blobs_linked, bytes_linked, .. } = made.summary;
    let Summary { blobs_copied, files_copied, bytes_copied, from_previous, .. } = made.summary;
    let would = if dry_run { "would have" } else { "has" };
    write!(
        out,
        "{} {would} {}, {} linked ({bytes_linked} bytes), {} and {} copied ({bytes_copied} bytes)",
        dest.display(),
        many(repositories, "repository", "repositories"),
        many(blobs_linked, "blob", "blobs"),
        many(blobs_copied, "blob", "blobs"),
        many(files_copied, "file", "files"),
    )?;
    if let Some(previous) = &made.previous
        && from_previous > 0
    {
        write!(out, ", {from_previous} taken from {}", previous.display())?;
    }
    writeln!(
        out,
        "; deletes and collections were kept waiting for {} ms at a time, at most",
        made.summary.longest_lock_ms
    )?;
    if !made.is_whole() {
        writeln!(out, "{} lacks what is named above", dest.display())?;
    }
    out.flush()
}
