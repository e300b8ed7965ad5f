//! A tree in which manifests are deleted right before a system call of whoever looks at it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support;
use crate::support::calls::{Answer, Call, Calls};
use crate::support::command::{Outcome, run};
use crate::support::content::Image;
use crate::support::http::Client;
use crate::support::random::Random;
use crate::support::{Registry, STILLAGE};

/// Where it all happens.
pub(crate) const REPO: &str = "a";

/// A tree and the server to which the deletes are sent. Its own calls are not held.
pub(crate) struct Stage {
    pub(crate) registry: Registry,
    pub(crate) root: PathBuf,
    /// On the calls of whoever looks, at the tree and at what lies beside it.
    pub(crate) calls: Calls,
    /// So many manifests were deleted with their content.
    pub(crate) deleted: Arc<AtomicUsize>,
    /// So many manifests were deleted, with their content or without.
    pub(crate) manifests: Arc<AtomicUsize>,
    _room: tempfile::TempDir,
}

/// Who may come between two calls: it has the server's client and the locks.
#[derive(Clone)]
pub(crate) struct Between {
    pub(crate) client: Client,
    pub(crate) gc_lock: PathBuf,
    pub(crate) lock: PathBuf,
    pub(crate) deleted: Arc<AtomicUsize>,
    pub(crate) manifests: Arc<AtomicUsize>,
}

/// Without views: a server that follows those of another makes calls of its own.
pub(crate) const ARGS: [&str; 3] = ["--auth", "none", "--no-views"];

impl Stage {
    pub(crate) fn new() -> Stage {
        Stage::with(&[])
    }

    pub(crate) fn with(args: &[&str]) -> Stage {
        let room = tempfile::tempdir().expect("a directory");
        let root = room.path().join("registry");
        let registry = Registry::start_on(&root, &[&ARGS, args].concat());
        let (calls, [deleted, manifests]) = (Calls::on(room.path()), Default::default());
        let stage = Stage { registry, root, calls, deleted, manifests, _room: room };
        stage.registry.client().push_image(REPO, "stays", &Image::random(100));
        stage
    }

    pub(crate) fn pushed(&self, tag: &str) -> Image {
        let image = Image::random(100);
        self.registry.client().push_image(REPO, tag, &image);
        image
    }

    pub(crate) fn between(&self) -> Between {
        let lock = self.root.join(REPO).join(".lock");
        let gc_lock = self.root.join(".stillage/gc.lock");
        let [deleted, manifests] = [&self.deleted, &self.manifests].map(Arc::clone);
        Between { client: self.registry.client(), gc_lock, lock, deleted, manifests }
    }

    /// Does something right before the n-th call from now on that touches the repository.
    pub(crate) fn before(&self, n: usize, deed: impl Fn() + Send + 'static) {
        let (repo, mut calls) = (self.root.join(REPO), 0);
        self.calls.rule(move |call| {
            calls += usize::from(call.path.starts_with(&repo));
            if calls == n && call.path.starts_with(&repo) {
                deed();
            }
            Answer::Go
        });
    }

    /// Pushes an image right before the first call that is such a one, of the name and at the place in
    /// the repository, and deletes it right before the n-th call after that.
    pub(crate) fn between_push_and(&self, n: usize, name: &'static str, place: &str) {
        let (repo, between) = (self.root.join(REPO), self.between());
        let (place, image) = (repo.join(place), Image::random(100));
        let (mut pushed, mut calls) = (false, 0);
        self.calls.rule(move |call| {
            if pushed && call.path.starts_with(&repo) {
                calls += 1;
                if calls == n {
                    between.delete(&image);
                }
            } else if !pushed && call.name == name && call.path == place {
                between.client.push_image(REPO, "v1", &image);
                pushed = true;
            }
            Answer::Go
        });
    }

    /// Does this over and over, with a delete so many calls later each time, until nothing comes so late.
    /// Before a third of all calls at least nobody holds a lock.
    pub(crate) fn everywhere(&self, what: &str, every: usize, mut look: impl FnMut(usize)) {
        let first = 1 + Random::from_env("STILLAGE_DELETED_SEED").below(every);
        let repo = self.root.join(REPO);
        for (looks, n) in (first..).step_by(every).enumerate() {
            look(n);
            let calls = self.calls.done();
            self.clear();
            let calls = calls.iter().filter(|(call, _)| call.path.starts_with(&repo)).count();
            if calls < n {
                let deleted = self.deleted.load(Ordering::Relaxed);
                support::measured(format!(
                    "{what}: {deleted} deletes, each before another of {calls} calls"
                ));
                assert!(looks > 2 && 3 * deleted >= looks, "{deleted} deletes in {looks} looks");
                return;
            }
        }
    }

    /// What was not deleted goes now: the repository stays as small as it was.
    pub(crate) fn clear(&self) {
        let (client, manifests) = (self.registry.client(), format!("/v2/{REPO}/manifests"));
        if let Some(digest) =
            client.head(&format!("{manifests}/v1")).header("docker-content-digest")
        {
            client.delete(&format!("{manifests}/{digest}")).expect_status(202);
        }
    }

    /// Runs `stillage` with its calls held.
    pub(crate) fn run(&self, args: &[&str]) -> Outcome {
        let mut command = Command::new(STILLAGE);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = self.calls.spawn(&mut command).expect("the command starts");
        let output = child.wait_with_output().expect("the command ends");
        Outcome {
            line: format!("stillage {}", args.join(" ")),
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Makes a snapshot with its calls held, checks it, and clears up.
    pub(crate) fn assert_snapshot_is_sound(&self) {
        let copy = self.root.with_file_name("copy");
        let to = copy.to_str().expect("a path of ours");
        self.run(&["snapshot", self.root(), to]).ok();
        run(Command::new(STILLAGE).args(["check", to])).ok();
        fs::remove_dir_all(&copy).expect("the snapshot goes");
        run(Command::new(STILLAGE).args(["gc", self.root(), "--now"])).ok();
    }

    pub(crate) fn root(&self) -> &str {
        self.root.to_str().expect("a path of ours")
    }
}

impl Between {
    /// Deletes a manifest, and then its bytes.
    pub(crate) fn delete(&self, image: &Image) {
        if !is_free(&self.lock) {
            return;
        }
        let digest = &image.digest;
        self.client.delete(&format!("/v2/{REPO}/manifests/{digest}")).expect_status(202);
        self.manifests.fetch_add(1, Ordering::Relaxed);
        if is_free(&self.gc_lock) {
            self.client.delete(&format!("/v2/{REPO}/blobs/{digest}")).expect_status(202);
            self.deleted.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Whether nobody holds a lock.
pub(crate) fn is_free(lock: &Path) -> bool {
    let lock = File::open(lock).expect("a lock");
    // A child that another test just forks has it open too: closing it is not enough.
    lock.try_lock().is_ok() && lock.unlock().is_ok()
}

/// Whether a call opens a manifest's bytes.
pub(crate) fn opens(call: &Call, digest: &str) -> bool {
    call.name.starts_with("openat") && call.path.ends_with(&digest["sha256:".len()..])
}
