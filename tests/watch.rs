//! `stillage watch`: what happens in a tree is told, by whomever, once, and nothing that did not happen.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::command::run;
use support::content::{Image, random};
use support::http::Request;
use support::{Registry, STILLAGE};

/// Nothing that is awaited takes longer, or the test fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// So long nothing is told, where nothing is to be told: an event takes a tenth of it.
const QUIET: Duration = Duration::from_secs(3);

/// A running `stillage watch`.
struct Watch {
    child: Child,
    lines: mpsc::Receiver<Value>,
    log: PathBuf,
}

impl Watch {
    /// Started by `by`, or by itself; everything that happens after this is told.
    fn start(by: &[&str], root: &Path, args: &[&str], log: &Path) -> Watch {
        let line: Vec<&str> = by.iter().copied().chain([STILLAGE]).collect();
        let log = log.join(format!("watch-{}", support::content::random_hex(4)));
        let mut child = Command::new(line[0])
            .args(&line[1..])
            .arg("watch")
            .arg(root)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().unwrap();
        let (send, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = send.send(serde_json::from_str(&line).unwrap());
            }
        });
        let watch = Watch { child, lines, log };
        watch.says("watching");
        watch
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    fn says(&self, text: &str) {
        let end = Instant::now() + PATIENCE;
        while !self.log().contains(text) {
            assert!(Instant::now() < end, "{text:?} is not in\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The next event, as `repository what tag by`.
    fn next(&self) -> String {
        told(&self.lines.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{}", self.log())))
    }

    fn some(&self, number: usize) -> Vec<String> {
        (0..number).map(|_| self.next()).collect()
    }

    /// Until an event comes; what came before is given, too.
    fn until(&self, last: &str) -> Vec<String> {
        let mut all = Vec::new();
        while all.last().is_none_or(|told| told != last) {
            all.push(self.next());
        }
        all
    }

    fn nothing_more(&self) {
        if let Ok(event) = self.lines.recv_timeout(QUIET) {
            panic!("{event}");
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn ended(&mut self) -> ExitStatus {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < end, "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn told(event: &Value) -> String {
    let text = |field: &str| event[field].as_str().unwrap_or("-").to_owned();
    let by = match event["outside"].as_bool() {
        Some(true) => "outside".to_owned(),
        Some(false) => text("who"),
        None => "unknown".to_owned(),
    };
    format!("{} {} {} {by}", text("repository"), text("what"), text("tag"))
}

fn copy(from: &Path, to: &Path) {
    run(Command::new("cp").arg("-a").args([from, to])).ok();
}

#[test]
fn pushes_and_what_others_do_is_told() {
    let registry = Registry::start(&["--auth", "none"]);
    let (client, root) = (registry.client(), registry.root().to_owned());
    let watch = Watch::start(&[], &root, &[], &registry.scratch());
    let image = Image::random(100);
    client.push_image("team/app", "v1", &image);
    let first = watch.lines.recv_timeout(PATIENCE).unwrap();
    assert_eq!(told(&first), "team/app push - root");
    assert_eq!(first["digest"], image.digest.as_str());
    assert_eq!(first["size"], image.manifest.len());
    assert_eq!(first["mediaType"], "application/vnd.oci.image.manifest.v1+json");
    assert_eq!(first["from"], "127.0.0.1");
    assert_eq!(watch.next(), "team/app tag v1 root");
    // The same again is no change.
    client.push_image("team/app", "v1", &image);
    client.push_image("team/app", "v2", &image);
    assert_eq!(watch.next(), "team/app tag v2 root");
    client.delete("/v2/team/app/manifests/v2").expect_status(202);
    assert_eq!(watch.next(), "team/app untag v2 root");

    // A new directory, made by another tool, in which a file is written in place.
    fs::create_dir_all(root.join("sk/deep")).unwrap();
    let skopeo = |from: &str, to: &str| {
        let mut skopeo = Command::new("skopeo");
        skopeo.args(["copy", "--insecure-policy"]);
        let at = |place: &str| format!("oci:{}/{place}", root.display());
        run(skopeo.args([at(from), at(to)])).ok();
    };
    skopeo("team/app:v1", "sk/deep/er:one");
    let outside = ["push -", "tag one"].map(|what| format!("sk/deep/er {what} outside"));
    assert_eq!(watch.some(2), outside);
    // In the server's own repository.
    skopeo("sk/deep/er:one", "team/app:three");
    // It may have written the manifest anew.
    assert!(watch.until("team/app tag three outside").len() <= 2);

    // Moved above, copied, removed.
    fs::rename(root.join("sk"), root.join("moved")).unwrap();
    let mut all = watch.some(4);
    all.sort();
    let wanted = [
        "moved/deep/er push - outside",
        "moved/deep/er tag one outside",
        "sk/deep/er delete - outside",
        "sk/deep/er untag one outside",
    ];
    assert_eq!(all, wanted);
    copy(&root.join("team"), &root.join("copy"));
    // Its journal is so young that it may be its own.
    let all = watch.until("copy/app tag three outside");
    assert!(all.iter().all(|told| told.starts_with("copy/app ")), "{all:?}");
    // A watch follows what was moved.
    client.push_image("moved/deep/er", "two", &Image::random(10));
    assert_eq!(watch.until("moved/deep/er tag two root").len(), 2);
    // Views may be renewed beside it, as beside rm(1).
    while let Err(error) = fs::remove_dir_all(root.join("moved")) {
        assert_eq!(error.kind(), std::io::ErrorKind::DirectoryNotEmpty);
    }
    assert_eq!(watch.until("moved/deep/er delete - outside").len(), 3);
    assert_eq!(watch.until("moved/deep/er delete - outside").len(), 1);
    client.push_image("moved/deep/er", "again", &Image::random(10));
    assert_eq!(watch.until("moved/deep/er tag again root").len(), 2);
    watch.nothing_more();
}

#[test]
fn without_a_server_it_tells_what_the_journals_have_and_ends_when_told() {
    let mut registry = Registry::start(&["--auth", "none"]);
    let (client, scratch) = (registry.client(), registry.scratch());
    client.push_image("a", "old", &Image::random(10));
    let root = registry.root().to_owned();
    let time = String::from_utf8(
        Command::new("date").args(["-u", "+%FT%T.%6NZ"]).output().unwrap().stdout,
    );
    let time = time.unwrap().trim().to_owned();
    client.push_image("a", "new", &Image::random(10));
    client.push_image("b/c", "new", &Image::random(10));
    assert!(registry.kill9().code().is_none());

    let mut watch = Watch::start(&[], &root, &["--since", &time], &scratch);
    let mut all = watch.some(4);
    all.sort();
    assert_eq!(all, ["a push - root", "a tag new root", "b/c push - root", "b/c tag new root"]);
    watch.signal(Signal::TERM);
    assert!(watch.ended().success());
    assert!(watch.lines.recv_timeout(PATIENCE).is_err(), "nothing came twice");

    let mut watch = Watch::start(&[], &root, &[], &scratch);
    watch.nothing_more();
    watch.signal(Signal::INT);
    assert!(watch.ended().success());

    // Who reads no more is noticed at once, and without a word.
    let mut reader = Command::new(STILLAGE)
        .args(["watch", "--since", "1h"])
        .arg(&root)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(reader.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    drop(out);
    assert!(reader.wait().unwrap().success());
    let mut said = String::new();
    reader.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(!said.contains("stillage: "), "{said}");
    registry.run();
}

#[test]
fn what_was_not_committed_is_not_told() {
    let mut registry = Registry::start(&["--auth", "none"]);
    let (root, scratch) = (registry.root().to_owned(), registry.scratch());
    registry.client().push_image("a", "v1", &Image::random(10));
    registry.kill9();
    // As a kill between journal and index.json leaves it: lines that announce what never came.
    let journal = root.join("a/_log.jsonl");
    let text = fs::read_to_string(&journal).unwrap();
    let mut void: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    void["base"] = void["stamp"].take();
    void["stamp"] = "1-00000000000000000000000000000001".into();
    void["tag"] = "void".into();
    void["who"] = "nobody".into();
    fs::write(&journal, format!("{text}{void}\n{{\"torn")).unwrap();

    let watch = Watch::start(&[], &root, &["--since", "1h"], &scratch);
    assert_eq!(watch.some(2), ["a push - root", "a tag v1 root"]);
    registry.run();
    registry.client().push_image("a", "v2", &Image::random(10));
    assert_eq!(watch.some(2), ["a push - root", "a tag v2 root"]);
    // Set aside, as collection does, and gone on with.
    let aside = root.join("a/_log.1.jsonl");
    fs::rename(&journal, &aside).unwrap();
    registry.client().push_image("a", "v3", &Image::random(10));
    assert_eq!(watch.some(2), ["a push - root", "a tag v3 root"]);
    watch.nothing_more();
}

#[test]
fn whoever_may_read_may_watch() {
    let registry = Registry::start(&["--auth", "none"]);
    let client = registry.client();
    client.push_image("open", "v1", &Image::random(10));
    client.push_image("closed", "v1", &Image::random(10));
    support::tls::set_mode(registry.root(), 0o755);
    support::tls::set_mode(registry.root().parent().unwrap(), 0o755);
    support::tls::set_mode(&registry.root().join("closed"), 0o700);
    let nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
    let watch = Watch::start(&nobody, registry.root(), &[], &registry.scratch());
    client.push_image("closed", "v2", &Image::random(10));
    client.push_image("open", "v2", &Image::random(10));
    // The journal is for those who may write there.
    assert_eq!(watch.some(2), ["open push - unknown", "open tag v2 unknown"]);
    watch.nothing_more();
}

#[test]
fn too_many_changes_at_once_are_noticed_and_nothing_is_lost() {
    let registry = Registry::start(&["--auth", "none"]);
    let (client, root) = (registry.client(), registry.root().to_owned());
    client.push_image("a", "v1", &Image::random(10));
    let watch = Watch::start(&[], &root, &[], &registry.scratch());
    let most = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    let most: usize = most.trim().parse().unwrap();
    // What is after the overflow is dropped: a new directory, too, and what comes into it.
    watch.signal(Signal::STOP);
    for number in 0..most / 2 + 10 {
        let file = root.join(format!("file.{number}"));
        fs::write(&file, "").unwrap();
        fs::remove_file(&file).unwrap();
    }
    client.push_image("a", "v2", &Image::random(10));
    client.push_image("new/er", "v1", &Image::random(10));
    watch.signal(Signal::CONT);
    let mut all = watch.some(4);
    all.sort();
    let wanted = ["a push - root", "a tag v2 root", "new/er push - root", "new/er tag v1 root"];
    assert_eq!(all, wanted);
    // Once everything was set up anew, the kernel tells again, of the new directory too.
    watch.says("tells again");
    client.push_image("new/er", "v2", &Image::random(10));
    assert_eq!(watch.some(2), ["new/er push - root", "new/er tag v2 root"]);
    assert_eq!(watch.log().matches("dropped events").count(), 1, "{}", watch.log());
}

#[test]
fn where_no_more_directories_can_be_watched_everything_is_looked_at() {
    let registry = Registry::start(&["--auth", "none"]);
    let (client, root) = (registry.client(), registry.root().to_owned());
    for name in ["a", "b", "c/d", "e/f"] {
        client.push_image(name, "v1", &Image::random(10));
    }
    // The limit of a user namespace is for those in it.
    let few = "echo 3 >/proc/sys/user/max_inotify_watches && exec \"$@\"";
    let few = ["unshare", "--user", "--map-root-user", "sh", "-c", few, "sh"];
    let watch = Watch::start(&few, &root, &["--look-every", "1"], &registry.scratch());
    watch.says("fs.inotify.max_user_watches");
    for name in ["a", "b", "c/d", "e/f", "g/h"] {
        client.push_image(name, "v2", &Image::random(10));
        let wanted = ["push -", "tag v2"].map(|what| format!("{name} {what} root"));
        assert_eq!(watch.some(2), wanted);
    }
    watch.nothing_more();
    assert_eq!(watch.log().matches("fs.inotify.max_user_watches").count(), 1, "{}", watch.log());
}

/// What a plain web server serves is there before anybody asks this one.
#[test]
fn views_of_what_is_dropped_in_are_made_without_a_request() {
    let registry = Registry::start(&["--auth", "none"]);
    let (root, made) = (registry.root(), registry.scratch().join("made"));
    registry.client().push_image("a", "v1", &Image::random(10));
    copy(&root.join("a"), &made);
    fs::remove_dir_all(made.join("_manifests")).unwrap();
    fs::remove_file(made.join("_tags.json")).unwrap();
    fs::create_dir(root.join("dropped")).unwrap();
    fs::rename(&made, root.join("dropped/in")).unwrap();
    let says = |place: &str, text: &str| {
        let (tags, end) = (root.join(place).join("_tags.json"), Instant::now() + PATIENCE);
        while !fs::read_to_string(&tags).is_ok_and(|tags| tags.contains(text)) {
            assert!(Instant::now() < end, "{text} is not in {tags:?}; {}", registry.stderr());
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    // Also right after the start, when the directories are not watched yet.
    says("dropped/in", "dropped/in");
    // The list is one of many views, in no order.
    let (link, end) = (root.join("dropped/in/_manifests/v1.oci-image"), Instant::now() + PATIENCE);
    while !link.exists() {
        assert!(Instant::now() < end, "{} is not there; {}", link.display(), registry.stderr());
        std::thread::sleep(Duration::from_millis(5));
    }
    // The name is in it, and so is every tag that another tool gives.
    fs::rename(root.join("dropped"), root.join("moved")).unwrap();
    says("moved/in", "moved/in");
    let index = root.join("moved/in/index.json");
    let text = fs::read_to_string(&index).unwrap().replace("\"v1\"", "\"other\"");
    fs::write(&index, text).unwrap();
    says("moved/in", "other");
    let names = registry.client().get("/v2/_catalog").expect_status(200).json();
    assert_eq!(names["repositories"], serde_json::json!(["a", "moved/in"]));
}

/// What a plain web server serves follows the modes of files and directories, and no event tells of them.
#[test]
fn who_may_read_a_repository_is_noticed_without_a_request() {
    let registry = Registry::start(&["--auth", "none"]);
    let (client, root) = (registry.client(), registry.root().to_owned());
    client.push_image("team/app", "v1", &Image::random(10));
    let watch = Watch::start(&[], &root, &[], &registry.scratch());
    // The server watches by then, too.
    client.push_image("team/app", "v2", &Image::random(10));
    watch.some(2);
    let repo = root.join("team/app");
    let chmod = |path: &str, mode: u32| {
        fs::set_permissions(root.join(path), fs::Permissions::from_mode(mode)).unwrap();
    };
    let becomes = |there: bool, what: &str| {
        let end = Instant::now() + PATIENCE;
        let is = || match there {
            true => support::views::are_right(&root, "team/app"),
            false => support::views::found(&repo).is_empty() && !repo.join("_manifests").exists(),
        };
        while !is() {
            assert!(Instant::now() < end, "views, {what}: {there}; {}", registry.stderr());
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    for (path, closed, open) in [
        ("team/app/index.json", 0o600, 0o644),
        ("team/app", 0o711, 0o755),
        ("team/app", 0o751, 0o755),
        ("team", 0o700, 0o711),
        ("", 0o700, 0o755),
    ] {
        chmod(path, closed);
        becomes(false, path);
        chmod(path, open);
        becomes(true, path);
    }
    watch.nothing_more();
}

#[test]
fn blobs_and_reads_wake_nobody() {
    let registry = Registry::start(&["--auth", "none"]);
    let client = registry.client();
    let image = Image::random(10);
    client.push_image("a", "v1", &image);
    let watch = Watch::start(&[], registry.root(), &[], &registry.scratch());
    client.push_image("a", "v2", &Image::random(10));
    watch.some(2);
    watch.nothing_more();
    let before = awoken(watch.child.id());
    for _ in 0..50 {
        client.push_blob("a", &random(100));
        client.assert_pulls("a", "v1", &image);
        client.send(Request::get("/v2/a/tags/list")).expect_status(200);
    }
    let times = awoken(watch.child.id()) - before;
    assert!(times < 10, "it woke up {times} times");
}

/// How often the threads of a process went to sleep, and so were woken.
fn awoken(pid: u32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let times = |task: std::io::Result<fs::DirEntry>| -> u64 {
        let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.unwrap().trim().parse().unwrap()
    };
    tasks.map(times).sum()
}
