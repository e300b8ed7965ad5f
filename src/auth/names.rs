//! What users and groups are called, for those who read what was decided.

use std::fs::File;
use std::io::Read;

use nix::unistd::{Gid, Group, Uid, User};

/// The largest local file of accounts that is read for the sake of a name.
const MOST: u64 = 1 << 20;

/// Where names are looked for. What is not found is called by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    /// The local files alone, which never hang: for a server's log lines.
    Files,
    /// The local files, then the name service, which may block as LDAP does: for a command.
    Service,
}

impl Names {
    /// A user's name, or the number.
    pub fn user(self, uid: u32) -> String {
        let asked = || User::from_uid(Uid::from_raw(uid)).ok().flatten().map(|user| user.name);
        self.name("/etc/passwd", uid, asked)
    }

    /// A group's name, or the number.
    pub fn group(self, gid: u32) -> String {
        let asked = || Group::from_gid(Gid::from_raw(gid)).ok().flatten().map(|group| group.name);
        self.name("/etc/group", gid, asked)
    }

    fn name(self, file: &str, id: u32, ask: impl FnOnce() -> Option<String>) -> String {
        let local = || name_in(&read(file), id);
        let asked = || if self == Names::Service { ask() } else { None };
        local().or_else(asked).unwrap_or_else(|| id.to_string())
    }
}

/// The members of a group by name, in order: those that the name service gives (`getent group`),
/// and those local accounts whose primary group it is. May block, as LDAP does.
pub fn members(gid: u32) -> Vec<String> {
    let group = Group::from_gid(Gid::from_raw(gid)).ok().flatten();
    let mut members = group.map(|group| group.mem).unwrap_or_default();
    members.extend(primary_members(&read("/etc/passwd"), gid));
    members.sort_unstable();
    members.dedup();
    members
}

/// A file of accounts; nothing where it cannot be read, and no more than [`MOST`] of it.
fn read(path: &str) -> String {
    let mut text = Vec::new();
    let _ = File::open(path).and_then(|file| file.take(MOST).read_to_end(&mut text));
    String::from_utf8_lossy(&text).into_owned()
}

/// The name whose third field is a number, in passwd(5) and group(5) alike.
fn name_in(text: &str, id: u32) -> Option<String> {
    let mut lines = text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, number) = (fields.next()?, fields.nth(1)?);
        (number.parse() == Ok(id) && !name.is_empty()).then(|| name.to_owned())
    });
    lines.next()
}

fn primary_members(passwd: &str, gid: u32) -> impl Iterator<Item = String> {
    passwd.lines().filter_map(move |line| {
        let mut fields = line.split(':');
        let (name, group) = (fields.next()?, fields.nth(2)?);
        (group.parse() == Ok(gid)).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_by_number() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbad\nanna:x:1001:100::/:/bin/sh\n:x:7:7\n";
        assert_eq!(name_in(passwd, 1001).as_deref(), Some("anna"));
        assert_eq!(name_in(passwd, 7), None);
        assert_eq!(name_in(passwd, 100), None);
        assert_eq!(primary_members(passwd, 100).collect::<Vec<_>>(), ["anna"]);
        assert_eq!(Names::Files.user(0), "root");
        assert_eq!(Names::Service.group(0), "root");
        assert_eq!(Names::Service.group(4_000_000_001), "4000000001");
        assert!(members(1).contains(&"daemon".to_owned()), "by primary group");
    }
}
