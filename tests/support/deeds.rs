//! Deeds as a client does them, one request after the other until one is refused, and what has to be
//! true afterwards, whatever happened on the way.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::STILLAGE;
use super::content::{Image, OCI_MANIFEST, random, sha256, with_query};
use super::http::{Client, Request, Response};

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// An image to a new repository.
    Push,
    /// An image to a repository whose tag moves.
    Retag,
    /// An image of another repository to a new one.
    Mount,
    /// A tag, a manifest and a blob go.
    Delete,
    /// Manifests, blobs and lists are read.
    Pull,
}

impl Kind {
    pub const ALL: [Kind; 5] = [Kind::Push, Kind::Retag, Kind::Mount, Kind::Delete, Kind::Pull];
}

/// A deed that is about to be done, once or again.
pub struct Deed {
    pub kind: Kind,
    pub repo: String,
    image: Image,
    /// What the tag names before.
    before: Option<Image>,
}

/// One request and what came of it.
pub struct Step {
    pub name: &'static str,
    /// The answer; none where the connection ended.
    pub answer: Option<Response>,
    /// Whether it is the answer that was hoped for.
    pub good: bool,
    /// What [`Told::mark`] said before and after it.
    pub marks: (usize, usize),
}

/// What the client was told.
pub struct Told<'a> {
    client: &'a Client,
    mark: &'a dyn Fn() -> usize,
    /// What is gone already counts as well done.
    again: bool,
    pub steps: Vec<Step>,
    /// An upload that was begun and not finished.
    pub session: Option<String>,
}

impl Told<'_> {
    /// Sends a request; gives the answer if it is one of the good ones.
    fn ask(&mut self, name: &'static str, good: &[u16], request: Request) -> Option<Response> {
        let from = (self.mark)();
        let answer = self.client.try_send(request).ok();
        let good = answer.as_ref().is_some_and(|a| good.contains(&a.status));
        self.steps.push(Step { name, answer: answer.clone(), good, marks: (from, (self.mark)()) });
        answer.filter(|_| good)
    }

    /// Whether a step was acknowledged; none if it was never tried.
    pub fn acknowledged(&self, name: &str) -> Option<bool> {
        self.steps.iter().find(|step| step.name == name).map(|step| step.good)
    }

    /// Whether all was done.
    pub fn all_good(&self) -> bool {
        self.steps.iter().all(|step| step.good)
    }

    fn session(&mut self, repo: &str, blob: &[u8]) -> Option<()> {
        let post = Request::post(format!("/v2/{repo}/blobs/uploads/"));
        let mut location = self.ask("begin", &[202], post)?.location();
        self.session = Some(location.clone());
        let (first, rest) = blob.split_at(blob.len() / 2);
        location = self.ask("chunk", &[202], Request::patch(location).body(first))?.location();
        let put = with_query(&location, &format!("digest={}", sha256(blob)));
        self.ask("blob", &[201], Request::put(put).body(rest))?;
        self.session = None;
        Some(())
    }

    fn push(&mut self, repo: &str, image: &Image) -> Option<()> {
        self.session(repo, &image.layers[0])?;
        let config = format!("/v2/{repo}/blobs/uploads/?digest={}", sha256(&image.config));
        self.ask("config", &[201], Request::post(config).body(image.config.as_slice()))?;
        self.manifest(repo, image)
    }

    fn mount(&mut self, repo: &str, image: &Image) -> Option<()> {
        for (mount, name, blob) in
            [("mount", "blob", &image.layers[0]), ("mount2", "config", &image.config)]
        {
            let digest = sha256(blob);
            let path = format!("/v2/{repo}/blobs/uploads/?mount={digest}&from=base");
            let answer = self.ask(mount, &[201, 202], Request::post(path))?;
            if answer.status == 202 {
                self.session = Some(answer.location());
                let put = with_query(&answer.location(), &format!("digest={digest}"));
                self.ask(name, &[201], Request::put(put).body(blob.as_slice()))?;
                self.session = None;
            }
        }
        self.manifest(repo, image)
    }

    fn manifest(&mut self, repo: &str, image: &Image) -> Option<()> {
        let put = Request::put(format!("/v2/{repo}/manifests/t"))
            .header("Content-Type", OCI_MANIFEST)
            .body(image.manifest.as_slice());
        self.ask("manifest", &[201], put).map(|_| ())
    }

    fn delete(&mut self, repo: &str, image: &Image) -> Option<()> {
        let layer = sha256(&image.layers[0]);
        let good: &[u16] = if self.again { &[202, 404] } else { &[202] };
        for (name, path) in [
            ("untag", format!("/v2/{repo}/manifests/t")),
            ("remove", format!("/v2/{repo}/manifests/{}", image.digest)),
            ("unlink", format!("/v2/{repo}/blobs/{layer}")),
        ] {
            self.ask(name, good, Request::delete(path))?;
        }
        Some(())
    }

    fn pull(&mut self, repo: &str, image: &Image) -> Option<()> {
        let layer = sha256(&image.layers[0]);
        let bodies = [
            ("manifest", format!("/v2/{repo}/manifests/t"), image.manifest.clone()),
            ("by-digest", format!("/v2/{repo}/manifests/{}", image.digest), image.manifest.clone()),
            ("blob", format!("/v2/{repo}/blobs/{layer}"), image.layers[0].clone()),
        ];
        for (name, path, body) in bodies {
            let answer = self.ask(name, &[200], Request::get(path))?;
            assert!(answer.body == body, "{name}: a wrong body");
        }
        let tags = self.ask("tags", &[200], Request::get(format!("/v2/{repo}/tags/list")))?;
        assert!(tags.text().contains("\"t\""), "{tags:?}");
        // What cannot be read is left out, and logged: one directory must not hide all others.
        self.ask("catalog", &[200], Request::get("/v2/_catalog?n=1000"))?;
        let referrers = Request::get(format!("/v2/{repo}/referrers/{}", image.digest));
        let referrers = self.ask("referrers", &[200], referrers)?;
        assert!(referrers.text().contains("dsse"), "a signature is not told of: {referrers:?}");
        self.ask("head", &[200], Request::head(format!("/v2/{repo}/blobs/{layer}")))?;
        Some(())
    }
}

