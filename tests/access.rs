//! `stillage access`: what it says of a tree, that the server's log says the same, and that the
//! command it prints lets a push through.

#[path = "support/pam.rs"]
mod pam;
mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use pam::{Host, PASSWORD};
use serde_json::Value;
use support::account::{Account, Group};
use support::command::{Outcome, run};
use support::content::{Image, random};
use support::http::Request;
use support::{Registry, STILLAGE};

fn access(root: &Path, args: &[&str]) -> Outcome {
    run(Command::new(STILLAGE).arg("access").arg(root).args(args))
}

fn json(root: &Path, args: &[&str]) -> Value {
    let outcome = access(root, &[args, &["--json"]].concat()).ok();
    serde_json::from_str(&outcome.stdout).unwrap_or_else(|error| panic!("{error}: {outcome}"))
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
}

fn serve(host: &Host) -> Registry {
    let confdir = host.path("pam.d").display().to_string();
    Registry::start(&["--auth", "pam", "--pam-confdir", &confdir])
}

/// Everything beneath a directory, with what would show a change.
fn listing(root: &Path) -> String {
    run(Command::new("find").arg(root).args(["-printf", "%p %i %m %u %g %s %T@ %C@\n"])).ok().stdout
}

#[test]
fn the_log_says_what_the_command_says_and_the_printed_command_lets_the_push_through() {
    let host = Host::new();
    let registry = serve(&host);
    let root = registry.root();
    fs::create_dir_all(root.join("team/app")).expect("directories");
    mode(&root.join("team"), 0o2750);
    let asked = json(root, &["team/app", "games"]);
    let push = &asked["answers"]["push"];
    assert_eq!(push["allowed"], false, "{asked}");
    let reason = push["reason"].as_str().expect("a reason");
    let team = root.join("team").display().to_string();
    let expected =
        format!("games (uid 5) gets --- of {team} (root:root 2750) as other; pushing takes x");
    assert_eq!(reason, expected);

    let basic = || Request::post("/v2/team/app/blobs/uploads/").basic("games", PASSWORD);
    registry.client().send(basic()).expect_error(403, "DENIED");
    let until = Instant::now() + Duration::from_secs(10);
    let said = format!("why={reason:?}");
    while !registry.stderr().contains(&said) && Instant::now() < until {
        std::thread::yield_now();
    }
    assert!(registry.stderr().contains(&said), "{said}\n{}", registry.stderr());

    let grant = push["grant"].as_str().expect("a command");
    let app = format!("{team}/app");
    assert_eq!(grant, format!("setfacl -m u:games:--x {team} && setfacl -m u:games:rwx {app}"));
    run(Command::new("sh").args(["-c", grant])).ok();
    assert_eq!(json(root, &["team/app", "games"])["answers"]["push"]["allowed"], true);
    let user = registry.client().logged_in("games", PASSWORD, "team/app");
    user.push_blob("team/app", &random(100));

    // A token that was given before is as good as the permissions: taken away, and given again.
    let revoke = format!("setfacl -b {app}; chmod 700 {app}");
    run(Command::new("sh").args(["-c", &revoke])).ok();
    user.send(Request::post("/v2/team/app/blobs/uploads/")).expect_error(403, "DENIED");
    let again = json(root, &["team/app", "games"]);
    let grant = again["answers"]["push"]["grant"].as_str().expect("a command");
    run(Command::new("sh").args(["-c", grant])).ok();
    user.push_blob("team/app", &random(100));
}

