//! Who may do what, compared with the kernel's own answer: a child that becomes the user and tries.

#[path = "support/kernel.rs"]
mod kernel;

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use kernel::{Kernel, MEMBER, NAMED, NOBODY, OTHER_TEAM, OWNER, Random, STRANGER, TEAM};
use rustix::fs::{XattrFlags, removexattr, setxattr};
use stillage::access;
use stillage::auth::{Action, Anonymous, Policy, Right, User, Who, judge};
use stillage::layout::acl::{ACCESS, Acl, AclEntry, AclTag};
use stillage::layout::rights::Rights;
use stillage::layout::{RealDisk, Tree};
use stillage::oci::RepoName;

/// The admin group, which no account has.
const ADMINS: u32 = 62_003;

/// Somebody as our deciding function knows them, and as the kernel does.
struct Person {
    name: &'static str,
    who: Who,
    kernel: Kernel,
}

impl Person {
    fn user(name: &'static str, uid: u32, groups: &[u32]) -> Person {
        let account = User { name: name.into(), uid, gid: groups[0], groups: groups.to_vec() };
        Person { name, who: Who::User(Arc::new(account)), kernel: Kernel::with(uid, groups) }
    }
}

/// One of each kind. Anonymous is somebody whom nothing names; an administrator may do what root may.
fn people() -> Vec<Person> {
    let admin = User { name: "admin".into(), uid: 61_005, gid: 61_005, groups: vec![ADMINS] };
    vec![
        Person::user("owner", OWNER, &[OWNER]),
        Person::user("member", MEMBER, &[MEMBER, TEAM]),
        Person::user("member-of-both", MEMBER, &[MEMBER, TEAM, OTHER_TEAM]),
        Person::user("other-member", STRANGER, &[STRANGER, OTHER_TEAM]),
        Person::user("named", NAMED, &[NAMED]),
        Person::user("stranger", STRANGER, &[STRANGER]),
        Person { name: "anonymous", who: Who::Anonymous, kernel: Kernel::with(NOBODY, &[NOBODY]) },
        Person { name: "admin", who: Who::User(Arc::new(admin)), kernel: Kernel::with(0, &[0]) },
    ]
}

/// A tree whose ROOT everybody can reach.
struct Place {
    outer: tempfile::TempDir,
    tree: Tree,
    rights: Rights,
}

