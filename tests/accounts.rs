//! Accounts of the host, made for the test: who is let in, with curl, podman and skopeo, through the
//! PAM stack that Debian comes with.
//!
//! Runs alone (tests/run): every change of the host's accounts makes all servers forget what they
//! remember.

mod support;

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use support::account::{Account, Group};
use support::command::run;
use support::containers::{Containers, localhost};
use support::content::{Image, random_hex, sha256};
use support::http::{Request, basic};
use support::tls::Pair;
use support::{Registry, measured};

/// How clients reach the server.
struct Transport {
    scheme: &'static str,
    /// Arguments of `serve`.
    serve: Vec<String>,
    /// Arguments of curl, and of podman and skopeo, that make them trust it.
    curl: Vec<String>,
    podman: Vec<String>,
    /// Where the certificate lies.
    _files: Option<tempfile::TempDir>,
}

/// Every test of people goes over each of these.
fn transports() -> [Transport; 2] {
    [Transport::plain(), Transport::tls()]
}

impl Transport {
    fn plain() -> Transport {
        let podman = vec!["--tls-verify=false".to_owned()];
        Transport { scheme: "http", serve: Vec::new(), curl: Vec::new(), podman, _files: None }
    }

    fn tls() -> Transport {
        let files = tempfile::tempdir().expect("a directory");
        let pair = Pair::new(files.path());
        let trusted = files.path().join("trusted");
        fs::create_dir(&trusted).expect("a directory");
        let authority = trusted.join("ca.crt");
        fs::copy(&pair.certificate, &authority).expect("a copy");
        let [authority, trusted] = [authority, trusted].map(|path| path.display().to_string());
        Transport {
            scheme: "https",
            serve: pair.args().map(str::to_owned).into(),
            curl: vec!["--cacert".to_owned(), authority],
            podman: vec!["--cert-dir".to_owned(), trusted],
            _files: Some(files),
        }
    }

    /// Arguments of `serve`, with more.
    fn args<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        self.serve.iter().map(String::as_str).chain(more.iter().copied()).collect()
    }

    fn start_on(&self, root: &Path) -> Registry {
        Registry::start_on(root, &self.args(&["--auth", "pam", "--anonymous", "none"]))
    }

    fn start(&self) -> Registry {
        Registry::start(&self.args(&["--auth", "pam", "--anonymous", "none"]))
    }

    /// What curl prints of one of the server's paths.
    fn curl(&self, registry: &Registry, args: &[&str], path: &str) -> String {
        let url = format!("{}://{}{path}", self.scheme, localhost(registry.addr()));
        run(Command::new("curl").arg("-sS").args(&self.curl).args(args).arg(url)).ok().stdout
    }

    /// The status that curl gets with these credentials.
    fn status(&self, registry: &Registry, path: &str, user: &str, password: &str) -> String {
        let pair = format!("{user}:{password}");
        let args = ["-o", "/dev/null", "-w", "%{http_code}", "-u", &pair];
        self.curl(registry, &args, path)
    }

    /// Whether curl gets a token, and into `/v2/` without one; both must agree.
    fn lets_in(&self, registry: &Registry, user: &str, password: &str) -> bool {
        let ways = ["/token?service=stillage", "/v2/"];
        let found = thread::scope(|scope| {
            let ask = |path| scope.spawn(move || self.status(registry, path, user, password));
            ways.map(ask).map(|asked| asked.join().expect("no panic"))
        });
        match found.each_ref().map(String::as_str) {
            ["200", "200"] => true,
            ["401", "401"] => false,
            other => panic!("{user}: {other:?}\n{}", registry.stderr()),
        }
    }

    fn podman_login(&self, registry: &Registry, user: &str, password: &str) -> bool {
        let server = localhost(registry.addr());
        let mut all = vec!["login", "-u", user, "-p", password];
        all.extend(self.podman.iter().map(String::as_str));
        all.push(&server);
        let outcome = Containers::new().podman(&all);
        let said = outcome.text().contains("Login Succeeded!");
        assert_eq!(outcome.code == Some(0), said, "{outcome}");
        said
    }

    fn skopeo_inspect(&self, registry: &Registry, image: &str, user: &str, password: &str) -> bool {
        let name = format!("docker://{}/{image}", localhost(registry.addr()));
        let pair = format!("{user}:{password}");
        let mut all = vec!["inspect", "--raw", "--creds", &pair];
        all.extend(self.podman.iter().map(String::as_str));
        all.push(&name);
        let outcome = Containers::new().skopeo(&all);
        assert!(outcome.code == Some(0) || outcome.text().contains("unauthorized"), "{outcome}");
        outcome.code == Some(0)
    }
}

