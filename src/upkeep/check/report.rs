//! How findings are told: a line each for people, one JSON document for programs.

use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;

use super::finding::{Finding, Summary};
use super::rule::{Rule, Severity};
use super::{CheckError, Mended, Options, Repairs, Told, check, repair};
use crate::upkeep::words::{many, printable};

/// How to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A line per finding and per repair, then one with the sums.
    Text,
    /// One document: `root`, `findings`, `repairs` if any were asked for, `summary`.
    Json,
}

/// Why a report is not whole.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The tree could not be checked.
    #[error(transparent)]
    Check(#[from] CheckError),
    /// The report could not be written.
    #[error("the report could not be written: {0}")]
    Write(#[from] io::Error),
}

/// Checks the tree at `root`, with repairs if asked for, and writes the report while it goes.
///
/// # Errors
/// If ROOT cannot be read (nothing is written then), or the report cannot be written.
pub fn run(
    root: &Path,
    options: Options,
    repairs: Option<Repairs>,
    format: Format,
    out: &mut dyn Write,
) -> Result<Summary, ReportError> {
    let dry = repairs.as_ref().map(|repairs| repairs.dry_run);
    let mut writer = Writer { out, format, dry, mended: Vec::new(), any: false, failed: Ok(()) };
    let summary = match repairs {
        None => check(root, options, &mut |found| writer.take(root, &Told::Found(found)))?,
        Some(repairs) => repair(root, options, repairs, &mut |told| writer.take(root, &told))?,
    };
    writer.end(root, summary)?;
    Ok(summary)
}

struct Writer<'a> {
    out: &'a mut dyn Write,
    format: Format,
    /// Whether repairs are only said; `None` where none are asked for.
    dry: Option<bool>,
    /// A document says them after the findings.
    mended: Vec<Mended>,
    any: bool,
    failed: io::Result<()>,
}

#[derive(Serialize)]
struct Line<'a> {
    rule: Rule,
    severity: Severity,
    #[serde(skip_serializing_if = "str::is_empty")]
    repository: &'a str,
    path: std::borrow::Cow<'a, str>,
    message: &'a str,
}

#[derive(Serialize)]
struct Repair<'a> {
    rule: Rule,
    #[serde(skip_serializing_if = "str::is_empty")]
    repository: &'a str,
    path: std::borrow::Cow<'a, str>,
    deed: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    kept: Option<&'a str>,
}

impl<'a> Repair<'a> {
    fn of(mended: &'a Mended) -> Repair<'a> {
        let Mended { rule, repository, path, deed, kept } = mended;
        Repair {
            rule: *rule,
            repository,
            path: path.to_string_lossy(),
            deed,
            kept: kept.as_deref(),
        }
    }
}

impl Writer<'_> {
    fn take(&mut self, root: &Path, told: &Told) {
        if self.failed.is_ok() {
            self.failed = match told {
                Told::Found(finding) => self.write(root, finding),
                Told::Mended(mended) => self.mended(mended),
            };
        }
    }

    fn mended(&mut self, mended: &Mended) -> io::Result<()> {
        if self.format == Format::Json {
            self.mended.push(mended.clone());
            return Ok(());
        }
        let Repair { rule, path, deed, kept, .. } = Repair::of(mended);
        let word = if self.dry == Some(true) { "would repair" } else { "repaired" };
        let (path, deed) = (printable(&path), printable(deed));
        let kept = kept.map(|kept| format!(" ({})", printable(kept))).unwrap_or_default();
        writeln!(self.out, "{word} {rule}: {path}: {deed}{kept}")
    }

    fn write(&mut self, root: &Path, finding: &Finding) -> io::Result<()> {
        let line = Line {
            rule: finding.rule,
            severity: finding.rule.severity(),
            repository: &finding.repository,
            path: finding.path.to_string_lossy(),
            message: &finding.message,
        };
        match self.format {
            Format::Text => {
                let path = if line.path.is_empty() { ".".into() } else { line.path };
                let (path, message) = (printable(&path), printable(line.message));
                writeln!(self.out, "{} {}: {path}: {message}", line.severity, line.rule)
            }
            Format::Json => {
                self.begin(root)?;
                let comma = if self.any { "," } else { "" };
                self.any = true;
                write!(self.out, "{comma}\n{}", serde_json::to_string(&line)?)
            }
        }
    }

    /// What repairs add to the sums.
    fn repairs(&self, summary: &Summary) -> String {
        let Some(dry) = self.dry else { return String::new() };
        let (done, linked) = match dry {
            true => ("to be repaired", "to be linked into the pool"),
            false => ("repaired", "linked into the pool"),
        };
        let mut text = format!("; {} {done}", summary.repaired);
        if summary.pooled_again > 0 {
            let blobs = many(summary.pooled_again, "blob", "blobs");
            text.push_str(&format!(", {blobs} {linked}"));
        }
        if summary.blocked {
            text.push_str("; not all, for somebody held a lock");
        }
        if summary.failed {
            text.push_str("; not all, for something went wrong");
        }
        text
    }

    fn begin(&mut self, root: &Path) -> io::Result<()> {
        if self.any {
            return Ok(());
        }
        let root = serde_json::to_string(&root.to_string_lossy())?;
        write!(self.out, "{{\"root\":{root},\"findings\":[")
    }

    fn end(mut self, root: &Path, summary: Summary) -> io::Result<()> {
        std::mem::replace(&mut self.failed, Ok(()))?;
        match self.format {
            Format::Text => writeln!(self.out, "{}{}", sums(&summary), self.repairs(&summary))?,
            Format::Json => {
                self.begin(root)?;
                writeln!(self.out, "],")?;
                if let Some(dry) = self.dry {
                    let repairs: Vec<Repair<'_>> = self.mended.iter().map(Repair::of).collect();
                    let repairs = serde_json::to_string(&repairs)?;
                    writeln!(self.out, "\"dryRun\":{dry},\n\"repairs\":{repairs},")?;
                }
                writeln!(self.out, "\"summary\":{}}}", serde_json::to_string(&summary)?)?;
            }
        }
        self.out.flush()
    }
}

fn sums(summary: &Summary) -> String {
    format!(
        "{}, {}, {}, {} hashed: {}, {}",
        many(summary.repositories, "repository", "repositories"),
        many(summary.manifests, "manifest", "manifests"),
        many(summary.blobs, "blob", "blobs"),
        many(summary.bytes_hashed, "byte", "bytes"),
        many(summary.errors, "error", "errors"),
        many(summary.warnings, "warning", "warnings"),
    )
}
