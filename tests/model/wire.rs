//! A registry over the wire: the built server on a tree of its own.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::Value;
use stillage::oci::{Algorithm, Digest};

use super::face::{Answer, Collected, Collection, Face, Found, Pulled, Referrer, Refused};
use super::tree;
use crate::support::content::with_query;
use crate::support::http::{Request, Response};
use crate::support::{Registry, STILLAGE};

/// After so many hours without a byte the server ends an upload.
const EXPIRY: u64 = 24;

/// What it says when it ended some.
const SWEPT: &str = "swept what nobody goes on with";

pub struct Wire {
    registry: Registry,
}

impl Wire {
    pub fn new() -> Wire {
        let mut registry = Registry::start(&["--auth", "none"]);
        // Outsiders remove blobs; each comparison says what check must find.
        registry.expect_damage();
        Wire { registry }
    }

    fn ask(&self, request: Request) -> Response {
        self.registry.client().send(request)
    }
}

/// What an answer says, if it is not the one that was hoped for.
fn refused(answer: &Response) -> Refused {
    match answer.code().as_str() {
        "NAME_UNKNOWN" => Refused::NameUnknown,
        "BLOB_UNKNOWN" => Refused::BlobUnknown,
        "MANIFEST_UNKNOWN" => Refused::ManifestUnknown,
        "BLOB_UPLOAD_UNKNOWN" => Refused::UploadUnknown,
        "DIGEST_INVALID" => Refused::DigestMismatch,
        "MANIFEST_BLOB_UNKNOWN" => {
            let errors = answer.json()["errors"].as_array().cloned().unwrap_or_default();
            let named = errors.iter().filter_map(|error| error["detail"]["digest"].as_str());
            Refused::BlobsAbsent(named.filter_map(|text| Digest::parse(text).ok()).collect())
        }
        "UNSUPPORTED" if answer.status == 405 => Refused::BlobInUse,
        "BLOB_UPLOAD_INVALID" if answer.status == 416 => Refused::UploadRange,
        _ if answer.status == 500 => Refused::Damaged,
        _ => Refused::Other(format!("{answer:?}")),
    }
}

fn expect(answer: Response, status: u16) -> Answer<Response> {
    if answer.status == status { Ok(answer) } else { Err(refused(&answer)) }
}

/// The session that a Location leads to.
fn id(location: &str) -> String {
    let path = location.split('?').next().unwrap_or_default();
    path.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned()
}

fn session(repo: &str, id: &str) -> String {
    format!("/v2/{repo}/blobs/uploads/{id}")
}

/// Range of an upload: nothing and one byte look the same.
fn received(answer: &Response) -> Option<u64> {
    let last: u64 = answer.header("range")?.strip_prefix("0-")?.parse().ok()?;
    Some(last + 1)
}

fn strings(list: &Value) -> Vec<String> {
    let items = list.as_array().into_iter().flatten().filter_map(Value::as_str);
    items.map(str::to_owned).collect()
}

impl Face for Wire {
    fn root(&self) -> &Path {
        self.registry.root()
    }

    fn writes_by_itself(&self) -> bool {
        true
    }

    fn put_blob(&mut self, repo: &str, digest: &Digest, bytes: Bytes) -> Answer<()> {
        let path = format!("/v2/{repo}/blobs/uploads/?digest={digest}");
        expect(self.ask(Request::post(path).body(bytes)), 201).map(|_| ())
    }

    fn begin(&mut self, repo: &str, algorithm: Algorithm) -> Answer<String> {
        let path = format!("/v2/{repo}/blobs/uploads/?digest-algorithm={algorithm}");
        Ok(id(&expect(self.ask(Request::post(path)), 202)?.location()))
    }

    fn append(&mut self, repo: &str, id: &str, first: Option<u64>, bytes: Bytes) -> Answer<u64> {
        let mut patch = Request::patch(session(repo, id));
        if let (Some(first), false) = (first, bytes.is_empty()) {
            let last = first + bytes.len() as u64 - 1;
            patch = patch.header("Content-Range", format!("{first}-{last}"));
        }
        let nothing = bytes.is_empty();
        let answer = expect(self.ask(patch.body(bytes)), 202)?;
        let size = received(&answer).unwrap_or(u64::MAX);
        // Nothing and one byte: the file knows.
        if nothing && size == 1 { self.received(repo, id) } else { Ok(size) }
    }