#[test]
fn account_phase_every_kind_of_account_with_curl_podman_and_skopeo() {
    let [good, locked, expired, stale, empty, barred] = std::array::from_fn(|_| Account::new());
    let foreign = Account::with_password("Grüße an ß, 密码 und €");
    let colons = Account::with_password("a:b::c:");
    locked.lock();
    expired.expire();
    stale.must_change_password();
    empty.without_password();
    barred.shell("/usr/sbin/nologin");
    let cases = [
        (&good, good.password(), true),
        (&good, "wrong", false),
        (&locked, locked.password(), false),
        (&expired, expired.password(), false),
        (&stale, stale.password(), false),
        (&empty, "", false),
        (&empty, "anything", false),
        (&empty, empty.password(), false),
        (&barred, barred.password(), true),
        (&foreign, foreign.password(), true),
        (&colons, colons.password(), true),
        (&colons, "a", false),
    ];
    let tree = tempfile::tempdir().expect("a directory");
    {
        let registry = Transport::plain().start_on(tree.path());
        registry.grant(&format!("u:{}", good.name()));
        let pusher = registry.client().with_authorization(basic(good.name(), good.password()));
        pusher.push_image("a", "v1", &Image::random(100));
    }
    for transport in &transports() {
        let registry = transport.start_on(tree.path());
        thread::scope(|scope| {
            for (account, password, expected) in &cases {
                let (registry, user) = (&registry, account.name());
                scope.spawn(move || {
                    let let_in = transport.lets_in(registry, user, password);
                    assert_eq!(let_in, *expected, "{password:?}\n{}", registry.stderr());
                    // podman and skopeo send nothing where the password is empty.
                    if !password.is_empty() {
                        let login = transport.podman_login(registry, user, password);
                        let inspect = transport.skopeo_inspect(registry, "a:v1", user, password);
                        assert_eq!([login, inspect], [*expected; 2], "{password:?}");
                    }
                });
            }
        });
        let log = registry.stderr();
        for (account, ..) in &cases {
            assert!(!log.contains(account.password()), "{log}");
        }
    }
}

#[test]
fn thirty_two_people_log_in_at_once() {
    let accounts: Vec<Account> = (0..32).map(|_| Account::new()).collect();
    for transport in &transports() {
        let registry = transport.start();
        let began = Instant::now();
        thread::scope(|scope| {
            for account in &accounts {
                let registry = &registry;
                scope.spawn(move || {
                    let (user, password) = (account.name(), account.password());
                    let status = transport.status(registry, "/token", user, password);
                    assert_eq!(status, "200", "{}", registry.stderr());
                });
            }
        });
        let took = began.elapsed();
        measured(format_args!("32 logins at once over {}: {took:.2?}", transport.scheme));
        assert!(took < Duration::from_secs(30), "{took:?}");
    }
}

/// What docs/log.md states, for accounts that are in the host's own files.
#[test]
fn changes_of_accounts_count_with_the_next_request() {
    let group = Group::new();
    let (account, other) = (Account::new(), Account::new());
    let transport = Transport::plain();
    let registry = transport.start();
    let lets_in = || transport.lets_in(&registry, account.name(), account.password());
    assert!(lets_in());
    account.lock();
    assert!(!lets_in(), "a remembered password of a locked account");
    account.unlock();
    assert!(lets_in(), "a remembered refusal of an account that is not locked any more");
    account.expire();
    assert!(!lets_in());
    account.unexpire();

    registry.grant(&format!("g:{}", group.name()));
    let token = registry
        .client()
        .token(account.name(), account.password(), &["repository:a:pull,push"])
        .expect("a token");
    let mine = registry.client().with_authorization(basic(account.name(), account.password()));
    let push = || mine.send(Request::post("/v2/a/blobs/uploads/")).status;
    assert_eq!(push(), 403);
    account.join(&group);
    let began = Instant::now();
    assert_eq!(push(), 202, "a member now");
    measured(format_args!("a new group membership counted after {:.2?}", began.elapsed()));
    let scoped = ["repository:a:pull,push"];
    let member = registry.client().token(account.name(), account.password(), &scoped);
    let member = member.expect("a token");
    let with_token = |token: &str| {
        registry.client().send(Request::post("/v2/a/blobs/uploads/").bearer(token)).status
    };
    assert_eq!((with_token(&member), with_token(&token)), (202, 401), "as far as they reach");
    account.leave(&group);
    assert_eq!((push(), with_token(&member)), (403, 403), "the same token");

    let theirs = registry.client().token(other.name(), other.password(), &[]).expect("a token");
    let ping = || registry.client().send(Request::get("/v2/").bearer(&theirs)).status;
    assert_eq!(ping(), 200);
    drop(other);
    assert_eq!(ping(), 401, "a token of an account that is gone");
}

