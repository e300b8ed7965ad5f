//! What the machine refused: in words for the client, and with what mends it for the log.
//!
//! The client is told what is the matter and what to do, never a path of ours; the log has the path,
//! the cause and what an administrator can do about it.

use std::path::Path;

use http::StatusCode;
use http::header::RETRY_AFTER;
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use super::reply::{Code, Problem, value};

/// A cause that is known.
#[derive(Debug)]
pub(super) struct Fault {
    kind: Kind,
    /// What an administrator can do.
    pub(super) mend: String,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// There is no room for what the request brings.
    Space(&'static str),
    /// Later it may work; the client is to wait so many seconds.
    Later(&'static str, u8),
}

/// Asks a person for patience, and a program for some more of it than a moment.
const DISK: &str = "the registry's disk does not work at present: its administrator finds the reason in the \
     server's log";

impl Fault {
    /// What an error number means at a path; `None` where it says nothing about the machine.
    pub(super) fn of(errno: Errno, path: &Path) -> Option<Fault> {
        let at = path.display();
        let uid = rustix::process::geteuid().as_raw();
        let (kind, mend) = match errno {
            Errno::NOSPC => (
                Kind::Space("the registry has no space left: ask its administrator to make some"),
                format!("make room, or free inodes, on the file system of {at} (df, df -i)"),
            ),
            Errno::DQUOT => (
                Kind::Space("the registry's quota is used up: ask its administrator to raise it"),
                format!("raise the quota of uid {uid} on the file system of {at} (repquota)"),
            ),
            Errno::MLINK | Errno::FBIG => (
                Kind::Space(
                    "the registry's file system takes no more of this: ask its administrator",
                ),
                format!("the file system of {at} has reached a limit of its own"),
            ),
            Errno::ROFS => (
                Kind::Later("the registry is read-only at present: try again later", 30),
                format!(
                    "mount the file system of {at} writable again; if the kernel made it read-only, \
                     dmesg says why"
                ),
            ),
            Errno::MFILE => (
                Kind::Later("the server has too many files open: try again", 5),
                format!(
                    "raise the server's limit of open files (LimitNOFILE=, ulimit -n){}",
                    limit()
                ),
            ),
            Errno::NFILE => (
                Kind::Later("the server's machine has too many files open: try again", 5),
                "raise the machine's limit of open files (sysctl fs.file-max)".to_owned(),
            ),
            Errno::NOMEM | Errno::NOBUFS => (
                Kind::Later("the server is out of memory: try again", 5),
                "give the server, or its control group (MemoryMax=), more memory".to_owned(),
            ),
            Errno::NOLCK => (
                Kind::Later("the registry's file system gives no locks at present: try again", 5),
                format!("find out why flock(2) fails at {at}"),
            ),
            Errno::XDEV => (
                Kind::Later(DISK, 30),
                format!("{at} lies on another file system than what is to be renamed to it"),
            ),
            Errno::IO
            | Errno::UCLEAN
            | Errno::BADMSG
            | Errno::NODEV
            | Errno::NOMEDIUM
            | Errno::REMOTEIO
            | Errno::STALE
            | Errno::TIMEDOUT
            | Errno::NOTCONN
            | Errno::SHUTDOWN => (
                Kind::Later(DISK, 30),
                format!(
                    "dmesg tells what became of the disk of {at}; once it works, `stillage check` tells \
                     what was harmed"
                ),
            ),
            _ => return None,
        };
        Some(Fault { kind, mend })
    }

    /// The answer.
    pub(super) fn problem(&self) -> Problem {
        match self.kind {
            Kind::Space(text) => {
                Problem::new(StatusCode::INSUFFICIENT_STORAGE, Code::Unknown, text)
            }
            Kind::Later(text, wait) => {
                Problem::new(StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable, text)
                    .header(RETRY_AFTER, value(wait.to_string()))
            }
        }
    }
}

/// How many files the server may have open, in words.
fn limit() -> String {
    let limit = getrlimit(Resource::Nofile).current;
    limit.map_or_else(String::new, |limit| format!(", which is {limit}"))
}
