//! The command line: what it prints, what it refuses, and with which exit code.

mod support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};

use support::command::{Outcome, run};
use support::{Registry, STILLAGE};

fn stillage(args: &[&str]) -> Outcome {
    run(Command::new(STILLAGE).args(args))
}

/// The lines that a server prints at its start; it is told to stop by the time they are read.
fn start_report(command: &mut Command) -> Vec<String> {
    let mut server = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("starts");
    let stdout = server.stdout.take().expect("stdout is piped");
    let mut lines = BufReader::new(stdout).lines();
    let mut report: Vec<String> =
        lines.by_ref().take(4).map(|line| line.expect("a line")).collect();
    let kill = run(Command::new("kill").args(["-TERM", &server.id().to_string()]));
    report.extend(lines.map(|line| line.expect("a line")));
    kill.ok();
    assert!(server.wait().expect("ends").success());
    report
}

#[test]
fn the_start_prints_four_lines() {
    let room = tempfile::tempdir().expect("a directory");
    let root = room.path().join("new/registry");
    let root = root.to_str().expect("plain");
    let mut pam = Command::new(STILLAGE);
    let report = start_report(pam.args(["serve", root, "--listen", "127.0.0.1:0"]));
    assert_eq!(report.len(), 4, "{report:#?}");
    let port = report[0].strip_prefix(&format!("stillage: serving {root} at http://127.0.0.1:"));
    assert!(port.is_some_and(|port| port.parse::<u16>().is_ok_and(|port| port > 0)), "{report:#?}");
    assert!(report.iter().all(|line| line.starts_with("stillage: ")), "{report:#?}");
    let create = format!(
        "stillage: nobody who logs in may create repositories here (root:root 755); to let others: \
         setfacl -m u:alice:rwx {root}, or sudo install -d -g team -m 2775 {root}/team"
    );
    assert_eq!(report[2], create);
    assert!(report[3].contains("pulled without a login is what everybody may"), "{report:#?}");

    // Every flag is a variable too.
    let mut by_variables = Command::new(STILLAGE);
    by_variables
        .arg("serve")
        .env("STILLAGE_ROOT", root)
        .env("STILLAGE_LISTEN", "localhost:0")
        .env("STILLAGE_AUTH", "pam")
        .env("STILLAGE_ANONYMOUS", "none")
        .env("STILLAGE_TRUSTED_PROXY", "10.0.0.0/8,192.168.1.1")
        .env("STILLAGE_EXTERNAL_URL", "https://reg.example")
        .env("STILLAGE_ADMIN_GROUP", "daemon")
        .env("STILLAGE_ALLOW_SPARSE", "1");
    run(Command::new("setfacl").args(["-m", "u:bin:rwx", root])).ok();
    let report = start_report(&mut by_variables);
    let create = "bin, the admin group daemon may create repositories here \
        (root:root 775+); to let others: ";
    assert!(report[2].starts_with(&format!("stillage: {create}")), "{report:#?}");
    assert!(report[0].starts_with(&format!("stillage: serving {root} at http://")), "{report:#?}");
    assert!(report[3].ends_with("nothing is pulled without a login"), "{report:#?}");
}

