//! `kill -9` at any moment: what was acknowledged is there, what was not leaves no damage,
//! and uploads go on where they were.

mod support;

use std::collections::HashMap;
use std::io;
use std::thread;
use std::time::Duration;

use support::Registry;
use support::content::{Image, OCI_MANIFEST, random, sha256, with_query};
use support::http::{Client, Request, Response};

const WRITERS: usize = 4;

/// So many kills on one tree: every tag is pulled after each, and their number grows.
const KILLS_PER_TREE: usize = 25;

#[test]
fn acknowledged_tags_survive_kill_9_and_the_tree_is_sound() {
    let (mut kept, mut kills) = (0, 0);
    while kills < kills_wanted() {
        let now = KILLS_PER_TREE.min(kills_wanted() - kills);
        kept += kill_under_writers(now);
        kills += now;
    }
    support::measured(format!("{kept} tags of {WRITERS} writers over {kills} kills: none lost"));
    assert!(kept > kills, "only {kept} pushes came through");
}

/// Kills a server so often while images are pushed to it; gives how many tags it has in the end.
fn kill_under_writers(kills: usize) -> usize {
    let mut registry = Registry::start(&["--auth", "none"]);
    let mut tags: HashMap<(String, String), Image> = HashMap::new();
    for round in 0..kills {
        let client = registry.client();
        let writers: Vec<_> = (0..WRITERS)
            .map(|number| {
                let client = client.clone();
                thread::spawn(move || write_until_it_ends(&client, round, number))
            })
            .collect();
        thread::sleep(moment());
        registry.kill9();
        let written: Vec<Written> =
            writers.into_iter().map(|writer| writer.join().expect("a writer")).collect();
        registry.run();
        registry.assert_sound();

        for written in written {
            for (repo, tag, image) in written.acknowledged {
                tags.insert((repo, tag), image);
            }
            // The one in flight may have been committed or not; nothing between is allowed.
            let (repo, tag, image) = written.in_flight;
            let path = format!("/v2/{repo}/manifests/{tag}");
            let now = registry.client().get(&path);
            match tags.get(&(repo.clone(), tag.clone())) {
                _ if now.status == 200 && now.body == image.manifest => {
                    tags.insert((repo, tag), image);
                }
                Some(before) => assert!(now.body == before.manifest, "{repo}:{tag}: {now:?}"),
                None => assert_eq!(now.status, 404, "{repo}:{tag}: {now:?}"),
            }
        }
        for ((repo, tag), image) in &tags {
            registry.client().assert_pulls(repo, tag, image);
        }
    }
    tags.len()
}

#[test]
fn open_uploads_resume_after_kill_9_where_the_server_says() {
    let mut registry = Registry::start(&["--auth", "none"]);
    for _ in 0..rounds() {
        let client = registry.client();
        let uploads: Vec<_> = (0..WRITERS)
            .map(|_| {
                let client = client.clone();
                thread::spawn(move || upload_until_it_ends(&client))
            })
            .collect();
        thread::sleep(moment());
        registry.kill9();
        let uploads: Vec<Option<Upload>> =
            uploads.into_iter().map(|upload| upload.join().expect("an upload")).collect();
        registry.run();
        registry.assert_sound();
        for upload in uploads.into_iter().flatten() {
            resume(&registry.client(), &upload);
        }
    }
}

