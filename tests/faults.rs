//! Every system call with which a push, a move of a tag, a mount, a delete, a pull, a collection and a
//! repair touch the tree fails in turn, with each error number that a machine in trouble gives, once
//! and for good; so does accept4(2).
//!
//! What was acknowledged is there, what was refused is not, the refusal says why; the tree is sound,
//! nothing half-done lies in it, no descriptor and no lock is left, nobody panicked; and when the
//! cause is gone the same deed succeeds, without a restart. A repair loses nothing of content, says
//! of nothing that it is repaired which is not, never ends well where something is left that it could
//! repair, and the next one ends as if there had been no fault.
//!
//! The short form tries 200 faults, as many of each deed. They are drawn by a seed, which
//! `STILLAGE_FAULTS_SEED` sets; the long form tries all, or with `STILLAGE_TEST_PART=2/4` the second
//! quarter of them. `STILLAGE_FAULTS_ONLY=Push:fsync:` tries those that begin so.

mod fault_stage;
mod layouts;
mod mending;
mod support;

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use fault_stage::{Stage, assert_no_second_sync};
use mending::{Damage, Patient};
use nix::libc;
use support::calls::{Answer, Call, Calls, Often, Site, makes, sites};
use support::deeds::{Chore, Kind};
use support::random::Random;

/// So many are tried in the short form.
const DRAWN: usize = 200;

/// So many repairs at a time: most of each is waiting for the tree to come to rest.
const REPAIRS: usize = 8;

/// So many on one server and one tree: what one leaves would show at the next.
const BATCH: usize = 25;

/// What a machine in trouble says.
const ERRNOS: [(&str, i32); 10] = [
    ("ENOSPC", libc::ENOSPC),
    ("EDQUOT", libc::EDQUOT),
    ("EIO", libc::EIO),
    ("EMLINK", libc::EMLINK),
    ("EXDEV", libc::EXDEV),
    ("EPERM", libc::EPERM),
    ("EROFS", libc::EROFS),
    ("EMFILE", libc::EMFILE),
    ("ENFILE", libc::ENFILE),
    ("ENOMEM", libc::ENOMEM),
];

/// Which of them a call can give: what makes a name gives all, and others what follows.
fn errnos_of(site: &Site, call: &Call) -> &'static [&'static str] {
    match site.call {
        "mkdirat" | "linkat" | "renameat" | "renameat2" | "symlinkat" => &[],
        // The second is a nameless file, or the list of a directory.
        "openat" | "openat2"
            if makes(call) || call.path.as_os_str().as_bytes().ends_with(b"/.") =>
        {
            &[]
        }
        "openat" | "openat2" => &["EIO", "EMFILE", "ENOMEM", "EPERM"],
        "write" | "pwrite64" | "ftruncate" | "fallocate" | "fsync" | "fdatasync" | "syncfs" => {
            &["ENOSPC", "EDQUOT", "EIO", "EROFS"]
        }
        "fchmod" | "fchmodat" | "fchown" | "fchownat" | "fsetxattr" | "fremovexattr"
        | "utimensat" | "unlinkat" | "ioctl" => {
            &["ENOSPC", "EDQUOT", "EIO", "EPERM", "EROFS", "ENOMEM"]
        }
        _ => &["EIO", "ENOMEM"],
    }
}

/// Who asks for a connection.
const ACCEPT_ERRNOS: [(&str, i32); 6] = [
    ("EMFILE", libc::EMFILE),
    ("ENFILE", libc::ENFILE),
    ("ENOMEM", libc::ENOMEM),
    ("ENOBUFS", libc::ENOBUFS),
    ("ECONNABORTED", libc::ECONNABORTED),
    ("EPROTO", libc::EPROTO),
];

/// So often accept4(2) fails for good: then the machine is well again.
const REFUSED: usize = 5;

/// What is going on when it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Deed(Kind),
    Chore(Chore),
    Repair(Damage),
}

