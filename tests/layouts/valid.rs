//! Sound trees.

use serde_json::{Value, json};
use stillage::layout::Stamp;
use stillage::layout::facts::Fact;
use stillage::oci::{Algorithm, Digest, Manifest};

use super::repo::{CONFIG, DOCKER_IMAGE, DOCKER_LIST, IMAGE, INDEX, LAYER, Repo, line};
use super::room::{session, with_room};
use super::{Files, Sample};

/// Every sound sample, with how many manifests and blobs a check has to see at least.
pub fn all() -> Vec<(Sample, u64, u64)> {
    let sample = |name, files, manifests, blobs| (Sample::new(name, files), manifests, blobs);
    vec![
        sample("image", image(), 1, 3),
        sample("docker", docker(), 2, 4),
        sample("nested-index", nested_index(), 4, 8),
        sample("artifacts", artifacts(), 3, 6),
        sample("sha512", sha512(), 1, 3),
        sample("untagged", untagged(), 2, 6),
        sample("several-tags", several_tags(), 1, 3),
        sample("full-reference", full_reference(), 1, 3),
        sample("build-cache", build_cache(), 1, 3),
        sample("foreign-layers", foreign_layers(), 1, 2),
        sample("embedded-data", embedded_data(), 1, 2),
        sample("nested-repositories", nested_repositories(), 2, 6),
        sample("no-manifest-yet", no_manifest_yet(), 0, 2),
        sample("null-lists", null_lists(), 1, 2),
        sample("emptied", emptied(), 0, 0),
        sample("roomy", roomy(), 1, 3),
        sample("written", written(), 3, 9),
        sample("after-a-crash", after_a_crash(), 1, 5),
    ]
}

pub fn image() -> Files {
    let mut repo = Repo::new("app");
    let image = repo.image("one");
    repo.tag(&image, "1.8");
    repo.finish()
}

fn docker() -> Files {
    let mut repo = Repo::new("app");
    let config =
        repo.json("application/vnd.docker.container.image.v1+json", &json!({"os": "linux"}));
    let layer = repo.blob("application/vnd.docker.image.rootfs.diff.tar.gzip", b"docker layer\n");
    let body =
        json!({"schemaVersion": 2, "mediaType": DOCKER_IMAGE, "config": config, "layers": [layer]});
    let image = repo.json(DOCKER_IMAGE, &body);
    let mut child = image.clone();
    child["platform"] = json!({"architecture": "amd64", "os": "linux"});
    let body = json!({"schemaVersion": 2, "mediaType": DOCKER_LIST, "manifests": [child]});
    let list = repo.json(DOCKER_LIST, &body);
    repo.tag(&list, "list");
    repo.tag(&image, "image");
    repo.finish()
}

fn nested_index() -> Files {
    let mut repo = Repo::new("app");
    let mut one = repo.image("one");
    let mut two = repo.image("two");
    one["platform"] = json!({"architecture": "amd64", "os": "linux"});
    two["platform"] = json!({"architecture": "arm64", "os": "linux", "variant": "v8"});
    let inner = repo.index(&[one, two]);
    let outer = repo.index(&[inner]);
    repo.tag(&outer, "latest");
    repo.finish()
}

fn artifacts() -> Files {
    let mut repo = Repo::new("app");
    let image = repo.image("one");
    let signature = repo.signature(&image);
    // A subject may come later, or never.
    let absent = json!({"mediaType": IMAGE, "size": 9, "digest": Digest::of(Algorithm::Sha256, b"absent").as_str()});
    let orphan = repo.signature(&absent);
    repo.tag(&image, "1.8");
    repo.untagged(&signature);
    repo.untagged(&orphan);
    repo.finish()
}

fn sha512() -> Files {
    let mut repo = Repo::new("app");
    repo.algorithm = Algorithm::Sha512;
    let image = repo.image("one");
    repo.tag(&image, "1.8");
    repo.finish()
}

fn untagged() -> Files {
    let mut repo = Repo::new("app");
    let (one, two) = (repo.image("one"), repo.image("two"));
    repo.untagged(&one);
    repo.tag(&two, "latest");
    repo.finish()
}

fn several_tags() -> Files {
    let mut repo = Repo::new("app");
    let image = repo.image("one");
    for tag in ["1", "1.8", "latest", "_under-score.dot"] {
        repo.tag(&image, tag);
    }
    repo.finish()
}

