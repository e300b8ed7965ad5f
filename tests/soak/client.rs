//! The clients: honest ones, which keep to what the server told them, in a hurry or not.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::support::content::{Image, OCI_MANIFEST, random, referrer, sha256, with_query};
use crate::support::http::{self, Request, Response};

/// Where all of them push to.
const REPOS: [&str; 5] = ["base", "team/app", "team/app/nested", "ci/job", "mirror"];

/// From so many images on, more are deleted than pushed.
const ENOUGH: usize = 120;

pub const SIGNATURE: &str = "application/vnd.test.signature";

/// An image that was acknowledged and not deleted.
#[derive(Clone, Debug)]
pub struct Kept {
    pub repo: String,
    /// A tag, or its digest.
    pub reference: String,
    pub image: Image,
    pub referrers: BTreeMap<String, Vec<u8>>,
}

/// What all clients share.
pub struct Ground {
    /// What a promise is good for.
    pub grace: Duration,
    pub collections: AtomicUsize,
    /// Whoever does something with an image takes it out meanwhile.
    kept: Mutex<Vec<Kept>>,
    /// Which manifest is somebody's in which repository: nobody else pushes it there.
    claims: Mutex<BTreeSet<(String, String)>>,
    /// Layers that many images have.
    layers: Vec<Vec<u8>>,
    counts: Mutex<HashMap<&'static str, usize>>,
    failure: Mutex<Option<String>>,
    over: AtomicBool,
    ended: (Mutex<()>, Condvar),
}

impl Ground {
    pub fn new(grace: Duration) -> Ground {
        let sizes = [0, 1, 300, 4_096, 20_000, 70_000, 250_000, 1_500_000];
        Ground {
            grace,
            collections: AtomicUsize::new(0),
            kept: Mutex::default(),
            claims: Mutex::default(),
            layers: sizes.into_iter().cycle().take(24).map(random).collect(),
            counts: Mutex::default(),
            failure: Mutex::default(),
            over: AtomicBool::new(false),
            ended: (Mutex::new(()), Condvar::new()),
        }
    }

    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    pub fn end(&self) {
        let _held = self.ended.0.lock().expect("nobody panics with it");
        self.over.store(true, Ordering::Relaxed);
        self.ended.1.notify_all();
    }

    /// Pauses, until the end at most.
    pub fn rest(&self, time: Duration) {
        let held = self.ended.0.lock().expect("nobody panics with it");
        let waited = self.ended.1.wait_timeout_while(held, time, |()| !self.is_over());
        drop(waited.expect("nobody panics with it"));
    }

    /// The first failure counts.
    pub fn fail(&self, why: String) {
        self.failure.lock().expect("nobody panics with it").get_or_insert(why);
        self.end();
    }

    pub fn failure(&self) -> Option<String> {
        self.failure.lock().expect("nobody panics with it").clone()
    }

    pub fn count(&self, what: &'static str) {
        *self.counts.lock().expect("nobody panics with it").entry(what).or_default() += 1;
    }

    pub fn counts(&self) -> BTreeMap<&'static str, usize> {
        let counts = self.counts.lock().expect("nobody panics with it");
        counts.iter().map(|(what, count)| (*what, *count)).collect()
    }

    pub fn kept(&self) -> Vec<Kept> {
        self.kept.lock().expect("nobody panics with it").clone()
    }

    fn keep(&self, image: Kept) {
        self.kept.lock().expect("nobody panics with it").push(image);
    }

    fn take(&self) -> Option<Kept> {
        let mut kept = self.kept.lock().expect("nobody panics with it");
        let at = below(kept.len())?;
        Some(kept.swap_remove(at))
    }

    fn claim(&self, repo: &str, digest: &str) -> bool {
        let mut claims = self.claims.lock().expect("nobody panics with it");
        claims.insert((repo.to_owned(), digest.to_owned()))
    }

    fn give_up(&self, repo: &str, digest: &str) {
        let mut claims = self.claims.lock().expect("nobody panics with it");
        claims.remove(&(repo.to_owned(), digest.to_owned()));
    }

    fn many(&self) -> usize {
        self.kept.lock().expect("nobody panics with it").len()
    }

    /// Every blob that a kept image needs, as `<repo> <digest>`.
    pub fn needed(&self) -> BTreeSet<String> {
        let mut needed = BTreeSet::new();
        for Kept { repo, image, referrers, .. } in self.kept() {
            let blobs = image.layers.iter().chain([&image.config, &image.manifest]);
            needed.extend(blobs.map(|blob| format!("{repo} {}", sha256(blob))));
            for referrer in referrers.keys() {
                needed.insert(format!("{repo} {referrer}"));
                needed.insert(format!("{repo} {}", sha256(b"{}")));
            }
        }
        needed
    }
}

