//! What the start of a server says of rights: who may create repositories, and what needs no login.

use std::path::Path;

use super::words;
use super::{permissions, shell};
use crate::auth::{Anonymous, Entry, Names, Permissions, SEARCH, WRITE, Whom};
use crate::layout::rights::Level;
use crate::layout::{Dir, Result};

/// What the settings say.
#[derive(Clone, Copy, Debug)]
pub struct Start<'a> {
    /// The registry's directory.
    pub root: &'a Path,
    /// What is allowed without a login; `None` where there are no logins at all.
    pub anonymous: Option<Anonymous>,
    /// The group whose members may do everything.
    pub admin_group: Option<&'a str>,
    /// Whatever the permissions say, nobody but them writes.
    pub only_admins_write: bool,
}

/// The two lines: who may create repositories here and what would let others, and what is pulled
/// without a login. Judged by ROOT's own permissions.
pub fn start(start: &Start<'_>) -> Result<[String; 2]> {
    let root = Level::of(&Dir::open_root(start.root)?)?;
    let found = permissions(&root);
    Ok([creators(start, &root, &found), pullers(start, &found)].map(|line| words::plain(&line)))
}

/// What is to be warned of: whoever may write ROOT, and has a shell, can rename what lies right in it,
/// unless it is sticky. Nothing is read or written by that, but repositories and the server's room
/// change their names.
pub fn renamers(start: &Start<'_>) -> Result<Option<String>> {
    let root = Level::of(&Dir::open_root(start.root)?)?;
    let found = permissions(&root);
    let server = Names::Files.user(rustix::process::geteuid().as_raw());
    let who: Vec<String> = writers(&found).into_iter().filter(|name| *name != server).collect();
    let sticky = root.mode & 0o1000 != 0;
    Ok((!sticky && !who.is_empty()).then(|| {
        let (who, path) = (who.join(", "), shell::quote(start.root));
        words::plain(&format!(
            "{who} may rename what lies in {}, with a shell on this host: chmod +t {path}, or grant \
             a directory in it instead",
            start.root.display()
        ))
    }))
}

fn creators(start: &Start<'_>, root: &Level, found: &Permissions) -> String {
    let Some(_) = start.anonymous else {
        return "whoever reaches this address may push and create repositories".to_owned();
    };
    if start.only_admins_write {
        let group = start.admin_group.unwrap_or("root");
        return format!("only members of the admin group {group} may push and create repositories");
    }
    let mut who: Vec<String> = writers(found);
    if let Some(group) = start.admin_group {
        who.push(format!("the admin group {group}"));
    }
    let who = match who.as_slice() {
        [] => "nobody who logs in".to_owned(),
        some => some.join(", "),
    };
    let path = shell::quote(start.root);
    let team = shell::quote(&start.root.join("team"));
    let of = format!("{} {}", words::ownership(Names::Files, root), words::mode(root));
    // What the server is to write to belongs to the server.
    let server = rustix::process::geteuid().as_raw();
    let owner = match server {
        0 => String::new(),
        uid => format!("-o {} ", shell::name(Names::Files.user(uid), uid)),
    };
    format!(
        "{who} may create repositories here ({of}); to let others: \
         setfacl -m u:alice:rwx {path}, or sudo install -d {owner}-g team -m 2775 {team}"
    )
}

/// Those whom a directory lets write, as far as an account can log in as them. root is not among
/// them: it may do everything, and logs in only with --allow-root.
fn writers(found: &Permissions) -> Vec<String> {
    let names = Names::Files;
    let writes = |bits: u8| bits & (WRITE | SEARCH) == WRITE | SEARCH;
    let mut who = Vec::new();
    if found.owner != 0 && writes(words::low(found.mode >> 6)) {
        who.push(names.user(found.owner));
    }
    let acl = found.acl.iter().flatten().filter(|_| !words::acl_is_off(found));
    let mask = words::mask(found);
    let mut group_class = words::low(found.mode >> 3);
    for Entry { whom, bits } in acl {
        match *whom {
            Whom::OwningGroup => group_class = bits & mask,
            Whom::User(uid) if uid != found.owner && writes(bits & mask) => {
                who.push(names.user(uid));
            }
            Whom::Group(gid) if writes(bits & mask) => who.push(group(names, gid)),
            _ => {}
        }
    }
    if writes(group_class) {
        who.push(group(names, found.group));
    }
    if writes(words::low(found.mode)) {
        who.push("everybody who logs in".to_owned());
    }
    who
}

fn group(names: Names, gid: u32) -> String {
    format!("group {}", names.group(gid))
}

fn pullers(start: &Start<'_>, found: &Permissions) -> String {
    match start.anonymous {
        None => "everything is pulled without a login".to_owned(),
        Some(Anonymous::Nothing) => "nothing is pulled without a login".to_owned(),
        Some(Anonymous::Pull) if found.mode & 0o001 == 0 => format!(
            "nothing is pulled without a login, for others may not enter {} (chmod o+x)",
            start.root.display()
        ),
        Some(Anonymous::Pull) => "pulled without a login is what everybody may read: o+rx on a \
            repository's directory, o+x on those above it"
            .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(owner: u32, mode: u16, acl: Option<Vec<Entry>>) -> Permissions {
        Permissions { owner, group: 1, mode, acl }
    }

    #[test]
    fn who_may_rename_is_warned_of() {
        use std::os::unix::fs::PermissionsExt;
        let temp = tempfile::tempdir().unwrap();
        let of = |mode| {
            std::fs::set_permissions(temp.path(), std::fs::Permissions::from_mode(mode)).unwrap();
            let root = temp.path();
            let start =
                Start { root, anonymous: None, admin_group: None, only_admins_write: false };
            renamers(&start).unwrap()
        };
        assert_eq!(of(0o755), None);
        assert!(of(0o777).is_some_and(|text| text.contains("chmod +t")));
        assert_eq!(of(0o1777), None);
    }

    #[test]
    fn writers_are_those_whom_the_bits_let() {
        assert!(writers(&found(0, 0o755, None)).is_empty());
        assert_eq!(writers(&found(1, 0o755, None)), ["daemon"]);
        assert_eq!(writers(&found(0, 0o2775, None)), ["group daemon"]);
        assert_eq!(writers(&found(0, 0o777, None)).len(), 2);
        let entry = |whom, bits| Entry { whom, bits };
        let acl = |mask| {
            vec![
                entry(Whom::Owner, 7),
                entry(Whom::User(2), 7),
                entry(Whom::OwningGroup, 5),
                entry(Whom::Group(3), 7),
                entry(Whom::Mask, mask),
                entry(Whom::Other, 5),
            ]
        };
        assert_eq!(writers(&found(0, 0o775, Some(acl(7)))), ["bin", "group sys"]);
        assert!(writers(&found(0, 0o755, Some(acl(5)))).is_empty());
        assert!(writers(&found(0, 0o705, Some(acl(0)))).is_empty());
    }
}