#[test]
fn blobs_whose_last_request_was_killed_are_whole_or_resume() {
    let mut registry = Registry::start(&["--auth", "none"]);
    let mut stored: Vec<String> = Vec::new();
    let mut hit = [0; 2];
    for _ in 0..rounds() {
        let client = registry.client();
        let finishers: Vec<_> = (0..WRITERS)
            .map(|_| {
                let client = client.clone();
                thread::spawn(move || finish_until_it_ends(&client))
            })
            .collect();
        thread::sleep(moment());
        registry.kill9();
        let finished: Vec<Finished> =
            finishers.into_iter().map(|finisher| finisher.join().expect("a finisher")).collect();
        registry.run();
        registry.assert_sound();
        for finished in finished {
            stored.extend(finished.acknowledged);
            if let Some(upload) = finished.in_flight {
                let resumed = resume_or_find(&registry.client(), &upload);
                hit[usize::from(resumed)] += 1;
                stored.push(sha256(&upload.content));
            }
        }
        // A damaged blob that was there before this round is damage, too.
        for digest in &stored {
            let blob = registry.client().get(&format!("/v2/resumed/blobs/{digest}"));
            assert_eq!(sha256(&blob.expect_status(200).body), *digest);
        }
    }
    support::measured(format!(
        "{} blobs over {} kills during their last requests, {} of them stored and {} resumed: none lost",
        stored.len(),
        rounds(),
        hit[0],
        hit[1],
    ));
    assert!(stored.len() > rounds(), "only {} blobs came through", stored.len());
    assert!(hit[1] > 0, "no kill hit a session");
}

/// What one client knows of its blobs when its connection ends.
struct Finished {
    acknowledged: Vec<String>,
    in_flight: Option<Upload>,
}

/// One small session after the other: POST, every second time a PATCH, and a PUT with the rest.
fn finish_until_it_ends(client: &Client) -> Finished {
    let mut acknowledged = Vec::new();
    for count in 0.. {
        let Ok(post) = client.try_send(Request::post("/v2/resumed/blobs/uploads/")) else {
            break;
        };
        let mut upload = Upload {
            location: post.expect_status(202).location(),
            content: random(1_000 + 40_000 * (count % 13)),
            acknowledged: 0,
        };
        let digest = sha256(&upload.content);
        match finish(client, &mut upload, &digest, count % 2 == 1) {
            Ok(()) => acknowledged.push(digest),
            Err(_) => return Finished { acknowledged, in_flight: Some(upload) },
        }
    }
    Finished { acknowledged, in_flight: None }
}

fn finish(client: &Client, upload: &mut Upload, digest: &str, chunked: bool) -> io::Result<()> {
    if chunked {
        let half = upload.content.len() / 2;
        upload.location = send_chunk(client, upload, half)?.expect_status(202).location();
        upload.acknowledged = half;
    }
    let put = Request::put(with_query(&upload.location, &format!("digest={digest}")))
        .header("Content-Type", "application/octet-stream")
        .body(&upload.content[upload.acknowledged..]);
    client.try_send(put)?.expect_status(201);
    Ok(())
}

/// Either the session is over because its blob is stored, or it goes on and ends well. True if it
/// went on.
#[track_caller]
fn resume_or_find(client: &Client, upload: &Upload) -> bool {
    let blob = client.get(&format!("/v2/resumed/blobs/{}", sha256(&upload.content)));
    if client.get(&upload.location).status == 404 {
        assert!(blob.expect_status(200).body == upload.content, "the blob differs");
        return false;
    }
    // A session that is left has stored nothing yet.
    blob.expect_status(404);
    resume(client, upload);
    true
}

/// What one writer knows when its connection ends.
struct Written {
    acknowledged: Vec<(String, String, Image)>,
    in_flight: (String, String, Image),
}

/// Pushes image after image, every second one under a tag that moves.
fn write_until_it_ends(client: &Client, round: usize, number: usize) -> Written {
    let mut acknowledged = Vec::new();
    let repo = format!("killed/repo{}", number % 2);
    for count in 0.. {
        let image = Image::random(2_000 * (1 + count % 40));
        let tag = match count % 2 {
            0 => format!("r{round}w{number}n{count}"),
            _ => format!("moving{number}"),
        };
        let in_flight = (repo.clone(), tag, image);
        match try_push(client, &in_flight.0, &in_flight.1, &in_flight.2) {
            Ok(()) => acknowledged.push(in_flight),
            Err(_) => {
                return Written { acknowledged, in_flight };
            }
        }
    }
    unreachable!("the count ends later than the server")
}

