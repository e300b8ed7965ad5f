//! podman, buildah and skopeo with storage, settings and logins of their own.
//!
//! Nothing of the machine's is read or written but `/etc/containers/policy.json`, so tests may
//! run beside each other and beside the developer's own containers.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::command::{Outcome, run};

/// A home for the container tools; removed when dropped.
pub struct Containers {
    room: tempfile::TempDir,
}

impl Containers {
    /// An empty image store without any login.
    pub fn new() -> Containers {
        let room = tempfile::Builder::new()
            .prefix("stillage-containers-")
            .tempdir()
            .expect("a temporary directory");
        let at = |name: &str| room.path().join(name).display().to_string();
        let storage = format!(
            "[storage]\ndriver = \"vfs\"\ngraphroot = \"{}\"\nrunroot = \"{}\"\n",
            at("graph"),
            at("run")
        );
        let engine = format!(
            "[engine]\nlock_type = \"file\"\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\n\
             tmp_dir = \"{}\"\n[network]\nnetwork_config_dir = \"{}\"\n",
            at("tmp"),
            at("networks")
        );
        let files = [
            ("storage.conf", storage.as_str()),
            ("containers.conf", &engine),
            ("registries.conf", ""),
            // podman refuses to read a login file that is not there, buildah and skopeo do not mind.
            ("auth.json", "{}"),
        ];
        for (name, text) in files {
            fs::write(room.path().join(name), text).expect("settings of the container tools");
        }
        fs::create_dir(room.path().join("networks")).expect("a directory without networks");
        fs::create_dir(room.path().join("tmpdir")).expect("a directory for temporary files");
        Containers { room }
    }

    /// Runs podman with these arguments.
    #[track_caller]
    pub fn podman(&self, args: &[&str]) -> Outcome {
        run(self.command("podman").args(args))
    }

    /// Runs buildah with these arguments.
    #[track_caller]
    pub fn buildah(&self, args: &[&str]) -> Outcome {
        run(self.command("buildah").args(args))
    }

    /// Runs skopeo with these arguments.
    #[track_caller]
    pub fn skopeo(&self, args: &[&str]) -> Outcome {
        run(self.command("skopeo").args(args))
    }

    /// Logs podman in; skopeo and buildah share the login.
    #[track_caller]
    pub fn login(&self, server: &str, user: &str, password: &str) -> Outcome {
        self.podman(&["login", "-u", user, "-p", password, "--tls-verify=false", server])
    }

    /// An image of one layer with the file `/hello` in it, imported under this name. Returns its id.
    #[track_caller]
    pub fn image(&self, name: &str, hello: &str, arch: &str) -> String {
        let tar = self.tar(hello);
        let tar = tar.to_str().expect("a plain path");
        let args = ["import", "--quiet", "--os", "linux", "--arch", arch, tar, name];
        self.podman(&args).ok();
        self.image_id(name)
    }

    /// Pushes these images of the store as one, for all their platforms.
    #[track_caller]
    pub fn push_together(&self, images: &[&str], to: &str) {
        self.podman(&["manifest", "create", "localhost/together"]).ok();
        for image in images {
            let source = format!("containers-storage:{image}");
            self.podman(&["manifest", "add", "localhost/together", &source]).ok();
        }
        let to = format!("docker://{to}");
        let push = ["manifest", "push", "--all", "--tls-verify=false", "localhost/together", &to];
        self.podman(&push).ok();
    }

    /// The id (digest of the config) of an image in this store.
    #[track_caller]
    pub fn image_id(&self, name: &str) -> String {
        let id = self.podman(&["image", "inspect", "--format", "{{.Id}}", name]).ok();
        id.stdout.trim().to_owned()
    }

    /// Empties the image store, so that a pull has to fetch everything.
    #[track_caller]
    pub fn forget_images(&self) {
        self.podman(&["rmi", "--all", "--force"]).ok();
    }

    /// A directory that lives as long as this.
    pub fn path(&self) -> &Path {
        self.room.path()
    }

    fn tar(&self, hello: &str) -> PathBuf {
        let tree = self.room.path().join("tree");
        fs::create_dir_all(&tree).expect("the image's tree");
        fs::write(tree.join("hello"), hello).expect("the image's file");
        let tar = self.room.path().join("layer.tar");
        run(Command::new("tar").arg("-cf").arg(&tar).arg("-C").arg(&tree).arg("hello")).ok();
        tar
    }

    /// One of the tools, to be started by the test itself.
    pub fn command(&self, program: &str) -> Command {
        let room = self.room.path();
        let mut command = Command::new(program);
        command
            .current_dir(room)
            .env("HOME", room)
            .env("TMPDIR", room.join("tmpdir"))
            .env("XDG_RUNTIME_DIR", room)
            .env("REGISTRY_AUTH_FILE", room.join("auth.json"))
            .env("CONTAINERS_CONF", room.join("containers.conf"))
            .env("CONTAINERS_STORAGE_CONF", room.join("storage.conf"))
            .env("CONTAINERS_REGISTRIES_CONF", room.join("registries.conf"))
            .env("BUILDAH_ISOLATION", "chroot");
        command
    }
}

/// How a person at the same machine names the server: `localhost:PORT`.
pub fn localhost(addr: SocketAddr) -> String {
    format!("localhost:{}", addr.port())
}
