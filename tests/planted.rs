//! What people with a shell plant in a repository: refused, named in the log, reported by `check`,
//! never served to others and never shared.
//! Each test bears the id of its line in the list of what has gone wrong in registries.

mod support;

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use support::Registry;
use support::account::Account;
use support::command::{Outcome, run};
use support::content::{Image, OCI_MANIFEST, random, sha256};
use support::http::{Request, Response};

/// Somebody with a shell on the host.
struct Shell(u32);

impl Shell {
    fn of(account: &Account) -> Shell {
        Shell(account.uid())
    }

    fn command(&self, script: &str, args: &[&Path]) -> Command {
        let mut command = Command::new("setpriv");
        let uid = self.0.to_string();
        command.args(["--reuid", &uid, "--regid", &uid, "--clear-groups", "--no-new-privs"]);
        command.args(["sh", "-euc", script, "sh"]).args(args);
        command
    }

    /// Runs a script with `$1`, `$2`… as that account.
    fn run(&self, script: &str, args: &[&Path]) -> Outcome {
        run(&mut self.command(script, args))
    }
}

/// A server without logins on a tree that everybody can come to.
fn open_to_shells(args: &[&str]) -> Registry {
    let registry = Registry::start(&[&["--auth", "none"], args].concat());
    let room = registry.root().parent().expect("ROOT's directory");
    fs::set_permissions(room, Permissions::from_mode(0o755)).expect("chmod");
    registry
}

/// Makes a repository one to whose directories an account may write.
fn give(registry: &Registry, repo: &str, to: &Account) {
    let repo = registry.root().join(repo);
    let entry = format!("u:{}:rwx", to.uid());
    let mut setfacl = Command::new("setfacl");
    setfacl.args(["-m", &entry]).arg(&repo);
    for inner in ["blobs", "blobs/sha256"] {
        setfacl.arg(repo.join(inner));
    }
    run(&mut setfacl).ok();
}

fn blob(registry: &Registry, repo: &str, digest: &str) -> PathBuf {
    registry.root().join(repo).join("blobs").join(digest.replace(':', "/"))
}

fn pool(registry: &Registry, digest: &str) -> PathBuf {
    let hex = &digest["sha256:".len()..];
    registry.root().join(".stillage/pool/sha256").join(&hex[..2]).join(hex)
}

fn get(registry: &Registry, repo: &str, digest: &str) -> Response {
    registry.client().get(&format!("/v2/{repo}/blobs/{digest}"))
}

fn inode(path: &Path) -> u64 {
    fs::metadata(path).expect("a file").ino()
}

#[track_caller]
fn expect_in_log(registry: &Registry, path: &Path) {
    let (log, path) = (registry.stderr(), path.display().to_string());
    assert!(log.contains(&path), "no {path} in the log:\n{log}");
}

