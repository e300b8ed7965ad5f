//! What people with a shell, other tools and crashes leave in a tree.

use stillage::access;
use stillage::auth::{Anonymous, Permissions, Policy, READ, User, Who};
use stillage::layout::acl::{Acl, AclTag};
use stillage::layout::facts::Fact;
use stillage::layout::holders::Hint;
use stillage::layout::journal::Record;
use stillage::layout::uploads::Owner;
use stillage::layout::{Keys, Stamp};
use stillage::oci::{Algorithm, Digest, Index, RepoName, Tag};

/// An index.json that anybody may have written.
pub(crate) fn index(data: &[u8]) {
    let Ok(index) = Index::parse(data) else { return };
    let written = index.to_bytes();
    let again = Index::parse(&written).expect("what was written is read again");
    assert!(index.entries().eq(again.entries()));
    assert_eq!(written, again.to_bytes());
    let tags: Vec<Tag> = index.tags_after(None).cloned().collect();
    assert!(tags.is_sorted());
    let mut changed = index;
    for tag in tags {
        assert!(changed.tagged(&tag).is_some());
        assert!(changed.untag(&tag).is_some() && changed.tagged(&tag).is_none());
    }
    let digests: Vec<Digest> = changed.digests().collect();
    for digest in digests {
        assert!(!changed.remove(&digest).is_empty() && changed.find(&digest).is_none());
    }
    assert!(changed.is_empty());
}

/// A line of a journal.
pub(crate) fn journal(data: &[u8]) {
    let Ok(record) = serde_json::from_slice::<Record>(data) else { return };
    let written = serde_json::to_vec(&record).expect("what was read can be written");
    assert!(!written.contains(&b'\n'), "a line of two");
    let again: Record = serde_json::from_slice(&written).expect("what was written is read again");
    assert_eq!(serde_json::to_vec(&again).expect("written"), written);
    for stamp in [record.base, record.stamp] {
        assert_eq!(stamp.to_string().parse::<Stamp>(), Ok(stamp));
    }
}

/// A line of `_referrers/facts.jsonl`.
pub(crate) fn fact(data: &[u8]) {
    let Some(fact) = Fact::parse(data) else { return };
    assert!(fact.weight() > 0);
    let listed = fact.descriptor();
    assert_eq!((&listed.digest, listed.size), (&fact.digest, fact.size));
    let written = serde_json::to_vec(&fact).expect("what was read can be written");
    assert!(!written.contains(&b'\n'), "a line of two");
    // What is kept of long texts does not grow again.
    assert_eq!(Fact::parse(&written).as_ref(), Some(&fact));
}

/// A line of hints who holds a blob.
pub(crate) fn holder(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for algorithm in Algorithm::ALL {
        let Some(hint) = Hint::parse(&text, algorithm) else { continue };
        assert_eq!(hint.digest.algorithm(), algorithm);
        assert_eq!(Digest::parse(hint.digest.as_str()).as_ref(), Ok(&hint.digest));
        assert_eq!(RepoName::parse(hint.repository.as_str()).as_ref(), Ok(&hint.repository));
        assert!(text.starts_with(hint.digest.hex()) && text.ends_with(hint.repository.as_str()));
    }
}

/// The file that says whose upload it is.
pub(crate) fn owner(data: &[u8]) {
    let Ok(owner) = serde_json::from_slice::<Owner>(data) else { return };
    assert!(Algorithm::ALL.contains(&owner.algorithm()));
    let written = serde_json::to_vec(&owner).expect("what was read can be written");
    assert_eq!(serde_json::from_slice::<Owner>(&written).expect("read again"), owner);
}

/// An extended attribute with an ACL: what it says, and what nobody gets by it.
pub(crate) fn acl(data: &[u8]) {
    let Some(acl) = Acl::parse(data) else { return };
    assert_eq!(Acl::parse(&acl.to_bytes()).as_ref(), Some(&acl));
    let entries = Some(access::entries(&acl));
    let permissions = Permissions { owner: 1, group: 1, mode: 0o777, acl: entries };
    let policy = Policy { anonymous: Anonymous::Pull, admins: None };
    let others = acl.entries.iter().any(|entry| entry.tag == AclTag::Other && entry.bits & 4 != 0);
    // Strangers are `other`, whatever else stands there and however often.
    if policy.allows(&Who::Anonymous, &permissions, READ) {
        assert!(others, "{acl:?}");
    }
    // So is who is named nowhere.
    let uid = 4_000_000_000;
    let named = acl.entries.iter().any(|entry| match entry.tag {
        AclTag::User(id) | AclTag::Group(id) => id == uid,
        _ => false,
    });
    let user = User { name: "u".into(), uid, gid: uid, groups: vec![uid] };
    if !named && policy.allows(&Who::User(user.into()), &permissions, READ) {
        assert!(others, "{acl:?}");
    }
}

/// The file with the keys that sign tokens.
pub(crate) fn keys(data: &[u8]) {
    let Some(keys) = Keys::parse(data) else { return };
    assert!(data.len() == 32 || data.ends_with(b"\n"));
    let told = format!("{keys:?}");
    let secret: String = keys.current.secret.iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(!told.contains(&secret), "a key in the log");
}
