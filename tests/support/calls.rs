//! Every system call with which a program touches its tree, held before it happens: to be recorded, to
//! fail, or to be the program's last.
//!
//! A seccomp filter hands the calls to the test (`SECCOMP_RET_USER_NOTIF`). Unlike strace(1), whose
//! `inject=CALL:error=ERRNO:when=N` counts for each thread alone, this counts over the whole
//! program, so that a number always means the same call; it needs no ptrace, and one server serves
//! a thousand faults. Needs root.
#![allow(unsafe_code, reason = "seccomp(2) and its descriptor have no safe interface")]

mod place;

use std::collections::HashMap;
use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, PoisonError};

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg,
    sendmsg, socketpair,
};

/// A call that touches the tree, or takes a connection.
#[derive(Clone, Debug)]
pub struct Call {
    /// Its name, as strace(1) spells it.
    pub name: &'static str,
    /// What it touches.
    pub path: PathBuf,
    /// The same from the root, without what is another each time: see [`Calls::on`].
    pub place: String,
    /// The inode behind the descriptor, and whether that is a directory, where there is one.
    pub inode: Option<(u64, bool)>,
}

/// One call of those that a program makes: the n-th of its name at a place. A number always means the
/// same call, also where threads take turns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    pub call: &'static str,
    pub place: String,
    pub nth: usize,
}

impl std::fmt::Display for Site {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}:{}", self.call, self.place, self.nth)
    }
}

/// Where the calls are that were seen, in their order.
pub fn sites(seen: &[(Call, Answer)]) -> Vec<(Site, Call)> {
    let mut counts: HashMap<(&str, &str), usize> = HashMap::new();
    let mut sites = Vec::new();
    for (call, _) in seen {
        let nth = counts.entry((call.name, &call.place)).or_default();
        *nth += 1;
        let site = Site { call: call.name, place: call.place.clone(), nth: *nth };
        sites.push((site, call.clone()));
    }
    sites
}

/// Whether an opening makes a file, as far as its name tells.
pub fn makes(call: &Call) -> bool {
    let name = call.path.file_name().unwrap_or_default().to_string_lossy();
    let hidden = name.starts_with('.') && name != ".stillage";
    hidden || name.ends_with(".jsonl") || name == "data" || name == "owner"
}

/// How often something happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Often {
    /// To this one.
    Once,
    /// To this one and all later ones of its name, wherever.
    ForGood,
    /// To this one and so many in all of its name that come next.
    Times(usize),
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is made.
    Go,
    /// It is not made, and fails with this error number.
    Fail(i32),
    /// It is not made, and says that it was: a disk that lies.
    Pretend,
    /// The program is killed before it.
    Kill,
}

type Rule = Box<dyn FnMut(&Call) -> Answer + Send>;

/// Stands between programs and a tree.
#[derive(Clone)]
pub struct Calls(Arc<Shared>);

struct Shared {
    root: PathBuf,
    /// The same content lies there each time: digests tell places apart.
    known: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    rule: Option<Rule>,
    seen: Vec<(Call, Answer)>,
}

/// Which argument says what a call touches.
#[derive(Clone, Copy)]
enum What {
    Fd,
    /// The second argument is the file's descriptor, the first one a socket's.
    From,
    /// A directory's descriptor and a path.
    At(usize, usize),
    /// A descriptor, if the second argument is this one.
    Only(u64),
    Socket,
}

const FICLONE: u64 = 0x4004_9409;

