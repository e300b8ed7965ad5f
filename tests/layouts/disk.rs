//! Putting samples on the disk, and telling whether something changed there.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use stillage::oci::{Algorithm, Digest, Hasher};

use super::Files;

/// Reads a directory of git's, without what git put there itself.
pub fn read(dir: &Path) -> Files {
    let mut files = Files::new();
    for path in walk(dir) {
        if path.symlink_metadata().unwrap().is_file() {
            let name = path.strip_prefix(dir).unwrap().to_str().unwrap();
            files.insert(name.to_owned(), fs::read(&path).unwrap());
        }
    }
    files
}

/// Writes a sample's files with the modes and links that a writer gives them: git keeps neither.
pub fn place(files: &Files) -> tempfile::TempDir {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path();
    set_mode(root, 0o755);
    for (name, bytes) in files {
        write(root, name, bytes);
    }
    for path in walk(root) {
        let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        set_mode(&path, mode(&name, path.is_dir()));
    }
    share(root);
    temp
}

/// Writes one file with its directories. It looks an hour old, so that nobody takes it for being
/// written just now.
pub fn write(root: &Path, name: &str, bytes: &[u8]) {
    let path = root.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, bytes).unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(3600)).unwrap();
}

pub fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn mode(name: &str, dir: bool) -> u32 {
    let last = name.rsplit('/').next().unwrap();
    match name.strip_prefix(".stillage") {
        Some(_) if dir => 0o700,
        Some(inside) if inside.starts_with("/pool/") => 0o444,
        Some(_) => 0o600,
        None if dir => 0o755,
        None if name.contains("blobs/") => 0o444,
        None if last == ".lock" => 0o600,
        None if last.starts_with("_log.") => 0o640,
        None => 0o644,
    }
}

/// Gives every blob that the pool has the pool's inode.
fn share(root: &Path) {
    let pool = root.join(".stillage/pool");
    if !pool.exists() {
        return;
    }
    for path in walk(root) {
        let Ok(inside) = path.strip_prefix(root) else {
            continue;
        };
        let parts: Vec<_> = inside.iter().map(|part| part.to_str().unwrap()).collect();
        if let [.., "blobs", algorithm, hex] = parts[..]
            && hex.len() > 2
        {
            let pooled = pool.join(algorithm).join(&hex[..2]).join(hex);
            if pooled.exists() && fs::read(&pooled).unwrap() == fs::read(&path).unwrap() {
                fs::remove_file(&path).unwrap();
                fs::hard_link(&pooled, &path).unwrap();
            }
        }
    }
}

/// Everything beneath a directory, in order, symlinks not followed.
pub fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                todo.push(entry.path());
            }
            found.push(entry.path());
        }
    }
    found.sort();
    found
}

/// One digest over all names, types, modes, owners, inodes, times of change, and bytes.
pub fn fingerprint(root: &Path) -> Digest {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    for path in walk(root).into_iter().chain([root.to_owned()]) {
        let meta = path.symlink_metadata().unwrap();
        hasher.update(path.as_os_str().as_bytes());
        let numbers = [
            u64::from(meta.mode()),
            u64::from(meta.uid()),
            meta.ino(),
            meta.nlink(),
            meta.size(),
            meta.ctime().unsigned_abs(),
            meta.ctime_nsec().unsigned_abs(),
        ];
        numbers.iter().for_each(|number| hasher.update(&number.to_le_bytes()));
        if meta.is_file() && !meta.file_type().is_fifo() {
            hasher.update(&fs::read(&path).unwrap());
        }
    }
    hasher.finish()
}