/// A random number below `n`; `None` below nothing.
fn below(n: usize) -> Option<usize> {
    let bytes = random(8).try_into().expect("eight bytes");
    usize::try_from(u64::from_le_bytes(bytes)).expect("64 bits").checked_rem(n)
}

fn pick<'a, T>(of: &'a [T]) -> &'a T {
    &of[below(of.len()).expect("something to pick from")]
}

type Done = Result<(), String>;

/// One client.
pub struct Client<'a> {
    client: http::Client,
    connection: Option<http::Connection>,
    ground: &'a Ground,
    number: usize,
    pushed: usize,
}

impl<'a> Client<'a> {
    pub fn new(client: http::Client, ground: &'a Ground, number: usize) -> Client<'a> {
        Client { client, connection: None, ground, number, pushed: 0 }
    }

    pub fn until_the_end(mut self) {
        while !self.ground.is_over() {
            if let Err(why) = self.deed() {
                return self.ground.fail(format!("client {}: {why}", self.number));
            }
            // Each deed begins on a new connection.
            self.connection = None;
            let pause = below(120).unwrap_or_default() as u64;
            self.ground.rest(Duration::from_millis(40 + pause));
        }
    }

    fn deed(&mut self) -> Done {
        let crowded = self.ground.many() > ENOUGH;
        match below(100).unwrap_or_default() {
            0..25 if crowded => self.delete_one(),
            0..25 => self.push(),
            25..30 => self.push_slowly(),
            30..40 => self.copy_one(),
            40..52 => self.refer_to_one(),
            52..62 => self.delete_one(),
            62..66 => self.leave_an_upload(),
            66..70 => self.delete_a_blob(),
            70..73 => self.list(),
            _ => self.pull_one(),
        }
    }

    /// One request; 5xx and whatever breaks is a failure of the server.
    fn ask(&mut self, request: &Request) -> Result<Response, String> {
        let said = |error: std::io::Error| format!("{} {}: {error}", request.method, request.path);
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.client.try_connect().map_err(said)?,
        };
        let answer = connection.try_send(request).map_err(said)?;
        self.connection = Some(connection);
        self.ground.count("requests");
        if answer.status >= 500 {
            return Err(format!("{} {}: {answer:?}", request.method, request.path));
        }
        Ok(answer)
    }

    fn expect(&mut self, request: &Request, status: u16) -> Result<Response, String> {
        let answer = self.ask(request)?;
        if answer.status == status {
            return Ok(answer);
        }
        Err(format!("{} {}: not {status}: {answer:?}", request.method, request.path))
    }

    // --- pushing ----------------------------------------------------------------------------

    fn image(&self) -> Image {
        let mut layers = vec![random(1 + below(60_000).unwrap_or_default())];
        for _ in 0..below(4).unwrap_or_default() {
            layers.push(pick(&self.ground.layers).clone());
        }
        Image::of(layers, "")
    }

    fn push(&mut self) -> Done {
        self.push_image(Duration::ZERO)
    }

    /// Between what it was promised and what it makes of that, collections come and go.
    fn push_slowly(&mut self) -> Done {
        self.push_image(self.ground.grace / 3)
    }

