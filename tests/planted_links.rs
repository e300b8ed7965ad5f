//! Hard links of files that their planter could not read, in a repository that he may write to: the
//! server, which can read them, reads them out to nobody whom the kernel would not let.
//! Where `fs.protected_hardlinks` is off, anybody can make such a link; here root does.

#[path = "support/pam.rs"]
mod pam;
mod support;

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::PathBuf;

use pam::{Host, PASSWORD};
use support::Registry;
use support::content::{Image, OCI_MANIFEST, random, sha256};
use support::http::{Client, Request};

// Accounts that every Debian has.
const DAEMON: u32 = 1;
const BIN: u32 = 2;
const GAMES: u32 = 60;

/// `team/app`, which everybody may read and `bin` may write with a shell, and `mine/app`, which is
/// bin's own.
struct Place {
    registry: Registry,
    _host: Host,
}

impl Place {
    fn new() -> Place {
        let host = Host::new();
        let confdir = host.path("pam.d").display().to_string();
        let registry = Registry::start(&["--auth", "pam", "--pam-confdir", &confdir]);
        registry.grant("u:bin");
        let place = Place { registry, _host: host };
        for repo in ["team/app", "mine/app"] {
            place.user("bin", repo).push_image(repo, "v1", &Image::random(500));
        }
        place
    }

    fn user(&self, name: &str, repo: &str) -> Client {
        self.registry.client().logged_in(name, PASSWORD, repo)
    }

    fn anonymous(&self) -> Client {
        let scope = "repository:team/app:pull";
        let token = self.registry.client().token("", "", &[scope]).expect("an anonymous token");
        self.registry.client().with_authorization(format!("Bearer {token}"))
    }

    fn blob(&self, digest: &str) -> PathBuf {
        self.registry.root().join("team/app/blobs").join(digest.replace(':', "/"))
    }

    /// Somebody's file becomes a blob of `team/app` too.
    fn plant(&self, bytes: &[u8], uid: u32, gid: u32, mode: u32) -> String {
        let digest = sha256(bytes);
        let path = self.registry.scratch().join(&digest);
        fs::write(&path, bytes).expect("a file");
        chown(&path, Some(uid), Some(gid)).expect("chown");
        fs::set_permissions(&path, Permissions::from_mode(mode)).expect("chmod");
        fs::hard_link(&path, self.blob(&digest)).expect("a hard link");
        digest
    }
}

#[test]
fn foreign_inode_that_its_planter_could_not_read() {
    let place = Place::new();
    let (bin, daemon) = (place.user("bin", "team/app"), place.user("daemon", "team/app"));
    let games = place.user("games", "team/app");
    let anonymous = place.anonymous();
    for (uid, gid, mode, readers) in [
        (0, 0, 0o600, "    "),
        (0, 0, 0o400, "    "),
        (DAEMON, DAEMON, 0o600, "d   "),
        (BIN, GAMES, 0o640, " bg "),
        (DAEMON, DAEMON, 0o644, "dbga"),
    ] {
        let secret = random(1000);
        let digest = place.plant(&secret, uid, gid, mode);
        let path = format!("/v2/team/app/blobs/{digest}");
        // He who may comes first, so that the others ask for what is in the memory.
        for (who, client) in [('d', &daemon), ('b', &bin), ('g', &games), ('a', &anonymous)] {
            let expected = if readers.contains(who) { 200 } else { 404 };
            for request in [Request::get(path.as_str()), Request::head(path.as_str())] {
                let line = format!("{who} {} {uid}:{gid} {mode:o}", request.method);
                let answer = client.send(request);
                assert_eq!(answer.status, expected, "{line}: {answer:?}");
            }
            let part = Request::get(path.as_str()).header("Range", "bytes=0-0");
            assert_eq!(client.send(part).status == 206, expected == 200, "{who} {mode:o}");
        }
    }
    let (code, found) = place.registry.check();
    assert_eq!(code, Some(0), "{found}");
    assert_eq!(found.matches("file-closed").count(), 4, "{found}");
}

#[test]
fn foreign_inode_is_laundered_by_no_manifest_and_no_mount() {
    let place = Place::new();
    let secret = random(2000);
    let digest = place.plant(&secret, 0, 0, 0o600);
    let before = fs::metadata(place.blob(&digest)).expect("the secret");
    let bin = place.user("bin", "team/app");
    let image = Image::of(vec![secret.clone()], "");
    bin.push_blob("team/app", &image.config);
    let put = bin.put_manifest("team/app", "stolen", OCI_MANIFEST, &image.manifest);
    put.expect_error(400, "MANIFEST_BLOB_UNKNOWN");
    let scopes = ["repository:team/app:pull", "repository:mine/app:pull,push"];
    let token = place.registry.client().token("bin", PASSWORD, &scopes).expect("a token");
    let both = place.registry.client().with_authorization(format!("Bearer {token}"));
    for from in ["&from=team/app", ""] {
        let mount = format!("/v2/mine/app/blobs/uploads/?mount={digest}{from}");
        both.send(Request::post(mount)).expect_status(202);
    }
    let after = fs::metadata(place.blob(&digest)).expect("the secret");
    let of = |meta: &fs::Metadata| (meta.ino(), meta.uid(), meta.mode(), meta.nlink());
    assert_eq!(of(&after), of(&before), "it was not touched");
    let hex = &digest["sha256:".len()..];
    let pool = place.registry.root().join(".stillage/pool/sha256").join(&hex[..2]).join(hex);
    assert!(!pool.exists(), "it is not pooled");

    // A secret that is a manifest, named by an index.json that bin wrote: not by tag, not by digest,
    // not among the referrers, and not by what daemon was told before.
    let subject = Image::random(100);
    bin.push_image("team/app", "subject", &subject);
    let text = format!(
        r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{{"mediaType":"a/b","digest":"{}","size":{}}},"layers":[],"subject":{{"mediaType":"{OCI_MANIFEST}","digest":"{}","size":{}}},"annotations":{{"k":"classified"}}}}"#,
        sha256(&subject.config),
        subject.config.len(),
        subject.digest,
        subject.manifest.len()
    );
    let manifest = place.plant(text.as_bytes(), DAEMON, DAEMON, 0o600);
    let index = place.registry.root().join("team/app/index.json");
    let entry = format!(
        r#""manifests":[{{"mediaType":"{OCI_MANIFEST}","digest":"{manifest}","size":{},"annotations":{{"org.opencontainers.image.ref.name":"secret"}}}},"#,
        text.len()
    );
    let old = fs::read_to_string(&index).expect("index.json");
    fs::write(&index, old.replacen(r#""manifests":["#, &entry, 1)).expect("index.json");
    let daemon = place.user("daemon", "team/app");
    let referrers = format!("/v2/team/app/referrers/{}", subject.digest);
    for _ in 0..2 {
        for reference in ["secret", &manifest] {
            let path = format!("/v2/team/app/manifests/{reference}");
            daemon.get(&path).expect_status(200);
            for client in [&bin, &place.anonymous()] {
                client.get(&path).expect_error(404, "MANIFEST_UNKNOWN");
                client.head(&path).expect_status(404);
            }
        }
        assert!(daemon.get(&referrers).expect_status(200).text().contains("classified"));
        assert!(!bin.get(&referrers).expect_status(200).text().contains("classified"));
    }
    let facts = place.registry.root().join("team/app/_referrers/facts.jsonl");
    assert!(!fs::read_to_string(facts).unwrap_or_default().contains("classified"));
}
