//! A tree as it is, to be compared with what it is later.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::SystemTime;

/// Every path beneath a directory with its length and time.
pub fn snapshot(root: &Path) -> BTreeMap<String, (u64, SystemTime)> {
    let mut all = BTreeMap::new();
    let mut left = vec![root.to_path_buf()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(&directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            let stat = fs::symlink_metadata(&path).expect("its state");
            let time = stat.modified().expect("its time");
            all.insert(path.display().to_string(), (stat.len(), time));
            if stat.is_dir() {
                left.push(path);
            }
        }
    }
    all
}