/// A push whose every answer must be the right one, unless the connection ends.
fn try_push(client: &Client, repo: &str, tag: &str, image: &Image) -> io::Result<()> {
    for blob in image.layers.iter().chain([&image.config]) {
        let post = Request::post(format!("/v2/{repo}/blobs/uploads/?digest={}", sha256(blob)));
        client.try_send(post.body(blob.as_slice()))?.expect_status(201);
    }
    let put = Request::put(format!("/v2/{repo}/manifests/{tag}"))
        .header("Content-Type", OCI_MANIFEST)
        .body(image.manifest.as_slice());
    client.try_send(put)?.expect_status(201);
    Ok(())
}

/// An upload that was cut off: where it goes on, what is to be sent, how much was acknowledged.
struct Upload {
    location: String,
    content: Vec<u8>,
    acknowledged: usize,
}

/// Sends chunk after chunk of one blob until the connection ends. None if the session never began.
fn upload_until_it_ends(client: &Client) -> Option<Upload> {
    const CHUNK: usize = 64 * 1024;
    let post = client.try_send(Request::post("/v2/resumed/blobs/uploads/")).ok()?;
    let mut upload = Upload {
        location: post.expect_status(202).location(),
        content: random(400 * CHUNK),
        acknowledged: 0,
    };
    while upload.acknowledged < upload.content.len() {
        let end = upload.acknowledged + CHUNK;
        match send_chunk(client, &upload, end) {
            Ok(answer) => {
                upload.location = answer.expect_status(202).location();
                upload.acknowledged = end;
            }
            Err(_) => break,
        }
    }
    Some(upload)
}

fn send_chunk(client: &Client, upload: &Upload, end: usize) -> io::Result<Response> {
    let start = upload.acknowledged;
    client.try_send(
        Request::patch(&upload.location)
            .header("Content-Type", "application/octet-stream")
            .header("Content-Range", format!("{start}-{}", end - 1))
            .body(&upload.content[start..end]),
    )
}

/// Asks where to go on, which must not be before what was acknowledged, and finishes the blob.
#[track_caller]
fn resume(client: &Client, upload: &Upload) {
    let status = client.get(&upload.location).expect_status(204);
    let range = status.header("range").unwrap_or_else(|| panic!("no Range: {status:?}"));
    let last: usize = range
        .strip_prefix("0-")
        .and_then(|last| last.parse().ok())
        .unwrap_or_else(|| panic!("not a Range: {status:?}"));
    // `0-0` is nothing at all or one byte; no chunk here is that small.
    let stored = if last == 0 { 0 } else { last + 1 };
    assert!(stored >= upload.acknowledged, "{stored} of {} are left", upload.acknowledged);
    assert!(stored <= upload.content.len(), "{stored} is more than was ever sent");

    let mut location = status.header("location").map_or(upload.location.clone(), str::to_owned);
    if stored < upload.content.len() {
        let patch = Request::patch(&location)
            .header("Content-Range", format!("{stored}-{}", upload.content.len() - 1))
            .body(&upload.content[stored..]);
        location = client.send(patch).expect_status(202).location();
    }
    let digest = sha256(&upload.content);
    let put = Request::put(with_query(&location, &format!("digest={digest}")));
    client.send(put).expect_status(201);
    let blob = client.get(&format!("/v2/resumed/blobs/{digest}")).expect_status(200);
    assert!(blob.body == upload.content, "the resumed blob differs");
}

/// 1,000 in the long form.
fn kills_wanted() -> usize {
    if support::long() { 1000 } else { 8 }
}

fn rounds() -> usize {
    if support::long() { 60 } else { 8 }
}

/// When to kill: anywhere between the first requests and the middle of much work.
fn moment() -> Duration {
    let random = random(2);
    Duration::from_micros(u64::from(u16::from_le_bytes([random[0], random[1]])) * 8)
}
