//! The one writer of durable files.

use std::fs::File;

use rustix::fs::{Mode, Stat};

use super::dir::{Dir, stat_file};
use super::disk::Disk;
use super::error::{At, Result};
use super::inherit::{self, Purpose};
use super::path;

/// Replaces the file `name` in `dir` by one with these bytes, as a whole or not at all, and gives
/// the new file.
///
/// The bytes are on the disk before the name changes; **the name is durable only after the caller
/// has synced `dir`**. On an error the old file is untouched and nothing new is left behind. Group,
/// group-write and ACL follow the directory.
pub fn replace(
    disk: &dyn Disk,
    dir: &Dir,
    name: &str,
    bytes: &[u8],
    purpose: Purpose,
) -> Result<File> {
    replace_by_parts(disk, dir, name, &[bytes], purpose).map(|(file, _)| file)
}

/// The same with bytes that come in parts; gives the file's status too, as it was before it had its name.
pub fn replace_by_parts(
    disk: &dyn Disk,
    dir: &Dir,
    name: &str,
    parts: &[&[u8]],
    purpose: Purpose,
) -> Result<(File, Stat)> {
    let beside = path::temporary(name);
    let file = disk.create(dir, &beside, Mode::RUSR | Mode::WUSR)?;
    let written = disk
        .write_parts(&file, parts)
        .at(|| dir.at(&beside))
        .and_then(|()| inherit::apply(dir, &file, purpose))
        .and_then(|()| disk.sync(&file).at(|| dir.at(&beside)))
        .and_then(|()| stat_file(&file, || dir.at(&beside)))
        .and_then(|stat| disk.rename(dir, &beside, dir, name).map(|()| stat));
    if written.is_err() {
        // What failed may fail again here; the leftover is hidden, and gc removes it.
        let _ = disk.unlink(dir, &beside);
    }
    written.map(|stat| (file, stat))
}

/// The same for a file that can be made anew at any time, and that a crash may take or cut: nothing is
/// synced.
pub fn put_view(disk: &dyn Disk, dir: &Dir, name: &str, bytes: &[u8]) -> Result<()> {
    let beside = path::temporary(name);
    let file = disk.create(dir, &beside, Mode::RUSR | Mode::WUSR)?;
    let written = disk
        .write(&file, bytes, 0)
        .at(|| dir.at(&beside))
        .and_then(|()| inherit::apply(dir, &file, Purpose::Public))
        .and_then(|()| disk.rename(dir, &beside, dir, name));
    if written.is_err() {
        let _ = disk.unlink(dir, &beside);
    }
    written
}
