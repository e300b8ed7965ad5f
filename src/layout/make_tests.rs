//! Directories that are made for somebody, compared with what mkdir(2) by them gives.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::PathBuf;
use std::process::Command;

use super::*;
use crate::layout::RealDisk;

struct Fixture {
    temp: tempfile::TempDir,
    root: Dir,
}

fn fixture(mode: u32) -> Fixture {
    let temp = tempfile::tempdir().unwrap();
    let f = Fixture { root: Dir::open_root(temp.path()).unwrap(), temp };
    f.chmod("", mode);
    f
}

impl Fixture {
    fn path(&self, relative: &str) -> PathBuf {
        self.temp.path().join(relative)
    }

    fn chmod(&self, relative: &str, mode: u32) {
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(self.path(relative), mode).unwrap();
    }

    fn setfacl(&self, relative: &str, acl: &str) {
        let set = Command::new("setfacl").args(["-m", acl]).arg(self.path(relative)).status();
        assert!(set.unwrap().success());
    }

    /// Mode and ACL, as an administrator sees them.
    fn rights(&self, relative: &str) -> String {
        let mode = std::fs::metadata(self.path(relative)).unwrap().mode() & 0o7777;
        let mut getfacl = Command::new("getfacl");
        getfacl.args(["-cpnE", "--access", "--skip-base"]);
        let acl = getfacl.arg(self.path(relative)).output().unwrap().stdout;
        let acl = String::from_utf8(acl).unwrap();
        let lines = acl.lines().filter(|line| !line.is_empty()).collect::<Vec<_>>();
        format!("{mode:o} {}", lines.join(",")).trim_end().to_owned()
    }

    fn make(&self, name: &str, maker: &Account) -> Result<Dir> {
        repository(&RealDisk, &self.root, name, maker)
    }

    fn no_leftovers(&self) -> bool {
        let hidden = |name: &(String, fs::FileType)| name.0.starts_with('.');
        !self.root.names().unwrap().iter().any(hidden)
    }
}

/// Somebody whom no right that is inherited lets in.
fn stranger() -> Account {
    Account::new(Some(4242), |_, _| false)
}

#[test]
fn a_new_directory_gets_what_mkdir_would_give_and_never_more_than_there_is_above() {
    for (above, expected) in [
        (0o755, "755"),
        (0o775, "755"),
        (0o777, "755"),
        (0o1777, "755"),
        (0o750, "750"),
        (0o770, "750"),
        (0o700, "700"),
        (0o2775, "2775"),
        (0o2770, "2770"),
        (0o2750, "2750"),
        (0o3777, "2775"),
    ] {
        let f = fixture(above);
        f.make("team/app", &Account::default()).unwrap();
        assert_eq!(f.rights("team"), expected, "beneath {above:o}");
        assert_eq!(f.rights("team/app"), expected, "beneath {above:o}");
        assert!(f.no_leftovers());
    }
}

#[test]
fn a_set_gid_directory_gives_its_group() {
    let f = fixture(0o755);
    chown(f.path(""), None, Some(4321)).unwrap();
    f.chmod("", 0o2775);
    f.make("a/b", &stranger()).unwrap();
    let made = std::fs::metadata(f.path("a/b")).unwrap();
    assert_eq!((made.gid(), made.uid()), (4321, rustix::process::geteuid().as_raw()));
}

#[test]
fn whom_the_rights_would_shut_out_gets_an_entry() {
    let f = fixture(0o755);
    f.make("a/b", &stranger()).unwrap();
    let expected = "775 user::rwx,user:4242:rwx,group::r-x,mask::rwx,other::r-x";
    assert_eq!(f.rights("a"), expected);
    assert_eq!(f.rights("a/b"), expected);
}

#[test]
fn who_can_do_everything_gets_none() {
    let f = fixture(0o2775);
    let group = rustix::process::getegid().as_raw();
    let member = Account::new(Some(4242), move |level: &Level, bits| {
        level.gid == group && level.mode >> 3 & u16::from(bits) == u16::from(bits)
    });
    f.make("a/b", &member).unwrap();
    assert_eq!(f.rights("a/b"), "2775");
}

