//! Every reason, as it reads.

use std::sync::Arc;

use rustix::io::Errno;

use super::*;
use crate::auth::{Anonymous, Right, User, judge};
use crate::layout::acl::{Acl, AclEntry, AclTag};
use crate::layout::{At, Inode};

fn level(path: &str, uid: u32, mode: u16, acl: &[(AclTag, u8)]) -> Arc<Level> {
    let entries = acl.iter().map(|(tag, bits)| AclEntry { tag: *tag, bits: *bits });
    let acl = (!acl.is_empty()).then(|| Acl { entries: entries.collect() });
    let inode = Inode { dev: 0, ino: 0 };
    Arc::new(Level { path: path.into(), inode, uid, gid: 1, mode, acl })
}

fn user(groups: &[u32]) -> Who {
    Who::User(Arc::new(User { name: "anna".into(), uid: 5, gid: 60, groups: groups.to_vec() }))
}

fn whole(last: Arc<Level>) -> Way {
    let levels = vec![level("/srv/reg", 0, 0o755, &[]), last];
    Way { levels, whole: true, held: None, read_only: false, stopped: None }
}

fn said(policy: &Policy, who: &Who, way: &Way, action: Action) -> (Right, String) {
    let repo = RepoName::parse("app").unwrap();
    let names = Names::Files;
    let case = Case { names, policy, who, called: None, repo: &repo, way, action, server: 4 };
    let judgement = judge(policy, who, &super::super::way(way), action);
    (judgement.right, why(&case, &judgement))
}

const OPEN: Policy = Policy { anonymous: Anonymous::Pull, admins: Some(3) };

#[track_caller]
fn reads(who: &Who, way: &Way, action: Action, expected: &str) {
    assert_eq!(said(&OPEN, who, way, action).1, expected);
}

#[test]
fn every_class_and_entry_is_named() {
    use AclTag::{Group, Mask, Other, Owner, OwningGroup, User};
    let app = |uid, mode, acl: &[(AclTag, u8)]| whole(level("/srv/reg/app", uid, mode, acl));
    let push = |way: &Way, groups: &[u32], expected: &str| {
        reads(&user(groups), way, Action::Push, &format!("anna (uid 5) gets {expected}"));
    };
    let plain = "of /srv/reg/app (root:daemon";
    push(&app(0, 0o2775, &[]), &[60], &format!("r-x {plain} 2775) as other; pushing takes wx"));
    let own = "r-x of /srv/reg/app (games:daemon 555) as its owner; pushing takes wx";
    push(&app(5, 0o555, &[]), &[60], own);
    let group = "as a member of its group daemon";
    push(&app(0, 0o755, &[]), &[1], &format!("r-x {plain} 755) {group}; pushing takes wx"));

    let acl = |named: u8, mask: u8| {
        let group_class = u16::from(mask) << 3;
        let entries = [
            (Owner, 7),
            (User(5), named),
            (OwningGroup, 5),
            (Group(2), 6),
            (Mask, mask),
            (Other, 5),
        ];
        (0o705 | group_class, entries)
    };
    let (mode, entries) = acl(5, 7);
    let entry = "by the entry user:games:r-x";
    push(&app(0, mode, &entries), &[60], &format!("r-x {plain} 775+) {entry}; pushing takes wx"));
    let (mode, entries) = acl(7, 5);
    let entry = "by the entry user:games:rwx under the mask r-x";
    push(&app(0, mode, &entries), &[60], &format!("r-x {plain} 755+) {entry}; pushing takes wx"));
    let (mode, entries) = acl(7, 0);
    let off = "as other (its mask is empty: its ACL is off)";
    push(&app(0, mode, &entries), &[60], &format!("r-x {plain} 705+) {off}; pushing takes wx"));
    let (mode, mut entries) = acl(7, 7);
    entries[1].0 = User(9);
    let entry = "by the entry group:bin:rw-";
    push(&app(0, mode, &entries), &[2], &format!("rw- {plain} 775+) {entry}; pushing takes wx"));
    push(&app(0, mode, &entries), &[1], &format!("r-x {plain} 775+) {group}; pushing takes wx"));
}

#[test]
fn whatever_is_no_directorys_say_is_told_too() {
    let open = whole(level("/srv/reg/app", 0, 0o777, &[]));
    let anyone = user(&[60]);
    let rwx = "gets rwx of /srv/reg/app (root:daemon 777) as other";
    reads(&anyone, &open, Action::Pull, &format!("anna (uid 5) {rwx}; pulling takes rx"));
    reads(&Who::Anonymous, &open, Action::Pull, &format!("anonymous {rwx}; pulling takes rx"));
    reads(&Who::Anonymous, &open, Action::Delete, "deleting takes a login");
    let closed = Policy { anonymous: Anonymous::Nothing, admins: None };
    let none = "nothing is allowed without a login here (--anonymous none)";
    assert_eq!(said(&closed, &Who::Anonymous, &open, Action::Pull).1, none);
    let admin = "anna (uid 5) is in the admin group sys, which may do everything";
    reads(&user(&[3]), &open, Action::Push, admin);
    let read_only = Way { read_only: true, ..open.clone() };
    let takes_none = "/srv/reg/app is read-only: its mount or its file system takes no writes";
    reads(&anyone, &read_only, Action::Push, takes_none);

    let absent = Way { whole: false, levels: vec![level("/srv/reg", 0, 0o755, &[])], ..open };
    reads(&anyone, &absent, Action::Pull, "there is no /srv/reg/app");
    let create = "r-x of /srv/reg (root:daemon 755) as other; creating app takes wx";
    reads(&anyone, &absent, Action::Push, &format!("anna (uid 5) gets {create}"));

    let error = Err::<(), Errno>(Errno::ACCESS).at(|| "/srv/reg".into()).unwrap_err();
    let stopped = Way { stopped: Some(error), ..absent };
    let mend = "the server's own account (sync) may not search /srv/reg (root:daemon 755): \
        setfacl -m u:sync:rwx /srv/reg";
    reads(&anyone, &stopped, Action::Push, mend);
    assert_eq!(said(&OPEN, &anyone, &stopped, Action::Push).0, Right::Untold);
}

#[test]
fn no_name_begins_a_line_or_turns_one_around() {
    let odd = "/srv/re\ng\u{1b}[2J\u{202e}\u{2028}";
    let way = whole(level(odd, 0, 0o700, &[]));
    let (_, text) = said(&OPEN, &user(&[60]), &way, Action::Pull);
    assert!(text.contains(r"/srv/re\u{a}g\u{1b}[2J\u{202e}\u{2028} (root"), "{text}");
    assert!(!text.chars().any(shell::unprintable), "{text}");
}