fn full_reference() -> Files {
    let mut repo = Repo::new("app");
    let image = repo.image("one");
    repo.tag(&image, "docker.io/library/alpine:3.18");
    repo.tag(&image, "localhost:5000/app:1.8");
    repo.finish()
}

/// BuildKit's cache: an index of layers.
fn build_cache() -> Files {
    let mut repo = Repo::new("app/cache");
    let layer = repo.blob(LAYER, b"a cached layer\n");
    let config = repo.blob("application/vnd.buildkit.cacheconfig.v0", b"{\"layers\":[]}");
    let cache = repo.index(&[layer, config]);
    repo.tag(&cache, "cache");
    repo.finish()
}

fn foreign_layers() -> Files {
    let mut repo = Repo::new("windows/server");
    let config = repo.json(CONFIG, &json!({"os": "windows"}));
    let layer = json!({
        "mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "digest": Digest::of(Algorithm::Sha256, b"elsewhere").as_str(), "size": 9,
        "urls": ["https://example.com/layer"],
    });
    let body = json!({"schemaVersion": 2, "mediaType": IMAGE, "config": config, "layers": [layer]});
    let image = repo.json(IMAGE, &body);
    repo.tag(&image, "ltsc2022");
    repo.finish()
}

fn embedded_data() -> Files {
    let mut repo = Repo::new("app");
    let mut empty = repo.blob("application/vnd.oci.empty.v1+json", b"{}");
    empty["data"] = json!("e30=");
    let body = json!({
        "schemaVersion": 2, "mediaType": IMAGE, "artifactType": "application/vnd.example.note",
        "config": empty, "layers": [empty],
    });
    let artifact = repo.json(IMAGE, &body);
    repo.tag(&artifact, "note");
    repo.finish()
}

fn nested_repositories() -> Files {
    let mut files = Files::new();
    for name in ["test", "test/this"] {
        let mut repo = Repo::new(name);
        let image = repo.image(name);
        repo.tag(&image, "1");
        files.extend(repo.finish());
    }
    // Not ours, and left alone.
    files.insert("test/README".into(), b"hello\n".to_vec());
    files.insert("Notes/index.json".into(), b"not a layout\n".to_vec());
    files.insert("test/_views/index.json".into(), b"nor this\n".to_vec());
    files
}

fn no_manifest_yet() -> Files {
    let mut repo = Repo::new("app");
    repo.blob(LAYER, b"pushed first\n");
    repo.blob(CONFIG, b"{}");
    repo.drop_file("oci-layout");
    repo.files
}

/// Go writes an empty list as `null`.
fn null_lists() -> Files {
    let mut repo = Repo::new("app");
    let config = repo.json(CONFIG, &json!({"os": "linux"}));
    let body = json!({"schemaVersion": 2, "config": config, "layers": null, "annotations": null});
    let image = repo.json(IMAGE, &body);
    let entry = repo.tag(&image, "scratch");
    entry["urls"] = Value::Null;
    repo.finish()
}

/// The least that a server has written: one image, pushed and tagged.
pub fn roomy() -> Files {
    let mut repo = Repo::new("app");
    repo.file(".lock", b"");
    let image = repo.image("one");
    repo.untagged(&image);
    let (nothing, first) = (Stamp::nothing(), repo.stamp());
    let mut log = line("push", "", &Value::Null, &image, nothing, first);
    repo.entries.clear();
    let tagged = repo.tag(&image, "1.8").clone();
    log += &line("tag", "1.8", &Value::Null, &tagged, first, repo.stamp());
    repo.file("_log.jsonl", log.as_bytes());
    with_room(repo.finish())
}

