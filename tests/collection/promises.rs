//! Collection: what was promised, pushed or locked while it was at work.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use stillage::layout::Account;
use stillage::oci::Reference;
use stillage::upkeep::gc::{Event, Options, Why};

use super::{ACTOR, DAY, Fixture, HOUR, IMAGE, ahead, at_once, image, index, repo, sha256, tag};

#[test]
fn a_promise_begins_the_grace_anew() {
    let f = Fixture::new();
    f.image("a", "one");
    let [asked, sent, mounted, put] =
        ["asked", "sent", "mounted", "put"].map(|blob| f.blob("a", blob.as_bytes()));
    f.gc(&Options::default());
    assert!(f.promised("a", &asked));
    f.blob("a", b"sent");
    let from = stillage::registry::MountFrom::Repo(repo("a"), Account::default());
    assert!(f.runtime.block_on(f.registry.mount(&repo("a"), &mounted, from, &ACTOR)).unwrap());
    f.push("a", tag("two"), image(b"{\"of\":\"one\"}", &[b"put"], "").as_bytes());
    for digest in [&asked, &sent, &mounted, &put] {
        assert!(!f.note("a", digest).exists(), "{digest}");
    }
    let told = f.gc(&ahead(DAY + HOUR));
    for digest in [&asked, &sent, &mounted] {
        assert_eq!(told.fate("a", digest), "noted");
    }
    assert_eq!(told.fate("a", &put), "not told of");
    // A pull promises nothing.
    let (name, account) = (repo("a"), Account::default());
    f.runtime.block_on(f.registry.stat_blob(&name, &asked, &account, None)).unwrap();
    assert!(f.note("a", &asked).exists());
}

/// The note is looked at again under the lock.
#[test]
fn a_promise_between_the_look_and_the_turn_counts() {
    let f = Fixture::new();
    f.image("a", "one");
    let blob = f.blob("a", b"abandoned");
    f.gc(&Options::default());
    let mut asked = false;
    let told = f.gc_beside(&ahead(DAY + HOUR), |event| {
        if matches!(event, Event::Looked(1..)) && !std::mem::replace(&mut asked, true) {
            assert!(f.promised("a", &blob));
        }
    });
    assert!(asked);
    assert_eq!(told.fate("a", &blob), "promised");
    assert!(f.has("a", &blob));
}

/// index.json and the journal are looked at again under the lock, also where no note protects anything.
#[test]
fn what_is_pushed_between_the_mark_and_the_turn_stays() {
    let f = Fixture::new();
    f.image("a", "one");
    f.blob("a", b"{}");
    let (direct, below) = (f.blob("a", b"layer"), f.blob("a", b"below"));
    let child = image(b"{}", &[b"below"], "");
    let child_digest = f.blob("a", child.as_bytes());
    let garbage = f.blob("a", b"garbage");
    let whole = index(&[(IMAGE, child.as_bytes())]);
    let mut pushed = false;
    let options = Options { grace: Duration::ZERO, ..Options::default() };
    let told = f.gc_beside(&options, |event| {
        if matches!(event, Event::Looked(1..)) && !std::mem::replace(&mut pushed, true) {
            f.push("a", tag("two"), image(b"{}", &[b"layer"], "").as_bytes());
            f.push("a", tag("whole"), whole.as_bytes());
            // It is gone again, and in the journal: it can be brought back.
            f.delete("a", Reference::Digest(sha256(whole.as_bytes())));
        }
    });
    assert!(pushed);
    for digest in [&direct, &below, &child_digest] {
        assert_eq!(told.fate("a", digest), "referred");
        assert!(f.has("a", digest));
    }
    assert!(!f.has("a", &garbage));
}