/// The calls that are held. `read` and `write` are those of files as well as of pipes and eventfds:
/// what does not touch the tree goes on.
const HELD: [(libc::c_long, &str, What); 39] = [
    (libc::SYS_openat, "openat", What::At(0, 1)),
    (libc::SYS_openat2, "openat2", What::At(0, 1)),
    (libc::SYS_mkdirat, "mkdirat", What::At(0, 1)),
    (libc::SYS_linkat, "linkat", What::At(2, 3)),
    (libc::SYS_renameat, "renameat", What::At(2, 3)),
    (libc::SYS_renameat2, "renameat2", What::At(2, 3)),
    (libc::SYS_unlinkat, "unlinkat", What::At(0, 1)),
    (libc::SYS_symlinkat, "symlinkat", What::At(1, 2)),
    (libc::SYS_newfstatat, "newfstatat", What::At(0, 1)),
    (libc::SYS_statx, "statx", What::At(0, 1)),
    (libc::SYS_readlinkat, "readlinkat", What::At(0, 1)),
    (libc::SYS_utimensat, "utimensat", What::At(0, 1)),
    (libc::SYS_fchmodat, "fchmodat", What::At(0, 1)),
    (libc::SYS_fchownat, "fchownat", What::At(0, 1)),
    (libc::SYS_write, "write", What::Fd),
    (libc::SYS_pwrite64, "pwrite64", What::Fd),
    (libc::SYS_writev, "writev", What::Fd),
    (libc::SYS_read, "read", What::Fd),
    (libc::SYS_pread64, "pread64", What::Fd),
    (libc::SYS_preadv2, "preadv2", What::Fd),
    (libc::SYS_sendfile, "sendfile", What::From),
    (libc::SYS_ftruncate, "ftruncate", What::Fd),
    (libc::SYS_fallocate, "fallocate", What::Fd),
    (libc::SYS_fsync, "fsync", What::Fd),
    (libc::SYS_fdatasync, "fdatasync", What::Fd),
    (libc::SYS_syncfs, "syncfs", What::Fd),
    (libc::SYS_fchmod, "fchmod", What::Fd),
    (libc::SYS_fchown, "fchown", What::Fd),
    (libc::SYS_fsetxattr, "fsetxattr", What::Fd),
    (libc::SYS_fgetxattr, "fgetxattr", What::Fd),
    (libc::SYS_fremovexattr, "fremovexattr", What::Fd),
    (libc::SYS_flock, "flock", What::Fd),
    (libc::SYS_getdents64, "getdents64", What::Fd),
    (libc::SYS_fstat, "fstat", What::Fd),
    (libc::SYS_fstatfs, "fstatfs", What::Fd),
    (libc::SYS_lseek, "lseek", What::Fd),
    (libc::SYS_fcntl, "fcntl", What::Only(libc::F_DUPFD_CLOEXEC as u64)),
    (libc::SYS_ioctl, "ioctl", What::Only(FICLONE)),
    (libc::SYS_accept4, "accept4", What::Socket),
];

impl Calls {
    /// Of whatever is started with [`Calls::spawn`] and touches `root`. Numbers, digests and what is
    /// drawn by lot are left out of [`Call::place`].
    pub fn on(root: &Path) -> Calls {
        Calls(Arc::new(Shared { root: root.to_owned(), known: false, state: Mutex::default() }))
    }

    /// The same where each time the same content lies: digests stay in [`Call::place`].
    pub fn on_known(root: &Path) -> Calls {
        Calls(Arc::new(Shared { root: root.to_owned(), known: true, state: Mutex::default() }))
    }

    /// From now on every call is answered by this rule, and remembered.
    pub fn rule(&self, rule: impl FnMut(&Call) -> Answer + Send + 'static) {
        *self.0.state() = State { rule: Some(Box::new(rule)), ..State::default() };
    }

    /// From now on this becomes of the call at a site, and all are remembered.
    pub fn answer_at(&self, site: &Site, answer: Answer, often: Often) {
        let site = site.clone();
        let (mut count, mut more) = (0, 0);
        self.rule(move |call| {
            if call.name != site.call {
                return Answer::Go;
            }
            if count < site.nth {
                count += usize::from(call.place == site.place);
                if count < site.nth {
                    return Answer::Go;
                }
                more = match often {
                    Often::Once => 1,
                    Often::ForGood => usize::MAX,
                    Often::Times(times) => times,
                };
            }
            match more.checked_sub(1) {
                Some(left) => {
                    more = left;
                    answer
                }
                None => Answer::Go,
            }
        });
    }

    /// Only remembers.
    pub fn record(&self) {
        self.rule(|_| Answer::Go);
    }

    /// How many calls there were since the rule was set.
    pub fn count(&self) -> usize {
        self.0.state().seen.len()
    }

    /// All calls are made again. Gives what there was since the rule was set, with its answers.
    pub fn done(&self) -> Vec<(Call, Answer)> {
        std::mem::take(&mut *self.0.state()).seen
    }