/// What a server has written: five commits and one that was cut off before its rename.
pub fn written() -> Files {
    let mut repo = Repo::new("team/app");
    repo.file(".lock", b"");
    let nothing = Stamp::nothing();
    let mut log = String::new();

    let one = repo.image("one");
    let tagged = repo.tag(&one, "1.8").clone();
    let first = repo.stamp();
    log += &line("push", "", &Value::Null, &one, nothing, first);
    log += &line("tag", "1.8", &Value::Null, &tagged, nothing, first);

    let two = repo.image("two");
    repo.entries.clear();
    repo.untagged(&one);
    let retagged = repo.tag(&two, "1.8").clone();
    let second = repo.stamp();
    let void = Stamp::of(b"an index.json that was never renamed to its name");
    log += &line("push", "", &Value::Null, &two, first, void);
    log += &line("push", "", &Value::Null, &two, first, second);
    log += &line("tag", "1.8", &tagged, &retagged, first, second);

    let latest = repo.tag(&two, "latest").clone();
    let third = repo.stamp();
    log += &line("tag", "latest", &Value::Null, &latest, second, third);

    repo.entries.pop();
    let fourth = repo.stamp();
    log += &line("untag", "latest", &latest, &Value::Null, third, fourth);

    let signature = repo.signature(&two);
    repo.untagged(&signature);
    let fifth = repo.stamp();
    log += &line("push", "", &Value::Null, &signature, fourth, fifth);

    repo.file("_log.jsonl", log.as_bytes());
    let facts: String = [&one, &two, &signature].map(|of| fact(&repo, of)).concat();
    repo.file("_referrers/facts.jsonl", facts.as_bytes());
    let mut files = repo.finish();
    // The same content in another repository is the same inode.
    let mut other = Repo::new("team/other");
    let same = other.image("one");
    other.tag(&same, "copy");
    files.extend(other.finish());
    let mut files = with_room(files);
    session(&mut files, "000102030405060708090a0b0c0d0e0f");
    let note =
        format!(".stillage/unreferenced/team/app/{}", Digest::of(Algorithm::Sha256, b"gone"));
    files.insert(note, Vec::new());
    files
}

/// The line of facts about a manifest of the repository.
pub fn fact(repo: &Repo, of: &Value) -> String {
    let path = Repo::path(of);
    let (_, bytes) = repo.files.iter().find(|(name, _)| name.ends_with(&path)).unwrap();
    let manifest = Manifest::parse(bytes, None).unwrap();
    let digest = Digest::parse(of["digest"].as_str().unwrap()).unwrap();
    let fact = Fact::of(digest, bytes.len() as u64, &manifest);
    format!("{}\n", serde_json::to_string(&fact).unwrap())
}

/// What writing.md, "After a crash", allows to lie there.
fn after_a_crash() -> Files {
    let mut repo = Repo::new("team/app");
    let nothing = Stamp::nothing();
    let image = repo.image("one");
    let base = repo.tag(&image, "1.8").clone();
    let before = repo.stamp();
    let mut log = line("push", "", &Value::Null, &image, nothing, before);
    log += &line("tag", "1.8", &Value::Null, &base, nothing, before);
    // Content without a manifest, and a manifest whose commit did not happen.
    repo.blob(LAYER, b"nobody asked for this yet\n");
    let lost = repo.image("lost");
    log += &line("push", "", &Value::Null, &lost, before, Stamp::of(b"void"));
    log += "{\"time\":\"2026-11-24T01:02:03.12";
    repo.file("_log.jsonl", log.as_bytes());
    repo.file("_referrers/facts.jsonl", format!("{}{{\"dig", fact(&repo, &image)).as_bytes());
    repo.file(".index.json.0123456789abcdef", br#"{"schemaVersion":2,"mani"#);
    repo.file("blobs/sha256/.blob.0123456789abcdef", b"half a lay");
    let mut files = with_room(repo.finish());
    // A first push that got as far as the journal.
    let mut young = Repo::new("young");
    let image = young.image("young");
    let line = line("push", "", &Value::Null, &image, nothing, Stamp::of(b"void"));
    young.file("_log.jsonl", line.as_bytes());
    files.extend(young.files);
    files.insert(".stillage/uploads/.blob.0123456789abcdef".into(), b"half".to_vec());
    files.insert(".stillage/uploads/ffffffffffffffffffffffffffffffff/owner".into(), Vec::new());
    files.insert(
        ".stillage/uploads/eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee/owner".into(),
        b"{\"user\":\"al".to_vec(),
    );
    files.insert(".stillage/uploads/dddddddddddddddddddddddddddddddd/owner".into(), vec![0; 60]);
    let hints = files.keys().find(|name| name.starts_with(".stillage/holders/")).unwrap().clone();
    files.get_mut(&hints).unwrap().extend(b"0123 torn\nand the rest");
    files
}

/// The index that an empty repository has after its last manifest was deleted.
fn emptied() -> Files {
    let mut repo = Repo::new("empty");
    repo.file(
        "index.json",
        json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": []}).to_string().as_bytes(),
    );
    repo.files
}
