//! One repository: mark, note, take.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::FileType;
use rustix::io::Errno;

use super::event::{Event, Fate, KeptBy, Why, written};
use super::turn::held;
use super::{Options, Run, TOLERANCE, Untag, untagged};
use crate::graph::{self, Marks};
use crate::layout::history::{self, Reading, Recent};
use crate::layout::notes::Notes;
use crate::layout::{
    Dir, Error, IndexFile, OrAbsent, Result, Stamp, changed, lock, modified, path, sweep, views,
};
use crate::oci::{Algorithm, Digest, DigestMap, RepoName, What};

/// So many blobs are taken in one turn, at most.
const BATCH: usize = 256;

/// How long another tool's writing of index.json is waited for: longer than it counts as being
/// written.
const PATIENCE: Duration = Duration::from_secs(3);

/// So often index.json is marked in which manifests are deleted all the while; then the repository is left.
const ATTEMPTS: usize = 10;

/// Whether a directory is a repository, or has content that waits for its first manifest.
pub(super) fn is_one(dir: &Dir) -> bool {
    // What cannot be looked at may be one: whoever collects it meets the error again, and tells it. What
    // one may not enter is passed over.
    match (dir.stat_name(path::INDEX), dir.dir(path::BLOBS).or_absent()) {
        (Ok(None), Ok(None)) => false,
        (Err(error), _) | (_, Err(error)) => error.errno() != Some(Errno::ACCESS),
        _ => true,
    }
}

/// A repository in collection.
pub(super) struct Repo<'r> {
    pub(super) name: &'r RepoName,
    pub(super) dir: &'r Dir,
    /// The index.json that the marks were made from, and all before it.
    pub(super) index: Option<Arc<IndexFile>>,
    pub(super) marks: Marks,
    causes: Vec<KeptBy>,
    /// What could be undone, where that is given up.
    pub(super) undoable: HashMap<Digest, KeptBy>,
    pub(super) reading: Reading,
    pub(super) notes: Option<Notes>,
    /// The index.json that is known to be on the disk.
    pub(super) durable: Option<Option<Stamp>>,
    /// Entries that a dry run counts as taken out.
    without: DigestMap<()>,
    /// Blobs that a dry run counts as gone.
    pub(super) gone: DigestMap<()>,
}

/// Collects one repository. Whatever goes wrong is told, and ends no other's collection.
pub(super) fn collect(run: &mut Run<'_>, name: &RepoName, dir: &Dir, untag: &mut Untag<'_>) {
    run.tell(Event::Repository(name));
    if let Err(why) = try_collect(run, name, dir, untag) {
        run.tell(Event::Left { repository: name, why: &why });
    }
}

fn try_collect(
    run: &mut Run<'_>,
    name: &RepoName,
    dir: &Dir,
    untag: &mut Untag<'_>,
) -> std::result::Result<(), Why> {
    let without = match run.options.untagged {
        Some(older) => untagged::take_out(run, name, dir, older, untag)?,
        None => DigestMap::default(),
    };
    let mut repo = Repo::marked(run, name, dir, without)?;
    for algorithm in Algorithm::ALL {
        let relative = path::blobs(algorithm);
        match dir.dir(&relative).or_absent() {
            Ok(Some(blobs)) => repo.blobs(run, algorithm, &blobs)?,
            Ok(None) => {}
            Err(error) => return Err(error.into()),
        }
    }
    repo.clear_notes(run)?;
    sweep_beside(run, dir);
    let inner = [path::BLOBS, path::REFERRERS].map(str::to_owned).into_iter();
    for inner in inner.chain(views::dirs()) {
        if let Some(inner) = dir.dir(&inner).or_absent()? {
            sweep_beside(run, &inner);
        }
    }
    repo.tidy(run);
    Ok(())
}

/// Removes what killed writers left in a directory, beside the names that it was meant for.
pub(super) fn sweep_beside(run: &mut Run<'_>, dir: &Dir) {
    let Ok(entries) = dir.entries() else { return };
    for (name, kind) in entries.filter_map(Result::ok).filter(|(name, _)| path::is_temporary(name))
    {
        leftover(run, dir, &name, kind);
    }
}

