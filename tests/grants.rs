//! The command that is printed for a refusal is the one that ends it: run as it stands, it makes
//! the answer yes, by our own judgement and by the kernel's, and gives nobody else anything.

#[path = "support/kernel.rs"]
mod kernel;

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use kernel::{Kernel, MEMBER, NAMED, NOBODY, OTHER_TEAM, OWNER, Random, STRANGER, TEAM};
use rustix::fs::{XattrFlags, removexattr, setxattr};
use stillage::access::{self, Case, Grant};
use stillage::auth::{Action, Anonymous, Names, Policy, Right, User, Who, judge};
use stillage::layout::acl::{ACCESS, Acl, AclEntry, AclTag};
use stillage::layout::rights::{Rights, Way};
use stillage::layout::{RealDisk, Tree};
use stillage::oci::RepoName;

const OPEN: Policy = Policy { anonymous: Anonymous::Pull, admins: None };

struct Person {
    who: Who,
    kernel: Kernel,
}

fn people() -> Vec<Person> {
    let user = |uid: u32, groups: &[u32]| {
        let account = User { name: uid.to_string(), uid, gid: groups[0], groups: groups.to_vec() };
        Person { who: Who::User(Arc::new(account)), kernel: Kernel::with(uid, groups) }
    };
    vec![
        user(OWNER, &[OWNER]),
        user(MEMBER, &[MEMBER, TEAM]),
        user(NAMED, &[NAMED, TEAM, OTHER_TEAM]),
        user(STRANGER, &[STRANGER]),
        Person { who: Who::Anonymous, kernel: Kernel::with(NOBODY, &[NOBODY]) },
    ]
}

struct Place {
    _outer: tempfile::TempDir,
    root: PathBuf,
    tree: Tree,
}

impl Place {
    fn new() -> Place {
        let outer = tempfile::Builder::new().prefix("stillage test ").tempdir().unwrap();
        fs::set_permissions(outer.path(), fs::Permissions::from_mode(0o755)).unwrap();
        // A name that a shell would take apart.
        let root = outer.path().join("it's $HOME");
        let tree = Tree::open(&root, Arc::new(RealDisk)).unwrap();
        fs::create_dir_all(root.join("team/app")).unwrap();
        let probe = root.join("team/app/probe");
        fs::write(&probe, "").unwrap();
        fs::set_permissions(probe, fs::Permissions::from_mode(0o644)).unwrap();
        Place { _outer: outer, root, tree }
    }

    fn levels(&self) -> [PathBuf; 3] {
        ["", "team", "team/app"].map(|relative| self.root.join(relative))
    }

    /// The repository, and the action that the kernel is asked for.
    fn way(&self, question: &Question) -> Way {
        Rights::default().way(&self.tree, &question.repo, question.action != Action::Pull).unwrap()
    }

    fn right(&self, who: &Who, question: &Question) -> Right {
        judge(&OPEN, who, &access::way(&self.way(question)), question.action).right
    }
}

struct Question {
    action: Action,
    repo: RepoName,
    of_kernel: &'static str,
}

fn questions() -> [Question; 4] {
    [
        (Action::Pull, "team/app", "pull"),
        (Action::Push, "team/app", "push"),
        (Action::Delete, "team/app", "delete"),
        (Action::Push, "team/app/not/there", "create"),
    ]
    .map(|(action, repo, of_kernel)| Question {
        action,
        repo: RepoName::parse(repo).unwrap(),
        of_kernel,
    })
}

/// What everybody may do, person by person.
fn all_rights(place: &Place, people: &[Person]) -> Vec<Vec<Right>> {
    let questions = questions();
    let of = |person: &Person| questions.iter().map(|q| place.right(&person.who, q)).collect();
    people.iter().map(of).collect()
}

fn ask(place: &Place, who: &Who, question: &Question) -> (Option<Grant>, String) {
    let found = place.way(question);
    let way = access::way(&found);
    let judgement = judge(&OPEN, who, &way, question.action);
    let case = Case {
        names: Names::Service,
        policy: &OPEN,
        who,
        called: None,
        repo: &question.repo,
        way: &found,
        action: question.action,
        server: 0,
    };
    (access::grant(&case, &judgement), access::why(&case, &judgement))
}

fn run(line: &str) {
    let ran = Command::new("sh").args(["-c", line]).output().unwrap();
    assert!(ran.status.success(), "{line}: {ran:?}");
}