#[test]
fn foreign_inode() {
    let mallory = Account::new();
    let shell = Shell::of(&mallory);
    let mut registry = open_to_shells(&[]);
    let client = registry.client();
    client.push_image("mallory/app", "v1", &Image::random(100));
    give(&registry, "mallory/app", &mallory);

    // A layer that she drops in, once adopted by a manifest and once mounted elsewhere.
    let layer = random(100_000);
    let image = Image::of(vec![layer.clone()], "");
    let digest = sha256(&layer);
    let dropped = blob(&registry, "mallory/app", &digest);
    let aside = registry.scratch().join("layer");
    fs::write(&aside, &layer).expect("a file for her");
    shell.run("umask 022; cp \"$1\" \"$2\"", &[&aside, &dropped]).ok();
    assert_eq!(fs::metadata(&dropped).expect("dropped in").uid(), mallory.uid());
    assert!(get(&registry, "mallory/app", &digest).expect_status(200).body == layer);
    let mount = format!("/v2/mounted/app/blobs/uploads/?mount={digest}&from=mallory/app");
    client.send(Request::post(mount)).expect_status(201);
    let mounted = blob(&registry, "mounted/app", &digest);
    assert_ne!(inode(&mounted), inode(&dropped), "her inode is not shared");
    assert_eq!(inode(&mounted), inode(&pool(&registry, &digest)));
    let overwrite = "printf EVIL | dd of=\"$1\" conv=notrunc status=none";
    shell.run(overwrite, &[&dropped]).ok();
    assert!(get(&registry, "mounted/app", &digest).expect_status(200).body == layer);
    // In her own repository it is damage now, not the layer, though it was served a moment ago.
    get(&registry, "mallory/app", &digest).expect_error(500, "UNKNOWN");
    expect_in_log(&registry, &dropped);
    let part = Request::get(format!("/v2/mallory/app/blobs/{digest}")).header("Range", "bytes=0-9");
    client.send(part).expect_error(500, "UNKNOWN");
    shell.run("cp \"$1\" \"$2\"", &[&aside, &dropped]).ok();
    assert!(get(&registry, "mallory/app", &digest).expect_status(200).body == layer);

    // Adopted: a copy takes the name, and she still has the inode only.
    let kept = registry.scratch().join("kept");
    fs::set_permissions(registry.scratch(), Permissions::from_mode(0o777)).expect("chmod");
    shell.run("ln \"$1\" \"$2\"", &[&dropped, &kept]).ok();
    for part in [&image.config, &layer] {
        if *part != layer {
            client.push_blob("mallory/app", part);
        }
    }
    client.put_manifest("mallory/app", "v2", OCI_MANIFEST, &image.manifest).expect_status(201);
    shell.run(overwrite, &[&kept]).ok();
    client.assert_pulls("mallory/app", "v2", &image);
    shell.run(overwrite, &[&dropped]).refused();

    // Renaming is hers to do, in her own directory and for nobody else: the same length, and an
    // inode that this server wrote and hashed itself.
    let evil = random(100_000);
    let evil = client.push_blob("mallory/app", &evil);
    registry.expect_damage();
    shell.run("mv -f \"$1\" \"$2\"", &[&blob(&registry, "mallory/app", &evil), &dropped]).ok();
    for _ in 0..2 {
        let client = registry.client();
        get(&registry, "mallory/app", &digest).expect_error(500, "UNKNOWN");
        assert!(get(&registry, "mounted/app", &digest).expect_status(200).body == layer);
        let put = client.put_manifest("mallory/app", "v3", OCI_MANIFEST, &image.manifest);
        put.expect_error(400, "MANIFEST_BLOB_UNKNOWN");
        let mount = format!("/v2/victim/app/blobs/uploads/?mount={digest}&from=mallory/app");
        client.send(Request::post(mount)).expect_status(202);
        registry.restart();
    }
    let (code, found) = registry.check();
    assert_eq!(code, Some(4), "{found}");
    assert!(found.contains("blob-digest-mismatch") && found.contains(&digest[7..]), "{found}");
    // Whoever pushes it again mends it: once it was looked at, HEAD does not vouch for it.
    get(&registry, "mallory/app", &digest).expect_error(500, "UNKNOWN");
    registry.client().head(&format!("/v2/mallory/app/blobs/{digest}")).expect_status(404);
    registry.client().push_image("mallory/app", "v3", &image);
    registry.client().assert_pulls("mallory/app", "v3", &image);
    registry.assert_sound();
}

/// Gives blobs' names to everything that is no file.
fn plant_kinds(shell: &Shell, target: &Path, paths: &[PathBuf], scratch: &Path) -> UnixListener {
    let [link, fifo, directory, device, socket] = paths else { panic!("five names") };
    shell.run("ln -s \"$1\" \"$2\"", &[target, link]).ok();
    shell.run("mkfifo \"$1\"", &[fifo]).ok();
    shell.run("mkdir \"$1\"", &[directory]).ok();
    // Never ends.
    run(Command::new("mknod").arg(device).args(["c", "1", "5"])).ok();
    // The address of a socket is short.
    let listener = UnixListener::bind(scratch.join("s")).expect("a socket");
    fs::rename(scratch.join("s"), socket).expect("its new name");
    listener
}

