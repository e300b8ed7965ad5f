//! Manifests that have had no tag for long, by what the journal tells.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use super::event::{Event, Why};
use super::repository::read_index;
use super::{Run, Untag};
use crate::graph;
use crate::layout::history;
use crate::layout::journal::Record;
use crate::layout::{Dir, IndexFile};
use crate::oci::{Descriptor, Digest, DigestMap, Index, RepoName, What};

/// How often index.json may be another one by the time of the commit.
const TRIES: usize = 5;

/// Takes them out of index.json by one commit; gives those that a dry run would have taken out.
pub(super) fn take_out(
    run: &mut Run<'_>,
    name: &RepoName,
    dir: &Dir,
    older: Duration,
    untag: &mut Untag<'_>,
) -> Result<DigestMap<()>, Why> {
    let before = run.before(older);
    for _ in 0..TRIES {
        let Some(file) = read_index(dir)? else {
            return Ok(DigestMap::default());
        };
        let mut known = Untagged::new(&file);
        history::each_committed(dir, Some(file.stamp), |record| known.take(record))?;
        let goes = choose(dir, &file.index, &known.since, before)?;
        let done = run.options.dry_run
            || goes.is_empty()
            || untag(name, file.stamp, &goes).map_err(Why::Untag)?;
        if done {
            return Ok(tell(run, name, &known, goes));
        }
    }
    Err(Why::Untag("index.json changes all the time".to_owned()))
}

fn tell(
    run: &mut Run<'_>,
    repository: &RepoName,
    known: &Untagged,
    goes: Vec<Digest>,
) -> DigestMap<()> {
    let mut without = DigestMap::default();
    for digest in &goes {
        without.put_new(digest, ());
    }
    for (digest, since) in &known.since {
        let goes = without.contains(digest);
        run.tell(Event::Untagged { repository, digest, since: *since, goes });
    }
    if run.really() { DigestMap::default() } else { without }
}

/// The manifests of an index.json that have no tag, and since when.
struct Untagged {
    since: HashMap<Digest, Option<SystemTime>>,
}

impl Untagged {
    fn new(file: &IndexFile) -> Untagged {
        let mut since = HashMap::new();
        for entry in file.index.entries() {
            since.insert(entry.digest, None);
        }
        for tag in file.index.tags_after(None) {
            if let Some(tagged) = file.index.tagged(tag) {
                since.remove(&tagged.digest);
            }
        }
        Untagged { since }
    }

    /// The last thing that was done with a manifest tells: it was pushed and no tag given to it, or
    /// it lost one. Where that is something else, an outsider took the tag away, nobody knows when.
    fn take(&mut self, record: &Record) {
        let when = record.when();
        let mut said = |descriptor: &Option<Descriptor>, time| {
            let digest = descriptor.as_ref().map(|descriptor| &descriptor.digest);
            if let Some(since) = digest.and_then(|digest| self.since.get_mut(digest)) {
                *since = time;
            }
        };
        match record.what {
            What::Push => said(&record.after, when),
            What::Tag => {
                said(&record.before, when);
                said(&record.after, None);
            }
            What::Untag => said(&record.before, when),
            What::Delete => said(&record.before, None),
        }
    }
}

/// Those that have had no tag since before a time, and are neither child nor referrer of anything
/// that is kept.
fn choose(
    repo: &Dir,
    index: &Index,
    since: &HashMap<Digest, Option<SystemTime>>,
    before: SystemTime,
) -> Result<Vec<Digest>, Why> {
    let old = |digest: &Digest| {
        since.get(digest).is_some_and(|since| since.is_some_and(|since| since <= before))
    };
    let mut candidates: Vec<Digest> = Vec::new();
    let mut kept: DigestMap<()> = DigestMap::default();
    let mut todo: Vec<Descriptor> = Vec::new();
    for entry in index.entries() {
        match old(&entry.digest) {
            true => candidates.push(entry.digest),
            false => todo.push(entry),
        }
    }
    if candidates.is_empty() {
        return Ok(candidates);
    }
    let mut referrers: HashMap<Digest, Vec<Descriptor>> = HashMap::new();
    for entry in index.entries().filter(|entry| old(&entry.digest)) {
        let subject =
            graph::read_manifest(repo, &entry)?.and_then(|(manifest, _)| manifest.subject);
        if let Some(subject) = subject {
            referrers.entry(subject.digest).or_default().push(entry);
        }
    }
    while let Some(descriptor) = todo.pop() {
        if !kept.put_new(&descriptor.digest, ()) {
            continue;
        }
        todo.extend(referrers.remove(&descriptor.digest).unwrap_or_default());
        if let Some((manifest, _)) = graph::read_manifest(repo, &descriptor)? {
            todo.extend(manifest.manifests);
        }
    }
    candidates.retain(|digest| !kept.contains(digest));
    candidates.sort_unstable();
    candidates.dedup();
    Ok(candidates)
}