/// A directory for a tree that belongs to an account.
fn tree_of(account: &Account) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    chown(dir.path(), Some(account.uid()), Some(account.uid())).expect("chown");
    dir
}

#[test]
fn a_service_account_in_group_shadow_checks_everybody_without_privileges() {
    let (service, anna) = (Account::new(), Account::new());
    let shadow = run(Command::new("getent").args(["group", "shadow"])).ok().stdout;
    let shadow = shadow.split(':').nth(2).expect("a group number");
    let (tree, uid) = (tree_of(&service), service.uid().to_string());
    let by = ["setpriv", "--no-new-privs", "--reuid", &uid, "--regid", &uid, "--groups", shadow];
    let transport = Transport::plain();
    let registry = Registry::start_by(&by, tree.path(), &["--anonymous", "none"]);
    let status = fs::read_to_string(format!("/proc/{}/status", registry.pid())).expect("status");
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    assert!(status.contains("CapEff:\t0000000000000000"), "{status}");
    for account in [&service, &anna] {
        assert!(transport.lets_in(&registry, account.name(), account.password()));
    }
    assert!(!transport.lets_in(&registry, anna.name(), "wrong"));
    anna.expire();
    assert!(!transport.lets_in(&registry, anna.name(), anna.password()), "the account phase");
    anna.unexpire();
    assert!(transport.podman_login(&registry, anna.name(), anna.password()));
}

#[test]
fn an_ordinary_user_has_a_registry_for_oneself() {
    let (own, other) = (Account::new(), Account::new());
    let (tree, uid) = (tree_of(&own), own.uid().to_string());
    let by = ["setpriv", "--reuid", &uid, "--regid", &uid, "--clear-groups"];
    let transport = Transport::plain();
    let registry = Registry::start_by(&by, tree.path(), &["--anonymous", "none"]);
    assert!(transport.lets_in(&registry, own.name(), own.password()));
    assert!(!transport.lets_in(&registry, own.name(), "wrong"));
    assert!(!transport.lets_in(&registry, other.name(), other.password()), "nobody else's");
    let client = registry.client().with_authorization(basic(own.name(), own.password()));
    let image = Image::random(100);
    client.push_image("a", "v1", &image);
    client.assert_pulls("a", "v1", &image);
}

/// The processes that a process started, and those that they started.
fn family(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    let mut at = 0;
    while let Some(parent) = all.get(at).copied() {
        let threads = fs::read_dir(format!("/proc/{parent}/task")).expect("threads").flatten();
        for thread in threads {
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            all.extend(children.split_whitespace().map(|id| id.parse::<u32>().expect("a number")));
        }
        at += 1;
    }
    all
}

/// Where in a process's writable memory these bytes are.
fn found_in(pid: u32, wanted: &[u8]) -> Vec<String> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("maps");
    let mut memory = fs::File::open(format!("/proc/{pid}/mem")).expect("mem");
    let mut found = Vec::new();
    for line in
        maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|m| m.starts_with("rw")))
    {
        let (from, to) = line.split(' ').next().and_then(|r| r.split_once('-')).expect("a range");
        let [from, to] = [from, to].map(|at| u64::from_str_radix(at, 16).expect("an address"));
        let mut bytes = Vec::new();
        memory.seek(SeekFrom::Start(from)).expect("seek");
        // What is reserved and was never touched cannot be read everywhere: nothing is there.
        let _ = (&mut memory).take(to - from).read_to_end(&mut bytes);
        let finder = bytes.windows(wanted.len()).position(|window| window == wanted);
        found.extend(finder.map(|at| format!("{pid}: {line} + {at:#x}")));
    }
    found
}