    fn received(&mut self, repo: &str, id: &str) -> Answer<u64> {
        let answer = expect(self.ask(Request::get(session(repo, id))), 204)?;
        match received(&answer) {
            Some(1) => {
                let data = self.registry.upload_data(&session(repo, id));
                Ok(fs::metadata(data).map_or(0, |meta| meta.len()))
            }
            size => Ok(size.unwrap_or(u64::MAX)),
        }
    }

    fn finish(&mut self, repo: &str, id: &str, bytes: Bytes, digest: &Digest) -> Answer<()> {
        let path = with_query(&session(repo, id), &format!("digest={digest}"));
        expect(self.ask(Request::put(path).body(bytes)), 201).map(|_| ())
    }

    fn cancel(&mut self, repo: &str, id: &str) -> Answer<()> {
        expect(self.ask(Request::delete(session(repo, id))), 204).map(|_| ())
    }

    fn mount(&mut self, repo: &str, digest: &Digest, from: Option<&str>) -> Answer<bool> {
        let mut path = format!("/v2/{repo}/blobs/uploads/?mount={digest}");
        if let Some(from) = from {
            path += &format!("&from={}", from.replace('/', "%2F"));
        }
        let answer = self.ask(Request::post(path));
        match answer.status {
            201 => Ok(true),
            202 => {
                self.cancel(repo, &id(&answer.location()))?;
                Ok(false)
            }
            _ => Err(refused(&answer)),
        }
    }

    fn head(&mut self, repo: &str, digest: &Digest) -> Answer<u64> {
        let answer = self.ask(Request::head(format!("/v2/{repo}/blobs/{digest}")));
        match answer.status {
            200 => {
                let length = answer.header("content-length").and_then(|text| text.parse().ok());
                Ok(length.unwrap_or(u64::MAX))
            }
            404 => Err(Refused::BlobUnknown),
            _ => Err(refused(&answer)),
        }
    }

    fn blob(&mut self, repo: &str, digest: &Digest) -> Answer<Bytes> {
        let answer = self.ask(Request::get(format!("/v2/{repo}/blobs/{digest}")));
        Ok(expect(answer, 200)?.body.into())
    }

    fn delete_blob(&mut self, repo: &str, digest: &Digest) -> Answer<()> {
        let answer = self.ask(Request::delete(format!("/v2/{repo}/blobs/{digest}")));
        expect(answer, 202).map(|_| ())
    }

    fn put_manifest(
        &mut self,
        repo: &str,
        reference: &str,
        tags: &[String],
        media_type: &str,
        bytes: Bytes,
    ) -> Answer<(Digest, Option<Digest>)> {
        let mut path = format!("/v2/{repo}/manifests/{reference}");
        for tag in tags {
            path = with_query(&path, &format!("tag={tag}"));
        }
        let put = Request::put(path).header("Content-Type", media_type).body(bytes);
        let answer = expect(self.ask(put), 201)?;
        let named = |name| answer.header(name).and_then(|text| Digest::parse(text).ok());
        let digest = named("docker-content-digest");
        let digest = digest.ok_or_else(|| Refused::Other(format!("{answer:?}")))?;
        Ok((digest, named("oci-subject")))
    }

    fn manifest(&mut self, repo: &str, reference: &str) -> Answer<Pulled> {
        let answer = self.ask(Request::get(format!("/v2/{repo}/manifests/{reference}")));
        let answer = expect(answer, 200)?;
        let digest = answer.header("docker-content-digest").map(Digest::parse);
        match digest {
            Some(Ok(digest)) => Ok(Pulled {
                digest,
                media_type: answer.header("content-type").unwrap_or_default().to_owned(),
                bytes: answer.body.into(),
            }),
            _ => Err(Refused::Other(format!("{answer:?}"))),
        }
    }

    fn delete_manifest(&mut self, repo: &str, reference: &str) -> Answer<()> {
        let answer = self.ask(Request::delete(format!("/v2/{repo}/manifests/{reference}")));
        expect(answer, 202).map(|_| ())
    }

    fn tags(&mut self, repo: &str, last: Option<&str>, n: usize) -> Answer<(Vec<String>, bool)> {
        let mut path = format!("/v2/{repo}/tags/list?n={n}");
        if let Some(last) = last {
            path += &format!("&last={last}");
        }
        let answer = expect(self.ask(Request::get(path)), 200)?;
        Ok((strings(&answer.json()["tags"]), answer.header("link").is_some()))
    }

