//! The kernel's own answers: a child that has become somebody tries.
#![allow(dead_code, reason = "every test file uses its own part")]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// Users and groups by numbers that no account has.
pub(crate) const OWNER: u32 = 61_001;
pub(crate) const MEMBER: u32 = 61_002;
pub(crate) const STRANGER: u32 = 61_003;
pub(crate) const NAMED: u32 = 61_004;
pub(crate) const TEAM: u32 = 62_001;
pub(crate) const OTHER_TEAM: u32 = 62_002;
pub(crate) const NOBODY: u32 = 61_999;

/// Numbers that look random and are the same for the same seed (xorshift64*).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// One of so many.
    pub(crate) fn next(&mut self, below: u32) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        u32::try_from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33).expect("31 bits") % below
    }
}

/// Reads lines `ACTION PATH`, tries, and answers `1` or `0`. Perl, because every Debian has it and it
/// makes the plain system calls: opendir and open, open with O_CREAT and unlink, mkdir and rmdir.
const TRIES: &str = r#"
use Fcntl;
$| = 1;
sub put { my $f = "$_[0]/.try$$"; sysopen(my $h, $f, O_WRONLY|O_CREAT|O_EXCL) && unlink($f) }
my %try = (
    pull   => sub { opendir(my $d, $_[0]) && open(my $f, '<', "$_[0]/probe") },
    push   => \&put,
    delete => \&put,
    create => sub { my $d = "$_[0]/.new$$"; mkdir($d, 0755) && rmdir($d) },
);
while (<STDIN>) {
    chomp;
    my ($action, $path) = split(/ /, $_, 2);
    print(($try{$action}->($path) ? 1 : 0) . "\n");
}
"#;

/// A process with the credentials of a user; ended when dropped.
pub(crate) struct Kernel {
    child: Child,
    questions: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Kernel {
    /// Becomes a user with exactly these groups; the first is the primary one.
    pub(crate) fn with(uid: u32, groups: &[u32]) -> Kernel {
        let list: Vec<String> = groups.iter().map(u32::to_string).collect();
        let mut become_user = Command::new("setpriv");
        become_user.arg(format!("--reuid={uid}")).arg(format!("--regid={}", groups[0]));
        become_user.arg(format!("--groups={}", list.join(",")));
        // Nothing but root itself keeps what lets root pass everywhere.
        if uid != 0 {
            become_user.arg("--inh-caps=-all");
        }
        let mut child = become_user
            .args(["perl", "-e", TRIES])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("setpriv and perl are installed");
        let questions = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().expect("stdout is piped"));
        Kernel { child, questions, answers }
    }

    /// Whether the user can do it to a directory: `pull`, `push`, `delete`, or `create` in it.
    pub(crate) fn lets(&mut self, action: &str, path: &Path) -> bool {
        let questions = self.questions.as_mut().expect("open until dropped");
        writeln!(questions, "{action} {}", path.display()).expect("the child reads");
        let mut answer = String::new();
        self.answers.read_line(&mut answer).expect("the child answers");
        match answer.as_str() {
            "1\n" => true,
            "0\n" => false,
            other => panic!("{action} {}: the child said {other:?}", path.display()),
        }
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        // The end of its questions is the end of the child.
        drop(self.questions.take());
        let _ = self.child.wait();
    }
}
