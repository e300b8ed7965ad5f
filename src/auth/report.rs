//! Says at the start who will be able to log in, and what would let more people in.

use std::fs;
use std::io;
use std::path::Path;

use nix::unistd::Group;

use super::user::User;

/// Where PAM looks for service files.
const PAM_DIR: &str = "/etc/pam.d";

/// What decides who can log in.
pub(super) struct Facts<'a> {
    pub(super) server: &'a User,
    pub(super) service: &'a str,
    pub(super) confdir: Option<&'a Path>,
    pub(super) allow_root: bool,
    /// Whether helpers that PAM starts, such as unix_chkpwd, can gain no rights.
    pub(super) no_new_privileges: bool,
}

/// One line without a line feed at its end.
pub(super) fn who_can_log_in(facts: &Facts<'_>) -> String {
    let mut line = whose_passwords(facts.server, facts.no_new_privileges);
    if let Some(note) = service_note(facts.service, facts.confdir) {
        line.push_str("; ");
        line.push_str(&note);
    }
    if !facts.allow_root {
        line.push_str("; root may not log in, see --allow-root");
    }
    line
}

fn whose_passwords(server: &User, no_new_privileges: bool) -> String {
    let name = &server.name;
    if server.uid == 0 {
        return "started as root: every account of this host can log in".to_owned();
    }
    match Group::from_name("shadow") {
        Ok(Some(group)) if server.groups.contains(&group.gid.as_raw()) => format!(
            "started as {name}, a member of group shadow: every account of this host can log in"
        ),
        _ if no_new_privileges => format!(
            "started as {name} without new privileges: no password in /etc/shadow can be checked, \
             add {name} to group shadow"
        ),
        _ => format!("started as {name}: only {name}'s password can be checked"),
    }
}

/// What is to be said about the service's file; nothing if it is there.
fn service_note(service: &str, confdir: Option<&Path>) -> Option<String> {
    let dir = confdir.unwrap_or(Path::new(PAM_DIR));
    let file = dir.join(service);
    if file.exists() {
        return None;
    }
    let file = file.display();
    let other = dir.join("other");
    Some(match fs::read_to_string(&other) {
        Ok(text) if denies_everyone(&text) => format!(
            "no {file}, and `other` denies everyone: create {file} with the lines \
             `auth include system-auth` and `account include system-auth`, or what this host has \
             in their place"
        ),
        Ok(_) => format!("no {file}, so PAM goes by {}", other.display()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            format!("no {file} and no {}: nobody can log in until one exists", other.display())
        }
        Err(error) => format!("no {file}, and {} cannot be read: {error}", other.display()),
    })
}

/// Whether the first `auth` line that is not optional denies. What includes other files does not
/// count as denying: the distribution's common files let users in.
fn denies_everyone(text: &str) -> bool {
    let first = text.lines().map(str::trim).filter(|line| !line.starts_with('#')).find(|line| {
        let kind = line.split_whitespace().next().unwrap_or_default();
        kind.trim_start_matches('-') == "auth" && !line.contains("pam_warn.so")
            || line.starts_with("@include")
    });
    first.is_none_or(|line| line.contains("pam_deny.so"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str, uid: u32, groups: &[u32]) -> User {
        User { name: name.into(), uid, gid: uid, groups: groups.to_vec() }
    }

    #[test]
    fn says_whose_passwords_can_be_checked() {
        let shadow = Group::from_name("shadow").expect("the name service").expect("on Debian");
        assert!(whose_passwords(&user("root", 0, &[0]), true).contains("every account"));
        let member = user("stillage", 990, &[990, shadow.gid.as_raw()]);
        assert!(whose_passwords(&member, true).contains("every account"));
        assert_eq!(
            whose_passwords(&user("alice", 1000, &[1000]), false),
            "started as alice: only alice's password can be checked"
        );
        let shut_in = whose_passwords(&user("alice", 1000, &[1000]), true);
        assert!(shut_in.contains("add alice to group shadow"), "{shut_in}");
    }

    #[test]
    fn says_what_a_missing_service_file_means() {
        let dir = tempfile::tempdir().expect("a directory");
        let note = || service_note("stillage", Some(dir.path()));
        assert!(note().expect("a note").contains("nobody can log in until"));
        let other = dir.path().join("other");
        fs::write(&other, "# no\nauth required pam_warn.so\nauth required pam_deny.so\n")
            .expect("write");
        assert!(note().expect("a note").contains("denies everyone"));
        fs::write(&other, "@include common-auth\n").expect("write");
        let text = note().expect("a note");
        assert!(text.contains("goes by") && !text.contains("denies"), "{text}");
        fs::write(dir.path().join("stillage"), "auth required pam_permit.so\n").expect("write");
        assert_eq!(note(), None);
    }
}