    fn referrers(
        &mut self,
        repo: &str,
        subject: &Digest,
        artifact_type: Option<&str>,
    ) -> Answer<Vec<Referrer>> {
        let mut path = format!("/v2/{repo}/referrers/{subject}");
        if let Some(artifact_type) = artifact_type {
            path += &format!("?artifactType={artifact_type}");
        }
        let answer = expect(self.ask(Request::get(path)), 200)?;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let referrer = |entry: &Value| {
            let notes = entry["annotations"].as_object().into_iter().flatten();
            let annotations: BTreeMap<String, String> =
                notes.filter_map(|(key, value)| Some((key.clone(), text(value)?))).collect();
            Some(Referrer {
                digest: Digest::parse(entry["digest"].as_str()?).ok()?,
                media_type: text(&entry["mediaType"])?,
                size: entry["size"].as_u64()?,
                artifact_type: text(&entry["artifactType"]),
                annotations,
            })
        };
        let json = answer.json();
        let entries = json["manifests"].as_array().into_iter().flatten();
        let listed: Option<Vec<Referrer>> = entries.map(referrer).collect();
        listed.ok_or_else(|| Refused::Other(format!("{answer:?}")))
    }

    fn catalog(&mut self, last: Option<&str>, n: usize) -> Answer<(Vec<String>, bool)> {
        let mut path = format!("/v2/_catalog?n={n}");
        if let Some(last) = last {
            path += &format!("&last={}", last.replace('/', "%2F"));
        }
        let answer = expect(self.ask(Request::get(path)), 200)?;
        Ok((strings(&answer.json()["repositories"]), answer.header("link").is_some()))
    }

    fn restart(&mut self) -> Option<u64> {
        // It sweeps when it starts, beside its first requests, and tells of it if there was anything: an
        // upload that nobody goes on with. Once that is told, what grows old later stays.
        let planted = self.begin("swept", Algorithm::Sha256).expect("an upload");
        let planted = self.root().join(".stillage/uploads").join(planted);
        for entry in fs::read_dir(&planted).expect("the upload").flatten() {
            tree::older(&entry.path(), Duration::from_secs(2 * EXPIRY * 3600));
        }
        tree::older(&planted, Duration::from_secs(2 * EXPIRY * 3600));
        let swept = |registry: &Registry| registry.stderr().matches(SWEPT).count();
        let before = swept(&self.registry);
        self.registry.restart();
        let begun = Instant::now();
        while swept(&self.registry) == before {
            assert!(begun.elapsed() < Duration::from_secs(30), "the server sweeps no uploads");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(!planted.exists(), "the server swept, and left {planted:?}");
        Some(EXPIRY)
    }

    fn check(&mut self) -> Vec<Found> {
        let mut command = Command::new(STILLAGE);
        let output = command.args(["check", "--json"]).arg(self.root()).output().expect("check");
        let json: Value = serde_json::from_slice(&output.stdout).expect("a document");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let found = |finding: &Value| Found {
            rule: text(&finding["rule"]),
            is_error: finding["severity"] == "error",
            repository: text(&finding["repository"]),
            path: PathBuf::from(text(&finding["path"])),
        };
        json["findings"].as_array().into_iter().flatten().map(found).collect()
    }

    fn collect(&mut self, collection: &Collection) -> Result<Collected, String> {
        let mut command = Command::new(STILLAGE);
        command.arg("gc").arg(self.root()).args(collection.only.as_deref());
        command.args(["--json", "-v"]).env_remove("STILLAGE_ROOT");
        command.args(["--grace", &format!("{}h", collection.grace)]);
        command.args(["--undo-window", &format!("{}h", collection.undo_window)]);
        command.args(collection.now.then_some("--now"));
        command.args(collection.dry_run.then_some("-n"));
        let output = command.output().expect("gc starts");
        if !matches!(output.status.code(), Some(0 | 3)) {
            return Err(format!("gc: {output:?}"));
        }
        let json: Value = serde_json::from_slice(&output.stdout).expect("a document");
        let mut did = Collected::default();
        for event in json["events"].as_array().into_iter().flatten() {
            let text = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
            let place = || Some((text("repository"), Digest::parse(&text("digest")).ok()?));
            match event["what"].as_str() {
                Some("noted") => did.noted.extend(place()),
                Some("removed") => did.unlinked.extend(place()),
                Some("left") => {
                    did.stopped.insert(text("repository"));
                }
                Some("blocked" | "passedOver" | "warning") => return Err(event.to_string()),
                _ => {}
            }
        }
        did.freed = json["summary"]["bytes"].as_u64().unwrap_or(u64::MAX);
        Ok(did)
    }
}