    /// Starts a program whose calls are held.
    pub fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        let pair = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC);
        let (ours, theirs) = pair?;
        let filter = filter();
        let to = theirs.as_raw_fd();
        // SAFETY: between fork and exec only system calls are made, and nothing is allocated.
        unsafe { command.pre_exec(move || hand_over(&filter, to)) };
        let shared = Arc::clone(&self.0);
        // Before exec already: where that fails, the child writes so to its parent, which waits for it.
        std::thread::spawn(move || match take_over(&ours) {
            Ok(listener) => shared.answer_all(&listener),
            Err(error) => eprintln!("nobody answers the calls: {error}"),
        });
        let child = command.spawn();
        drop(theirs);
        child
    }
}

impl Shared {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until the last thread of the program has ended.
    fn answer_all(&self, listener: &OwnedFd) {
        loop {
            let mut polled = [PollFd::new(std::os::fd::AsFd::as_fd(listener), PollFlags::POLLIN)];
            match poll(&mut polled, PollTimeout::NONE) {
                Err(nix::errno::Errno::EINTR) => continue,
                Err(_) => return,
                Ok(_) => {}
            }
            let events = polled[0].revents().unwrap_or(PollFlags::empty());
            if !events.contains(PollFlags::POLLIN) {
                return;
            }
            let Some(notice) = receive(listener) else {
                continue;
            };
            // A rule in which an assertion fails ends the program: its client would wait for ever.
            let judged = catch_unwind(AssertUnwindSafe(|| self.judge(&notice)));
            match judged.unwrap_or(Answer::Kill) {
                Answer::Go => respond(listener, notice.id, 0, SECCOMP_CONTINUE),
                Answer::Fail(errno) => respond(listener, notice.id, -errno, 0),
                Answer::Pretend => respond(listener, notice.id, 0, 0),
                Answer::Kill => {
                    let pid = i32::try_from(notice.pid).expect("a process id");
                    // A signal for one thread that is deadly ends all of them.
                    let _ = nix::sys::signal::kill(
                        nix::unistd::Pid::from_raw(group_of(pid)),
                        nix::sys::signal::SIGKILL,
                    );
                }
            }
        }
    }

    fn judge(&self, notice: &libc::seccomp_notif) -> Answer {
        let mut state = self.state();
        if state.rule.is_none() {
            return Answer::Go;
        }
        let Some(mut call) = call(notice, &self.root) else {
            return Answer::Go;
        };
        call.place =
            place::of(call.path.strip_prefix(&self.root).unwrap_or(&call.path), self.known);
        let answer = state.rule.as_mut().map_or(Answer::Go, |rule| rule(&call));
        state.seen.push((call, answer));
        answer
    }
}

/// The call, if it touches what lies beneath `root` or takes a connection.
fn call(notice: &libc::seccomp_notif, root: &Path) -> Option<Call> {
    let number = libc::c_long::from(notice.data.nr);
    let (_, name, what) = HELD.iter().find(|(held, ..)| *held == number)?;
    let pid = notice.pid;
    let args = notice.data.args;
    // A descriptor is the lower half, with its sign: AT_FDCWD is negative.
    let fd = |arg: usize| u32::try_from(args[arg] & 0xffff_ffff).map_or(-1, u32::cast_signed);
    let (path, inode) = match *what {
        What::Socket => {
            let (path, place) = ("a socket".into(), String::new());
            return Some(Call { name, path, place, inode: None });
        }
        What::Only(command) if args[1] != command => return None,
        What::Fd | What::From | What::Only(_) => {
            let arg = usize::from(matches!(what, What::From));
            let link = format!("/proc/{pid}/fd/{}", fd(arg));
            let path = fs::read_link(&link).ok()?;
            if !path.starts_with(root) {
                return None;
            }
            let inode = fs::metadata(&link).ok().map(|meta| (meta.ino(), meta.is_dir()));
            (path, inode)
        }
        What::At(dir, name) => {
            let link = match fd(dir) {
                libc::AT_FDCWD => format!("/proc/{pid}/cwd"),
                fd => format!("/proc/{pid}/fd/{fd}"),
            };
            let dir = fs::read_link(link).unwrap_or_default();
            let name = string_of(pid, args[name]);
            // As join() does it, but without the slash after what is named by its descriptor alone.
            (if name.is_empty() { dir } else { dir.join(name) }, None)
        }
    };
    path.starts_with(root).then_some(Call { name, path, place: String::new(), inode })
}

