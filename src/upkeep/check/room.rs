//! The registry's own room.

use rustix::fs::FileType;

use super::finding::Findings;
use super::probe;
use super::rule::Rule;
use super::{Look, pool, rights};
use crate::layout::uploads::{Owner, UploadId};
use crate::layout::{self, Dir, Result, path, size_of};
use crate::oci::{Algorithm, Digest, RepoName};

/// Checks the room, and gives how many names its pool has. `None` if the tree has a version of which
/// nothing is known.
pub(super) fn check(look: &Look<'_>, room: &Dir, findings: &mut Findings) -> Result<Option<u64>> {
    if !version(room, findings) {
        return Ok(None);
    }
    open(room, findings);
    token_key(room, findings);
    tls_key(room, findings);
    uploads(room, findings);
    if let Some(dir) = probe::dir(room, path::UNREFERENCED, findings).there() {
        notes(&dir, "", findings);
    }
    for name in [path::GC_LOCK, path::TOKEN_LOCK, path::COLLECTED] {
        probe::status(room, name, FileType::RegularFile, findings);
    }
    for dir in [path::TRASH, path::QUARANTINE, path::WEBHOOKS] {
        probe::status(room, dir, FileType::Directory, findings);
    }
    pool::check(look, room, findings).map(Some)
}

fn version(room: &Dir, findings: &mut Findings) -> bool {
    let Some((file, _)) = probe::file(room, path::VERSION, findings).there() else {
        return true;
    };
    let at = room.at(path::VERSION);
    match layout::read_all(&file, 64, || at.clone()) {
        Ok(bytes) if bytes == path::VERSION_TEXT.as_bytes() => true,
        Ok(bytes) => {
            let found = String::from_utf8_lossy(&bytes);
            let message = format!("is {:?}; this program knows version 1 only", found.trim_end());
            findings.add(Rule::VersionUnknown, &at, message);
            false
        }
        Err(error) => {
            probe::unreadable(&error, findings);
            true
        }
    }
}

fn open(room: &Dir, findings: &mut Findings) {
    let Some(stat) = probe::look(room.stat(), findings) else { return };
    let mode = stat.st_mode & 0o7777;
    let acl = rights::has_acl(room, room.path(), findings);
    if mode != 0o700 || acl {
        let acl = if acl { " and an ACL" } else { "" };
        let message = format!("has mode {mode:o}{acl}, must have 700 and no ACL");
        findings.add(Rule::RoomOpen, room.path(), message);
    }
}

fn token_key(room: &Dir, findings: &mut Findings) {
    let Some((file, stat)) = probe::file(room, path::TOKEN_KEY, findings).there() else {
        return;
    };
    let at = room.at(path::TOKEN_KEY);
    let mode = stat.st_mode & 0o7777;
    if mode != 0o600 || rights::has_acl(&file, &at, findings) {
        let message = format!("has mode {mode:o}, must have 600 and no ACL");
        findings.add(Rule::TokenKeyUnsafe, &at, message);
    }
    let read = layout::read_all(&file, 512, || at.clone());
    if let Err(error) = &read
        && probe::is_trouble(error)
    {
        // It may be sound: a repair would delete it.
        return probe::unreadable(error, findings);
    }
    let keys = read.ok().map(zeroize::Zeroizing::new);
    if keys.and_then(|bytes| layout::Keys::parse(&bytes)).is_none() {
        let message = "holds no key: a line for the current one and a line for the one before";
        findings.add(Rule::TokenKeyUnsafe, &at, message);
    }
}

fn tls_key(room: &Dir, findings: &mut Findings) {
    let Some(tls) = probe::dir(room, path::TLS, findings).there() else {
        return;
    };
    probe::status(&tls, path::TLS_CERTIFICATE, FileType::RegularFile, findings);
    let Some((file, stat)) = probe::file(&tls, path::TLS_KEY, findings).there() else {
        return;
    };
    let mode = stat.st_mode & 0o7777;
    let at = tls.at(path::TLS_KEY);
    if mode != 0o600 || rights::has_acl(&file, &at, findings) {
        let message = format!("has mode {mode:o}, must have 600 and no ACL");
        findings.add(Rule::TlsKeyUnsafe, &at, message);
    }
}

fn uploads(room: &Dir, findings: &mut Findings) {
    let Some(uploads) = probe::dir(room, path::UPLOADS, findings).there() else {
        return;
    };
    for (name, _) in probe::names(&uploads, findings) {
        if probe::is_hidden(&name) {
            continue;
        }
        if UploadId::parse(&name).is_none() {
            let message = "is not 32 hexadecimal digits";
            findings.add(Rule::UploadMalformed, &uploads.at(&name), message);
        } else if let Some(session) = probe::dir(&uploads, &name, findings).there() {
            owner(&session, findings);
            probe::status(&session, path::UPLOAD_DATA, FileType::RegularFile, findings);
        }
    }
}

fn owner(session: &Dir, findings: &mut Findings) {
    let Some((file, _)) = probe::file(session, path::UPLOAD_OWNER, findings).there() else {
        return;
    };
    let at = session.at(path::UPLOAD_OWNER);
    let bytes = match layout::read_all(&file, 1 << 16, || at.clone()) {
        Ok(bytes) => bytes,
        Err(error) => return probe::unreadable(&error, findings),
    };
    let why = match serde_json::from_slice::<Owner>(&bytes) {
        // A crash left the beginning, or the length without the bytes.
        Err(error) if error.is_eof() || bytes.first() == Some(&0) => return,
        Err(error) => error.to_string(),
        Ok(owner) => {
            let repository = RepoName::parse(&owner.repository).err().map(|e| e.to_string());
            let algorithm = owner.algorithm.parse::<Algorithm>().err().map(|e| e.to_string());
            match repository.or(algorithm) {
                Some(why) => why,
                None => return,
            }
        }
    };
    findings.add(Rule::UploadMalformed, &at, why);
}

/// Collection's notes: `name` is the repository's so far.
fn notes(dir: &Dir, name: &str, findings: &mut Findings) {
    for (child, kind) in probe::names(dir, findings) {
        if kind == FileType::Directory {
            let whole = if name.is_empty() { child.clone() } else { format!("{name}/{child}") };
            match RepoName::parse(&whole) {
                Ok(_) => {
                    if let Some(dir) = probe::dir(dir, &child, findings).there() {
                        notes(&dir, &whole, findings);
                    }
                }
                Err(error) => {
                    findings.add(Rule::NoteMalformed, &dir.at(&child), error.to_string());
                }
            }
            continue;
        }
        let Some(stat) = probe::status(dir, &child, FileType::RegularFile, findings).there() else {
            continue;
        };
        if name.is_empty() || Digest::parse(&child).is_err() || size_of(&stat) != 0 {
            let message = "is not an empty file called by a digest, in a repository's directory";
            findings.add(Rule::NoteMalformed, &dir.at(&child), message);
        }
    }
}