impl Deed {
    /// Makes everything ready. `base` is an image under `base:t`, with a referrer.
    pub fn new(kind: Kind, number: usize, client: &Client, base: &Image) -> Deed {
        let image = Image::of(vec![random(20_000)], "");
        let name = format!("{kind:?}").to_lowercase();
        match kind {
            Kind::Push => Deed { kind, repo: format!("{name}/n{number}"), image, before: None },
            Kind::Retag => {
                let before = Image::random(1000);
                client.push_image("moving", "t", &before);
                Deed { kind, repo: "moving".into(), image, before: Some(before) }
            }
            Kind::Mount => {
                Deed { kind, repo: format!("{name}/n{number}"), image: base.clone(), before: None }
            }
            Kind::Delete => {
                let repo = format!("{name}/n{number}");
                client.push_image(&repo, "t", &image);
                client.push_image(&repo, "other", &Image::random(10));
                Deed { kind, repo, image, before: None }
            }
            Kind::Pull => Deed { kind, repo: "base".into(), image: base.clone(), before: None },
        }
    }

    /// Does it, until a request is refused. `mark` is asked before and after each.
    pub fn perform<'a>(&self, client: &'a Client, mark: &'a dyn Fn() -> usize) -> Told<'a> {
        self.do_it(client, mark, false)
    }

    /// Does it again from the begin, as a client does whom somebody asks to: it must succeed.
    #[track_caller]
    pub fn repeat(&self, client: &Client) {
        let told = self.do_it(client, &|| 0, true);
        for step in &told.steps {
            assert!(step.good, "again: {}: {:?}", step.name, step.answer);
        }
        self.judge(client, &told, &|_| true);
    }

    fn do_it<'a>(&self, client: &'a Client, mark: &'a dyn Fn() -> usize, again: bool) -> Told<'a> {
        let mut told = Told { client, mark, again, steps: Vec::new(), session: None };
        let Deed { kind, repo, image, .. } = self;
        // Whether it came to its end is in the steps.
        let _ = match kind {
            Kind::Push | Kind::Retag => told.push(repo, image),
            Kind::Mount => told.mount(repo, image),
            Kind::Delete => told.delete(repo, image),
            Kind::Pull => told.pull(repo, image),
        };
        told
    }

    /// What was acknowledged is there, and what was refused is not, unless `maybe` says of the step
    /// that nobody can know.
    #[track_caller]
    pub fn judge(&self, client: &Client, told: &Told<'_>, maybe: &dyn Fn(&Step) -> bool) {
        match self.kind {
            Kind::Push | Kind::Retag | Kind::Mount => self.judge_push(client, told, maybe),
            Kind::Delete => self.judge_delete(client, told, maybe),
            Kind::Pull => client.assert_pulls(&self.repo, "t", &self.image),
        }
    }

    #[track_caller]
    fn judge_push(&self, client: &Client, told: &Told<'_>, maybe: &dyn Fn(&Step) -> bool) {
        let Deed { repo, image, before, .. } = self;
        for (name, blob) in [("blob", &image.layers[0]), ("config", &image.config)] {
            let answer = client.get(&format!("/v2/{repo}/blobs/{}", sha256(blob)));
            match answer.status {
                200 => assert!(answer.body == *blob, "{name} differs"),
                404 => assert_ne!(told.acknowledged(name), Some(true), "{name} is lost"),
                _ => panic!("{name}: {answer:?}"),
            }
        }
        let step = told.steps.iter().find(|step| step.name == "manifest");
        if step.is_some_and(|step| step.good) {
            client.assert_pulls(repo, "t", image);
            assert!(client.tags(repo).contains(&"t".to_owned()), "t is not listed");
            return;
        }
        let now = client.get(&format!("/v2/{repo}/manifests/t"));
        match before {
            _ if now.status == 200 && now.body == image.manifest => {
                assert!(step.is_some_and(maybe), "{repo}:t was refused and is there");
            }
            Some(before) => client.assert_pulls(repo, "t", before),
            None => assert_eq!(now.status, 404, "{now:?}"),
        }
    }

