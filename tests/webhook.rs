//! Webhooks: whatever was committed reaches its receiver, whatever becomes of receiver and server.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::Registry;
use support::content::Image;
use support::random::Random;
use support::tls::Pair;

/// Nothing that is awaited takes longer, or the test fails.
const PATIENCE: Duration = Duration::from_secs(90);

/// So long nothing comes, where nothing is to come.
const QUIET: Duration = Duration::from_secs(3);

/// What a receiver does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    Takes,
    Fails,
    Redirects,
    /// Takes it, and says so late.
    Slow,
    /// Closes the connection without an answer, though it has taken it.
    HangsUp,
}

/// A small HTTP server that keeps what was posted to it.
#[derive(Clone)]
struct Receiver {
    port: u16,
    manner: Arc<Mutex<Manner>>,
    /// Every event that was taken, in the order of coming.
    events: Arc<Mutex<Vec<Value>>>,
    /// The heads of all requests.
    heads: Arc<Mutex<Vec<String>>>,
    asked: Arc<AtomicUsize>,
}

impl Receiver {
    /// A port on which nobody listens yet.
    fn new() -> Receiver {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let manner = Arc::new(Mutex::new(Manner::Takes));
        let (events, heads, asked) = Default::default();
        Receiver { port, manner, events, heads, asked }
    }

    fn listening() -> Receiver {
        let receiver = Receiver::new();
        receiver.listen(None);
        receiver
    }

