//! Journals that are set aside, torn and long, and what is read of them.

use std::fs;
use std::time::Duration;

use super::super::disk::RealDisk;
use super::super::journal;
use super::*;
use crate::oci::{Algorithm, Change};

fn append(repo: &Dir, text: &str) {
    let digest = Digest::of(Algorithm::Sha256, text.as_bytes());
    let json = format!(r#"{{"mediaType":"a/b","digest":"{digest}","size":1}}"#);
    let after = Some(serde_json::from_str(&json).unwrap());
    let change = Change { what: What::Push, tag: None, before: None, after };
    let record = Record::now(change, Some(text.into()), None, Stamp::nothing(), Stamp::of(b"x"));
    journal::append(&RealDisk, repo, &[record]).unwrap();
}

fn an_hour() -> Option<SystemTime> {
    Some(SystemTime::now() - Duration::from_secs(60 * 60))
}

#[test]
fn a_journal_that_is_set_aside_meanwhile_is_read_all_the_same() {
    let temp = tempfile::tempdir().unwrap();
    let repo = Dir::open_root(temp.path()).unwrap();
    append(&repo, "1");
    journal::rotate(&RealDisk, &repo).unwrap();
    append(&repo, "2");
    let set_aside = || {
        journal::rotate(&RealDisk, &repo).unwrap();
        append(&repo, "after");
    };
    let recent = Recent::read_beside(&repo, an_hour(), set_aside).unwrap();
    let named: Vec<&str> = recent.named.iter().map(|n| n.descriptor.digest.hex()).collect();
    for text in ["1", "2"] {
        let digest = Digest::of(Algorithm::Sha256, text.as_bytes());
        assert!(named.contains(&digest.hex()), "{text}");
    }
    let later = Recent::since(&repo, &recent.reading, an_hour()).unwrap().unwrap();
    assert_eq!(later.named.len(), 3);

    let (mut steps, mut lines) = (0, Vec::new());
    let between = || {
        steps += 1;
        // Before the journal is opened, and before anything is read.
        if steps == 1 || steps == 3 {
            journal::rotate(&RealDisk, &repo).unwrap();
            append(&repo, &format!("step {steps}"));
        }
    };
    each_beside(&repo, between, |line| lines.push(line.unwrap().who.unwrap())).unwrap();
    assert_eq!(lines, ["1", "2", "after", "step 1"]);
    let always = || set_aside();
    assert!(each_beside(&repo, always, |_| panic!("told too early")).is_err());
}

#[test]
fn what_is_held_of_a_line_does_not_grow_with_it() {
    let temp = tempfile::tempdir().unwrap();
    let repo = Dir::open_root(temp.path()).unwrap();
    let long = "x".repeat(1 << 20);
    let digest = |text: &[u8]| Digest::of(Algorithm::Sha256, text);
    let descriptor = |media_type: &str, of: &[u8]| {
        let mut descriptor = Descriptor::new(media_type, digest(of), 7);
        descriptor.annotations.insert("note".into(), long.clone());
        descriptor.extra.insert("data".into(), long.clone().into());
        descriptor.urls.push(long.clone());
        Some(descriptor)
    };
    let (before, after) = (descriptor("a/b", b"1"), descriptor(&long, b"2"));
    let change = Change { what: What::Tag, tag: None, before, after };
    let record = Record::now(change, None, None, Stamp::nothing(), Stamp::of(b"x"));
    let record = Record { tag: Some(long), ..record };
    journal::append(&RealDisk, &repo, &[record]).unwrap();
    let recent = Recent::read(&repo, an_hour()).unwrap();
    let mut held: Vec<Descriptor> = recent.named.into_iter().map(|n| n.descriptor).collect();
    held.sort_by_key(|descriptor| descriptor.digest != digest(b"1"));
    let bare = |media_type, of: &[u8]| Descriptor::new(media_type, digest(of), 7);
    assert_eq!(held, [bare("a/b", b"1"), bare("application/json", b"2")]);
    let recent = Recent::read(&repo, an_hour()).unwrap();
    assert!(recent.named.iter().all(|named| named.tag.is_none()));
}

#[test]
fn the_newest_line_is_told_by_part_and_number() {
    let temp = tempfile::tempdir().unwrap();
    let repo = Dir::open_root(temp.path()).unwrap();
    append(&repo, "1");
    append(&repo, "2");
    let text = fs::read_to_string(temp.path().join("_log.jsonl")).unwrap();
    let year = text[..20].rsplit_once('-').unwrap().0.rsplit('"').next().unwrap().to_owned();
    let future = text.lines().next().unwrap().replace(&year, "9998-11");
    let read = || Recent::read(&repo, an_hour()).unwrap();
    let newest = |recent: Recent| recent.newest.map(|newest| (newest.part, newest.line));
    assert_eq!(newest(read()), Some(("_log.jsonl".into(), 2)));
    let before = read().reading;
    // Empty lines count, as they do for sed.
    fs::write(temp.path().join("_log.jsonl"), format!("{text}\n{future}\n")).unwrap();
    let since = Recent::since(&repo, &before, an_hour()).unwrap().unwrap();
    assert_eq!(newest(since), Some(("_log.jsonl".into(), 4)));
    fs::write(temp.path().join("_log.7.jsonl"), format!("{future}\n")).unwrap();
    fs::write(temp.path().join("_log.jsonl"), &text).unwrap();
    assert_eq!(newest(read()), Some(("_log.7.jsonl".into(), 1)));
}

#[test]
fn a_journal_that_names_a_million_digests_is_not_read_on() {
    let temp = tempfile::tempdir().unwrap();
    let repo = Dir::open_root(temp.path()).unwrap();
    let digest = Digest::of(Algorithm::Sha256, b"x");
    fs::write(temp.path().join("_log.jsonl"), format!("{digest}\n")).unwrap();
    let read = |known| {
        let mut found = Found::new(an_hour());
        found.spelled = vec![digest.clone(); known];
        found.part(&repo, path::JOURNAL, End::default()).map(|_| found)
    };
    assert_eq!(read(MAX_DIGESTS - 1).unwrap().spelled.len(), MAX_DIGESTS);
    assert!(read(MAX_DIGESTS).is_err());
    append(&repo, "1");
    let refused = read(MAX_DIGESTS - 1).err().unwrap();
    let said = "_log.jsonl: names more than 1000000 digests";
    assert!(refused.to_string().ends_with(said), "{refused}");
}
