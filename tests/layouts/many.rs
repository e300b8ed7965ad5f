//! Large trees: as many blobs as asked for, all sound, in a server's room.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use super::disk;
use super::repo::Repo;

/// So many images has a repository, but for one.
const IMAGES: usize = 100;

/// Makes a tree of `blobs` blobs beneath `root`, each with its name in the pool: a quarter of them
/// in one repository, the others in many. Gives how many repositories there are.
pub fn make(root: &Path, blobs: usize) -> usize {
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
    small + 1
}

fn repository(root: &Path, name: &str, begin: usize, images: usize) {
    let mut entries = Vec::new();
    let dir = root.join(name);
    fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
    for number in begin..begin + images {
        let mut made = Repo::new("");
        let image = made.image(&number.to_string());
        made.tag(&image, &format!("t{number}"));
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