/// One call fails, or it and all later ones of its name.
#[derive(Clone, Debug)]
struct Fault {
    what: What,
    site: Site,
    errno: (&'static str, i32),
    often: Often,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Fault { what, site, errno, often } = self;
        let what = match what {
            What::Deed(kind) => format!("{kind:?}"),
            What::Chore(chore) => format!("{chore:?}"),
            What::Repair(damage) => format!("Repair{damage:?}"),
        };
        let often = if *often == Often::Once { "once" } else { "good" };
        write!(f, "{what}:{site}:{}:{often}", errno.0)
    }
}

impl Fault {
    /// From now on it happens.
    fn arm(&self, calls: &Calls) {
        calls.answer_at(&self.site, Answer::Fail(self.errno.1), self.often);
    }

    /// All that can happen to a deed: to each call, or, where there are many of one name at one place,
    /// to the first two and the last.
    fn all_of(what: What, sites: &[(Site, Call)]) -> Vec<Fault> {
        let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for (site, _) in sites {
            counts.insert((site.call, &site.place), site.nth);
        }
        let chosen = sites.iter().filter(|(site, _)| {
            site.nth <= 2 || counts.get(&(site.call, &site.place)) == Some(&site.nth)
        });
        chosen.flat_map(|(site, call)| Fault::of_call(what, site, call)).collect()
    }

    /// All that can happen to a call.
    fn of_call(what: What, site: &Site, call: &Call) -> Vec<Fault> {
        let accepts = site.call == "accept4";
        let errnos = if accepts { &ACCEPT_ERRNOS[..] } else { &ERRNOS[..] };
        let given = if accepts { &[] } else { errnos_of(site, call) };
        let errnos = errnos.iter().filter(|(name, _)| given.is_empty() || given.contains(name));
        let good = if accepts { Often::Times(REFUSED) } else { Often::ForGood };
        let each = errnos.flat_map(|errno| [Often::Once, good].map(|often| (*errno, often)));
        each.map(|(errno, often)| Fault { what, site: site.clone(), errno, often }).collect()
    }
}

fn was_met(seen: &[(Call, Answer)]) -> bool {
    seen.iter().any(|(_, answer)| *answer != Answer::Go)
}

#[test]
fn whatever_call_fails_nothing_acknowledged_is_harmed_and_the_server_goes_on() {
    let all = every_fault();
    let seed = seed();
    let faults = match std::env::var("STILLAGE_FAULTS_ONLY") {
        Ok(only) => {
            support::part(all.into_iter().filter(|f| f.to_string().starts_with(&only)).collect())
        }
        Err(_) if support::long() => support::part(all),
        Err(_) => draw(all, seed, DRAWN),
    };
    let begun = Instant::now();
    let total = faults.len();
    tell_what_there_is(&faults);
    let tally = Mutex::new(Tally::default());
    let is_repair = |fault: &Fault| matches!(fault.what, What::Repair(_));
    let (repairs, others): (Vec<Fault>, Vec<Fault>) = faults.into_iter().partition(is_repair);
    let batches = Mutex::new(others.chunks(BATCH));
    let repairs = Mutex::new(repairs.iter());
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(batch) = next(&batches) {
                    try_batch(batch, &tally);
                }
            });
        }
        for _ in 0..REPAIRS {
            scope.spawn(|| {
                while let Some(fault) = next(&repairs) {
                    try_once(fault, &tally, || try_repair(fault));
                }
            });
        }
    });
    let tally = tally.into_inner().expect("nobody panics with it");
    let Tally { hit, missed, failed } = &tally;
    let which = if support::long() { "all".to_owned() } else { format!("seed {seed}") };
    support::measured(format!(
        "{hit} faults of {total} ({which}): {} lies, leaks or panics, {missed} not met, {} s",
        failed.len(),
        begun.elapsed().as_secs()
    ));
    assert!(failed.is_empty(), "seed {seed}:\n{}", failed.join("\n"));
    assert!(*hit > 0, "nothing was tried");
    // Directories of the pool that are there already are not made again: a few calls do not come.
    assert!(*missed * 6 <= total, "{missed} of {total} were never met");
}

