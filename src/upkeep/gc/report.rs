//! How a collection is told: lines for people, one JSON document for programs.

use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::Options;
use super::event::{Event, Fate, Summary, Tidied, written};
use crate::oci::What;
use crate::upkeep::words::{many, printable};

/// How to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Lines, the sums last.
    Text,
    /// One document: `root`, `dryRun`, `events`, `summary`.
    Json,
}

/// Writes down what happens while it does.
pub struct Writer<'a> {
    out: &'a mut dyn Write,
    format: Format,
    /// A line for each digest, with the reason.
    verbose: bool,
    dry_run: bool,
    undo_window: Duration,
    grace: Duration,
    any: bool,
    failed: io::Result<()>,
}

impl<'a> Writer<'a> {
    /// One that writes to `out`.
    pub fn new(out: &'a mut dyn Write, format: Format, verbose: bool, options: &Options) -> Self {
        let Options { dry_run, undo_window, grace, .. } = *options;
        Writer { out, format, verbose, dry_run, undo_window, grace, any: false, failed: Ok(()) }
    }

    /// Begins the document.
    pub fn begin(&mut self, root: &Path) {
        if self.format == Format::Json {
            let head = json!({ "root": root.to_string_lossy(), "dryRun": self.dry_run });
            let head = head.to_string();
            self.put(&format!("{},\"events\":[", head.trim_end_matches('}')));
        }
    }

    /// Takes what happened.
    pub fn take(&mut self, event: &Event<'_>) {
        match self.format {
            Format::Text => {
                if let Some(line) = self.line(event) {
                    self.put(&format!("{line}\n"));
                }
            }
            Format::Json => {
                if let Some(value) = self.value(event) {
                    let comma = if std::mem::replace(&mut self.any, true) { "," } else { "" };
                    self.put(&format!("{comma}\n{value}"));
                }
            }
        }
    }

    /// Writes the sums.
    ///
    /// # Errors
    /// Anything that could not be written, from the begin on.
    pub fn end(mut self, summary: &Summary) -> io::Result<()> {
        match self.format {
            Format::Text => self.put(&sums(summary, self.dry_run)),
            Format::Json => {
                let summary = serde_json::to_string(summary)?;
                self.put(&format!("],\n\"summary\":{summary}}}\n"));
            }
        }
        std::mem::replace(&mut self.failed, Ok(()))?;
        self.out.flush()
    }

    fn put(&mut self, text: &str) {
        if self.failed.is_ok() {
            self.failed = self.out.write_all(text.as_bytes());
        }
    }

    fn goes(&self) -> &'static str {
        if self.dry_run { "would go" } else { "gone" }
    }

    fn line(&self, event: &Event<'_>) -> Option<String> {
        let goes = self.goes();
        let line = match event {
            Event::Left { repository, why } => format!("{repository}: left as it is: {why}"),
            Event::Blocked(why) => format!("nothing more is removed: {why}"),
            Event::PassedOver(error) => format!("passed over: {error}"),
            Event::Warning(error) => format!("warning: {error}"),
            Event::Digest { repository, digest, fate } if self.verbose => {
                format!("{repository} {digest}: {}", self.fate(fate)?)
            }
            // Whatever becomes impossible is told in any case.
            Event::Digest {
                repository,
                digest,
                fate: fate @ Fate::Goes { undo, elsewhere, .. },
            } if undo.is_some() || !elsewhere.is_empty() => {
                format!("{repository} {digest}: {}", self.fate(fate)?)
            }
            Event::Tidied { repository, what } if self.verbose => {
                format!("{repository}: {}", tidied(*what))
            }
            Event::Untagged { repository, digest, since, goes: true } if self.verbose => {
                let since = since.map(written).unwrap_or_default();
                format!("{repository} {digest}: {goes} from index.json: no tag since {since}")
            }
            Event::Untagged { repository, digest, since, goes: false } if self.verbose => {
                let why = match since {
                    Some(since) => format!("no tag since {}", written(*since)),
                    None => "has no tag, and the journal does not tell since when".to_owned(),
                };
                format!("{repository} {digest}: stays in index.json: {why}")
            }
            Event::Pool { digest, bytes } if self.verbose => {
                let bytes = many(*bytes, "byte", "bytes");
                format!("pool {digest}: {goes}: no repository has it, {bytes}")
            }
            Event::Trash { hour, files, bytes } if self.verbose => {
                format!(
                    "trash {hour}: {goes}: {}, {}",
                    many(*files, "file", "files"),
                    many(*bytes, "byte", "bytes")
                )
            }
            _ => return None,
        };
        Some(printable(&line))
    }

    fn fate(&self, fate: &Fate<'_>) -> Option<String> {
        let until = |since: SystemTime, time| since.checked_add(time).map(written);
        Some(match fate {
            Fate::Noted if self.grace.is_zero() => return None,
            Fate::Noted => "stays: unreferenced, seen for the first time".to_owned(),
            Fate::Waits { since } => {
                let until = until(*since, self.grace)?;
                format!("stays until {until}: unreferenced since {}", written(*since))
            }
            Fate::Kept(by) => {
                let until = until(by.time, self.undo_window)?;
                let what = match &by.what {
                    Some((what, tag)) => said(*what, tag.as_deref()),
                    None => "a line that cannot be read".to_owned(),
                };
                format!("stays until {until}: the journal has, at {}, {what}", written(by.time))
            }
            Fate::Promised => "stays: promised to a pusher".to_owned(),
            Fate::Referred => "stays: referred to meanwhile".to_owned(),
            Fate::Goes { since, bytes, others, undo, elsewhere, .. } => {
                let since = since.map(|since| format!(" since {}", written(since)));
                let mut text =
                    format!("{}: unreferenced{}", self.goes(), since.unwrap_or_default());
                match others {
                    0 => text.push_str(&format!(", {}", many(*bytes, "byte", "bytes"))),
                    _ => {
                        let others = many(*others, "other name", "other names");
                        text.push_str(&format!("; the content has {others}"));
                    }
                }
                if !elsewhere.is_empty() {
                    let names: Vec<_> = elsewhere.iter().map(|name| name.as_str()).collect();
                    text.push_str(&format!(", among them in {}", names.join(", ")));
                }
                if let Some(by) = undo {
                    text.push_str(&format!("; what happened at {} cannot", written(by.time)));
                    let (what, tag) = by.what.clone().unwrap_or((What::Push, None));
                    text.push_str(&format!(" be undone any more: {}", said(what, tag.as_deref())));
                }
                text
            }
        })
    }

    fn value(&self, event: &Event<'_>) -> Option<Value> {
        Some(match event {
            Event::Left { repository, why } => {
                json!({"what": "left", "repository": repository.as_str(), "why": why.to_string()})
            }
            Event::Blocked(why) => json!({"what": "blocked", "why": why.to_string()}),
            Event::PassedOver(error) => json!({"what": "passedOver", "why": error.to_string()}),
            Event::Warning(error) => json!({"what": "warning", "why": error.to_string()}),
            Event::Digest { repository, digest, fate } if self.verbose => {
                let why = self.fate(fate)?;
                let what = match fate {
                    Fate::Noted => "noted",
                    Fate::Goes { .. } => "removed",
                    _ => "kept",
                };
                let (repository, digest) = (repository.as_str(), digest.as_str());
                let mut value = json!({
                    "what": what, "repository": repository, "digest": digest, "why": why
                });
                if let Fate::Goes { size, bytes, others, undo, elsewhere, .. } = fate {
                    let elsewhere: Vec<_> = elsewhere.iter().map(|name| name.as_str()).collect();
                    value["undoable"] = json!(undo.map(|by| written(by.time)));
                    value["elsewhere"] = json!(elsewhere);
                    value["size"] = json!(size);
                    value["bytes"] = json!(bytes);
                    value["otherNames"] = json!(others);
                }
                value
            }
            Event::Untagged { repository, digest, since, goes } if self.verbose => json!({
                "what": if *goes { "untagged" } else { "kept" },
                "repository": repository.as_str(),
                "digest": digest.as_str(),
                "untaggedSince": since.map(written),
            }),
            Event::Tidied { repository, what } if self.verbose => json!({
                "what": "tidied",
                "repository": repository.as_str(),
                "why": tidied(*what),
            }),
            Event::Pool { digest, bytes } if self.verbose => {
                json!({"what": "pool", "digest": digest.as_str(), "bytes": bytes})
            }
            Event::Trash { hour, files, bytes } if self.verbose => {
                json!({"what": "trash", "hour": hour, "files": files, "bytes": bytes})
            }
            _ => return None,
        })
    }
}