impl Place {
    fn new(beneath: &str) -> Place {
        let outer = tempfile::Builder::new().prefix("stillage-test-").tempdir_in(beneath).unwrap();
        fs::set_permissions(outer.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let root = outer.path().join("root");
        let tree = Tree::open(&root, Arc::new(RealDisk)).unwrap();
        Place { outer, tree, rights: Rights::default() }
    }

    fn path(&self, relative: &str) -> PathBuf {
        self.outer.path().join("root").join(relative)
    }

    /// A directory that can be pulled from.
    fn directory(&self, relative: &str) -> PathBuf {
        let path = self.path(relative);
        fs::create_dir_all(&path).unwrap();
        self.probe(relative);
        path
    }

    /// The file that is opened to see whether a directory can be pulled from.
    fn probe(&self, relative: &str) {
        let probe = self.path(relative).join("probe");
        fs::write(&probe, "").unwrap();
        setfacl(&probe, &["-b"]);
        fs::set_permissions(probe, fs::Permissions::from_mode(0o644)).unwrap();
    }

    /// What we say: of a repository that is there, or of one that would be created.
    fn answer(&self, who: &Who, name: &str, action: Action) -> Right {
        let policy = Policy { anonymous: Anonymous::Pull, admins: Some(ADMINS) };
        let name = RepoName::parse(name).unwrap();
        let way = self.rights.way(&self.tree, &name, action != Action::Pull).unwrap();
        judge(&policy, who, &access::way(&way), action).right
    }

    /// What we and the kernel say of one action; `create` is asked of a name that is not there.
    fn both(&self, person: &mut Person, repo: &str, action: &str) -> (bool, bool) {
        let ours = match action {
            "pull" => self.answer(&person.who, repo, Action::Pull),
            "push" => self.answer(&person.who, repo, Action::Push),
            "delete" => self.answer(&person.who, repo, Action::Delete),
            "create" => self.answer(&person.who, &format!("{repo}/not/there"), Action::Push),
            other => panic!("{other}"),
        };
        let anonymous_write = person.who == Who::Anonymous && action != "pull";
        // Ours is the stricter rule there: who did not log in never writes.
        let kernel = !anonymous_write && person.kernel.lets(action, &self.path(repo));
        (ours == Right::Yes, kernel)
    }
}

const ACTIONS: [&str; 4] = ["pull", "push", "create", "delete"];

fn give(path: &Path, owner: u32, group: u32, mode: u32) {
    chown(path, Some(owner), Some(group)).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn setfacl(path: &Path, args: &[&str]) {
    assert!(Command::new("setfacl").args(args).arg(path).status().unwrap().success(), "{args:?}");
}

/// A named situation: makes `team/app` in a place.
type Situation = (&'static str, fn(&Place));

fn at(place: &Place, mode: u32, acl: &[&str]) {
    let team = place.directory("team");
    give(&team, OWNER, TEAM, 0o755);
    let app = place.directory("team/app");
    give(&app, OWNER, TEAM, mode);
    if !acl.is_empty() {
        setfacl(&app, acl);
    }
}

/// The directory above, with a repository beneath that everybody may use.
fn above(place: &Place, mode: u32, acl: &[&str]) {
    at(place, 0o777, &[]);
    let team = place.path("team");
    give(&team, OWNER, TEAM, mode);
    if !acl.is_empty() {
        setfacl(&team, acl);
    }
}

/// `team/app` is made by the server for a member, beneath a `team` like this.
fn made(place: &Place, mode: u32, acl: &[&str]) {
    let team = place.directory("team");
    give(&team, 0, TEAM, mode);
    if !acl.is_empty() {
        setfacl(&team, acl);
    }
    let who = Who::User(Arc::new(User {
        name: "member".into(),
        uid: MEMBER,
        gid: MEMBER,
        groups: vec![MEMBER, TEAM],
    }));
    let policy = Policy { anonymous: Anonymous::Pull, admins: None };
    let app = RepoName::parse("team/app").unwrap();
    place.tree.make_repository(&app, &access::account(policy, &who)).unwrap();
    place.probe("team/app");
    // Whoever created it may push again, whatever was inherited.
    assert_eq!(place.answer(&who, "team/app", Action::Push), Right::Yes, "{mode:o} {acl:?}");
    assert_eq!(place.answer(&who, "team/app", Action::Pull), Right::Yes, "{mode:o} {acl:?}");
}

const SITUATIONS: [Situation; 34] = [
    ("owner-only", |p| at(p, 0o700, &[])),
    ("owner-reads", |p| at(p, 0o500, &[])),
    ("owner-shut-out", |p| at(p, 0o077, &[])),
    ("group-reads", |p| at(p, 0o750, &[])),
    ("group-writes", |p| at(p, 0o770, &[])),
    ("group-shut-out", |p| at(p, 0o707, &[])),
    ("group-drop-box", |p| at(p, 0o730, &[])),
    ("group-lists-only", |p| at(p, 0o740, &[])),
    ("others-read", |p| at(p, 0o755, &[])),
    ("others-write", |p| at(p, 0o777, &[])),
    ("others-search-only", |p| at(p, 0o771, &[])),
    ("sticky", |p| at(p, 0o1777, &[])),
    ("set-gid", |p| at(p, 0o2775, &[])),
    ("nobody", |p| at(p, 0o000, &[])),
    ("acl-user-writes", |p| at(p, 0o750, &["-m", "u:61004:rwx"])),
    ("acl-user-reads", |p| at(p, 0o700, &["-m", "u:61004:rx"])),
    ("acl-user-shut-out", |p| at(p, 0o777, &["-m", "u:61004:-"])),
    ("acl-group-writes", |p| at(p, 0o700, &["-m", "g:62002:rwx"])),
    ("acl-group-shut-out", |p| at(p, 0o777, &["-m", "g:62002:-"])),
    ("acl-two-groups-each-half", |p| at(p, 0o700, &["-m", "g::r,g:62002:wx"])),
    ("acl-mask-takes-write", |p| at(p, 0o700, &["-m", "u:61004:rwx,g:62002:rwx,m::rx"])),
    ("acl-mask-takes-all-of-group", |p| at(p, 0o770, &["-m", "g::rwx,g:62002:rwx,m::-,o::rx"])),
    ("acl-empty-mask", |p| at(p, 0o705, &["-m", "u:61004:rwx,m::-"])),
    ("acl-owner-named-too", |p| at(p, 0o500, &["-m", "u:61001:rwx"])),
    ("acl-others", |p| at(p, 0o700, &["-m", "u:61004:-,o::rwx"])),
    ("above-without-search", |p| above(p, 0o744, &[])),
    ("above-group-searches", |p| above(p, 0o710, &[])),
    ("above-acl-searches", |p| above(p, 0o700, &["-m", "u:61004:x,g:62002:x"])),
    ("above-writes-alone", |p| above(p, 0o772, &[])),
    ("made-beneath-0755", |p| made(p, 0o755, &[])),
    ("made-beneath-set-gid", |p| made(p, 0o2775, &[])),
    ("made-beneath-private-set-gid", |p| made(p, 0o2770, &[])),
    ("made-beneath-default-acl", |p| made(p, 0o775, &["-m", "d:g:62002:rwx,d:o::-"])),
    ("made-beneath-narrow-default", |p| made(p, 0o775, &["-m", "d:u::rwx,d:g::-,d:o::-"])),
];

/// Asks everybody everything about one situation, and notes every difference.
fn compare(place: &Place, people: &mut [Person], name: &str, tally: &mut Tally) {
    for person in people {
        for action in ACTIONS {
            let (ours, kernel) = place.both(person, "team/app", action);
            tally.count(ours, kernel, || format!("{name}/{action}/{}", person.name));
        }
    }
}

#[derive(Default)]
struct Tally {
    yes: usize,
    no: usize,
    different: Vec<String>,
}

impl Tally {
    fn count(&mut self, ours: bool, kernel: bool, name: impl FnOnce() -> String) {
        if ours != kernel {
            self.different.push(format!("{}: we say {ours}, the kernel {kernel}", name()));
        }
        *(if kernel { &mut self.yes } else { &mut self.no }) += 1;
    }

    /// As many answers as said, of both kinds, and none that differs.
    #[track_caller]
    fn agrees(&self, at_least: usize) {
        assert!(self.different.is_empty(), "{:#?}", &self.different);
        assert!(self.yes + self.no >= at_least, "{} answers", self.yes + self.no);
        assert!(self.yes > at_least / 10 && self.no > at_least / 10, "{} {}", self.yes, self.no);
    }
}

#[test]
fn named_situations_are_decided_as_the_kernel_decides_them() {
    let mut people = people();
    let mut tally = Tally::default();
    for (name, make) in SITUATIONS {
        let place = Place::new("/tmp");
        make(&place);
        compare(&place, &mut people, name, &mut tally);
    }
    tally.agrees(300);
    eprintln!("measured: {} named combinations as the kernel", tally.yes + tally.no);
}

#[test]
fn read_only_mounts_take_no_writes_from_anybody() {
    let mut people = people();
    let mut tally = Tally::default();
    for (name, mode, at_mount) in
        [("open", 0o777, "team/app"), ("team", 0o770, "team/app"), ("above", 0o777, "team")]
    {
        let place = Place::new("/tmp");
        at(&place, mode, &[]);
        let mount = place.path(at_mount);
        let mounted = Mounted::read_only(&mount);
        compare(&place, &mut people, &format!("read-only-{name}"), &mut tally);
        drop(mounted);
        compare(&place, &mut people, &format!("writable-again-{name}"), &mut tally);
    }
    tally.agrees(100);
}

/// A directory mounted over itself, read-only.
struct Mounted<'a>(&'a Path);

impl Mounted<'_> {
    fn read_only(path: &Path) -> Mounted<'_> {
        let mount = |args: &[&str]| Command::new("mount").args(args).arg(path).status().unwrap();
        let own = path.to_str().unwrap();
        assert!(mount(&["--bind", own]).success());
        let mounted = Mounted(path);
        assert!(mount(&["-o", "remount,bind,ro"]).success());
        mounted
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        // What is remembered of it holds it open; that must not be believed afterwards.
        let status = Command::new("umount").arg("--lazy").arg(self.0).status();
        assert!(status.is_ok_and(|status| status.success()), "umount {}", self.0.display());
    }
}