#[test]
fn planted_symlink() {
    let mallory = Account::new();
    let shell = Shell::of(&mallory);
    let mut registry = open_to_shells(&[]);
    registry.expect_damage();
    let client = registry.client();
    let image = Image::random(1000);
    for repo in ["fine", "m/a"] {
        client.push_image(repo, "v1", &image);
    }
    give(&registry, "m/a", &mallory);
    let secret = registry.scratch().join("secret");
    fs::write(&secret, "not for her").expect("a secret");

    let digests: Vec<String> = (0..5).map(|n: u8| sha256(&[n])).collect();
    let paths: Vec<PathBuf> = digests.iter().map(|d| blob(&registry, "m/a", d)).collect();
    let _listener = plant_kinds(&shell, &secret, &paths, &registry.scratch());
    for (digest, path) in digests.iter().zip(&paths) {
        assert!(fs::symlink_metadata(path).is_ok_and(|meta| !meta.is_file()), "{}", path.display());
        let answer = get(&registry, "m/a", digest).expect_error(500, "UNKNOWN");
        assert!(!answer.text().contains(&path.display().to_string()), "{answer:?}");
        client.head(&format!("/v2/m/a/blobs/{digest}")).expect_status(404);
        let from = format!("/v2/fine/blobs/uploads/?mount={digest}&from=m/a");
        client.send(Request::post(from)).expect_status(202);
        expect_in_log(&registry, path);
        let manifest = Request::get(format!("/v2/m/a/manifests/{digest}"));
        assert_eq!(client.send(manifest).status, 404, "no index names it");
    }
    let (code, found) = registry.check();
    assert_eq!(code, Some(4), "{found}");
    for path in &paths {
        let name = path.file_name().and_then(|name| name.to_str()).expect("digits");
        let line = found.lines().find(|line| line.contains(name));
        assert!(line.is_some_and(|line| line.contains("wrong-file-type")), "{name}:\n{found}");
    }

    // The files and directories beside them: each in a repository of its own, as a symlink into
    // another repository.
    for (number, (name, blob)) in
        [("blobs", 500), ("blobs/sha256", 500), ("index.json", 200)].into_iter().enumerate()
    {
        let repo = format!("m/b{number}");
        client.push_image(&repo, "v1", &image);
        give(&registry, &repo, &mallory);
        let path = registry.root().join(&repo).join(name);
        let there = registry.root().join("fine").join(name);
        shell.run("mv \"$1\" \"$1.aside\"; ln -s \"$2\" \"$1\"", &[&path, &there]).ok();
        assert_refused(&registry, &repo, &image, blob);
        expect_in_log(&registry, &path);
        let (code, found) = registry.check();
        let reported = found.lines().any(|line| {
            line.contains("wrong-file-type") && line.contains(&format!("{repo}/{name}"))
        });
        assert!(code == Some(4) && reported, "{name}:\n{found}");
    }
    // And a directory on the way.
    let way = registry.root().join("m/way");
    symlink(registry.root().join("fine"), &way).expect("a symlink");
    assert_refused(&registry, "m/way", &image, 500);
    let (_, found) = registry.check();
    assert!(found.lines().any(|l| l.contains("directory-symlinked") && l.contains("m/way")));
    client.assert_pulls("fine", "v1", &image);
    client.push_image("fine", "v2", &image);
}

/// No manifest comes out of a repository and none goes in; a blob is answered with this status.
#[track_caller]
fn assert_refused(registry: &Registry, repo: &str, image: &Image, blob: u16) {
    let client = registry.client();
    get(registry, repo, &sha256(&image.layers[0])).expect_status(blob);
    client.get(&format!("/v2/{repo}/manifests/v1")).expect_error(500, "UNKNOWN");
    client.put_manifest(repo, "v2", OCI_MANIFEST, &image.manifest).expect_error(500, "UNKNOWN");
}

#[test]
fn shared_inode() {
    let mallory = Account::new();
    let shell = Shell::of(&mallory);
    let registry = open_to_shells(&[]);
    let client = registry.client();
    let bytes = random(50_000);
    let digest = client.push_blob("a", &bytes);
    client.push_image("b", "v1", &Image::of(vec![bytes.clone()], ""));
    let (one, two) = (blob(&registry, "a", &digest), blob(&registry, "b", &digest));
    let meta = fs::metadata(&one).expect("the blob");
    assert_eq!((meta.mode() & 0o7777, inode(&one)), (0o444, inode(&two)));
    assert_eq!(inode(&one), inode(&pool(&registry, &digest)));
    // Whoever may write both directories cannot write the file.
    for repo in ["a", "b"] {
        give(&registry, repo, &mallory);
    }
    for attempt in
        ["echo x >\"$1\"", "chmod u+w \"$1\"", "truncate -s 0 \"$1\"", "touch -d 2001-01-01 \"$1\""]
    {
        shell.run(attempt, &[&one]).refused();
    }
    // Nobody of ours opens it for writing either, as long as it has its names.
    let trace = registry.scratch().join("trace");
    let mut strace = Strace::attach(registry.pid(), &trace);
    client.push_image("c", "v1", &Image::of(vec![bytes.clone()], ""));
    assert!(get(&registry, "c", &digest).expect_status(200).body == bytes);
    strace.detach();
    let calls = fs::read_to_string(&trace).expect("the trace");
    let hex = &digest["sha256:".len()..];
    let opened = calls.lines().filter(|line| line.contains("open") && line.contains(hex));
    let opened: Vec<&str> = opened.collect();
    assert!(!opened.is_empty(), "{calls}");
    assert!(opened.iter().all(|line| !line.contains("O_WRONLY") && !line.contains("O_RDWR")));

    // An inode that could be written is shared no further: a copy is.
    fs::set_permissions(&one, Permissions::from_mode(0o664)).expect("chmod");
    let mount = format!("/v2/d/blobs/uploads/?mount={digest}&from=a");
    client.send(Request::post(mount)).expect_status(201);
    let copy = blob(&registry, "d", &digest);
    assert_ne!(inode(&copy), inode(&one));
    assert_eq!(fs::metadata(&copy).expect("a copy").mode() & 0o777, 0o444);
    assert_eq!(inode(&copy), inode(&pool(&registry, &digest)));
    // Nor is one that not everybody may read, whose rights its other names would take on.
    fs::set_permissions(&copy, Permissions::from_mode(0o440)).expect("chmod");
    let mount = format!("/v2/e/blobs/uploads/?mount={digest}&from=d");
    client.send(Request::post(mount)).expect_status(201);
    assert_ne!(inode(&blob(&registry, "e", &digest)), inode(&copy));
    for path in [&one, &copy] {
        fs::set_permissions(path, Permissions::from_mode(0o444)).expect("chmod");
    }
}