fn tidied(what: Tidied<'_>) -> String {
    match what {
        Tidied::JournalSetAside => "the journal is long: a new one begins".to_owned(),
        Tidied::JournalPart(part) => format!("{part} goes: it is older than thirteen months"),
        Tidied::Facts => "facts of manifests that are gone go".to_owned(),
    }
}

/// A change as the journal has it, in words.
fn said(what: What, tag: Option<&str>) -> String {
    let tag = tag.unwrap_or("?");
    match what {
        What::Push => "its push".to_owned(),
        What::Tag => format!("the move of tag {tag}"),
        What::Untag => format!("the deletion of tag {tag}"),
        What::Delete => "its deletion".to_owned(),
    }
}

fn sums(summary: &Summary, dry_run: bool) -> String {
    let Summary { repositories, looked, noted, waiting, undoable, .. } = *summary;
    let Summary { untagged, removed, pooled, trashed, uploads, leftovers, bytes, .. } = *summary;
    let done = if dry_run { "would remove" } else { "removed" };
    let mut text = format!(
        "{}, {}: {noted} seen unreferenced for the first time, {waiting} in their grace, {undoable} kept \
         for undo\n{done} {}, {} from the pool, {} from the trash, {}, {}, {}: {} given back\n",
        many(repositories, "repository", "repositories"),
        many(looked, "blob", "blobs"),
        many(removed, "blob", "blobs"),
        many(pooled, "name", "names"),
        many(trashed, "file", "files"),
        many(untagged, "untagged manifest", "untagged manifests"),
        many(uploads, "upload", "uploads"),
        many(leftovers, "leftover", "leftovers"),
        many(bytes, "byte", "bytes"),
    );
    if summary.left > 0 {
        let left = many(summary.left, "repository", "repositories");
        text.push_str(&format!("left for the next collection: {left}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sums_have_the_right_number() {
        let one = Summary {
            repositories: 1,
            looked: 1,
            removed: 1,
            pooled: 1,
            trashed: 1,
            untagged: 1,
            uploads: 1,
            leftovers: 1,
            bytes: 1,
            left: 1,
            ..Summary::default()
        };
        assert_eq!(
            sums(&one, false),
            "1 repository, 1 blob: 0 seen unreferenced for the first time, 0 in their grace, 0 kept for \
             undo\nremoved 1 blob, 1 name from the pool, 1 file from the trash, 1 untagged manifest, \
             1 upload, 1 leftover: 1 byte given back\nleft for the next collection: 1 repository\n"
        );
        let none = sums(&Summary::default(), true);
        assert!(none.contains("0 repositories, 0 blobs") && none.contains("would remove 0 blobs"));
        assert!(none.ends_with("0 leftovers: 0 bytes given back\n"), "{none}");
    }
}
