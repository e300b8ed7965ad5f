//! TLS on the listener: certificates, their renewal, and the clients that trust them.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use support::account::Account;
use support::command::run;
use support::containers::{Containers, localhost};
use support::content::{random, sha256};
use support::tls::{Curl, Pair, Stream, connect, set_mode, until_closed};
use support::{Registry, STILLAGE};

/// A server with a certificate of its own, and who trusts it.
fn start(args: &[&str]) -> (tempfile::TempDir, Pair, Registry, Curl) {
    let dir = tempfile::tempdir().expect("a directory");
    let pair = Pair::new(dir.path());
    let registry = Registry::start(&[&pair.args()[..], args].concat());
    let curl = Curl::new(registry.addr(), &pair.certificate);
    (dir, pair, registry, curl)
}

#[test]
fn curl_pushes_and_pulls_by_http_1_and_2() {
    let (dir, _pair, registry, curl) = start(&["--auth", "none"]);
    let file = dir.path().join("blob");
    for (flag, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
        let blob = random(3 * 1024 * 1024 + 7);
        fs::write(&file, &blob).expect("a blob");
        let digest = curl.push_blob(&[flag], "a", &file);
        let path = format!("/v2/a/blobs/{digest}");
        let back = dir.path().join("back");
        let output = ["--output", back.to_str().expect("plain"), flag];
        curl.run(&output, &path).ok();
        assert_eq!(sha256(&fs::read(&back).expect("the blob")), digest, "{version}");
        assert_eq!(curl.status(&[flag, "--range", "1-2"], &path), format!("{version} 206"));
        let missing = curl.run(&[flag, "--include"], "/v2/a/manifests/none").ok();
        assert!(missing.stdout.contains("MANIFEST_UNKNOWN"), "{missing}");
        assert!(!missing.stdout.to_lowercase().contains("strict-transport"), "{missing}");
        // Too much of everything is told in words by either.
        let mut many = vec![flag.to_owned()];
        many.extend((0..200).flat_map(|at| ["--header".to_owned(), format!("X-{at}: y")]));
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let many = curl.run(&many, "/v2/").ok().stdout;
        assert!(many.contains("more than 100 header lines"), "{version}: {many}");
        let long = curl.run(&[flag], &format!("/v2/{}", "y".repeat(20_000))).ok().stdout;
        assert!(long.contains("longer than 16384 bytes"), "{version}: {long}");
    }
    // Who has another idea of whom to trust gets nothing.
    let other = Pair::new(&registry.scratch());
    Curl::new(registry.addr(), &other.certificate).run(&[], "/v2/").refused();
}

#[test]
fn the_challenge_leads_to_https() {
    let (_dir, _pair, registry, curl) = start(&["--auth", "pam"]);
    let realm = format!("realm=\"https://localhost:{}/token\"", registry.addr().port());
    for flag in ["--http1.1", "--http2"] {
        let answer = curl.run(&[flag, "--include"], "/v2/").ok();
        assert!(answer.stdout.to_lowercase().contains("\nwww-authenticate: bearer "), "{answer}");
        assert!(answer.stdout.contains(&realm), "{answer}");
    }
}

#[test]
fn plain_http_is_told_that_the_port_speaks_tls() {
    let (_dir, _pair, registry, _curl) = start(&["--auth", "none"]);
    for request in ["GET /v2/x HTTP/1.1\r\nHost: x\r\n\r\n", "GET /v2/x HTTP/1.1\r\nbroken\r\n\r\n"]
    {
        let mut stream = TcpStream::connect(registry.addr()).expect("connect");
        stream.write_all(request.as_bytes()).expect("send");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer, and the end");
        assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{answer}");
        assert!(answer.contains("\r\n\r\n{\"errors\":[{\"code\":\"UNSUPPORTED\""), "{answer}");
    }
    let answer = registry.client().get("/v2/").expect_error(400, "UNSUPPORTED");
    assert!(answer.message().contains("this port speaks TLS"), "{answer:?}");
    let log = registry.stderr();
    assert_eq!(log.matches("path=\"/v2/x\" status=400").count(), 2, "{log}");
}