#[test]
fn everybody_whom_a_directory_names_is_listed_with_members() {
    let (group, anna, carl) = (Group::new(), Account::new(), Account::new());
    anna.join(&group);
    let registry = Registry::start(&["--auth", "none"]);
    let root = registry.root();
    let client = registry.client();
    client.push_image("team/app", "v1", &Image::random(100));
    let app = root.join("team/app");
    let run_on = |program: &str, args: &[&str]| {
        run(Command::new(program).args(args).arg(&app)).ok();
    };
    run_on("chgrp", &[group.name()]);
    run_on("chmod", &["2770"]);
    run_on("setfacl", &["-m", &format!("u:{}:r-x", carl.name())]);
    let report = json(root, &["team/app"]);
    assert_eq!((&report["state"], &report["user"]), (&"repository".into(), &Value::Null));
    let who = report["who"].as_array().expect("a list");
    let of = |kind: &str, name: Option<&str>| {
        let fits = |p: &&Value| p["kind"] == kind && name.is_none_or(|name| p["name"] == name);
        who.iter().find(fits).unwrap_or_else(|| panic!("{kind} {name:?} in {report}"))
    };
    let may = |principal: &Value| (principal["pull"].as_bool(), principal["push"].as_bool());
    assert_eq!(may(of("user", Some("root"))), (Some(true), Some(true)));
    assert_eq!(may(of("user", Some(carl.name()))), (Some(true), Some(false)));
    let team = of("group", Some(group.name()));
    assert_eq!(may(team), (Some(true), Some(true)));
    assert_eq!(team["members"][0]["name"], anna.name());
    assert_eq!(team["members"][0]["push"], true);
    assert_eq!(may(of("other", None)), (Some(false), Some(false)));
    assert_eq!(may(of("anonymous", None)), (Some(false), Some(false)));

    let text = access(root, &["team/app"]).ok().stdout;
    let row = |begins: &str| {
        let found = text.lines().skip(1).find(|line| line.trim_start().starts_with(begins));
        found.unwrap_or_else(|| panic!("{begins} in {text}")).to_owned()
    };
    assert!(row(&format!("user {}", carl.name())).contains("yes   no"), "{text}");
    assert!(row(anna.name()).contains("yes   yes"), "{text}");
    assert!(row("everybody else").contains("as other; pulling takes rx"), "{text}");
    let level = row(&app.display().to_string());
    assert!(level.contains(&format!("root:{}", group.name())), "{text}");
    assert!(level.contains(&format!("user:{}:r-x", carl.name())), "{text}");

    // Who is no member is told that a group would do.
    let asked = json(root, &["team/app", carl.name()]);
    let others = &asked["answers"]["push"]["alternatives"];
    assert_eq!(asked["answers"]["pull"]["allowed"], true);
    assert_eq!(others, &Value::Array(vec![]), "the entry for a user counts before any group");
    run_on("setfacl", &["-x", &format!("u:{}", carl.name())]);
    let asked = json(root, &["team/app", carl.name()]);
    let add = format!("usermod -aG {} {}", group.name(), carl.name());
    assert_eq!(asked["answers"]["push"]["alternatives"][0]["command"], add, "{asked}");
    run(Command::new("sh").args(["-c", &add])).ok();
    assert_eq!(json(root, &["team/app", carl.name()])["answers"]["push"]["allowed"], true);

    // Administrators may do everything.
    run(Command::new("setfacl").arg("-b").arg(&app)).ok();
    run(Command::new("chgrp").arg("0").arg(&app)).ok();
    let asked = json(root, &["team/app", anna.name(), "--admin-group", group.name()]);
    assert_eq!(
        (asked["answers"]["push"]["allowed"].as_bool(), &asked["user"]["administrator"]),
        (Some(true), &true.into())
    );
}

