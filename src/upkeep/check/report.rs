//! How findings are told: a line each for people, one JSON document for programs.

use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;

use super::finding::{Finding, Summary};
use super::rule::{Rule, Severity};
use super::{CheckError, Options, check};

/// How to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A line per finding, then one with the sums.
    Text,
    /// One document: `root`, `findings`, `summary`.
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

/// Checks the tree at `root` and writes the report while it goes.
///
/// # Errors
/// If ROOT cannot be read (nothing is written then), or the report cannot be written.
pub fn run(
    root: &Path,
    options: Options,
    format: Format,
    out: &mut dyn Write,
) -> Result<Summary, ReportError> {
    let mut writer = Writer { out, format, any: false, failed: Ok(()) };
    let summary = check(root, options, &mut |finding| writer.take(root, &finding))?;
    writer.end(root, summary)?;
    Ok(summary)
}

struct Writer<'a> {
    out: &'a mut dyn Write,
    format: Format,
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

impl Writer<'_> {
    fn take(&mut self, root: &Path, finding: &Finding) {
        if self.failed.is_ok() {
            self.failed = self.write(root, finding);
        }
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
            Format::Text => writeln!(self.out, "{}", sums(&summary))?,
            Format::Json => {
                self.begin(root)?;
                writeln!(self.out, "],\n\"summary\":{}}}", serde_json::to_string(&summary)?)?;
            }
        }
        self.out.flush()
    }
}

fn sums(summary: &Summary) -> String {
    let many = |count: u64, one: &str, more: &str| match count {
        1 => format!("1 {one}"),
        _ => format!("{count} {more}"),
    };
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

/// File names and other people's JSON must not drive the terminal.
fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let escaped = c.is_control().then(|| c.escape_default());
            let plain = escaped.is_none().then_some(c);
            escaped.into_iter().flatten().chain(plain)
        })
        .collect()
}
