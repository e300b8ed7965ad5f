//! Large trees: as many blobs as asked for, all sound, in a server's room.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use super::disk;
use super::repo::{self, Repo};

/// So many images has a repository, but for one.
const IMAGES: usize = 100;

/// Of so many images one has a blob more, to which nothing refers.
const GARBAGE: usize = 33;

/// What was made.
#[derive(Clone, Copy, Debug)]
pub struct Made {
    pub repositories: usize,
    pub images: usize,
    pub blobs: usize,
    pub garbage: usize,
}

/// Makes a tree of about `blobs` blobs beneath `root`, each with its name in the pool: a quarter of
/// them in one repository, the others in many.
pub fn make(root: &Path, blobs: usize) -> Made {
    let images = blobs / 3;
    let large = images / 4;
    let small = (images - large).div_ceil(IMAGES);
    fs::create_dir_all(root.join(".stillage")).unwrap();
    fs::write(root.join(".stillage/version"), "1\n").unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| repository(root, "large", 0, large));
        for half in 0..2 {
            scope.spawn(move || {
                for number in (half..small).step_by(2) {
                    let name = format!("team{}/app{number}", number % 10);
                    let begin = large + number * IMAGES;
                    repository(root, &name, begin, images.min(begin + IMAGES) - begin);
                }
            });
        }
    });
    disk::set_mode(&root.join(".stillage"), 0o700);
    let garbage = images.div_ceil(GARBAGE);
    Made { repositories: small + 1, images, blobs: 3 * images + garbage, garbage }
}

fn repository(root: &Path, name: &str, begin: usize, images: usize) {
    let mut entries = Vec::new();
    let dir = root.join(name);
    fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
    for number in begin..begin + images {
        let mut made = Repo::new("");
        let image = made.image(&number.to_string());
        made.tag(&image, &format!("t{number}"));
        if number % GARBAGE == 0 {
            made.blob(repo::LAYER, format!("garbage {number}").as_bytes());
        }
        for (path, bytes) in &made.files {
            let Some(hex) = path.strip_prefix("blobs/sha256/") else { continue };
            let blob = dir.join(path);
            let mut file = fs::File::create(&blob).unwrap();
            file.write_all(bytes).unwrap();
            file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o444)).unwrap();
            let shelf = root.join(".stillage/pool/sha256").join(&hex[..2]);
            fs::create_dir_all(&shelf).unwrap();
            fs::hard_link(&blob, shelf.join(hex)).unwrap();
        }
        entries.append(&mut made.entries);
    }
    let mut made = Repo::new("");
    made.entries = entries;
    for (path, bytes) in made.finish() {
        fs::write(dir.join(path), bytes).unwrap();
    }
}
