//! One repository: looked at until it held still.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use super::blobs::Blobs;
use super::finding::Findings;
use super::mend::{self, Mender};
use super::probe::{self, Seen};
use super::rule::Rule;
use super::{Look, Run, blobs, closed, facts, hands, journal, manifests, rights, views};
use crate::layout::{self, Dir, Error, IndexFile, Inode, Stamp, lock, path};
use crate::oci::Algorithm;

/// So often a moving repository is looked at before its writers are asked to wait.
const ATTEMPTS: u32 = 3;

/// So long the lock is waited for then. Most of a look is hashing, which is not done twice.
const LOCK_WAIT: Duration = Duration::from_secs(10);

/// So long a repository may keep changing under looks with the lock held, as other tools change it,
/// before it is reported as it was seen last.
const PATIENCE: Duration = Duration::from_secs(60);

/// So long ago the last name must have come or gone before a finding counts: who copies or removes a
/// repository may pause in the middle of it.
const QUIET: Duration = Duration::from_millis(500);

/// index.json as it was when the look began.
enum Truth {
    Absent,
    Read(IndexFile),
    Malformed(String),
    /// Not a regular file, or unreadable: reported already.
    Bad,
}

impl Truth {
    fn read(dir: &Dir, findings: &mut Findings) -> Truth {
        match probe::file(dir, path::INDEX, findings) {
            Seen::Absent => return Truth::Absent,
            Seen::Bad => return Truth::Bad,
            Seen::There(_) => {}
        }
        match IndexFile::read(dir) {
            Ok(Some(file)) => Truth::Read(file),
            Ok(None) => Truth::Absent,
            Err(error) if IndexFile::being_written(dir, &error) => {
                // Another tool truncated it in place a moment ago; it is asked again.
                std::thread::sleep(Duration::from_millis(50));
                Truth::read(dir, findings)
            }
            Err(Error::Damaged { why, .. }) => Truth::Malformed(why),
            Err(error) => {
                probe::unreadable(&error, findings);
                Truth::Bad
            }
        }
    }

    /// For a comparison: what is wrong with it was reported already.
    fn now(dir: &Dir) -> Truth {
        Truth::read(dir, &mut Findings::new(Path::new(""), ""))
    }

    /// What must be equal for two readings to be of one state.
    fn key(&self) -> Key {
        match self {
            Truth::Read(file) => (Some(file.stamp), None),
            Truth::Malformed(why) => (None, Some(why.clone())),
            Truth::Absent | Truth::Bad => (None, None),
        }
    }
}

type Key = (Option<Stamp>, Option<String>);

/// What one look at a repository saw.
pub(super) struct Glance {
    /// When names had come or gone last, before the look.
    before: Vec<Option<(i64, u64)>>,
    truth: Key,
    findings: Findings,
    manifests: u64,
    blobs: u64,
    pooled: u64,
}

/// When names last came or went in the directories that index.json speaks of. `rm -r` takes the
/// blobs before index.json, or after it, as it comes.
fn changed(dir: &Dir) -> Vec<Option<(i64, u64)>> {
    let changed = |dir: layout::Result<Dir>| {
        let stat = dir.and_then(|dir| dir.stat()).ok()?;
        Some((stat.st_ctime, stat.st_ctime_nsec))
    };
    let blobs = Algorithm::ALL.map(|algorithm| dir.dir(&path::blobs(algorithm)));
    blobs.into_iter().chain([dir.dir(path::BLOBS), Ok(dir.clone())]).map(changed).collect()
}

/// How long it is until the last change is [`QUIET`] ago. A change in the future is no change: some
/// clock is wrong.
fn unrest(changed: &[Option<(i64, u64)>]) -> Duration {
    let times = changed.iter().flatten();
    let last = times.max().map_or(Duration::ZERO, |(seconds, nanoseconds)| {
        let seconds = Duration::from_secs(u64::try_from(*seconds).unwrap_or(0));
        seconds + Duration::from_nanos(*nanoseconds)
    });
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::MAX);
    now.checked_sub(last).map_or(Duration::ZERO, |age| QUIET.saturating_sub(age))
}

