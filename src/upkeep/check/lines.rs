//! Files of lines, read one line at a time.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};

/// Longer lines are not read into memory: two descriptors of the largest manifest are not so long.
const MAX_LINE: u64 = 32 * 1024 * 1024;

/// Gives each whole line to `each`, with its number from 1 and without its newline; `None` for a
/// line beyond 32 MiB. What comes after the last newline was torn by a crash and is left out.
pub(super) fn each(file: &File, mut each: impl FnMut(u64, Option<&[u8]>)) -> io::Result<()> {
    let mut reader = BufReader::with_capacity(1 << 16, file);
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        (&mut reader).take(MAX_LINE).read_until(b'\n', &mut line)?;
        if line.last() == Some(&b'\n') {
            each(number, Some(&line[..line.len() - 1]));
        } else if (line.len() as u64) < MAX_LINE || reader.skip_until(b'\n')? == 0 {
            break;
        } else {
            each(number, None);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Vec<(u64, Option<usize>)> {
        let temp = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(temp.path(), bytes).unwrap();
        let mut found = Vec::new();
        let file = File::open(temp.path()).unwrap();
        each(&file, |number, line| found.push((number, line.map(<[u8]>::len)))).unwrap();
        found
    }

    #[test]
    fn torn_tails_are_left_out_and_endless_lines_are_not_kept() {
        assert_eq!(read(b""), []);
        assert_eq!(read(b"ab\n\ntorn"), [(1, Some(2)), (2, Some(0))]);
        let mut long = vec![b'x'; 40 << 20];
        long.extend(b"\nz\n");
        assert_eq!(read(&long), [(1, None), (2, Some(1))]);
    }
}