fn leftover(run: &mut Run<'_>, dir: &Dir, name: &str, kind: FileType) {
    match sweep::leftover(run.tree, dir, name, kind, run.leftovers_before(), run.really()) {
        Ok(Some(bytes)) => run.tell(Event::Leftover { bytes }),
        Ok(None) => {}
        Err(error) => run.tell(Event::Warning(&error)),
    }
}

impl<'r> Repo<'r> {
    /// Marks what the repository needs, without a lock: again, where what index.json named was deleted, or
    /// the first index.json came, while it was looked for. What was marked before stays so.
    fn marked(
        run: &Run<'_>,
        name: &'r RepoName,
        dir: &'r Dir,
        without: DigestMap<()>,
    ) -> std::result::Result<Repo<'r>, Why> {
        let mut repo = Repo {
            name,
            dir,
            index: None,
            marks: Marks::default(),
            causes: Vec::new(),
            undoable: HashMap::new(),
            reading: Reading::default(),
            notes: Notes::of(run.tree, name)?,
            durable: None,
            without,
            gone: DigestMap::default(),
        };
        for _ in 0..ATTEMPTS {
            match repo.mark(run) {
                Err(Why::Missing { digest, .. }) if !is_missing(run, dir, &digest)? => {}
                Err(Why::NoIndex) if dir.stat_name(path::INDEX)?.is_some() => {}
                marked => return marked.map(|()| repo),
            }
        }
        Err(Why::Restless)
    }

    /// index.json is read first: what comes or goes between it and the journal is in the journal.
    fn mark(&mut self, run: &Run<'_>) -> std::result::Result<(), Why> {
        let mut index = read_index(self.dir)?;
        if index.is_none() && history::proves_index(self.dir)? {
            // The first commits may have been made in between.
            index = read_index(self.dir)?;
        }
        let recent = Recent::read(self.dir, run.undo_since())?;
        self.follow(run, index.map(Arc::new), Some(recent))?;
        if run.options.now {
            let usual = run.before(Options::default().undo_window);
            let could = Recent::read(self.dir, Some(usual))?.named;
            let could =
                could.iter().map(|named| (named.descriptor.digest.clone(), KeptBy::line(named)));
            self.undoable = could.collect();
        }
        Ok(())
    }

    /// Adds to the marks what an index.json and the journal say by now.
    pub(super) fn follow(
        &mut self,
        run: &Run<'_>,
        index: Option<Arc<IndexFile>>,
        recent: Option<Recent>,
    ) -> std::result::Result<(), Why> {
        let missing = match &index {
            Some(file) => self.marks.index(self.dir, &file.index, &self.without)?,
            None if self.index.is_some() || history::proves_index(self.dir)? => {
                return Err(Why::NoIndex);
            }
            None => {
                self.marks.again(self.dir)?;
                None
            }
        };
        self.would_be_undoable(run, index.as_deref())?;
        let reading = recent.map(|recent| self.follow_journal(run, recent)).transpose()?;
        if let Some(digest) = missing {
            // Nothing of this is remembered: it is looked at again.
            let path = self.dir.at(&path::blob(&digest));
            return Err(Why::Missing { digest, path });
        }
        self.index = index;
        if let Some(reading) = reading {
            self.reading = reading;
        }
        Ok(())
    }

    /// Adds to the marks what the journal says; gives how far that went.
    fn follow_journal(
        &mut self,
        run: &Run<'_>,
        recent: Recent,
    ) -> std::result::Result<Reading, Why> {
        if let Some(newest) =
            recent.newest.as_ref().filter(|newest| newest.time > run.begun_or_now() + TOLERANCE)
        {
            let (time, part) = (written(newest.time), self.dir.at(&newest.part));
            return Err(Why::ClockBehind { time, part, line: newest.line });
        }
        for named in &recent.named {
            let cause = self.cause(KeptBy::line(named));
            self.marks.remembered(self.dir, &named.descriptor, cause)?;
        }
        if !recent.spelled.is_empty() {
            let cause = self.cause(KeptBy { time: run.begun, what: None });
            recent.spelled.iter().for_each(|digest| self.marks.digest(digest, cause));
        }
        Ok(recent.reading)
    }

    /// What a dry run counts as taken out, the journal would name from then on.
    fn would_be_undoable(&mut self, run: &Run<'_>, index: Option<&IndexFile>) -> Result<()> {
        let Some(file) = index else { return Ok(()) };
        if self.without.is_empty() || run.options.undo_window.is_zero() {
            return Ok(());
        }
        let cause =
            self.cause(KeptBy { time: SystemTime::now(), what: Some((What::Delete, None)) });
        let gone = file.index.entries().filter(|entry| self.without.contains(&entry.digest));
        gone.into_iter().try_for_each(|entry| self.marks.remembered(self.dir, &entry, cause))
    }

    fn cause(&mut self, by: KeptBy) -> graph::Cause {
        self.causes.push(by);
        graph::Cause::try_from(self.causes.len()).unwrap_or(graph::Cause::MAX)
    }

    fn kept_by(&self, cause: graph::Cause) -> Option<&KeptBy> {
        self.causes.get(usize::try_from(cause).ok()?.checked_sub(1)?)
    }

    /// Goes over the names of one algorithm's blobs, one by one.
    fn blobs(
        &mut self,
        run: &mut Run<'_>,
        algorithm: Algorithm,
        blobs: &Dir,
    ) -> std::result::Result<(), Why> {
        let mut batch = Vec::new();
        let mut looked = 0;
        for entry in blobs.entries()? {
            let (name, kind) = entry?;
            let Ok(digest) = Digest::parse(&format!("{algorithm}:{name}")) else {
                leftover(run, blobs, &name, kind);
                continue;
            };
            // Whatever else has such a name is nothing that we know.
            if kind != FileType::RegularFile {
                continue;
            }
            looked += 1;
            if looked % 1024 == 0 {
                run.tell(Event::Looked(1024));
            }
            batch.extend(self.judge(run, blobs, digest)?);
            if batch.len() >= BATCH {
                self.take(run, blobs, std::mem::take(&mut batch))?;
            }
        }
        run.tell(Event::Looked(looked % 1024));
        self.take(run, blobs, batch)
    }

    /// Decides about a blob by what was marked: gives it back if it may go.
    fn judge(&mut self, run: &mut Run<'_>, blobs: &Dir, digest: Digest) -> Result<Option<Digest>> {
        match self.marks.cause(&digest) {
            Some(graph::INDEX) => return Ok(None),
            Some(cause) => {
                if let Some(by) = self.kept_by(cause) {
                    self.tell(run, &digest, Fate::Kept(by));
                }
                return Ok(None);
            }
            None if run.options.grace.is_zero() => return Ok(Some(digest)),
            None => {}
        }
        match self.since(run, blobs, &digest)? {
            Some(since) if since <= run.before(run.options.grace) => Ok(Some(digest)),
            Some(since) => {
                self.tell(run, &digest, Fate::Waits { since });
                Ok(None)
            }
            None => {
                match self.note(run, &digest) {
                    Ok(()) => self.tell(run, &digest, Fate::Noted),
                    // With no space for a note it stays, and nothing else has to.
                    Err(error) => run.tell(Event::Warning(&error)),
                }
                Ok(None)
            }
        }
    }

    /// Since when a blob has been seen without a reference: no longer than it has been there, where
    /// somebody else wrote it, who may have done so under an old note. Ours keep their time when they
    /// are linked again, and whoever links them takes the note away.
    pub(super) fn since(
        &self,
        run: &Run<'_>,
        blobs: &Dir,
        digest: &Digest,
    ) -> Result<Option<SystemTime>> {
        let noted = self.notes.as_ref().map(|notes| notes.since(digest)).transpose()?.flatten();
        let Some(noted) = noted else { return Ok(None) };
        let theirs = blobs.stat_name(digest.hex())?.filter(|stat| !run.tree.is_ours(stat));
        Ok(Some(theirs.map_or(noted, |stat| match stat.st_nlink {
            // A copy may have the time of what it was made from. Only links change this one, too.
            1 => noted.max(modified(&stat)).max(changed(&stat)),
            _ => noted.max(modified(&stat)),
        })))
    }

    fn note(&mut self, run: &Run<'_>, digest: &Digest) -> Result<()> {
        if run.options.dry_run {
            return Ok(());
        }
        let notes = match self.notes.take() {
            Some(notes) => notes,
            None => Notes::made(run.tree, self.name)?,
        };
        self.notes.insert(notes).note(run.tree, digest)
    }

    pub(super) fn tell(&self, run: &mut Run<'_>, digest: &Digest, fate: Fate<'_>) {
        run.tell(Event::Digest { repository: self.name, digest, fate });
    }

    /// Removes the notes of what is needed again, or gone.
    fn clear_notes(&mut self, run: &mut Run<'_>) -> Result<()> {
        let Some(notes) = self.notes.as_ref().filter(|_| run.really()) else {
            return Ok(());
        };
        for digest in notes.each()? {
            let digest = digest?;
            if self.marks.cause(&digest).is_some()
                || crate::layout::blobs::stat(self.dir, &digest)?.is_none()
            {
                notes.forget(run.tree, &digest)?;
            }
        }
        Ok(())
    }
    /// Whether the repository's name still is this directory's.
    pub(super) fn is_named(&self, run: &Run<'_>) -> Result<bool> {
        match run.tree.repository(self.name)? {
            Some(dir) => Ok(dir.inode()? == self.dir.inode()?),
            None => Ok(false),
        }
    }
}

