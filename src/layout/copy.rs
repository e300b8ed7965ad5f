//! Copying content from file to file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{self, SeekFrom, seek};
use rustix::io::Errno;
use thiserror::Error;

use super::attributes::Attributes;
use super::dir::Dir;
use super::disk::Disk;
use super::error::{At, OrAbsent, Result};

/// On which side copying failed.
#[derive(Debug, Error)]
pub enum CopyError {
    /// The original cannot be read.
    #[error("cannot be read: {0}")]
    Read(io::Error),
    /// The copy cannot be written.
    #[error(transparent)]
    Write(io::Error),
}

/// Copies `len` bytes of one file into another, an empty one: shared extents where the file system
/// can (then nothing is written), else the bytes, holes left as holes. Whether they were shared.
///
/// What it has grown to meanwhile is left out; a file that is being cut gives fewer.
pub fn content(
    disk: &dyn Disk,
    from: &File,
    to: &File,
    len: u64,
) -> std::result::Result<bool, CopyError> {
    if len > 0 && disk.clone_content(from, to).is_ok() {
        let grown = to.metadata().map_err(CopyError::Write)?.len() > len;
        if grown {
            disk.set_len(to, len).map_err(CopyError::Write)?;
        }
        return Ok(true);
    }
    let mut buffer = vec![0u8; usize::try_from(len.min(256 * 1024)).unwrap_or(0)];
    let mut offset = 0;
    while let Some((begin, end)) = data_from(from, offset, len).map_err(CopyError::Read)? {
        offset = begin;
        while offset < end {
            let most = usize::try_from(end - offset).unwrap_or(usize::MAX).min(buffer.len());
            let read = from.read_at(&mut buffer[..most], offset).map_err(CopyError::Read)?;
            if read == 0 {
                return Ok(false);
            }
            disk.write(to, &buffer[..read], offset).map_err(CopyError::Write)?;
            offset += read as u64;
        }
    }
    if offset < len {
        disk.set_len(to, len).map_err(CopyError::Write)?;
    }
    Ok(false)
}

/// The next piece of a file that is not a hole, beneath `len`.
fn data_from(file: &File, offset: u64, len: u64) -> io::Result<Option<(u64, u64)>> {
    if offset >= len {
        return Ok(None);
    }
    let begin = match seek(file, SeekFrom::Data(offset)) {
        Ok(begin) => begin,
        Err(Errno::NXIO) => return Ok(None),
        // A file system that knows no holes has none.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some((offset, len))),
        Err(error) => return Err(error.into()),
    };
    if begin >= len {
        return Ok(None);
    }
    let end = seek(file, SeekFrom::Hole(begin)).unwrap_or(len);
    Ok(Some((begin, end.min(len))))
}

/// Makes a symlink that says what another one says, with its owner and time; whether these could be
/// given, and `None` if there is none any more.
pub fn symlink(disk: &dyn Disk, from: &Dir, to: &Dir, name: &str) -> Result<Option<bool>> {
    let Some(stat) = from.stat_name(name)? else { return Ok(None) };
    let target = fs::readlinkat(from, name, Vec::new()).at(|| from.at(name)).or_absent()?;
    let Some(target) = target else { return Ok(None) };
    disk.symlink(&target, to, name)?;
    Attributes::put_on_symlink(to, name, &stat).map(Some)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::super::disk::RealDisk;
    use super::*;

    #[test]
    fn content_comes_through_and_holes_stay_holes() {
        let temp = tempfile::tempdir().unwrap();
        let at = |name: &str| temp.path().join(name);
        let hole = 64 << 20;
        for (name, pieces, len) in [
            ("empty", vec![], 0),
            ("small", vec![(0, 3)], 3),
            ("large", vec![(0, 700_000)], 700_000),
            ("hole", vec![], hole),
            ("middle", vec![(hole / 2, 5000)], hole),
            ("tail", vec![(0, 5000), (hole, 7)], hole + 7),
        ] {
            let from =
                File::options().read(true).write(true).create_new(true).open(at(name)).unwrap();
            from.set_len(len).unwrap();
            for (offset, many) in pieces {
                let bytes: Vec<u8> = (0..many).map(|n| (n % 251) as u8).collect();
                from.write_all_at(&bytes, offset).unwrap();
            }
            let to = File::create_new(at("to")).unwrap();
            content(&RealDisk, &from, &to, len).unwrap();
            let same = std::process::Command::new("cmp").args([at(name), at("to")]).status();
            assert!(same.unwrap().success(), "{name}");
            let taken = to.metadata().unwrap().blocks() * 512;
            assert!(taken < 1 << 20, "{name} takes {taken}");
            std::fs::remove_file(at("to")).unwrap();
        }
    }
}