/// strace(1) on a running server.
struct Strace(std::process::Child);

impl Strace {
    fn attach(pid: u32, output: &Path) -> Strace {
        let mut command = Command::new("strace");
        command.args(["-f", "-e", "trace=%file,%desc", "-o"]).arg(output);
        command.args(["-p", &pid.to_string()]).stderr(Stdio::piped());
        let mut child = command.spawn().expect("strace is installed");
        let mut said = std::io::BufReader::new(child.stderr.take().expect("stderr is piped"));
        let mut line = String::new();
        std::io::BufRead::read_line(&mut said, &mut line).expect("strace says something");
        assert!(line.contains("attached"), "{line}");
        thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        Strace(child)
    }

    fn detach(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("a signal");
        self.0.wait().expect("strace ends");
    }
}

#[test]
fn lock_holder() {
    let (reader, mallory) = (Account::new(), Account::new());
    let registry = open_to_shells(&["--lock-wait", "2"]);
    let client = registry.client();
    let image = Image::random(1000);
    for repo in ["a", "b"] {
        client.push_image(repo, "v1", &image);
    }
    let lock = |repo: &str| registry.root().join(repo).join(".lock");
    // Who may read cannot even open it, as long as the server made it.
    let held = Shell::of(&reader).run("flock --nonblock \"$1\" true", &[&lock("a")]).refused();
    assert!(held.text().contains("Permission denied"), "{held}");
    Shell::of(&reader)
        .run("cat \"$1/index.json\" >\"$2\"", &[&registry.root().join("a"), Path::new("/dev/null")])
        .ok();

    // Who may push can, and then others wait: not for ever, and nobody in another repository.
    give(&registry, "a", &mallory);
    let acl = format!("u:{}:rw", mallory.uid());
    run(Command::new("setfacl").args(["-m", &acl]).arg(lock("a"))).ok();
    let mut holder = Shell::of(&mallory)
        .command("exec flock --no-fork \"$1\" sh -c 'echo held; exec sleep 300'", &[&lock("a")])
        .stdout(Stdio::piped())
        .spawn()
        .expect("setpriv and flock are installed");
    let mut held = [0; 5];
    let mut stdout = holder.stdout.take().expect("stdout is piped");
    std::io::Read::read_exact(&mut stdout, &mut held).expect("she holds the lock");
    let begun = Instant::now();
    thread::scope(|scope| {
        let waiting: Vec<_> = (0..8)
            .map(|number| {
                let (client, manifest) = (&client, &image.manifest);
                scope.spawn(move || {
                    client.put_manifest("a", &format!("t{number}"), OCI_MANIFEST, manifest)
                })
            })
            .collect();
        client.push_image("b", "v2", &image);
        client.assert_pulls("a", "v1", &image);
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        for answer in waiting {
            let answer = answer.join().expect("an answer").expect_error(503, "UNAVAILABLE");
            let after = answer.header("retry-after").and_then(|text| text.parse::<u64>().ok());
            assert!(after.is_some_and(|seconds| seconds > 0), "{answer:?}");
        }
    });
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    expect_in_log(&registry, &lock("a"));
    holder.kill().expect("a signal");
    holder.wait().expect("its end");
    client.put_manifest("a", "v3", OCI_MANIFEST, &image.manifest).expect_status(201);
    assert_eq!(client.tags("a"), ["v1", "v3"], "what was refused did not happen later");

    // A lock file, journal or list of facts that is also another file: that is not touched.
    for name in [".lock", "_log.jsonl"] {
        let victim = registry.root().join(format!("victim{name}"));
        fs::write(&victim, "precious, and no newline").expect("a file of root's");
        fs::set_permissions(&victim, Permissions::from_mode(0o644)).expect("chmod");
        chown(&victim, Some(0), Some(0)).expect("chown");
        let before = fs::metadata(&victim).expect("the victim");
        let path = registry.root().join("b").join(name);
        fs::remove_file(&path).expect("the server's own");
        fs::hard_link(&victim, &path).expect("a hard link");
        client.put_manifest("b", "v3", OCI_MANIFEST, &image.manifest).expect_status(201);
        client.send(Request::delete("/v2/b/manifests/v3")).expect_status(202);
        let after = fs::metadata(&victim).expect("the victim");
        assert_eq!((after.mode(), after.gid()), (before.mode(), before.gid()));
        assert_eq!(fs::read(&victim).expect("the victim"), b"precious, and no newline");
        for entry in fs::read_dir(registry.root().join("b")).expect("the repository") {
            let path = entry.expect("an entry").path();
            if fs::metadata(&path).expect("a file").ino() == after.ino() {
                fs::remove_file(path).expect("what was set aside");
            }
        }
        fs::remove_file(victim).expect("the victim");
    }
}

