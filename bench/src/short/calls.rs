//! The system calls of a server, as strace(1) sees them.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::expected::Counts;
use super::quiet::until_quiet;

/// Calls of one server, written down while this lives.
pub(super) struct Trace {
    strace: Child,
    dir: PathBuf,
    server: u32,
}

/// What a call was made on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum On {
    Tree,
    Socket,
}

/// One call.
#[derive(Debug, PartialEq, Eq)]
struct Call<'a> {
    name: &'a str,
    on: On,
    /// What it gave back; nothing where it failed.
    returned: Option<u64>,
    text: &'a str,
}

impl Trace {
    /// Attaches to a server that rests. A file for each thread: so no line is cut in two.
    pub(super) fn begin(server: u32, dir: PathBuf) -> Result<Trace> {
        until_quiet(server)?;
        let mut strace = Command::new("strace")
            .args(["-f", "-ff", "-y", "-s", "0", "-o"])
            .arg(dir.join("thread"))
            .args(["-p", &server.to_string()])
            .stderr(Stdio::piped())
            .spawn()
            .context("strace")?;
        let mut said = BufReader::new(strace.stderr.take().context("stderr is piped")?);
        let mut line = String::new();
        said.read_line(&mut line)?;
        ensure!(line.contains("attached"), "strace: {line}");
        // It says more with each thread that comes, and must be able to.
        std::thread::spawn(move || said.read_to_end(&mut Vec::new()));
        // Waking up for strace is done now, too.
        until_quiet(server)?;
        Ok(Trace { strace, dir, server })
    }

    /// Ends it once the server rests: the lines of each thread.
    pub(super) fn end(mut self) -> Result<Vec<String>> {
        until_quiet(self.server)?;
        kill_process(Pid::from_child(&self.strace), Signal::TERM)?;
        self.strace.wait()?;
        let mut threads = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            threads.push(fs::read_to_string(entry?.path())?);
        }
        Ok(threads)
    }
}

/// Counts what was done on files beneath `root` and on sockets.
pub(super) fn count(threads: &[String], root: &Path) -> Counts {
    let root = root.to_string_lossy();
    let mut counts = BTreeMap::new();
    let mut add = |name: String, more: f64| *counts.entry(name).or_default() += more;
    for call in threads.iter().flat_map(|text| text.lines()).filter_map(|line| parse(line, &root)) {
        let Call { name, on, returned, text } = call;
        match on {
            On::Socket => add(format!("socket {name}"), 1.0),
            On::Tree => add(name.to_owned(), 1.0),
        }
        let bytes = returned.unwrap_or(0) as f64;
        // A time in the journal ends in no zero: lines are not of one length.
        let journal = text.contains("_log.jsonl");
        let read = matches!(name, "read" | "pread64" | "preadv" | "preadv2" | "readv");
        if on == On::Tree && read && !journal {
            add("bytes read".to_owned(), bytes);
        }
        let written = matches!(name, "write" | "pwrite64" | "writev" | "pwritev");
        if on == On::Tree && written && text.contains("index.json") {
            add("bytes index.json".to_owned(), bytes);
        }
    }
    counts
}

/// A line of strace, if it is a call on the tree or on a connection.
fn parse<'a>(line: &'a str, root: &str) -> Option<Call<'a>> {
    let (name, rest) = line.split_once('(')?;
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    // The runtime's own: they depend on who is awake.
    if !name.chars().all(plain) || name.starts_with("epoll") {
        return None;
    }
    let result = rest.rsplit_once(" = ")?.1;
    let returned = result.split([' ', '<']).next()?.parse().ok();
    let on = if rest.contains(root) {
        On::Tree
    } else if rest.split_once('<')?.1.starts_with("socket:[") {
        On::Socket
    } else {
        return None;
    };
    // Builds with debug assertions ask before each close(2) whether it is open.
    if name == "fcntl" && rest.contains("F_GETFD") {
        return None;
    }
    // Whether a read of the socket comes too early is a matter of luck.
    if on == On::Socket && result.contains("EAGAIN") {
        return None;
    }
    Some(Call { name, on, returned, text: rest })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_strace_are_read() {
        let call = |line| parse(line, "/r").map(|call| (call.name, call.on, call.returned));
        let lines = [
            ("read(9</r/a/index.json>, \"\"..., 512) = 507", Some(("read", On::Tree, Some(507)))),
            (
                "recvfrom(9<socket:[81]>, \"\"..., 8192, 0, NULL, NULL) = 92",
                Some(("recvfrom", On::Socket, Some(92))),
            ),
            (
                "recvfrom(9<socket:[81]>, 0x1, 8192, 0, NULL, NULL) = -1 EAGAIN (Resource temporarily unavailable)",
                None,
            ),
            (
                "statx(5</r>, \"a\", AT_SYMLINK_NOFOLLOW, 0, 0x1) = -1 ENOENT (No such file or directory)",
                Some(("statx", On::Tree, None)),
            ),
            ("epoll_ctl(4<anon_inode:[eventpoll]>, EPOLL_CTL_ADD, 9<socket:[81]>, {}) = 0", None),
            ("fcntl(7</r/a/index.json>, F_GETFD)      = 0x1 (flags FD_CLOEXEC)", None),
            ("futex(0x7f, FUTEX_WAKE_PRIVATE, 1) = 1", None),
            ("+++ exited with 0 +++", None),
            ("openat2(5</r>, \"a\", {}, 24) = 11</r/a>", Some(("openat2", On::Tree, Some(11)))),
        ];
        for (line, expected) in lines {
            assert_eq!(call(line), expected, "{line}");
        }
    }

    #[test]
    fn bytes_of_index_json_are_added_up() {
        let thread = "write(9</r/a/.index.json.1>, \"\"..., 700) = 700\nwrite(8</r/a/_log.jsonl>, \"\"..., 99) = 99\n";
        let counts = count(&[thread.to_owned()], Path::new("/r"));
        assert_eq!(counts["bytes index.json"], 700.0);
        assert_eq!(counts["write"], 2.0);
    }
}