/// What cannot be read at first, and can be later, counts then with all that depends on it: by the length of
/// a blob in the pool the hints are judged.
#[test]
fn a_repair_judges_anew_what_it_could_not_read_before() {
    let patient = Patient::new(Damage::Room);
    let (mut failed, mut goes) = (0, false);
    patient.calls.rule(move |call| {
        // The first deed ends the first look.
        goes |= failed > 0 && call.name.starts_with("fchmod");
        if goes || call.name != "pread64" || !call.path.to_string_lossy().contains("/pool/") {
            return Answer::Go;
        }
        failed += 1;
        Answer::Fail(libc::EIO)
    });
    let ended = patient.repair();
    let seen = patient.calls.done();
    assert!(was_met(&seen) && ended.code == Some(0), "{ended:?}");
    patient.assert_true(&ended, &seen);
}

/// What comes to a repository while it is repaired, or lay where nobody could look, is hashed like all else
/// before it counts as sound, and is not linked into the pool.
#[test]
fn a_repair_hashes_what_it_has_not_seen_before() {
    for comes_later in [true, false] {
        let patient = Patient::new(Damage::Index);
        let is_repository = |path: &PathBuf| path.join("blobs/sha256").is_dir();
        let mut found = fs::read_dir(patient.root()).unwrap().map(|entry| entry.unwrap().path());
        let repository = found.find(is_repository).expect("a repository");
        let blobs = repository.join("blobs/sha256");
        let (hex, plant) = ("ab".repeat(32), move |path: &Path| {
            fs::write(path, "what has another digest").unwrap();
            fs::set_permissions(path, Permissions::from_mode(0o444)).unwrap();
        });
        let bad = blobs.join(&hex);
        if !comes_later {
            plant(&bad);
            // What is as old as the run may have come later: it is the clock that has to go on.
            thread::sleep(Duration::from_secs(2));
        }
        let (planted, mut goes) = (bad.clone(), false);
        patient.calls.rule(move |call| {
            // The first deed in it ends the first look at it.
            let begins =
                !goes && call.name.starts_with("rename") && call.path.starts_with(&repository);
            goes |= begins;
            if begins && comes_later {
                plant(&planted);
            }
            match !goes && !comes_later && call.name == "getdents64" && call.path == blobs {
                true => Answer::Fail(libc::EIO),
                false => Answer::Go,
            }
        });
        let ended = patient.repair();
        let seen = patient.calls.done();
        assert!(comes_later || was_met(&seen), "{ended:?}");
        assert!(!bad.exists(), "{comes_later}: {ended:?}");
        let pooled = patient.root().join(".stillage/pool/sha256/ab").join(&hex);
        assert!(!pooled.exists(), "{comes_later}: {ended:?}");
        assert_eq!(ended.code, Some(0), "{ended:?}");
    }
}

/// How many there are of each deed.
fn tell_what_there_is(faults: &[Fault]) {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for fault in faults {
        let text = fault.to_string();
        let deed = text.split(':').next().unwrap_or_default();
        *counts.entry(deed.to_owned()).or_default() += 1;
    }
    eprintln!("{} faults: {counts:?}", faults.len());
}

fn next<I: Iterator>(of: &Mutex<I>) -> Option<I::Item> {
    of.lock().expect("nobody panics with it").next()
}

#[derive(Default)]
struct Tally {
    hit: usize,
    missed: usize,
    failed: Vec<String>,
}