    fn push_image(&mut self, pause: Duration) -> Done {
        let (repo, image) = (pick(&REPOS).to_string(), self.image());
        self.pushed += 1;
        let tag = format!("c{}-{}", self.number, self.pushed);
        let reference = if below(5) == Some(0) { image.digest.clone() } else { tag };
        let begun = Instant::now();
        for blob in image.layers.iter().chain([&image.config]) {
            self.provide(&repo, blob)?;
        }
        self.ground.rest(pause);
        if self.put(&repo, &reference, &image.manifest, begun)? {
            self.ground.count("pushes");
            self.ground.claim(&repo, &image.digest);
            let referrers = BTreeMap::new();
            self.ground.keep(Kept { repo, reference, image, referrers });
        }
        Ok(())
    }

    /// As clients do: ask, else mount, else send it.
    fn provide(&mut self, repo: &str, blob: &[u8]) -> Done {
        let digest = sha256(blob);
        let head = self.ask(&Request::head(format!("/v2/{repo}/blobs/{digest}")))?;
        if head.status == 200 {
            self.ground.count("promises by HEAD");
            return Ok(());
        }
        let from = pick(&REPOS).replace('/', "%2F");
        let from = if below(2) == Some(0) { String::new() } else { format!("&from={from}") };
        let mount = Request::post(format!("/v2/{repo}/blobs/uploads/?mount={digest}{from}"));
        let answer = self.ask(&mount)?;
        match answer.status {
            201 => {
                self.ground.count("mounts");
                return Ok(());
            }
            202 => {}
            _ => return Err(format!("mount: {answer:?}")),
        }
        self.ground.count("uploads");
        let mut location = answer.location();
        let mut rest = blob;
        if below(3) == Some(0) {
            let (piece, more) = blob.split_at(blob.len() / 2);
            let patch = Request::patch(location).body(piece);
            location = self.expect(&patch, 202)?.location();
            rest = more;
        }
        let put = Request::put(with_query(&location, &format!("digest={digest}"))).body(rest);
        self.expect(&put, 201).map(|_| ())
    }

    /// `false` if this client was slower than its promises are good for.
    fn put(
        &mut self,
        repo: &str,
        reference: &str,
        bytes: &[u8],
        begun: Instant,
    ) -> Result<bool, String> {
        let put = Request::put(format!("/v2/{repo}/manifests/{reference}"))
            .header("Content-Type", OCI_MANIFEST)
            .body(bytes);
        let answer = self.ask(&put)?;
        match answer.status {
            201 => Ok(true),
            // The oldest promise was made after `begun`.
            _ if begun.elapsed() > self.ground.grace => {
                self.ground.count("too slow");
                Ok(false)
            }
            _ => {
                let took = begun.elapsed();
                Err(format!("promises were not kept, {took:?} after the first: {answer:?}"))
            }
        }
    }

    // --- with an image that is there ----------------------------------------------------------

    fn with_one(&mut self, deed: impl FnOnce(&mut Self, &mut Kept) -> Done) -> Done {
        let Some(mut kept) = self.ground.take() else { return self.push() };
        deed(self, &mut kept)?;
        self.ground.keep(kept);
        Ok(())
    }

    fn pull_one(&mut self) -> Done {
        self.with_one(|client, kept| client.pull(kept))
    }

    /// The whole image, byte by byte, with all that refers to it.
    pub fn pull(&mut self, kept: &Kept) -> Done {
        let Kept { repo, reference, image, referrers } = kept;
        let manifest = self.get(&format!("/v2/{repo}/manifests/{reference}"))?;
        if manifest.body != image.manifest {
            return Err(format!("{repo}:{reference} is another manifest: {manifest:?}"));
        }
        for blob in image.layers.iter().chain([&image.config]) {
            let digest = sha256(blob);
            if self.get(&format!("/v2/{repo}/blobs/{digest}"))?.body != *blob {
                return Err(format!("blob {digest} of {repo} is another"));
            }
        }
        let listed = self.get(&format!("/v2/{repo}/referrers/{}", image.digest))?.json();
        let listed = listed["manifests"].as_array().into_iter().flatten();
        let listed: BTreeSet<&str> = listed.filter_map(|entry| entry["digest"].as_str()).collect();
        if listed != referrers.keys().map(String::as_str).collect() {
            return Err(format!("{repo}:{reference} has other referrers: {listed:?}"));
        }
        for (digest, bytes) in referrers {
            if self.get(&format!("/v2/{repo}/manifests/{digest}"))?.body != *bytes {
                return Err(format!("referrer {digest} of {repo} is another"));
            }
        }
        self.ground.count("pulls");
        Ok(())
    }

