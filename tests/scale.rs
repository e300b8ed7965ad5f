//! Checks of large trees: bounded memory, and time of the order of a walk. The short form has 20,000
//! blobs, the long form (`STILLAGE_TEST_LONG=1`) 1,000,000; `STILLAGE_SCALE` names another number,
//! `STILLAGE_SCALE_DIR` where to put them. Run it with `--nocapture` for the figures.

mod layouts;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use layouts::{disk, many};
use serde_json::Value;

/// Anonymous memory that a check may take.
const MOST_ANONYMOUS: u64 = 256 << 20;

fn number(name: &str) -> Option<usize> {
    std::env::var(name).ok()?.parse().ok()
}

struct Run {
    report: Value,
    time: Duration,
    anonymous: u64,
}

/// Runs a check, and looks at its memory meanwhile.
fn check(args: &[&str], root: &Path) -> Run {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stillage"));
    command.arg("check").args(args).arg("--json").arg(root).env_remove("STILLAGE_ROOT");
    let begun = Instant::now();
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut anonymous = 0;
    while child.try_wait().unwrap().is_none() {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        anonymous = anonymous.max(kibibytes.unwrap_or(0) << 10);
        std::thread::sleep(Duration::from_millis(5));
    }
    let time = begun.elapsed();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    Run { report: serde_json::from_slice(&output.stdout).unwrap(), time, anonymous }
}

#[test]
fn a_large_tree_is_checked_in_bounded_memory() {
    let long = std::env::var_os("STILLAGE_TEST_LONG").is_some();
    let blobs = number("STILLAGE_SCALE").unwrap_or(if long { 1_000_000 } else { 20_000 });
    let place = std::env::var_os("STILLAGE_SCALE_DIR").unwrap_or_else(|| "/tmp".into());
    let temp = tempfile::tempdir_in(place).unwrap();
    let root = temp.path();
    disk::set_mode(root, 0o755);
    let repositories = many::make(root, blobs);
    let find = || {
        let begun = Instant::now();
        let mut find = Command::new("sh");
        let find = find.args(["-c", "find \"$0\" | wc -l"]).arg(root).output().unwrap();
        let count: usize = String::from_utf8(find.stdout).unwrap().trim().parse().unwrap();
        assert!(count > 2 * (blobs - 300), "{count}");
        (count, begun.elapsed())
    };
    find();
    let (names, walk) = find();
    eprintln!("{blobs} blobs, {repositories} repositories, {names} names: find | wc -l {walk:.1?}");
    for args in [&["--quick"][..], &[], &["--repair", "--quick", "-n"], &["--repair"]] {
        let Run { report, time, anonymous } = check(args, root);
        eprintln!("check {}: {time:.1?}, {} MiB anonymous", args.join(" "), anonymous >> 20);
        assert_eq!(report["findings"], Value::Array(Vec::new()));
        let summary = &report["summary"];
        assert_eq!(summary["repositories"], repositories, "{summary}");
        assert_eq!(summary["blobs"], summary["pooled"], "{summary}");
        assert!(summary["blobs"].as_u64().unwrap() >= blobs as u64 - 300, "{summary}");
        assert!(anonymous < MOST_ANONYMOUS, "{args:?}: {anonymous} bytes");
        assert!(anonymous > 0);
    }
}