#[test]
fn foreign_files() {
    let mallory = Account::new();
    let registry = open_to_shells(&[]);
    let client = registry.client();
    let image = Image::random(1000);
    for repo in ["app", "team/app"] {
        client.push_image(repo, "v1", &image);
    }
    let root = registry.root();
    let blobs = "team/app/blobs/sha256";
    for (dir, mode) in [
        ("lost+found", 0o700),
        (".snapshot/daily/app", 0o755),
        ("team/.snapshot", 0o700),
        ("team/app/.git/objects", 0o755),
        ("#recycle", 0o700),
        ("System Volume Information", 0o700),
        ("empty/nested", 0o755),
        ("closed", 0o700),
    ] {
        fs::create_dir_all(root.join(dir)).expect("a directory");
        fs::set_permissions(root.join(dir), Permissions::from_mode(mode)).expect("chmod");
        chown(root.join(dir), Some(mallory.uid()), None).expect("chown");
    }
    fs::copy(root.join("app/index.json"), root.join(".snapshot/daily/app/index.json")).expect("cp");
    let hex = &image.digest["sha256:".len()..];
    for file in [
        "README.md",
        ".DS_Store",
        "team/notes.txt",
        "team/app/.index.json.swp",
        "team/app/index.json~",
        "team/app/4913",
        "team/app/blobs/.nfs000000000001",
        &format!("{blobs}/.{hex}.swp"),
        "team/app/_referrers.bak",
    ] {
        fs::write(root.join(file), "not ours").expect("a file");
    }
    File::create(root.join("core")).and_then(|file| file.set_len(1 << 30)).expect("a large file");
    let before = listing(root);

    let mut registry = registry;
    for _ in 0..2 {
        let client = registry.client();
        let list = client.get("/v2/_catalog").expect_status(200).json();
        assert_eq!(list["repositories"], serde_json::json!(["app", "team/app"]));
        client.push_image("team/app", "v2", &image);
        client.push_image("team/new", "v1", &image);
        for (repo, tag) in [("app", "v1"), ("team/app", "v1"), ("team/app", "v2")] {
            client.assert_pulls(repo, tag, &image);
        }
        let manifest = format!("/v2/team/new/manifests/{}", image.digest);
        client.send(Request::delete(manifest)).expect_status(202);
        let (code, found) = registry.check();
        assert_eq!(code, Some(0), "{found}");
        registry.restart();
    }
    let after = listing(registry.root());
    let gone: Vec<_> = before.iter().filter(|path| !after.contains(path)).collect();
    assert!(gone.is_empty(), "{gone:?}");
}

/// Every path beneath a directory.
fn listing(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).expect("a directory") {
            let entry = entry.expect("an entry");
            if entry.file_type().expect("its type").is_dir() {
                todo.push(entry.path());
            }
            found.push(entry.path());
        }
    }
    found.retain(|path| !path.components().any(|part| part.as_os_str() == ".stillage"));
    found
}