#[test]
fn who_holds_a_lock_is_named_and_waited_for_no_longer_than_told() {
    let f = Fixture::new();
    f.image("a", "one");
    f.image("b", "one");
    let garbage = ["a", "b"].map(|name| (name, f.blob(name, b"garbage")));
    let hold = |relative: &str, shared: bool| {
        let file = fs::File::open(f.at(relative)).unwrap();
        if shared { file.lock_shared() } else { file.lock() }.unwrap();
        file
    };
    let me = format!("process {}", std::process::id());
    let options = Options { wait: Duration::from_millis(150), ..at_once() };
    let copying = hold(".stillage/gc.lock", true);
    let told = f.gc(&options);
    assert!(told.summary.blocked && !told.summary.is_whole());
    assert!(told.left["all"].contains(&me), "{:?}", told.left);
    assert!(garbage.iter().all(|(name, digest)| f.has(name, digest)));
    assert!(!f.at(".stillage/collected").exists(), "it did not come to its end");
    drop(copying);
    let pushing = hold("a/.lock", false);
    let told = f.gc(&options);
    assert!(told.left["a"].contains(&me), "{:?}", told.left);
    assert!(told.left["a"].contains("a/.lock"), "{:?}", told.left);
    assert!(f.has("a", &garbage[0].1) && !f.has("b", &garbage[1].1));
    assert!(f.at(".stillage/collected").exists());
    drop(pushing);
    assert_eq!(f.gc(&options).left, BTreeMap::new());
    assert!(!f.has("a", &garbage[0].1));
}

#[test]
fn a_repository_that_is_replaced_meanwhile_is_left() {
    let f = Fixture::new();
    f.image("a", "one");
    let garbage = f.blob("a", b"garbage");
    let told = f.gc_beside(&at_once(), |event| {
        if matches!(event, Event::Looked(1..)) && !f.at("b").exists() {
            fs::rename(f.at("a"), f.at("b")).unwrap();
        }
    });
    assert_eq!(told.left["a"], Why::Moved.to_string());
    assert!(f.has("b", &garbage));
    // Under the other name its views are stale.
    fs::rename(f.at("b"), f.at("a")).unwrap();
}

/// Many pushers, two collectors with hardly any grace, and deletions that make garbage again: who was
/// promised a blob has it for as long as the grace, and no manifest is acknowledged without its blobs.
#[test]
fn promises_hold_among_many_pushers_and_collectors() {
    use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
    use std::time::Instant;

    const GRACE: Duration = Duration::from_millis(700);
    // A note's time is a tick of the kernel's clock old at most.
    const TICK: Duration = Duration::from_millis(20);
    let f = Fixture::new();
    let (over, acknowledged, taken) =
        (AtomicBool::new(false), AtomicUsize::new(0), AtomicU64::new(0));
    let until = Instant::now() + Duration::from_secs(8);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let options =
                    Options { grace: GRACE, undo_window: Duration::ZERO, ..Options::default() };
                while !over.load(Ordering::Relaxed) {
                    let told = f.gc(&options);
                    taken.fetch_add(told.summary.removed, Ordering::Relaxed);
                }
            });
        }
        let pushers: Vec<_> = (0..6)
            .map(|n| {
                let (f, acknowledged) = (&f, &acknowledged);
                scope.spawn(move || {
                    for round in 0.. {
                        if Instant::now() > until {
                            return;
                        }
                        // Three pushers share each layer, and ask for it in another way each.
                        let name = ["a", "b"][n % 2];
                        let layer = format!("layer {} of {name}", round % 4);
                        let digest = sha256(layer.as_bytes());
                        let promised = Instant::now();
                        let known = round % 3 != n % 3 && f.promised(name, &digest);
                        if !known {
                            f.blob(name, layer.as_bytes());
                        }
                        f.blob(name, b"{}");
                        let tag_name = format!("t{n}");
                        let more = format!(r#","annotations":{{"n":"{n} {round}"}}"#);
                        let manifest = image(b"{}", &[layer.as_bytes()], &more);
                        let put = f.try_push(name, tag(&tag_name), manifest.as_bytes());
                        let late = promised.elapsed() + TICK > GRACE;
                        match put {
                            Ok(manifest) => {
                                acknowledged.fetch_add(1, Ordering::Relaxed);
                                assert!(f.has(name, &digest) && f.has(name, &manifest));
                                f.delete(name, Reference::Digest(manifest));
                            }
                            Err(error) => assert!(late, "{error} after {:?}", promised.elapsed()),
                        }
                        if round % 5 == 4 {
                            std::thread::sleep(GRACE / 2);
                        }
                    }
                })
            })
            .collect();
        let ended: Vec<_> = pushers.into_iter().map(|pusher| pusher.join()).collect();
        over.store(true, Ordering::Relaxed);
        assert!(ended.iter().all(Result::is_ok));
    });
    let (acknowledged, taken) = (acknowledged.into_inner(), taken.into_inner());
    assert!(acknowledged > 20 && taken > 20, "{acknowledged} pushes, {taken} blobs taken");
}