    #[track_caller]
    fn judge_delete(&self, client: &Client, told: &Told<'_>, maybe: &dyn Fn(&Step) -> bool) {
        let Deed { repo, image, .. } = self;
        let layer = sha256(&image.layers[0]);
        let step = |name: &str| told.steps.iter().find(|step| step.name == name);
        // With the manifest its tags go.
        let gone = [("untag", "remove"), ("remove", "remove"), ("unlink", "unlink")];
        let paths = [
            format!("/v2/{repo}/manifests/t"),
            format!("/v2/{repo}/manifests/{}", image.digest),
            format!("/v2/{repo}/blobs/{layer}"),
        ];
        for ((name, or), path) in gone.into_iter().zip(paths) {
            let answer = client.get(&path);
            let done = |name| step(name).is_some_and(|step| step.good);
            let may = |name| step(name).is_some_and(|step| step.good || maybe(step));
            match answer.status {
                200 => assert!(!done(name), "{path} was deleted and is there"),
                404 => assert!(may(name) || may(or), "{path} was not deleted and is gone"),
                _ => panic!("{path}: {answer:?}"),
            }
        }
        assert!(client.tags(repo).contains(&"other".to_owned()), "another tag is lost");
    }
}

/// What an administrator does to a whole tree, by a command of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Chore {
    /// A collection that takes at once what nothing needs.
    Gc,
    /// One that only notes it.
    Note,
}

impl Chore {
    pub const ALL: [Chore; 2] = [Chore::Gc, Chore::Note];
}

/// A chore and what it finds in a repository of its own.
pub struct Work {
    pub chore: Chore,
    pub repo: String,
    image: Image,
    /// Blobs that nothing refers to.
    loose: Vec<String>,
}

impl Work {
    /// Makes everything ready.
    pub fn new(chore: Chore, number: usize, client: &Client) -> Work {
        let repo = format!("{chore:?}/n{number}").to_lowercase();
        let (image, gone) = (Image::random(1000), Image::random(1000));
        client.push_image(&repo, "t", &image);
        client.push_image(&repo, "gone", &gone);
        client.delete(&format!("/v2/{repo}/manifests/{}", gone.digest)).expect_status(202);
        let loose = [random(100), random(200)].map(|blob| client.push_blob(&repo, &blob));
        let mut loose = loose.to_vec();
        // The journal names what was deleted: only a collection without an undo window takes it.
        if chore == Chore::Gc {
            loose.push(sha256(&gone.layers[0]));
        }
        Work { chore, repo, image, loose }
    }

    /// The command.
    pub fn command(&self, root: &Path) -> Command {
        let mut command = Command::new(STILLAGE);
        command.arg("gc").arg(root);
        if self.chore == Chore::Gc {
            command.arg("--now");
        }
        command
    }

    /// What is needed is there; if it is `done`, what is not needed is gone, or noted.
    #[track_caller]
    pub fn judge(&self, client: &Client, root: &Path, done: bool) {
        client.assert_pulls(&self.repo, "t", &self.image);
        for digest in &self.loose {
            let path = self.blob(root, digest);
            match self.chore {
                Chore::Gc if done => assert!(!path.exists(), "{} is there", path.display()),
                Chore::Gc => {}
                Chore::Note => {
                    assert!(path.exists(), "{} was collected", path.display());
                    let note = root.join(".stillage/unreferenced").join(&self.repo).join(digest);
                    assert!(!done || note.exists(), "{} is missing", note.display());
                }
            }
        }
    }

    fn blob(&self, root: &Path, digest: &str) -> PathBuf {
        root.join(&self.repo).join("blobs/sha256").join(digest.trim_start_matches("sha256:"))
    }

    /// How the command may end: well, with an error, or partly done.
    pub fn may_end_in(code: Option<i32>) -> bool {
        matches!(code, Some(0 | 1 | 3))
    }
}

/// Whether a name is one that the server gives to what is not finished: `.name.<16 hex digits>`.
pub fn is_temporary(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let random = name.strip_prefix('.').and_then(|name| name.rsplit_once('.'));
    random.is_some_and(|(_, hex)| hex.len() == 16 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Everything beneath a directory.
pub fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&path, found);
        }
        found.push(path);
    }
}