#[test]
fn no_password_is_left_in_memory_after_its_login() {
    let account = Account::with_password(&random_hex(30));
    let (user, password) = (account.name(), account.password());
    let transport = Transport::plain();
    let registry = transport.start();
    let client = registry.client();
    client.send(Request::get("/token").basic(user, password)).expect_status(200);
    client.send(Request::get("/v2/").basic(user, password)).expect_status(200);
    let form = format!("grant_type=password&service=x&username={user}&password={password}");
    let form = Request::post("/token")
        .header("Content-Type", "application/x-www-form-urlencoded")
        .body(form);
    client.send(form).expect_status(200);
    assert!(transport.podman_login(&registry, user, password));
    // On a connection whose buffers have grown with an upload, as docker does it.
    registry.grant(&format!("u:{user}"));
    let mut connection = client.connect();
    for _ in 0..3 {
        let begin = Request::post("/v2/a/blobs/uploads/").basic(user, password);
        let upload = connection.send(&begin).expect_status(202).location();
        let patch = Request::patch(upload).body(vec![7; 16 << 20]).basic(user, password);
        connection.send(&patch).expect_status(202);
        connection.send(&Request::get("/token").basic(user, password)).expect_status(200);
    }
    drop(connection);
    nothing_is_left_in_memory(&transport, &registry, &account);
}

/// The same where TLS copies everything once more, and HTTP/2 packs and unpacks heads.
#[test]
fn no_password_is_left_in_memory_after_its_login_over_tls() {
    let account = Account::with_password(&random_hex(30));
    let (user, password) = (account.name(), account.password());
    let transport = Transport::tls();
    let registry = transport.start();
    registry.grant(&format!("u:{user}"));
    let large = registry.scratch().join("large");
    fs::write(&large, vec![7; 16 << 20]).expect("a file");
    let digest = sha256(&fs::read(&large).expect("the file"));
    let data = format!("@{}", large.display());
    let pair = format!("{user}:{password}");
    let form = format!("grant_type=password&service=x&username={user}&password={password}");
    for version in ["--http1.1", "--http2"] {
        for path in ["/token", "/v2/"] {
            transport.curl(&registry, &["-f", version, "-u", &pair], path);
        }
        transport.curl(&registry, &["-f", version, "-d", &form], "/token");
        let octets = "Content-Type: application/octet-stream";
        let push = ["-f", version, "-u", &pair, "-H", octets, "--data-binary", &data];
        transport.curl(&registry, &push, &format!("/v2/a/blobs/uploads/?digest={digest}"));
    }
    assert!(transport.podman_login(&registry, user, password));
    nothing_is_left_in_memory(&transport, &registry, &account);
}

/// Looks through the memory of the server and of its workers for parts of a password that was right
/// and then refused.
fn nothing_is_left_in_memory(transport: &Transport, registry: &Registry, account: &Account) {
    let (user, password) = (account.name(), account.password());
    // Every worker there is has seen it, and one that is refused too.
    account.expire();
    assert_eq!(transport.status(registry, "/v2/", user, password), "401");
    account.unexpire();
    assert_eq!(transport.status(registry, "/v2/", user, password), "200");

    let processes = family(registry.pid());
    assert!(processes.len() >= 2, "a server and a worker: {processes:?}");
    let here = |wanted: &[u8]| -> Vec<String> {
        processes.iter().flat_map(|pid| found_in(*pid, wanted)).collect()
    };
    // The search finds what is there: the server remembers who logged in.
    assert!(!here(user.as_bytes()).is_empty());
    // Parts, so that what lost its first bytes is found too.
    let pair = format!("{user}:{password}");
    let encoded = base64::engine::general_purpose::STANDARD.encode(&pair);
    let parts = [&password[..20], &password[20..40], &encoded[8..28], &encoded[32..52]];
    // Connections are closed, and their buffers given back, a moment after the answer.
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let left: Vec<_> = parts.iter().flat_map(|part| here(part.as_bytes())).collect();
        if left.is_empty() {
            break;
        }
        assert!(Instant::now() < until, "{left:#?}");
        thread::sleep(Duration::from_millis(200));
    }
}