/// What is drawn of permissions.
struct Draw(Random);

impl Draw {
    fn next(&mut self, below: u32) -> u32 {
        self.0.next(below)
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.next(100) < percent
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.next(u32::try_from(of.len()).unwrap()) as usize]
    }

    /// Permission bits that let somebody through more often than not.
    fn bits(&mut self) -> u8 {
        let bits = u8::try_from(self.next(8)).unwrap();
        if self.chance(60) { bits | 1 } else { bits }
    }

    fn mode(&mut self) -> u32 {
        let [owner, group, other] = [0; 3].map(|_: u32| u32::from(self.bits()));
        let special = if self.chance(20) { self.next(4) << 9 } else { 0 };
        special | owner << 6 | group << 3 | other
    }

    fn acl(&mut self) -> Acl {
        let mut entries = vec![AclEntry { tag: AclTag::Owner, bits: self.bits() }];
        for uid in [OWNER, MEMBER, STRANGER, NAMED] {
            if self.chance(30) {
                entries.push(AclEntry { tag: AclTag::User(uid), bits: self.bits() });
            }
        }
        entries.push(AclEntry { tag: AclTag::OwningGroup, bits: self.bits() });
        for gid in [MEMBER, TEAM, OTHER_TEAM] {
            if self.chance(30) {
                entries.push(AclEntry { tag: AclTag::Group(gid), bits: self.bits() });
            }
        }
        let mask = if self.chance(15) { 0 } else { self.bits() };
        entries.push(AclEntry { tag: AclTag::Mask, bits: mask });
        entries.push(AclEntry { tag: AclTag::Other, bits: self.bits() });
        Acl { entries }
    }

    /// Gives a directory owner, group, mode and perhaps an ACL.
    fn dress(&mut self, path: &Path) {
        let _ = removexattr(path, ACCESS);
        let owner = self.one(&[0, OWNER, MEMBER, STRANGER, NAMED]);
        let group = self.one(&[0, TEAM, TEAM, OTHER_TEAM, MEMBER]);
        give(path, owner, group, self.mode());
        if self.chance(50) {
            setxattr(path, ACCESS, &self.acl().to_bytes(), XattrFlags::empty()).unwrap();
        }
    }
}

/// On every level owner, group, mode and ACL are drawn anew, faster than the file system's clock
/// ticks; then everybody asks everything.
fn random_layouts(beneath: &str, layouts: usize) {
    let seed = std::env::var("STILLAGE_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or(0x5711_1a9e);
    let mut random = Draw(Random(seed));
    let mut people = people();
    let mut tally = Tally::default();
    let place = Place::new(beneath);
    let levels = ["", "team", "team/app"].map(|level| place.directory(level));
    for number in 0..layouts {
        let change = if number == 0 { 0 } else { random.next(3) as usize };
        for level in &levels[change..] {
            random.dress(level);
        }
        compare(&place, &mut people, &format!("{beneath}/seed-{seed}/{number}"), &mut tally);
        assert!(tally.different.is_empty(), "{:#?}", tally.different);
    }
    tally.agrees(20_000);
    eprintln!("measured: {} random combinations as the kernel on {beneath}", tally.yes + tally.no);
}

#[test]
fn random_permissions_are_decided_as_the_kernel_decides_them() {
    random_layouts("/tmp", 900);
}

#[test]
fn the_same_on_a_file_system_in_memory() {
    random_layouts("/dev/shm", 900);
}