/// Runs the grant of each refusal, on permissions as they are at the moment; returns how many.
fn grants_do(place: &Place, people: &mut [Person], dress: &mut dyn FnMut(&Place)) -> usize {
    let mut granted = 0;
    for (index, question) in questions().iter().enumerate() {
        for at in 0..people.len() {
            dress(place);
            let who = people[at].who.clone();
            let before = all_rights(place, people);
            let (grant, why) = ask(place, &who, question);
            let anonymous_write = who == Who::Anonymous && question.action != Action::Pull;
            assert_eq!(
                grant.is_some(),
                before[at][index] == Right::No && !anonymous_write,
                "{why}: {grant:?}"
            );
            let Some(grant) = grant else { continue };
            run(&grant.command);
            let after = all_rights(place, people);
            let line = &grant.command;
            assert_eq!(after[at][index], Right::Yes, "{why}\n{line}");
            assert!(
                people[at].kernel.lets(question.of_kernel, &place.levels()[2]),
                "{why}\n{line}"
            );
            for (other, (before, after)) in before.iter().zip(&after).enumerate() {
                // What is given to others is given to everybody, and to nobody else.
                let everybody = who == Who::Anonymous;
                let more =
                    before.iter().zip(after).any(|(b, a)| *b == Right::No && *a != Right::No);
                assert!(other == at || everybody || !more, "{other} got more\n{why}\n{line}");
            }
            let lost = before[at].iter().zip(&after[at]).any(|(b, a)| b == &Right::Yes && a != b);
            assert!(!lost, "{why}\n{line}");
            granted += 1;
        }
    }
    granted
}

fn give(path: &Path, owner: u32, group: u32, mode: u32, acl: Option<&Acl>) {
    let _ = removexattr(path, ACCESS);
    chown(path, Some(owner), Some(group)).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    if let Some(acl) = acl {
        setxattr(path, ACCESS, &acl.to_bytes(), XattrFlags::empty()).unwrap();
    }
}

fn acl(entries: &[(AclTag, u8)]) -> Acl {
    Acl { entries: entries.iter().map(|(tag, bits)| AclEntry { tag: *tag, bits: *bits }).collect() }
}

#[test]
fn every_kind_of_refusal_has_a_command_that_ends_it() {
    use AclTag::{Group, Mask, Other, Owner, OwningGroup, User};
    let place = Place::new();
    let mut people = people();
    let full = [(Owner, 7), (User(NAMED), 7), (OwningGroup, 7), (Group(OTHER_TEAM), 7)];
    let with_mask = |mask, other| acl(&[&full[..], &[(Mask, mask), (Other, other)]].concat());
    let (masked, empty, closed) = (with_mask(5, 5), with_mask(0, 5), with_mask(0, 0));
    let cases: Vec<(u32, u32, u32, Option<&Acl>)> = vec![
        (OWNER, TEAM, 0o755, None),
        (OWNER, TEAM, 0o2775, None),
        (OWNER, TEAM, 0o750, None),
        (OWNER, TEAM, 0o705, None),
        (OWNER, TEAM, 0o057, None),
        (OWNER, TEAM, 0o000, None),
        (0, 0, 0o700, None),
        (0, TEAM, 0o700, Some(&masked)),
        (0, TEAM, 0o700, Some(&empty)),
        (0, TEAM, 0o700, Some(&closed)),
        (OWNER, OTHER_TEAM, 0o700, Some(&masked)),
    ];
    let mut granted = 0;
    for (owner, group, mode, acl) in cases {
        for which in 0..3 {
            granted += grants_do(&place, &mut people, &mut |place| {
                for (at, level) in place.levels().iter().enumerate() {
                    if at == which {
                        give(level, owner, group, mode, acl);
                    } else {
                        give(level, 0, 0, 0o755, None);
                    }
                }
            });
        }
    }
    assert!(granted > 300, "{granted}");
}

/// What is drawn of permissions.
struct Draw(Random);

impl Draw {
    fn next(&mut self, below: u32) -> u32 {
        self.0.next(below)
    }

    fn bits(&mut self) -> u8 {
        u8::try_from(self.next(8)).unwrap()
    }

    fn acl(&mut self) -> Acl {
        let mut entries = vec![(AclTag::Owner, self.bits())];
        for uid in [OWNER, MEMBER, STRANGER, NAMED] {
            if self.next(2) == 0 {
                entries.push((AclTag::User(uid), self.bits()));
            }
        }
        entries.push((AclTag::OwningGroup, self.bits()));
        for gid in [TEAM, OTHER_TEAM] {
            if self.next(2) == 0 {
                entries.push((AclTag::Group(gid), self.bits()));
            }
        }
        let mask = if self.next(4) == 0 { 0 } else { self.bits() };
        entries.extend([(AclTag::Mask, mask), (AclTag::Other, self.bits())]);
        acl(&entries)
    }
}

#[test]
fn random_refusals_end_by_their_commands() {
    let place = Place::new();
    let mut people = people();
    let mut random = Draw(Random(0x5711_1a6e));
    let mut granted = 0;
    for _ in 0..30 {
        granted += grants_do(&place, &mut people, &mut |place| {
            for level in place.levels() {
                let owner = [0, OWNER, MEMBER, NAMED][random.next(4) as usize];
                let group = [0, TEAM, OTHER_TEAM][random.next(3) as usize];
                let mode = random.next(0o1000) | random.next(2) << 10;
                let acl = (random.next(2) == 0).then(|| random.acl());
                give(&level, owner, group, mode, acl.as_ref());
            }
        });
    }
    assert!(granted > 300, "{granted}");
}