#[test]
fn a_default_acl_is_inherited_without_writing_for_others() {
    let f = fixture(0o755);
    f.setfacl("", "d:u::rwx,d:u:77:rwx,d:g::r-x,d:g:88:r-x,d:m::rwx,d:o::rwx");
    f.make("a/b", &Account::default()).unwrap();
    let expected = "775 user::rwx,user:77:rwx,group::r-x,group:88:r-x,mask::rwx,other::r-x";
    assert_eq!(f.rights("a"), expected);
    assert_eq!(f.rights("a/b"), expected, "the default goes on");
}

#[test]
fn a_makers_entry_widens_nobody_elses() {
    let f = fixture(0o755);
    f.setfacl("", "d:u::rwx,d:u:77:rwx,d:g::rwx,d:m::r-x,d:o::---");
    f.make("a", &stranger()).unwrap();
    let expected = "770 user::rwx,user:77:r-x,user:4242:rwx,group::r-x,mask::rwx,other::---";
    assert_eq!(f.rights("a"), expected);
}

#[test]
fn what_is_there_stays_as_it_is() {
    let f = fixture(0o755);
    std::fs::create_dir(f.path("a")).unwrap();
    f.chmod("a", 0o711);
    f.make("a/b", &Account::default()).unwrap();
    assert_eq!(f.rights("a"), "711");
    assert_eq!(f.rights("a/b"), "711");
    f.make("a/b", &stranger()).unwrap();
    assert_eq!(f.rights("a/b"), "711");
}

#[test]
fn inner_directories_are_as_open_as_their_repository() {
    let f = fixture(0o755);
    let repo = f.make("a", &stranger()).unwrap();
    inner(&RealDisk, &repo, "blobs/sha256").unwrap();
    assert_eq!(f.rights("a/blobs/sha256"), f.rights("a"));
    for (mode, acl) in [(0o750, None), (0o2770, None), (0o755, Some("u:77:rwx"))] {
        assert!(Command::new("setfacl").arg("-b").arg(f.path("a")).status().unwrap().success());
        f.chmod("a", mode);
        if let Some(acl) = acl {
            f.setfacl("a", acl);
        }
        inner(&RealDisk, &repo, "blobs/sha256").unwrap();
        for name in ["a/blobs", "a/blobs/sha256"] {
            assert_eq!(f.rights(name), f.rights("a"), "{name}");
        }
    }
}

#[test]
fn a_directory_has_its_rights_before_its_name() {
    let f = fixture(0o755);
    let maker = stranger();
    for i in 0..300 {
        let name = format!("r{i}");
        let path = f.path(&name);
        let watch = move || loop {
            if let Ok(seen) = std::fs::metadata(&path) {
                break seen.mode() & 0o777;
            }
        };
        let watcher = std::thread::spawn(watch);
        f.make(&name, &maker).unwrap();
        assert_eq!(watcher.join().unwrap(), 0o775, "at first sight");
    }
}

#[test]
fn who_was_faster_keeps_theirs() {
    let f = fixture(0o755);
    let dress = Dress::new_repository(&f.root, &stranger()).unwrap();
    std::fs::create_dir(f.path("a")).unwrap();
    f.chmod("a", 0o711);
    let (_, made) = make(&RealDisk, &f.root, "a", &dress).unwrap();
    assert!(!made);
    assert_eq!(f.rights("a"), "711");
    assert!(f.no_leftovers());
}

#[test]
fn the_room_is_nobody_elses_whatever_root_gives_away() {
    let f = fixture(0o755);
    f.setfacl("", "d:u:77:rwx,d:o::rx");
    let room = in_room(&RealDisk, &f.root, ".stillage").unwrap();
    in_room(&RealDisk, &room, "pool/sha256").unwrap();
    for name in [".stillage", ".stillage/pool", ".stillage/pool/sha256"] {
        assert_eq!(f.rights(name), "700", "{name}");
    }
    f.make("team/app", &stranger()).unwrap();
    assert!(f.rights("team/app").contains("user:77:rwx"));
}
