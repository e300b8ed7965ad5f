//! What many writers at once share: commits, and with them their fsyncs.

use anyhow::Result;

use super::calls::{self, Trace};
use crate::client::push_manifest;
use crate::content::{self, Image, KIB};
use crate::crowd::together;
use crate::place::Place;
use crate::servers::stillage;
use crate::trees::Trees;
use crate::works::images::push_image;

/// Writers of one repository.
const WRITERS: usize = 64;
/// Images and the clients that push them.
const IMAGES: usize = 64;
const CLIENTS: usize = 16;
/// A manifest's file, a configuration's and a layer's.
const FILES: usize = 3;

/// Fsyncs that a commit needs, whatever it commits: the journal's, blobs/'s, index.json's, the directory's.
const EACH_COMMIT: usize = 4;

/// What is not shared as it should be.
pub(super) fn complaints(place: &Place) -> Result<Vec<String>> {
    let trees = Trees::new(place)?;
    trees.shelves()?;
    let repository = trees.repository("one")?;
    let parts = Image::fresh(KIB);
    repository.blob(&parts.config)?;
    repository.blob(&parts.layer)?;
    // Neither repository is made here, which would cost fsyncs of its own.
    let mut other = trees.repository("two")?;
    other.image("v1", &parts)?;
    other.finish()?;
    let server = stillage::start_quiet(place, &trees.stillage)?;
    let mut all = Vec::new();

    let trace = Trace::begin(server.pid(), place.room("trace")?)?;
    together(&server.target, WRITERS, |writer, connection, _| {
        let config = (&parts.config_digest[..], parts.config.length());
        let layer = (&parts.layer_digest[..], parts.layer.length());
        let tag = format!("t{writer}");
        push_manifest(connection, "one", &tag, &content::manifest(config, layer, &tag))
    })?;
    let commits = commits(&trace.end()?);
    println!("{WRITERS} writers of one repository at once: {commits} commits");
    if commits == 0 || commits > WRITERS / 2 {
        all.push(format!("{WRITERS} writers at once took {commits} commits: they share none"));
    }

    // What is made once in a tree or a repository (directories of holders and views, the journal) is there then.
    push_image(&mut server.connect()?, "two", &Image::fresh(KIB))?;
    let images: Vec<Image> = (0..IMAGES).map(|_| Image::fresh(KIB)).collect();
    let trace = Trace::begin(server.pid(), place.room("trace")?)?;
    together(&server.target, CLIENTS, |client, connection, _| {
        images
            .iter()
            .skip(client)
            .step_by(CLIENTS)
            .try_for_each(|image| push_image(connection, "two", image))
    })?;
    let threads = trace.end()?;
    let (commits, counts) = (self::commits(&threads), calls::count(&threads, &trees.stillage));
    let syncs =
        ["fsync", "fdatasync", "syncfs"].map(|name| counts.get(name).copied().unwrap_or(0.0));
    let syncs = syncs.iter().sum::<f64>() as usize;
    let most = FILES * IMAGES + EACH_COMMIT * commits;
    println!(
        "{IMAGES} images by {CLIENTS} clients: {syncs} fsyncs, {commits} commits; at most {most} fsyncs"
    );
    if syncs > most {
        all.push(format!("{IMAGES} images took {syncs} fsyncs: more than {FILES} for each and {EACH_COMMIT} for each of {commits} commits"));
    }
    Ok(all)
}

/// A commit is a rename over index.json.
fn commits(threads: &[String]) -> usize {
    let renames = |line: &&str| line.starts_with("rename") && line.contains("\"index.json\"");
    threads.iter().flat_map(|text| text.lines()).filter(renames).count()
}
