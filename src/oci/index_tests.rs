//! Documents of index.json, and what becomes of them.

use super::super::Algorithm;
use super::*;
use proptest::prelude::*;

fn manifest(n: u8) -> Descriptor {
    Descriptor::new(Kind::OciImage.media_type(), Digest::of(Algorithm::Sha256, &[n]), 1)
}

fn tag(text: &str) -> Tag {
    Tag::parse(text).unwrap()
}

fn whats(changes: &[Change]) -> Vec<What> {
    changes.iter().map(|change| change.what).collect()
}

#[test]
fn numbers_that_are_not_ours_do_not_wander() {
    for number in ["1232988388943567257712329883889435672577", "0.1", "1e-7", "-0.0", "7"] {
        let text = format!(r#"{{"schemaVersion":2,"manifests":[],"theirs":{number}}}"#);
        let once = Index::parse(text.as_bytes()).unwrap().to_bytes();
        assert_eq!(Index::parse(&once).unwrap().to_bytes(), once, "{number}");
    }
}

#[test]
fn an_index_that_is_changed_for_ever_does_not_grow() {
    let mut index = Index::default();
    index.put(&manifest(0), &[tag("stays")]);
    for round in 0..10_000_u32 {
        let descriptor = manifest((round % 200) as u8 + 1);
        index.put(&descriptor, &[tag("moves")]);
        if round % 3 != 0 {
            index.remove(&descriptor.digest);
        }
    }
    assert!(index.entries.slots() < 1000, "{} slots", index.entries.slots());
    let again = Index::parse(&index.to_bytes()).unwrap();
    assert_eq!(again.to_bytes(), index.to_bytes());
    assert_eq!(
        again.tags_after(None).collect::<Vec<_>>(),
        index.tags_after(None).collect::<Vec<_>>()
    );
    for digest in again.digests() {
        assert_eq!(index.find(&digest), again.find(&digest));
    }
    assert_eq!(index.tagged(&tag("stays")), again.tagged(&tag("stays")));
}

#[test]
fn a_moved_tag_leaves_its_manifest_untagged() {
    let mut index = Index::default();
    assert_eq!(whats(&index.put(&manifest(1), &[tag("a")])), [What::Push, What::Tag]);
    assert_eq!(index.entries().count(), 1);
    assert!(index.put(&manifest(1), &[tag("a")]).is_empty());
    let changes = index.put(&manifest(2), &[tag("a"), tag("b")]);
    assert_eq!(whats(&changes), [What::Push, What::Tag, What::Tag]);
    assert_eq!(changes[1].before.as_ref().unwrap().digest, manifest(1).digest);
    assert!(!index.find(&manifest(1).digest).unwrap().annotations.contains_key(REF_NAME));
    assert_eq!(index.entries().count(), 3);
    assert_eq!(index.tags_after(Some("a")).collect::<Vec<_>>(), [&tag("b")]);
    assert_eq!(index.untag(&tag("b")).unwrap().what, What::Untag);
    assert_eq!(index.untag(&tag("b")), None);
    assert_eq!(whats(&index.remove(&manifest(2).digest)), [What::Untag, What::Delete]);
    assert_eq!(index.entries().count(), 1);
}

#[test]
fn what_others_wrote_is_kept() {
    let text = format!(
        r#"{{"schemaVersion":2,"x":[1],"manifests":[{{"mediaType":"{}","digest":"{}","size":1,"platform":{{"os":"linux"}},"annotations":{{"{REF_NAME}":"docker.io/library/alpine:3.18","k":"v"}}}}]}}"#,
        Kind::OciImage.media_type(),
        manifest(1).digest
    );
    let mut index = Index::parse(text.as_bytes()).unwrap();
    assert_eq!(index.tagged(&tag("3.18")).unwrap().digest, manifest(1).digest);
    index.put(&manifest(2), &[tag("3.18")]);
    let again = String::from_utf8(index.to_bytes()).unwrap();
    assert!(again.contains(r#""x":[1]"#) && again.contains(r#""os":"linux""#), "{again}");
    assert!(again.contains(r#""k":"v""#) && !again.contains("alpine"), "{again}");
}

#[test]
fn the_first_of_two_entries_with_one_tag_counts_and_a_push_replaces_both() {
    let mut one = manifest(1);
    let mut two = manifest(2);
    for entry in [&mut one, &mut two] {
        entry.annotations.insert(REF_NAME.into(), "t".into());
    }
    let mut index = Index::default();
    index.append(&one);
    index.append(&two);
    assert_eq!(index.doubled_tags().count(), 1);
    assert_eq!(index.tagged(&tag("t")).unwrap().digest, manifest(1).digest);
    assert_eq!(whats(&index.put(&manifest(1), &[tag("t")])), [What::Tag]);
    assert_eq!(index.doubled_tags().count(), 0);
    assert!(index.find(&manifest(2).digest).is_some());
}

#[test]
fn broken_documents_are_refused() {
    for bad in [
        "",
        "{}",
        "[]",
        r#"{"schemaVersion":1,"manifests":[]}"#,
        r#"{"schemaVersion":2,"manifests":[{}]}"#,
        r#"{"schemaVersion":2,"manifests":[],"x":1,"x":2}"#,
        r#"{"schemaVersion":2,"manifests":[],"manifests":[]}"#,
    ] {
        assert!(Index::parse(bad.as_bytes()).is_err(), "{bad}");
    }
    assert!(Index::parse(br#"{"schemaVersion":2,"manifests":null}"#).unwrap().is_empty());
}

#[derive(Clone, Debug)]
enum Step {
    Put(u8, Vec<u8>),
    Untag(u8),
    Remove(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0..6u8, proptest::collection::vec(0..4u8, 0..3)).prop_map(|(m, t)| Step::Put(m, t)),
        (0..4u8).prop_map(Step::Untag),
        (0..6u8).prop_map(Step::Remove),
    ];
    proptest::collection::vec(step, 0..40)
}

proptest! {
    /// Against the plainest model: a map of tags and a set of manifests.
    #[test]
    fn changes_agree_with_a_model(steps in steps()) {
        let mut index = Index::default();
        let mut tags = std::collections::BTreeMap::new();
        let mut manifests = std::collections::BTreeSet::new();
        let name = |t: u8| tag(&format!("t{t}"));
        for step in steps {
            match step {
                Step::Put(m, t) => {
                    index.put(&manifest(m), &t.iter().map(|t| name(*t)).collect::<Vec<_>>());
                    manifests.insert(m);
                    tags.extend(t.into_iter().map(|t| (t, m)));
                }
                Step::Untag(t) => {
                    prop_assert_eq!(index.untag(&name(t)).is_some(), tags.remove(&t).is_some());
                }
                Step::Remove(m) => {
                    prop_assert_eq!(index.remove(&manifest(m).digest).is_empty(), !manifests.remove(&m));
                    tags.retain(|_, of| *of != m);
                }
            }
            let index = Index::parse(&index.to_bytes()).unwrap();
            let got: Vec<_> = index.tags_after(None).cloned().collect();
            prop_assert_eq!(got, tags.keys().map(|t| name(*t)).collect::<Vec<_>>());
            for (t, m) in &tags {
                prop_assert_eq!(&index.tagged(&name(*t)).unwrap().digest, &manifest(*m).digest);
            }
            prop_assert_eq!(index.digests().count(), manifests.len());
            let untagged = manifests.iter().filter(|m| !tags.values().any(|of| of == *m)).count();
            prop_assert_eq!(index.entries().count(), tags.len() + untagged);
        }
    }
}