    fn listen(&self, pair: Option<&Pair>) {
        let listener = TcpListener::bind(("127.0.0.1", self.port)).unwrap();
        let tls = pair.map(server_config);
        let receiver = self.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (receiver, tls) = (receiver.clone(), tls.clone());
                std::thread::spawn(move || match tls {
                    None => receiver.serve(stream),
                    Some(tls) => {
                        let session = rustls::ServerConnection::new(tls).unwrap();
                        receiver.serve(rustls::StreamOwned::new(session, stream))
                    }
                });
            }
        });
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/hook", self.port)
    }

    fn becomes(&self, manner: Manner) {
        *self.manner.lock().unwrap() = manner;
    }

    fn serve(&self, mut stream: impl Read + Write) -> Option<()> {
        let mut head = String::new();
        let mut reader = BufReader::new(&mut stream);
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head).ok()? == 0 {
                return None;
            }
        }
        let field = |name: &str| {
            let lines = head.lines().filter_map(|line| line.split_once(": "));
            lines.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
        };
        let length = field("content-length").and_then(|length| length.parse().ok())?;
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        let wanted = "application/vnd.docker.distribution.events.v2+json";
        assert_eq!(field("content-type"), Some(wanted), "{head}");
        self.heads.lock().unwrap().push(head);
        self.asked.fetch_add(1, Ordering::SeqCst);
        let manner = *self.manner.lock().unwrap();
        if manner == Manner::Slow {
            std::thread::sleep(Duration::from_millis(200));
        }
        if !matches!(manner, Manner::Fails | Manner::Redirects) {
            let told: Value = serde_json::from_slice(&body).unwrap();
            let told = told["events"].as_array().unwrap();
            assert!(!told.is_empty());
            self.events.lock().unwrap().extend(told.iter().cloned());
        }
        let answer = match manner {
            Manner::Takes | Manner::Slow => "200 OK\r\nContent-Length: 2\r\n\r\nok".to_owned(),
            Manner::Fails => "500 No\r\nContent-Length: 0\r\n\r\n".to_owned(),
            Manner::Redirects => {
                format!("302 There\r\nLocation: {}/other\r\nContent-Length: 0\r\n\r\n", self.url())
            }
            Manner::HangsUp => return None,
        };
        stream.write_all(format!("HTTP/1.1 {answer}").as_bytes()).ok()?;
        stream.flush().ok()
    }

    /// Waits until it was asked so many times more.
    fn is_asked(&self, times: usize) {
        let (begin, end) = (self.asked.load(Ordering::SeqCst), Instant::now() + PATIENCE);
        while self.asked.load(Ordering::SeqCst) < begin + times {
            assert!(Instant::now() < end, "nobody asks");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What came, as `repository action tag by`, without repetitions.
    fn told(&self) -> Vec<String> {
        let mut seen = BTreeSet::new();
        let events = self.events.lock().unwrap();
        let new = events.iter().filter(|event| seen.insert(event["id"].to_string()));
        new.map(spelled).collect()
    }

    /// Waits until an event has come.
    #[track_caller]
    fn hears(&self, what: &str) {
        let end = Instant::now() + PATIENCE;
        while !self.told().iter().any(|told| told == what) {
            assert!(Instant::now() < end, "no {what:?} in {:#?}", self.told());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn spelled(event: &Value) -> String {
    let target = &event["target"];
    let tag = target["tag"].as_str().unwrap_or("-");
    let by = event["actor"]["name"].as_str().unwrap_or("-");
    let [repository, action] =
        [&target["repository"], &event["action"]].map(|v| v.as_str().unwrap());
    format!("{repository} {action} {tag} {by}")
}

fn server_config(pair: &Pair) -> Arc<rustls::ServerConfig> {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let certificate = CertificateDer::from_pem_file(&pair.certificate).unwrap();
    let key = PrivateKeyDer::from_pem_file(&pair.key).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider);
    let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    Arc::new(config.with_single_cert(vec![certificate], key).unwrap())
}

/// A line of a change that was never committed, as a kill between journal and index.json leaves it.
fn void(root: &Path, repository: &str) {
    let journal = root.join(repository).join("_log.jsonl");
    let Ok(text) = fs::read_to_string(&journal) else { return };
    let mut void: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    // Upon what was never there nothing is made; and what is gone is no manifest.
    if void["tag"] == "void" || void["after"].is_null() {
        return;
    }
    void["base"] = void["stamp"].take();
    void["stamp"] = "1-00000000000000000000000000000001".into();
    void["what"] = "tag".into();
    void["tag"] = "void".into();
    void["before"] = Value::Null;
    fs::write(&journal, format!("{text}{void}\n")).unwrap();
}

/// A receiver that is dead, fails, is slow or hangs up, and a server that is killed: every committed
/// change arrives, in the order of its repository. `STILLAGE_WEBHOOK_SEED` replays a run.
#[test]
fn every_committed_event_arrives_in_order_and_no_other() {
    let mut random = Random::from_env("STILLAGE_WEBHOOK_SEED");
    let receiver = Receiver::new();
    let other = Receiver::listening();
    let urls = format!("{} {}", receiver.url(), other.url());
    let mut registry =
        Registry::start_with_env(&["--auth", "none"], &[("STILLAGE_WEBHOOK", &urls)]);
    let mut wanted: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let mut image = Image::random(10);
    let repositories = ["a", "a/b", "team/app"];
    for step in 0..60 {
        let client = registry.client();
        let name = *random.one_of(&repositories);
        let told = wanted.entry(name).or_default();
        match random.below(10) {
            0..6 => {
                if random.chance(70) {
                    image = Image::random(10);
                }
                let tag = format!("t{step}");
                client.push_image(name, &tag, &image);
                told.push(format!("{name} push {tag} root"));
            }
            6 | 7 => {
                let tags =
                    client.send(support::http::Request::get(format!("/v2/{name}/tags/list")));
                let tags = if tags.status == 200 { tags.json() } else { Value::Null };
                let tags = tags["tags"].as_array().cloned().unwrap_or_default();
                if let Some(tag) = random.pick(&tags).and_then(Value::as_str) {
                    client.delete(&format!("/v2/{name}/manifests/{tag}")).expect_status(202);
                    told.push(format!("{name} delete {tag} root"));
                }
            }
            8 => {
                registry.kill9();
                void(registry.root(), name);
                registry.run();
            }
            _ => {
                let manners = [Manner::Takes, Manner::Fails, Manner::Slow, Manner::HangsUp];
                receiver.becomes(*random.one_of(&manners));
            }
        }
        if step == 20 {
            receiver.listen(None);
        }
    }
    receiver.becomes(Manner::Takes);
    for name in repositories {
        registry.client().push_image(name, "last", &Image::random(10));
        wanted.entry(name).or_default().push(format!("{name} push last root"));
    }
    for receiver in [&receiver, &other] {
        repositories.iter().for_each(|name| receiver.hears(&format!("{name} push last root")));
        let told = receiver.told();
        for (name, wanted) in &wanted {
            let begin = format!("{name} ");
            let of: Vec<&String> = told.iter().filter(|told| told.starts_with(&begin)).collect();
            assert_eq!(of, wanted.iter().collect::<Vec<_>>(), "of {name}");
        }
    }
}

/// Waits until it is noted down that something was told of a repository.
fn noted(root: &Path, repository: &str, what: &str) {
    let end = Instant::now() + PATIENCE;
    let notes = |receiver: std::io::Result<fs::DirEntry>| {
        let path = receiver.unwrap().path().join(repository).join("_told.json");
        fs::read_to_string(path).is_ok_and(|text| text.contains(what))
    };
    while !fs::read_dir(root.join(".stillage/webhooks")).unwrap().any(notes) {
        assert!(Instant::now() < end, "{repository}: {what} is not noted down");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn what_is_there_before_is_not_told_and_what_others_do_while_nothing_runs_is() {
    let mut registry = Registry::start(&["--auth", "none"]);
    registry.client().push_image("old", "v1", &Image::random(10));
    let root = registry.root().to_owned();
    registry.term();
    let receiver = Receiver::listening();
    let told = Registry::start_on(&root, &["--auth", "none", "--webhook", &receiver.url()]);
    told.client().push_image("old", "v2", &Image::random(10));
    receiver.hears("old push v2 root");
    assert_eq!(receiver.told(), ["old push v2 root"]);
    noted(&root, "old", "v2");
    drop(told);

    let place = |name: &str| root.join(name);
    let copied = Command::new("cp").arg("-a").args([place("old"), place("copy")]).status();
    assert!(copied.unwrap().success());
    fs::remove_dir_all(place("old")).unwrap();
    // A push by a server that tells nobody.
    registry.run();
    registry.client().push_image("third", "v1", &Image::random(10));
    registry.term();
    let told = Registry::start_on(&root, &["--auth", "none", "--webhook", &receiver.url()]);
    for (name, action) in [("copy", "push"), ("old", "delete")] {
        for tag in ["v1", "v2"] {
            let by = |by: &str| receiver.told().contains(&format!("{name} {action} {tag} {by}"));
            let end = Instant::now() + PATIENCE;
            // Of a copy that is young, the journal may count.
            while !(by("unknown (outside)") || name == "copy" && by("root")) {
                assert!(Instant::now() < end, "{name} {tag} in {:#?}", receiver.told());
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
    receiver.hears("third push v1 root");
    // Neither check nor snapshot minds what is kept of the receiver, and a start tells nothing twice.
    told.assert_sound();
    noted(&root, "third", "v1");
    let number = receiver.events.lock().unwrap().len();
    drop(told);
    let told = Registry::start_on(&root, &["--auth", "none", "--webhook", &receiver.url()]);
    std::thread::sleep(QUIET);
    assert_eq!(receiver.events.lock().unwrap().len(), number);
    drop(told);
}

#[test]
fn a_redirect_is_not_followed_and_no_password_is_logged() {
    let receiver = Receiver::listening();
    receiver.becomes(Manner::Redirects);
    let url = format!("http://me:s3cr%45t@127.0.0.1:{}/hook?key=k3y", receiver.port);
    let registry = Registry::start(&["--auth", "none", "--webhook", &url]);
    registry.client().push_image("a", "v1", &Image::random(10));
    receiver.is_asked(2);
    receiver.becomes(Manner::Takes);
    receiver.hears("a push v1 root");
    registry.logs("takes events again");
    let heads = receiver.heads.lock().unwrap().clone();
    for head in heads {
        assert!(head.starts_with("POST /hook?key=k3y HTTP/1.1\r\n"), "{head}");
        assert!(
            head.to_lowercase().contains("\r\nauthorization: basic bwu6cznjckv0\r\n"),
            "{head}"
        );
    }
    let kept = registry.root().join(".stillage/webhooks");
    let kept = Command::new("grep").arg("-r").arg(".").arg(kept).output().unwrap().stdout;
    for text in [registry.stderr(), String::from_utf8(kept).unwrap()] {
        assert!(text.contains("/hook"), "{text}");
        for secret in ["s3cr", "k3y", "bWU6"] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
    }
    let refused = Command::new(support::STILLAGE)
        .args(["serve", "/nowhere", "--webhook", "ftp://me:s3cr%45t@host/"])
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(2));
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("--webhook") && !said.contains("s3cr"), "{said}");
}

#[test]
fn a_receiver_with_tls_is_told_once_the_host_trusts_it() {
    let scratch = tempfile::tempdir().unwrap();
    let pair = Pair::new(scratch.path());
    let receiver = Receiver::new();
    receiver.listen(Some(&pair));
    let url = format!("https://localhost:{}/hook", receiver.port);
    let trusted = pair.certificate.to_str().unwrap();
    let mut registry = Registry::start(&["--auth", "none", "--webhook", &url]);
    registry.client().push_image("a", "v1", &Image::random(10));
    registry.logs("takes no events");
    assert!(receiver.told().is_empty(), "nobody vouches for it");
    let root = registry.root().to_owned();
    registry.term();
    let trusting = Registry::start_by(
        &["env", &format!("SSL_CERT_FILE={trusted}")],
        &root,
        &["--auth", "none", "--webhook", &url],
    );
    receiver.hears("a push v1 root");
    drop(trusting);
}