/// A C string in another process.
fn string_of(pid: u32, address: u64) -> String {
    let mut bytes = [0; 512];
    let read = fs::File::open(format!("/proc/{pid}/mem"))
        .and_then(|memory| memory.read_at(&mut bytes, address))
        .unwrap_or(0);
    let end = bytes[..read].iter().position(|byte| *byte == 0).unwrap_or(read);
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// The process that a thread belongs to.
fn group_of(thread: i32) -> i32 {
    let status = fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Tgid:"));
    line.and_then(|id| id.trim().parse().ok()).unwrap_or(thread)
}

const SECCOMP_CONTINUE: u32 = 1;
const NOTIF_RECV: libc::c_ulong = 0xc050_2100;
const NOTIF_SEND: libc::c_ulong = 0xc018_2101;
const NOTIF_SET_FLAGS: libc::c_ulong = 0x4008_2104;
const SYNC_WAKE_UP: libc::c_ulong = 1;

fn filter() -> Vec<libc::sock_filter> {
    let op = |code: u32, jt: usize, jf: usize, k: u32| libc::sock_filter {
        code: u16::try_from(code).expect("an operation"),
        jt: u8::try_from(jt).expect("a short jump"),
        jf: u8::try_from(jf).expect("a short jump"),
        k,
    };
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let end = |action| op(libc::BPF_RET | libc::BPF_K, 0, 0, action);
    // The number of the call is the first thing that is known of it.
    let mut filter = vec![op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0)];
    for (at, (number, ..)) in HELD.iter().enumerate() {
        let number = u32::try_from(*number).expect("a call");
        filter.push(op(equal, HELD.len() - at, 0, number));
    }
    filter.push(end(libc::SECCOMP_RET_ALLOW));
    filter.push(end(libc::SECCOMP_RET_USER_NOTIF));
    filter
}

/// In the child, before exec: installs the filter and sends its descriptor to the test.
fn hand_over(filter: &[libc::sock_filter], to: RawFd) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: libc::c_ushort::try_from(filter.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: the program lives until the call returns, which copies it.
    let listener = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const program,
        )
    };
    let Ok(listener) = RawFd::try_from(listener) else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    if listener < 0 {
        return Err(io::Error::last_os_error());
    }
    let fds = [listener];
    let message = [ControlMessage::ScmRights(&fds)];
    sendmsg::<()>(to, &[IoSlice::new(b"x")], &message, MsgFlags::empty(), None)?;
    Ok(())
}

fn take_over(from: &OwnedFd) -> io::Result<OwnedFd> {
    let mut byte = [0];
    let mut bytes = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!(RawFd);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(from.as_raw_fd(), &mut bytes, Some(&mut space), flags)?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control
            && let Some(fd) = fds.first()
        {
            // SAFETY: the kernel made it for us just now, and nobody else knows of it.
            let listener = unsafe { OwnedFd::from_raw_fd(*fd) };
            // The caller waits for us: there is nothing else to do for its processor meanwhile. Older
            // kernels than 6.6 do not know that, and take longer.
            // SAFETY: it takes a number.
            unsafe { libc::ioctl(listener.as_raw_fd(), NOTIF_SET_FLAGS, SYNC_WAKE_UP) };
            return Ok(listener);
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}

fn receive(listener: &OwnedFd) -> Option<libc::seccomp_notif> {
    // SAFETY: a notice is plain numbers, and the kernel asks for zeros.
    let mut notice: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one notice there.
    let received = unsafe { libc::ioctl(listener.as_raw_fd(), NOTIF_RECV, &raw mut notice) };
    (received == 0).then_some(notice)
}

fn respond(listener: &OwnedFd, id: u64, error: i32, flags: u32) {
    let mut answer = libc::seccomp_notif_resp { id, val: 0, error, flags };
    // SAFETY: the kernel reads one answer there. Who was killed meanwhile needs none.
    unsafe { libc::ioctl(listener.as_raw_fd(), NOTIF_SEND, &raw mut answer) };
}