    fn get(&mut self, path: &str) -> Result<Response, String> {
        self.expect(&Request::get(path), 200)
    }

    fn refer_to_one(&mut self) -> Done {
        self.with_one(|client, kept| {
            let begun = Instant::now();
            let image = &kept.image;
            let signature = referrer(&image.digest, image.manifest.len(), SIGNATURE);
            client.provide(&kept.repo, b"{}")?;
            let digest = sha256(&signature);
            if client.put(&kept.repo, &digest, &signature, begun)? {
                client.ground.count("referrers");
                kept.referrers.insert(digest, signature);
            }
            Ok(())
        })
    }

    /// Into another repository, by mounts alone: its blobs are there.
    fn copy_one(&mut self) -> Done {
        self.with_one(|client, kept| {
            let to = pick(&REPOS).to_string();
            let image = kept.image.clone();
            if !client.ground.claim(&to, &image.digest) {
                return Ok(());
            }
            let begun = Instant::now();
            for blob in image.layers.iter().chain([&image.config]) {
                let (digest, from) = (sha256(blob), kept.repo.replace('/', "%2F"));
                let path = format!("/v2/{to}/blobs/uploads/?mount={digest}&from={from}");
                client.expect(&Request::post(path), 201)?;
                client.ground.count("mounts");
            }
            client.pushed += 1;
            let reference = format!("c{}-{}", client.number, client.pushed);
            if client.put(&to, &reference, &image.manifest, begun)? {
                client.ground.count("copies");
                let referrers = BTreeMap::new();
                client.ground.keep(Kept { repo: to, reference, image, referrers });
            } else {
                client.ground.give_up(&to, &image.digest);
            }
            Ok(())
        })
    }

    fn delete_one(&mut self) -> Done {
        let Some(kept) = self.ground.take() else { return self.push() };
        let Kept { repo, reference, image, referrers } = kept;
        if !reference.starts_with("sha256:") && below(2) == Some(0) {
            let tag = Request::delete(format!("/v2/{repo}/manifests/{reference}"));
            self.expect(&tag, 202)?;
        }
        for digest in referrers.keys().chain([&image.digest]) {
            let manifest = Request::delete(format!("/v2/{repo}/manifests/{digest}"));
            self.expect(&manifest, 202)?;
        }
        self.ground.count("deletes");
        let gone = self.ask(&Request::get(format!("/v2/{repo}/manifests/{}", image.digest)))?;
        if gone.status != 404 {
            return Err(format!("deleted, and there: {gone:?}"));
        }
        self.ground.give_up(&repo, &image.digest);
        Ok(())
    }

    // --- what leads to nothing ----------------------------------------------------------------

    fn leave_an_upload(&mut self) -> Done {
        let repo = pick(&REPOS);
        let begun = self.expect(&Request::post(format!("/v2/{repo}/blobs/uploads/")), 202)?;
        let patch = Request::patch(begun.location()).body(random(30_000));
        self.ground.count("uploads left open");
        self.expect(&patch, 202).map(|_| ())
    }

    fn delete_a_blob(&mut self) -> Done {
        let (repo, blob) = (pick(&REPOS), random(2_000));
        self.provide(repo, &blob)?;
        let delete = Request::delete(format!("/v2/{repo}/blobs/{}", sha256(&blob)));
        self.ground.count("deletes of blobs");
        self.expect(&delete, 202).map(|_| ())
    }

    fn list(&mut self) -> Done {
        self.ground.count("lists");
        self.expect(&Request::get("/v2/_catalog"), 200)?;
        let tags = self.ask(&Request::get(format!("/v2/{}/tags/list", pick(&REPOS))))?;
        if [200, 404].contains(&tags.status) { Ok(()) } else { Err(format!("{tags:?}")) }
    }
}