/// Whether it was as it has to be.
fn try_once(fault: &Fault, tally: &Mutex<Tally>, tried: impl FnOnce() -> bool) -> bool {
    let tried = catch_unwind(AssertUnwindSafe(tried));
    let mut tally = tally.lock().expect("nobody panics with it");
    match tried {
        Ok(true) => tally.hit += 1,
        Ok(false) => tally.missed += 1,
        Err(cause) => {
            let cause = match cause.downcast::<String>() {
                Ok(text) => *text,
                Err(cause) => cause.downcast_ref::<&str>().unwrap_or(&"").to_string(),
            };
            eprintln!("{fault}: {cause}");
            tally.failed.push(format!("{fault}: {cause}"));
            return false;
        }
    }
    true
}

fn try_batch(faults: &[Fault], tally: &Mutex<Tally>) {
    let mut stage = Stage::new();
    for fault in faults {
        let tried = || match fault.what {
            What::Deed(kind) if fault.site.call == "accept4" => stage.try_accept(kind, fault),
            What::Deed(kind) => stage.try_deed(kind, fault),
            What::Chore(chore) => stage.try_chore(chore, fault),
            What::Repair(_) => unreachable!("needs no server"),
        };
        if !try_once(fault, tally, tried) {
            eprintln!("{}", stage.registry.stderr());
            stage.registry.expect_damage();
            stage.calls.done();
            stage = Stage::new();
        }
    }
}

fn try_repair(fault: &Fault) -> bool {
    let What::Repair(damage) = fault.what else { unreachable!("needs a server") };
    let patient = Patient::new(damage);
    fault.arm(&patient.calls);
    let ended = patient.repair();
    let seen = patient.calls.done();
    patient.assert_true(&ended, &seen);
    // To watch it takes time: it is only worth it where something may be synced again.
    if seen.iter().any(|(call, answer)| call.name == "fsync" && *answer != Answer::Go) {
        patient.calls.record();
        patient.assert_mends(Some(&patient.calls));
        assert_no_second_sync(&seen, &patient.calls.done());
    } else {
        patient.assert_mends(None);
    }
    was_met(&seen)
}

/// The calls of each deed, as they are made when nothing fails.
fn every_fault() -> Vec<Fault> {
    let mut stage = Stage::new();
    let mut faults = Vec::new();
    for kind in Kind::ALL {
        let deed = stage.deed(kind);
        stage.calls.record();
        assert!(deed.perform(&stage.client, &|| 0).all_good(), "{kind:?}");
        faults.extend(Fault::all_of(What::Deed(kind), &sites(&stage.calls.done())));
    }
    for chore in Chore::ALL {
        // The first one of a tree has more to do than all that follow.
        let work = stage.work(chore);
        assert_eq!(stage.run(&work).0, Some(0), "{chore:?}");
        let work = stage.work(chore);
        stage.calls.record();
        assert_eq!(stage.run(&work).0, Some(0), "{chore:?}");
        faults.extend(Fault::all_of(What::Chore(chore), &sites(&stage.calls.done())));
    }
    for damage in Damage::ALL {
        faults.extend(Fault::all_of(What::Repair(damage), damage.sites()));
    }
    faults
}

/// A few of all, as many of each deed, the same for the same seed.
fn draw(mut all: Vec<Fault>, seed: u64, count: usize) -> Vec<Fault> {
    let mut random = Random::seeded(seed);
    // Threads take turns: the order in which they came to their calls is another each time.
    all.sort_by_cached_key(ToString::to_string);
    let mut kinds: BTreeMap<String, Vec<Fault>> = BTreeMap::new();
    for fault in all {
        kinds.entry(format!("{:?}", fault.what)).or_default().push(fault);
    }
    let mut drawn = Vec::new();
    while drawn.len() < count && kinds.values().any(|left| !left.is_empty()) {
        for left in kinds.values_mut().filter(|left| !left.is_empty()) {
            drawn.push(left.swap_remove(random.below(left.len())));
        }
    }
    drawn.truncate(count);
    drawn
}

fn seed() -> u64 {
    match std::env::var("STILLAGE_FAULTS_SEED") {
        Ok(seed) => seed.parse().expect("STILLAGE_FAULTS_SEED is a number"),
        Err(_) => u64::from(std::process::id()) * 7919,
    }
}