#[test]
fn nothing_is_made_or_changed_and_an_ordinary_user_may_ask() {
    let room = tempfile::tempdir().expect("a directory");
    mode(room.path(), 0o755);
    let root = room.path().join("never served");
    fs::create_dir_all(root.join("team")).expect("directories");
    let before = listing(room.path());
    let report = json(&root, &["team/app", "games"]);
    assert_eq!((&report["state"], &report["server"]), (&"absent".into(), &Value::Null));
    let answers = &report["answers"];
    let create = answers["create"]["reason"].as_str().expect("a reason");
    assert!(create.ends_with("as other; creating team/app takes wx"), "{create}");
    let team = root.join("team").display().to_string();
    assert_eq!(answers["create"]["grant"], format!("setfacl -m u:games:rwx '{team}'"));
    let absent = format!("there is no {team}/app");
    assert_eq!(
        (&answers["pull"]["reason"], &answers["pull"]["grant"]),
        (&absent.into(), &Value::Null)
    );
    let as_games = |args: &[&str]| {
        let mut setpriv = Command::new("setpriv");
        setpriv.args(["--reuid=5", "--regid=60", "--clear-groups"]);
        run(setpriv.arg(copied(room.path())).arg("access").arg(&root).args(args))
    };
    let text = as_games(&["team", "anonymous"]).ok().stdout;
    assert!(text.contains("push   no   pushing takes a login"), "{text}");
    let with_none = access(&root, &["team", "anonymous", "--anonymous", "none"]).ok().stdout;
    assert!(with_none.contains("nothing is allowed without a login here"), "{with_none}");

    // Who sees less than the server gives no answer.
    mode(&root.join("team"), 0o700);
    let outcome = as_games(&["team/app", "games"]).refused();
    assert_eq!(outcome.code, Some(1), "{outcome}");
    assert!(outcome.stderr.contains("run this as root"), "{outcome}");
    mode(&root.join("team"), 0o755);
    for (args, named) in [
        (&["team", "nobody-has-this-name"][..], "nobody-has-this-name"),
        (&["team", "--admin-group", "no-such-group"], "no-such-group"),
    ] {
        let outcome = access(&root, args).refused();
        assert!(outcome.code == Some(1) && outcome.stderr.contains(named), "{outcome}");
    }
    fs::remove_file(room.path().join("stillage")).expect("the copied program");
    let names = |text: &str| -> BTreeSet<String> {
        // chmod has left its mark in two times; nothing else may have changed.
        text.lines().map(|line| line.rsplitn(3, ' ').last().unwrap_or("").to_owned()).collect()
    };
    assert_eq!(names(&before), names(&listing(room.path())));
}

/// The program where everybody may run it.
fn copied(room: &Path) -> std::path::PathBuf {
    let program = room.join("stillage");
    if !program.exists() {
        fs::copy(STILLAGE, &program).expect("a copy");
    }
    program
}

#[test]
fn what_the_servers_account_cannot_use_is_named_with_what_mends_it() {
    const SERVER: u32 = 61_990;
    let room = tempfile::tempdir().expect("a directory");
    let root = room.path().join("reg");
    fs::create_dir_all(root.join(".stillage")).expect("directories");
    fs::create_dir_all(root.join("team/app/blobs/sha256")).expect("directories");
    fs::write(root.join("team/app/index.json"), "{}").expect("write");
    mode(&root.join("team/app/index.json"), 0o600);
    chown(root.join(".stillage"), Some(SERVER), Some(SERVER)).expect("chown");
    for open in ["", "team", "team/app", "team/app/blobs", "team/app/blobs/sha256"] {
        chown(root.join(open), Some(SERVER), None).expect("chown");
    }
    let report = json(&root, &["team/app", "games"]);
    assert_eq!(report["answers"]["pull"]["allowed"], true, "{report}");
    let problems = &report["server"]["problems"];
    let index = root.join("team/app/index.json").display().to_string();
    assert_eq!(problems[0]["path"], index, "{report}");
    assert_eq!(
        (&problems[0]["lacks"], problems.as_array().map(Vec::len)),
        (&"r--".into(), Some(1))
    );

    // On the way, it ends every answer.
    chown(root.join("team"), Some(0), Some(0)).expect("chown");
    mode(&root.join("team"), 0o700);
    run(Command::new("setfacl").args(["-m", "u:games:rwx"]).arg(root.join("team"))).ok();
    let report = json(&root, &["team/app", "games"]);
    let pull = &report["answers"]["pull"];
    assert_eq!(pull["allowed"], Value::Null, "{report}");
    let team = root.join("team").display().to_string();
    let mend = format!("setfacl -m u:{SERVER}:rwx {team}");
    let reason = pull["reason"].as_str().expect("a reason");
    assert!(reason.starts_with("the server's own account (61990) may not search"), "{reason}");
    assert!(reason.ends_with(&mend), "{reason}");
    for problem in report["server"]["problems"].as_array().expect("a list") {
        let line = problem["mend"].as_str().expect("a command");
        run(Command::new("sh").args(["-c", line])).ok();
    }
    let report = json(&root, &["team/app", "games"]);
    assert_eq!(report["server"]["problems"], Value::Array(vec![]), "{report}");
    assert_eq!(report["answers"]["pull"]["allowed"], true, "{report}");
}