/// Checks one repository and hands on what is true of it at rest. It may have been looked at once.
pub(super) fn check(run: &mut Run<'_>, name: &str, dir: &Dir, mut first: Option<Glance>) {
    let mut dir = dir.clone();
    let begun = Instant::now();
    let mut rounds = 0;
    run.again = None;
    for attempt in 1u32.. {
        let pooled = run.summary.pooled_again;
        // A lock that cannot be had does not stop the look: it is the best there is.
        let held = (attempt > ATTEMPTS).then(|| lock::shared_within(&dir, path::LOCK, LOCK_WAIT));
        let last = attempt > ATTEMPTS && begun.elapsed() > PATIENCE;
        let mut seen = first.take().unwrap_or_else(|| {
            let (look, mender) = run.look(hands::all());
            glance(&look, mender, name, &dir)
        });
        run.summary.pooled_again += seen.pooled;
        let named = still_named(run, name, &dir, &mut seen.findings);
        let Glance { before, findings, .. } = &seen;
        let held_still = || changed(&dir) == *before && seen.truth == Truth::now(&dir).key();
        if let Named::Same = named
            && (findings.is_empty() || last || (held_still() && unrest(before).is_zero()))
        {
            rounds += 1;
            // Whoever repairs takes it exclusively.
            drop(held);
            if rounds <= mend::ROUNDS && run.mend(Some((name, &dir)), findings) {
                continue;
            }
            run.summary.repositories += 1;
            run.summary.manifests += seen.manifests;
            run.summary.blobs += seen.blobs;
            return run.hand_on(seen.findings);
        }
        if run.mender.as_ref().is_some_and(Mender::is_dry) {
            // The next look counts them again.
            run.summary.pooled_again = pooled;
        }
        match named {
            _ if last => return,
            Named::Gone => return,
            Named::Another(now) => {
                dir = now;
                run.again = None;
            }
            // What was found may be half of one state and half of the next: it is looked at again,
            // after a moment that most copies and removals need no longer than.
            Named::Same => {
                let pause = Duration::from_millis(20) * 4u32.pow(attempt.min(3));
                std::thread::sleep(pause.max(unrest(before)));
            }
        }
    }
}

/// What has the repository's name now.
enum Named {
    Same,
    Another(Dir),
    Gone,
}

fn still_named(run: &Run<'_>, name: &str, dir: &Dir, findings: &mut Findings) -> Named {
    let inode = |dir: &Dir| -> layout::Result<Inode> { dir.inode() };
    if name.is_empty() {
        return Named::Same;
    }
    match run.root.dir(name) {
        Ok(now) if inode(&now).ok() == inode(dir).ok() => Named::Same,
        Ok(now) => Named::Another(now),
        // It is there, and what was found stands.
        Err(error) if probe::is_trouble(&error) => {
            probe::unreadable(&error, findings);
            Named::Same
        }
        Err(_) => Named::Gone,
    }
}

/// One look at everything. A repair gives sound blobs to the pool meanwhile.
pub(super) fn glance(
    look: &Look<'_>,
    mender: Option<&mut Mender>,
    name: &str,
    dir: &Dir,
) -> Glance {
    let mut findings = look.findings(name);
    let before = changed(dir);
    let truth = Truth::read(dir, &mut findings);
    oci_layout(dir, &truth, &mut findings);
    rights::check(dir, &mut findings);
    closed::check(dir, &mut findings);
    let blobs = blobs::check(look, mender, dir, &mut findings);
    let manifests = index(look, dir, &truth, &blobs, &mut findings);
    match &truth {
        Truth::Read(file) => journal::check_read(dir, file, &mut findings),
        Truth::Absent => journal::check(dir, None, &mut findings),
        Truth::Malformed(_) | Truth::Bad => journal::check_lines(dir, &mut findings),
    }
    facts::check(look, dir, &blobs, &mut findings);
    if let Truth::Read(file) = &truth {
        views::check(look, name, dir, file, &mut findings);
    }
    let Blobs { count: blobs, pooled, .. } = blobs;
    Glance { before, truth: truth.key(), findings, manifests, blobs, pooled }
}

fn index(look: &Look<'_>, dir: &Dir, truth: &Truth, blobs: &Blobs, findings: &mut Findings) -> u64 {
    match truth {
        Truth::Read(file) => manifests::check(look, dir, &file.index, blobs, findings),
        Truth::Malformed(why) => {
            findings.add(Rule::IndexMalformed, &dir.at(path::INDEX), why.clone());
            0
        }
        Truth::Absent | Truth::Bad => 0,
    }
}

fn oci_layout(dir: &Dir, truth: &Truth, findings: &mut Findings) {
    let at = dir.at(path::OCI_LAYOUT);
    let file = match probe::file(dir, path::OCI_LAYOUT, findings) {
        Seen::There((file, _)) => file,
        Seen::Bad => return,
        // Made before index.json: without that, nothing is lost yet.
        Seen::Absent if matches!(truth, Truth::Absent) => return,
        Seen::Absent => {
            findings.add(Rule::LayoutMissing, &at, "is missing beside index.json");
            return;
        }
    };
    let bytes = match layout::read_all(&file, 1 << 16, || at.clone()) {
        Ok(bytes) => bytes,
        Err(error) => return probe::unreadable(&error, findings),
    };
    match serde_json::from_slice::<OciLayout>(&bytes) {
        Ok(found) if found.version == "1.0.0" => {}
        Ok(found) => {
            let message = format!("imageLayoutVersion is {:?}, must be \"1.0.0\"", found.version);
            findings.add(Rule::LayoutMalformed, &at, message);
        }
        Err(error) => findings.add(Rule::LayoutMalformed, &at, error.to_string()),
    }
}

#[derive(serde::Deserialize)]
struct OciLayout {
    #[serde(rename = "imageLayoutVersion")]
    version: String,
}