#[test]
fn what_contradicts_itself_is_a_usage_error() {
    let room = tempfile::tempdir().expect("a directory");
    let root = room.path().join("registry");
    let at = root.to_str().expect("plain");
    for (args, named) in [
        (&["serve"][..], "ROOT"),
        (&["serve", at, "--listen", "0.0.0.0:0"], "--plain-http"),
        (&["serve", at, "--listen", "[::]:0"], "--plain-http"),
        (
            &["serve", at, "--listen", "0.0.0.0:0", "--plain-http", "--auth", "none"],
            "--open-to-all",
        ),
        (&["serve", at, "--listen", "nonsense"], "--listen"),
        (&["serve", at, "--auth", "basic"], "--auth"),
        (&["serve", at, "--trusted-proxy", "10.0.0.0/99"], "10.0.0.0/99"),
        (&["serve", at, "--external-url", "reg.example"], "reg.example"),
        (&["serve", at, "--pam-confdir", "relative"], "relative"),
        (&["serve", at, "--nonsense"], "--nonsense"),
        (&["access"], "REPO"),
        (&["access", at], "name the repository"),
        (&["access", at, "Team/App"], "\"Team\""),
        (&["access", at, "a", "b", "c"], "'c'"),
        (&["access", at, "a", "--anonymous", "push"], "--anonymous"),
        (&["snapshot", at], "DEST"),
        (&["snapshot", at, at, "--wait", "1"], "--wait"),
        (&["nonsense"], "nonsense"),
    ] {
        let outcome = stillage(args).refused();
        assert_eq!(outcome.code, Some(2), "{outcome}");
        assert!(outcome.stderr.contains(named) && outcome.stdout.is_empty(), "{outcome}");
        assert!(!outcome.stderr.contains("panicked"), "{outcome}");
    }
    assert!(!Path::new(at).exists(), "a refused start made the tree");
}

#[test]
fn what_cannot_be_done_is_an_error_that_names_it() {
    let room = tempfile::tempdir().expect("a directory");
    let file = room.path().join("file");
    fs::write(&file, "not a directory").expect("write");
    let file = file.to_str().expect("plain");
    let here = ["--listen", "127.0.0.1:0"];
    let outcome = stillage(&["serve", file, here[0], here[1]]).refused();
    assert_eq!(outcome.code, Some(1), "{outcome}");
    assert!(outcome.stderr.contains(file), "{outcome}");

    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("its address").to_string();
    let root = room.path().join("registry");
    let outcome = stillage(&["serve", root.to_str().expect("plain"), "--listen", &address]);
    assert_eq!(outcome.refused().code, Some(1));
    let outcome = stillage(&["serve", root.to_str().expect("plain"), "--listen", &address]);
    assert!(outcome.stderr.contains(&address), "{outcome}");

    let outcome = stillage(&["check", room.path().join("none").to_str().expect("plain")]);
    assert_eq!(outcome.code, Some(1), "{outcome}");
    assert!(outcome.stderr.contains("none"), "{outcome}");
}

#[test]
fn help_and_version_fit_a_screen() {
    let version = stillage(&["--version"]).ok();
    assert_eq!(version.stdout, format!("stillage {}\n", env!("CARGO_PKG_VERSION")));
    for (args, most) in [
        (&["--help"][..], 24),
        (&["serve", "-h"], 48),
        (&["check", "-h"], 24),
        (&["access", "-h"], 24),
        (&["snapshot", "-h"], 24),
    ] {
        let help = stillage(args).ok();
        assert!(help.stdout.lines().count() <= most, "{help}");
        assert!(help.stdout.contains("Usage: stillage"), "{help}");
    }
    let help = stillage(&["serve", "--help"]).ok().stdout;
    for hidden in ["pam-confdir", "patience", "pam-worker"] {
        assert!(!help.contains(hidden), "{help}");
    }
}

#[test]
fn logs_go_to_stderr_as_loud_as_wanted() {
    let quiet = Registry::start(&["--auth", "none", "--log-level", "warn"]);
    quiet.client().get("/v2/").expect_status(200);
    assert_eq!(quiet.stderr(), "");
    let by_variable = Registry::start_with_env(&["--auth", "none"], &[("RUST_LOG", "error")]);
    by_variable.client().get("/v2/").expect_status(200);
    assert_eq!(by_variable.stderr(), "");
    let room = tempfile::tempdir().expect("a directory");
    let root = room.path().to_str().expect("plain").to_owned();
    let outcome = stillage(&["serve", &root, "--log-level", "a=b=c"]).refused();
    assert!(outcome.stderr.contains("a=b=c"), "{outcome}");
}