#[test]
fn smuggling_over_tls() {
    let (_dir, pair, registry, _curl) = start(&["--auth", "none"]);
    let send = |text: &str| {
        let mut stream =
            connect(registry.addr(), &pair.certificate, b"http/1.1").expect("a connection");
        stream.write_all(text.as_bytes()).expect("send");
        String::from_utf8_lossy(&until_closed(&mut stream)).into_owned()
    };
    let good = "GET /v2/ HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let bad = "POST /v2/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    let answers = send(&format!("{good}{bad}{good}"));
    assert_eq!(answers.matches("HTTP/1.1 ").count(), 2, "{answers}");
    assert!(answers.starts_with("HTTP/1.1 200 "), "{answers}");
    assert!(answers.contains("side by side"), "{answers}");
    // A body that nobody reads does not take away the answer.
    let unread = format!(
        "POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500000\r\n\r\n{}",
        "x".repeat(200_000)
    );
    let answers = send(&unread);
    assert!(answers.starts_with("HTTP/1.1 404 "), "{answers}");
}

#[test]
fn slow_client_over_tls() {
    let dir = tempfile::tempdir().expect("a directory");
    let pair = Pair::new(dir.path());
    let args = [&pair.args()[..], &["--auth", "none"]].concat();
    let registry = Registry::start_with_env(&args, &[("STILLAGE_PATIENCE", "1")]);
    let curl = Curl::new(registry.addr(), &pair.certificate);
    let file = dir.path().join("blob");
    let len = 64 * 1024 * 1024;
    fs::write(&file, random(len)).expect("a blob");
    let digest = curl.push_blob(&[], "a", &file);
    // Half a handshake.
    let mut silent = TcpStream::connect(registry.addr()).expect("connect");
    silent.write_all(&[0x16, 3, 1]).expect("send");
    // Nobody reads.
    let mut reader = connect(registry.addr(), &pair.certificate, b"http/1.1").expect("connect");
    write!(reader, "GET /v2/a/blobs/{digest} HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("send");
    reader.flush().expect("send");
    silent.set_read_timeout(Some(Duration::from_secs(30))).expect("a limit");
    let mut end = Vec::new();
    silent.read_to_end(&mut end).expect("the end of the connection");
    assert_eq!(end, b"");
    // Its time ran out some time after the other's had begun.
    std::thread::sleep(Duration::from_secs(2));
    let mut taken = Vec::new();
    let _ = reader.read_to_end(&mut taken);
    assert!(taken.len() < len / 2, "{} bytes for who reads nothing", taken.len());
    assert_eq!(curl.status(&[], "/v2/"), "2 200");
}

#[test]
fn podman_and_skopeo_trust_a_self_signed_certificate() {
    let account = Account::new();
    let registry = Registry::start(&["--auth", "pam", "--tls", "self-signed"]);
    registry.grant(&format!("u:{}", account.name()));
    let server = localhost(registry.addr());
    for _ in 0..3 {
        registry.next_line();
    }
    assert!(registry.next_line().contains("self-signed"));
    // The printed lines, but for another directory than /etc.
    let home = Containers::new();
    let certs = home.path().join("certs");
    for tool in ["containers", "docker"] {
        let line = registry.next_line();
        let line = line.trim();
        assert!(line.starts_with("install "), "root needs no sudo: {line}");
        let etc = format!("/etc/{tool}/certs.d/{server}/ca.crt");
        assert!(line.ends_with(&etc), "{line}");
        let here = line.replace(&etc, &format!("{}/{tool}/ca.crt", certs.display()));
        run(Command::new("sh").args(["-c", &here])).ok();
    }
    let certs = certs.join("containers");
    let certs = format!("--cert-dir={}", certs.display());

    home.image("localhost/made-here", "over TLS", "amd64");
    let refused = home.podman(&["login", "-u", account.name(), "-p", account.password(), &server]);
    assert!(refused.refused().stderr.contains("x509"), "a certificate that nobody trusts yet");
    let login =
        home.podman(&["login", &certs, "-u", account.name(), "-p", account.password(), &server]);
    assert!(login.ok().stdout.contains("Login Succeeded!"));
    let name = format!("{server}/test/this:v1");
    home.podman(&["push", &certs, "localhost/made-here", &name]).ok();
    let id = home.image_id("localhost/made-here");
    home.forget_images();
    home.podman(&["pull", &certs, &name]).ok();
    assert_eq!(home.image_id(&name), id);
    let copy = home.path().join("copy");
    let to = format!("oci:{}:v1", copy.display());
    let certs = certs.replace("--cert-dir", "--src-cert-dir");
    home.skopeo(&["copy", &certs, &format!("docker://{name}"), &to]).ok();
    assert!(copy.join("index.json").exists());
}

fn own_certificate(registry: &Registry) -> PathBuf {
    registry.root().join(".stillage/tls/cert.pem")
}

#[test]
fn a_self_signed_certificate_is_kept_until_it_ends() {
    let mut registry = Registry::start(&["--auth", "none", "--tls", "self-signed"]);
    let file = own_certificate(&registry);
    let first = fs::read(&file).expect("the certificate");
    let works = |registry: &Registry| {
        let curl = Curl::new(registry.addr(), &own_certificate(registry));
        assert_eq!(curl.status(&[], "/v2/"), "2 200");
    };
    works(&registry);
    registry.restart();
    assert_eq!(fs::read(&file).expect("the certificate"), first);
    works(&registry);

    // It has expired: the same names, and the past.
    registry.term();
    let names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
    let mut params = rcgen::CertificateParams::new(names).expect("parameters");
    params.not_before = time::OffsetDateTime::now_utc() - time::Duration::days(30);
    params.not_after = params.not_before + time::Duration::days(29);
    let key = rcgen::KeyPair::generate().expect("a key");
    let expired = params.self_signed(&key).expect("a certificate").pem();
    fs::write(&file, &expired).expect("the certificate");
    fs::write(file.with_file_name("key.pem"), key.serialize_pem()).expect("the key");
    registry.run();
    let third = fs::read(&file).expect("the certificate");
    assert!(third != first && third != expired.as_bytes());
    works(&registry);
    let mode = fs::metadata(file.with_file_name("key.pem")).expect("the key").permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
}

/// The certificate that a server shows now, told by who trusts it.
fn shows(registry: &Registry, trusted: &Path) -> bool {
    connect(registry.addr(), trusted, b"http/1.1").is_ok()
}

#[test]
fn a_renewed_certificate_is_taken_up_under_a_running_download() {
    let (dir, pair, registry, curl) = start(&["--auth", "none"]);
    let file = dir.path().join("blob");
    let blob = random(48 * 1024 * 1024);
    fs::write(&file, &blob).expect("a blob");
    let digest = curl.push_blob(&[], "a", &file);
    let old = dir.path().join("old.pem");
    fs::copy(&pair.certificate, &old).expect("a copy");
    let mut slow = connect(registry.addr(), &old, b"http/1.1").expect("a connection");
    let get = format!(
        "GET /v2/a/blobs/{digest} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    );
    slow.write_all(get.as_bytes()).expect("send");
    let mut begun = vec![0; 100_000];
    slow.read_exact(&mut begun).expect("the beginning");

    // The certificate is there before its key: the old pair goes on, and the log says so once.
    let new = tempfile::tempdir().expect("a directory");
    let renewed = Pair::new(new.path());
    fs::copy(&renewed.certificate, &pair.certificate).expect("half");
    for _ in 0..3 {
        assert!(shows(&registry, &old) && !shows(&registry, &renewed.certificate));
    }
    let said = |text: &str| registry.stderr().matches(text).count();
    assert_eq!(said("a changed certificate is not used"), 1, "{}", registry.stderr());
    assert!(registry.stderr().contains("is not that of the first certificate"));
    fs::copy(&renewed.key, &pair.key).expect("the other half");
    set_mode(&pair.key, 0o640);
    assert!(shows(&registry, &renewed.certificate) && !shows(&registry, &old));
    assert_eq!(said("a renewed certificate is in use"), 1);
    // Replaced by rename, as ACME clients do it.
    let (third, root) = Pair::with_chain(new.path());
    fs::rename(&third.key, &pair.key).expect("rename");
    fs::rename(&third.certificate, &pair.certificate).expect("rename");
    assert!(shows(&registry, &root) && !shows(&registry, &old));
    let curl = Curl::new(registry.addr(), &root);
    assert_eq!(curl.status(&[], "/v2/"), "2 200", "the chain is sent with it");

    let rest = until_closed(&mut slow);
    begun.extend(rest);
    assert!(begun.ends_with(&blob), "the download came whole: {} bytes", begun.len());
}

#[test]
fn keys_of_every_common_form_are_read() {
    let (dir, pair, registry, _curl) = start(&["--auth", "none"]);
    let at = |name: &str| dir.path().join(name).display().to_string();
    let (key, made) = (at("made.pem"), at("made-cert.pem"));
    let openssl = |line: &str| {
        run(Command::new("openssl").args(line.split(' ').filter(|part| !part.is_empty()))).ok();
    };
    for (what, commands) in [
        ("RSA, PKCS#1", vec![format!("genrsa -traditional -out {key} 2048")]),
        ("RSA, PKCS#8", vec![format!("genpkey -algorithm RSA -out {key}")]),
        ("ECDSA, SEC1", vec![format!("ecparam -name prime256v1 -genkey -noout -out {key}")]),
        (
            "ECDSA with its parameters before it",
            vec![format!("ecparam -name secp384r1 -genkey -out {key}")],
        ),
        ("Ed25519", vec![format!("genpkey -algorithm ed25519 -out {key}")]),
    ] {
        for command in commands {
            openssl(&command);
        }
        openssl(&format!(
            "req -x509 -new -key {key} -out {made} -days 9 -subj /CN=x -addext subjectAltName=DNS:localhost"
        ));
        let text = |path: &str| fs::read_to_string(path).expect("what openssl made");
        pair.write(&text(&made), &text(&key));
        let curl = Curl::new(registry.addr(), &pair.certificate);
        assert_eq!(curl.status(&[], "/v2/"), "2 200", "{what}");
    }
    let log = registry.stderr();
    assert!(!log.contains("is not used"), "{log}");
}

/// What a start says that must fail.
#[track_caller]
fn refused(args: &[&str]) -> String {
    let root = tempfile::tempdir().expect("a directory");
    // One that starts all the same must not run for ever.
    let mut serve = Command::new("timeout");
    serve
        .args(["30", STILLAGE, "serve"])
        .arg(root.path())
        .args(["--listen", "127.0.0.1:0"])
        .args(args);
    let outcome = run(&mut serve).refused();
    assert_eq!(outcome.code, Some(1), "{outcome}");
    outcome.stderr
}

#[test]
fn a_pair_that_is_no_good_is_refused_with_what_mends_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let pair = Pair::new(dir.path());
    let key = pair.key.to_str().expect("plain");
    set_mode(&pair.key, 0o644);
    let said = refused(&pair.args());
    assert!(said.contains(&format!("run `chmod o-rwx {key}`")), "{said}");
    let command = said.split('`').nth(1).expect("a command");
    run(Command::new("sh").args(["-c", command])).ok();
    drop(Registry::start(&[&pair.args()[..], &["--auth", "none"]].concat()));

    let other = tempfile::tempdir().expect("a directory");
    let other = Pair::new(other.path());
    let certificate = pair.certificate.to_str().expect("plain");
    let mixed = ["--tls-cert", certificate, "--tls-key", other.key.to_str().expect("plain")];
    let said = refused(&mixed);
    for named in [certificate, mixed[3], "is not that of the first certificate", "openssl pkey"] {
        assert!(said.contains(named), "{named}: {said}");
    }
    let said = refused(&["--tls-cert", "/nowhere/cert.pem", "--tls-key", key]);
    assert!(said.contains("/nowhere/cert.pem"), "{said}");
    set_mode(&pair.certificate, 0o640);
    let said = refused(&["--tls-cert", certificate, "--tls-key", certificate]);
    assert!(said.contains("holds no private key"), "{said}");
    let said = refused(&["--tls-cert", key, "--tls-key", key]);
    assert!(said.contains("holds no certificate"), "{said}");
    let locked = dir.path().join("locked.pem");
    let args = ["pkey", "-in", key, "-aes256", "-passout", "pass:x", "-out"];
    run(Command::new("openssl").args(args).arg(&locked)).ok();
    let locked = locked.to_str().expect("plain");
    let said = refused(&["--tls-cert", certificate, "--tls-key", locked]);
    assert!(said.contains("has a passphrase: `openssl pkey"), "{said}");
}

#[test]
fn an_open_key_on_a_tmpfs_is_used_with_a_warning() {
    let dir = tempfile::tempdir_in("/dev/shm").expect("a directory on a tmpfs");
    let pair = Pair::new(dir.path());
    set_mode(&pair.key, 0o444);
    let registry = Registry::start(&[&pair.args()[..], &["--auth", "none"]].concat());
    let curl = Curl::new(registry.addr(), &pair.certificate);
    assert_eq!(curl.status(&[], "/v2/"), "2 200");
    let said = registry.stderr();
    assert!(said.contains("WARN") && said.contains("can read the key"), "{said}");
}

#[test]
fn a_stop_lets_a_download_over_tls_finish() {
    let (dir, pair, mut registry, curl) = start(&["--auth", "none"]);
    let file = dir.path().join("blob");
    let blob = random(24 * 1024 * 1024);
    fs::write(&file, &blob).expect("a blob");
    let digest = curl.push_blob(&[], "a", &file);
    let mut slow: Stream =
        connect(registry.addr(), &pair.certificate, b"http/1.1").expect("a connection");
    write!(slow, "GET /v2/a/blobs/{digest} HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("send");
    let mut begun = vec![0; 10_000];
    slow.read_exact(&mut begun).expect("the beginning");
    registry.signal_term();
    begun.extend(until_closed(&mut slow));
    assert!(begun.ends_with(&blob), "the download came whole: {} bytes", begun.len());
    assert!(registry.term().success());
}
