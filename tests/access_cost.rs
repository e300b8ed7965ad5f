//! What an access decision costs on a warm server: time, and system calls.

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use stillage::access;
use stillage::auth::{Action, Anonymous, Policy, Right, User, Who, judge};
use stillage::layout::rights::Rights;
use stillage::layout::{RealDisk, Tree};
use stillage::oci::RepoName;

/// ROOT, `team` and `team/app`, the last with an ACL.
const LEVELS: usize = 3;

/// Says how many decisions the process under strace is to make.
const DECISIONS: &str = "STILLAGE_TEST_DECISIONS";

/// Makes so many decisions about a repository three levels deep, half of them about pushes; the
/// median time of one.
fn decide(times: usize) -> Duration {
    let temp = tempfile::tempdir().unwrap();
    let tree = Tree::open(temp.path(), Arc::new(RealDisk)).unwrap();
    let app = temp.path().join("team/app");
    std::fs::create_dir_all(&app).unwrap();
    std::fs::set_permissions(&app, std::fs::Permissions::from_mode(0o750)).unwrap();
    let acl = Command::new("setfacl").args(["-m", "u:61004:rwx,g:62001:rx"]).arg(&app).status();
    assert!(acl.unwrap().success());
    let rights = Rights::default();
    let repo = RepoName::parse("team/app").unwrap();
    let user = User { name: "anna".into(), uid: 61_004, gid: 61_004, groups: vec![61_004, 100] };
    let who = Who::User(Arc::new(user));
    let policy = Policy { anonymous: Anonymous::Nothing, admins: Some(7) };
    let one = |action| {
        let way = rights.way(&tree, &repo, action != Action::Pull).unwrap();
        assert_eq!(way.levels.len(), LEVELS);
        judge(&policy, &who, &access::way(&way), action).right
    };
    // What is read is remembered once the clock has ticked after the last change: that is awaited
    // without a system call. Then the first decision warms up.
    let settled = Instant::now() + Duration::from_millis(50);
    while Instant::now() < settled {
        std::hint::spin_loop();
    }
    assert_eq!(one(Action::Pull), Right::Yes);
    let mut took: Vec<Duration> = (0..times)
        .map(|number| {
            let action = if number % 2 == 0 { Action::Pull } else { Action::Push };
            let begun = Instant::now();
            assert_eq!(one(action), Right::Yes);
            begun.elapsed()
        })
        .collect();
    took.sort_unstable();
    took[took.len() / 2]
}

#[test]
fn an_access_decision_takes_at_most_ten_microseconds() {
    let times = std::env::var(DECISIONS).map_or(100_000, |text| text.parse().unwrap());
    let took = decide(times);
    eprintln!("measured: an access decision over {LEVELS} levels, {} ns", took.as_nanos());
    if std::env::var_os(DECISIONS).is_none() {
        assert!(took <= Duration::from_micros(10), "{took:?}");
    }
}

#[test]
fn an_access_decision_is_one_statx_a_level() {
    // The difference between two runs is the decisions alone.
    let [few, many] = [1_000, 3_000].map(calls);
    let grown = |name: &str| {
        let count = |calls: &HashMap<String, usize>| calls.get(name).copied().unwrap_or(0);
        count(&many).saturating_sub(count(&few))
    };
    assert_eq!(grown("statx"), 2_000 * LEVELS);
    assert_eq!(grown("fstatfs"), 1_000, "is it read-only? asked before writes only");
    let names = many.keys().filter(|name| !matches!(name.as_str(), "statx" | "fstatfs" | "total"));
    let others: Vec<_> = names.map(|name| (name, grown(name))).filter(|(_, n)| *n > 50).collect();
    assert!(others.is_empty(), "{others:?}");
}

/// The system calls of a process that makes so many decisions, by name.
fn calls(decisions: usize) -> HashMap<String, usize> {
    let out = tempfile::NamedTempFile::new().unwrap();
    let status = Command::new("strace")
        .args(["-f", "-c", "-S", "name", "-U", "name,calls", "-o"])
        .arg(out.path())
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "an_access_decision_takes_at_most_ten_microseconds"])
        .env(DECISIONS, decisions.to_string())
        .output()
        .expect("strace is installed");
    assert!(status.status.success(), "{status:?}");
    let text = std::fs::read_to_string(out.path()).unwrap();
    let lines = text.lines().filter_map(|line| {
        let (name, calls) = line.trim().split_once(char::is_whitespace)?;
        Some((name.to_owned(), calls.trim().parse().ok()?))
    });
    lines.collect()
}
