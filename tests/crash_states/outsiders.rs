//! What other tools and people do to a tree: they sync nothing.

use stillage::layout::{Dir, Disk as _, Stamp, path};
use stillage::oci::{Algorithm, Index, Kind};

use rustix::fs::Mode;

use super::deeds::{Image, World, sha256, tag};
use super::promises::Effect;

impl World {
    /// A directory of the tree, and a name in it.
    fn at<'a>(&self, path: &'a str) -> (Dir, &'a str) {
        let root = Dir::open_root(&self.root).expect("ROOT");
        let (above, name) = path.rsplit_once('/').expect("a path in a repository");
        (root.dir(above).expect("a directory"), name)
    }

    /// Somebody removes a file.
    pub fn outsider_removes(&self, path: &str) {
        let (dir, name) = self.at(path);
        self.recorder.unlink(&dir, name).expect("a file");
    }

    /// Somebody removes an empty directory.
    pub fn outsider_removes_dir(&self, path: &str) {
        let (dir, name) = self.at(path);
        self.recorder.remove_dir(&dir, name).expect("an empty directory");
    }

    /// Somebody makes a directory.
    pub fn outsider_makes_dir(&self, path: &str) {
        let (dir, name) = self.at(path);
        self.recorder.make_dir(&dir, name, Mode::from_raw_mode(0o755)).expect("mkdir");
    }

    /// Somebody gives a file one more name.
    pub fn outsider_links(&self, old: &str, new: &str) {
        let ((from, old), (to, new)) = (self.at(old), self.at(new));
        self.recorder.link(&from, old, &to, new).expect("a link");
    }

    /// Somebody puts another file in the place of one.
    pub fn outsider_replaces(&self, path: &str, bytes: &[u8], mode: u32) {
        self.outsider_removes(path);
        self.outsider(path, bytes, mode);
    }

    /// Somebody appends to a file.
    pub fn outsider_appends(&self, path: &str, bytes: &[u8]) {
        let file = std::fs::File::options().append(true).open(self.root.join(path));
        self.recorder.write(&file.expect("a file"), bytes, 0).expect("bytes");
    }

    /// Another tool writes a file, and syncs nothing.
    pub fn outsider(&self, path: &str, bytes: &[u8], mode: u32) {
        let mut dir = Dir::open_root(&self.root).expect("ROOT");
        let (above, name) = path.rsplit_once('/').expect("a path in a repository");
        for part in above.split('/') {
            if !dir.path().join(part).exists() {
                self.recorder.make_dir(&dir, part, Mode::from_raw_mode(0o755)).expect("mkdir");
            }
            dir = dir.dir(part).expect("a directory");
        }
        let mode = Mode::from_raw_mode(mode);
        let file = self.recorder.create(&dir, name, mode).expect("a file");
        self.recorder.write(&file, bytes, 0).expect("bytes");
    }

    /// Another tool drops an image into a repository.
    pub fn outsiders_blobs(&mut self, to: &str, image: &Image, mode: u32) {
        for bytes in [&image.config, &image.layer] {
            self.outsiders.blobs.insert(sha256(bytes));
            self.outsider(&format!("{to}/{}", path::blob(&sha256(bytes))), bytes, mode);
        }
    }

    fn outsiders_index(name: &str, image: &Image) -> Vec<u8> {
        format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{}","digest":"{}","size":{},"annotations":{{"org.opencontainers.image.ref.name":"{name}"}}}}]}}"#,
            Kind::OciImage.media_type(),
            image.digest,
            image.manifest.len()
        )
        .into_bytes()
    }

    /// Another tool makes a whole layout.
    pub fn outsiders_layout(&mut self, to: &str, name: &str, image: &Image) {
        self.outsider(&format!("{to}/oci-layout"), path::OCI_LAYOUT_BYTES, 0o644);
        self.outsiders_blobs(to, image, 0o644);
        let manifest = format!("{to}/{}", path::blob(&image.digest));
        self.outsider(&manifest, &image.manifest, 0o644);
        self.outsiders.blobs.insert(image.digest.clone());
        let index = World::outsiders_index(name, image);
        self.outsiders.indexes.insert(Stamp::of(&index));
        self.outsider(&format!("{to}/index.json"), &index, 0o644);
    }

    /// Another tool gives a manifest that is there one more tag: it writes an index.json anew, replaces
    /// it by a rename, and syncs nothing.
    pub fn outsiders_tag(&mut self, of: &str, name: &str, image: &Image) {
        let root = Dir::open_root(&self.root).expect("ROOT");
        let dir = root.dir(of).expect("the repository");
        let bytes = std::fs::read(dir.at(path::INDEX)).expect("an index.json");
        let mut index = Index::parse(&bytes).expect("an index");
        let descriptor = index.find(&image.digest).expect("the manifest is there");
        let mut bare = descriptor;
        bare.annotations.clear();
        index.put(&bare, &[tag(name)]);
        let bytes = index.to_bytes();
        self.outsider(&format!("{of}/theirs"), &bytes, 0o644);
        self.outsiders.indexes.insert(Stamp::of(&bytes));
        self.recorder.rename(&dir, "theirs", &dir, path::INDEX).expect("a rename");
    }

    /// Another tool empties a repository: it writes index.json in place, as skopeo does.
    pub fn outsider_empties(&mut self, of: &str) {
        let root = Dir::open_root(&self.root).expect("ROOT");
        let dir = root.dir(of).expect("the repository");
        let bytes = br#"{"schemaVersion":2,"manifests":[]}"#;
        self.outsiders.indexes.insert(Stamp::of(bytes));
        let file = std::fs::File::options().write(true).open(dir.at(path::INDEX)).expect("a file");
        self.recorder.set_len(&file, 0).expect("cut");
        self.recorder.write(&file, bytes, 0).expect("bytes");
        // Whoever did this takes all tags away, and knows it.
        let mut deeds = Vec::new();
        for ((repo, _), image) in self.tags.iter().filter(|((repo, _), _)| repo == of) {
            deeds.push(Effect::Remove(repo.clone(), Image::numbered(*image).digest));
        }
        for effect in deeds {
            let deed = self.begin(effect);
            self.recorder.acknowledge(deed);
        }
        self.tags.retain(|(repo, _), _| repo != of);
    }

    /// Another tool takes all blobs out of a repository, and the directories they were in.
    pub fn outsider_takes_blobs(&self, of: &str) {
        let root = Dir::open_root(&self.root).expect("ROOT");
        for algorithm in Algorithm::ALL {
            let place = format!("{of}/{}", path::blobs(algorithm));
            let Ok(dir) = root.dir(&place) else { continue };
            for name in std::fs::read_dir(dir.path()).expect("a directory") {
                let name = name.expect("an entry").file_name();
                self.recorder.unlink(&dir, name.to_str().expect("hex")).expect("a file");
            }
            self.outsider_removes_dir(&place);
        }
        self.outsider_removes_dir(&format!("{of}/{}", path::BLOBS));
    }

    /// Somebody makes a directory under the name of a blob; its path.
    pub fn outsiders_no_blob(&mut self, of: &str, bytes: &[u8]) -> String {
        let place = format!("{of}/{}", path::blob(&sha256(bytes)));
        self.outsiders.blobs.insert(sha256(bytes));
        self.outsider_makes_dir(&place);
        place
    }

    /// A journal gets so long by the last line again and again, with a long annotation.
    pub fn outsiders_lines(&self, of: &str, length: usize) {
        let journal = format!("{of}/{}", path::JOURNAL);
        let text = String::from_utf8(self.read(&journal)).expect("UTF-8");
        let last = text.lines().last().expect("a line");
        let mut line: serde_json::Value = serde_json::from_str(last).expect("a record");
        line["after"]["annotations"]["long"] = "x".repeat(1 << 20).into();
        let line = format!("{line}\n");
        self.outsider_appends(&journal, line.repeat(length >> 20).as_bytes());
    }
}
