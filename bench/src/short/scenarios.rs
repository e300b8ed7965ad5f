//! What is counted request by request: each scenario is one request, or a few, again and again.

use std::collections::BTreeMap;

use anyhow::Result;

use super::calls::{self, Trace};
use super::expected::Counts;
use super::quiet::until_quiet;
use crate::client::{Connection, push_blob, push_manifest};
use crate::content::{self, Content, Image, KIB, MANIFEST, MIB};
use crate::place::Place;
use crate::servers::{Server, stillage};
use crate::trees::{Trees, many_tags};

/// So often before it is counted: what is found out once is known then.
const BEFORE: usize = 3;
/// So often it is counted.
const TIMES: usize = 4;

/// What a scenario works on.
struct Stage {
    trees: Trees,
    server: Server,
    small: String,
    large: String,
    /// A manifest of the repository of 10 tags.
    manifest: String,
    parts: Image,
}

type Deed = fn(&Stage, &mut Connection, usize) -> Result<()>;

const SCENARIOS: [(&str, Deed); 12] = [
    ("get-blob-4KiB", |stage, connection, _| get(connection, "some/blobs", &stage.small)),
    ("get-blob-64MiB", |stage, connection, _| get(connection, "some/blobs", &stage.large)),
    ("get-manifest-by-tag", |_, connection, _| get(connection, "tags10/manifests", "t3")),
    ("get-manifest-by-digest", |stage, connection, _| {
        get(connection, "tags10/manifests", &stage.manifest)
    }),
    ("get-manifest-1000-tags", |_, connection, _| get(connection, "tags1000/manifests", "t3")),
    ("head-blob-missing", |_, connection, number| {
        let path = format!("/v2/some/blobs/sha256:{number:064x}");
        connection.ask("HEAD", &path, "")?.expect(404, &path)?;
        Ok(())
    }),
    ("head-blob", |stage, connection, _| {
        let path = format!("/v2/some/blobs/{}", stage.small);
        connection.ask("HEAD", &path, "")?.expect(200, &path)?;
        Ok(())
    }),
    ("tags-list-10", |_, connection, _| get(connection, "tags10/tags", "list")),
    ("push-blob-16KiB", |_, connection, _| {
        let content = Content::fresh(16 * KIB);
        push_blob(connection, "some", &content, &content.digest())
    }),
    ("mount", |stage, connection, number| {
        let query = format!("mount={}&from=some", stage.large);
        let path = format!("/v2/mounts/to{number}/blobs/uploads/?{query}");
        let answer = connection.send("POST", &path, "", 0, std::iter::empty())?;
        connection.skip(&answer.expect(201, "mount")?)?;
        Ok(())
    }),
    ("put-manifest-10-tags", |stage, connection, number| put(stage, connection, "tags10", number)),
    ("put-manifest-1000-tags", |stage, connection, number| {
        put(stage, connection, "tags1000", number)
    }),
];

/// What a matter of luck decides is not counted: how much a socket takes at once, and whether a body is there
/// (it is read by another thread) when its head goes out.
const BY_CHANCE: [(&str, &[&str]); 2] = [
    ("get-blob-4KiB", &["socket writev"]),
    ("get-blob-64MiB", &["socket recvfrom", "socket writev", "socket sendto", "sendfile"]),
];

/// What each scenario takes for one time.
pub(super) fn count(place: &Place) -> Result<BTreeMap<String, Counts>> {
    let stage = Stage::set(place)?;
    let mut all = BTreeMap::new();
    for (name, deed) in SCENARIOS {
        let mut counts = stage.count(place, deed)?;
        for (_, by_chance) in BY_CHANCE.iter().filter(|(scenario, _)| *scenario == name) {
            counts.retain(|name, _| !by_chance.contains(&name.as_str()));
        }
        all.insert(name.to_owned(), counts);
    }
    Ok(all)
}

impl Stage {
    fn set(place: &Place) -> Result<Stage> {
        let trees = Trees::new(place)?;
        trees.shelves()?;
        let mut repository = trees.repository("some")?;
        repository.image("v1", &Image::fresh(KIB))?;
        let small = repository.blob(&Content::fresh(4 * KIB))?;
        let large = repository.blob(&Content::fresh(64 * MIB))?;
        repository.finish()?;
        let parts = Image::fresh(KIB);
        let mut manifest = String::new();
        for tags in [1000, 10] {
            let name = format!("tags{tags}");
            manifest = content::digest(&many_tags(&trees, &name, tags)?[3]);
            let repository = trees.again(&name);
            repository.blob(&parts.config)?;
            repository.blob(&parts.layer)?;
        }
        // Nobody looks at the tree but on behalf of a request.
        let server = stillage::start_quiet(place, &trees.stillage)?;
        for repository in ["some", "tags10", "tags1000"] {
            stillage::until_viewed(&trees.stillage.join(repository))?;
        }
        Ok(Stage { trees, server, small, large, manifest, parts })
    }

    fn count(&self, place: &Place, deed: Deed) -> Result<Counts> {
        let mut connection = self.server.connect()?;
        for number in 0..BEFORE {
            deed(self, &mut connection, number)?;
            until_quiet(self.server.pid())?;
        }
        let trace = Trace::begin(self.server.pid(), place.room("trace")?)?;
        for number in BEFORE..BEFORE + TIMES {
            deed(self, &mut connection, number)?;
            // Also so that a file's time is not that of the request before.
            until_quiet(self.server.pid())?;
        }
        let mut counts = calls::count(&trace.end()?, &self.trees.stillage);
        counts.values_mut().for_each(|count| *count /= TIMES as f64);
        Ok(counts)
    }
}

fn get(connection: &mut Connection, what: &str, name: &str) -> Result<()> {
    let path = format!("/v2/{what}/{name}");
    connection.get(&path, &format!("Accept: {MANIFEST}\r\n"))?;
    Ok(())
}

/// A new manifest with a new tag.
fn put(stage: &Stage, connection: &mut Connection, repository: &str, number: usize) -> Result<()> {
    let Image { config, layer, config_digest, layer_digest, .. } = &stage.parts;
    let tag = format!("new{number:04}");
    let (config, layer) =
        ((&config_digest[..], config.length()), (&layer_digest[..], layer.length()));
    // Of this repository alone: nobody has its content already.
    let note = format!("{tag} of {repository}");
    push_manifest(connection, repository, &tag, &content::manifest(config, layer, &note))
}