impl Run<'_> {
    /// index.json as it is now; equal bytes are not parsed twice.
    pub(super) fn read_again(
        &self,
        dir: &Dir,
        last: Option<&Arc<IndexFile>>,
    ) -> Result<Option<Arc<IndexFile>>> {
        match last {
            Some(last) if self.tree.is_remote() => IndexFile::reread(dir, last),
            Some(last) => IndexFile::refresh(dir, last),
            None => IndexFile::read(dir).map(|read| read.map(Arc::new)),
        }
    }

    /// What changed since then can be undone; nothing, without an undo window.
    pub(super) fn undo_since(&self) -> Option<SystemTime> {
        let window = self.options.undo_window;
        (!window.is_zero()).then(|| self.before(window))
    }

    /// The time by which a journal is judged: lines are written while this runs.
    fn begun_or_now(&self) -> SystemTime {
        self.options.clock.unwrap_or_else(SystemTime::now)
    }
}

/// Whether index.json names a manifest that is not there, while nobody commits. What was deleted with its
/// content after index.json was read is named no more, or there again. While another tool writes index.json
/// nobody can tell, and it is asked again.
fn is_missing(run: &Run<'_>, dir: &Dir, digest: &Digest) -> std::result::Result<bool, Why> {
    // Most is read before anybody is kept waiting.
    let last = read_index(dir)?.map(Arc::new);
    let lock = lock::shared_in_turn(dir, path::LOCK, run.options.wait)?;
    if lock.is_none() && dir.stat_name(path::LOCK)?.is_some() {
        return Err(held(dir, path::LOCK));
    }
    match run.read_again(dir, last.as_ref()) {
        Err(error) if IndexFile::being_written(dir, &error) => Ok(false),
        read => {
            let named = read?.is_some_and(|file| file.index.contains(digest));
            Ok(named && crate::layout::blobs::stat(dir, digest)?.is_none())
        }
    }
}

/// Reads index.json without a lock; waits a little while another tool writes it.
pub(super) fn read_index(dir: &Dir) -> std::result::Result<Option<IndexFile>, Why> {
    let begun = Instant::now();
    loop {
        match IndexFile::read(dir) {
            Err(error) if begun.elapsed() < PATIENCE && IndexFile::being_written(dir, &error) => {
                // Nobody tells when the other tool is done.
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(Error::Damaged { path, why }) => {
                return Err(Why::Unreadable(Error::Damaged { path, why }));
            }
            read => return Ok(read?),
        }
    }
}
