//! Bodies: of a known length, or in chunks.

use anyhow::{Context as _, Result, ensure};

use super::{Answer, Connection};

/// How the end of a body is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    Length(u64),
    Chunked,
}

impl Connection {
    /// Hands a body on piece by piece; gives how many bytes it had.
    pub(super) fn body(&mut self, answer: &Answer, sink: &mut dyn FnMut(&[u8])) -> Result<u64> {
        if let Body::Length(length) = answer.body {
            self.pieces(length, sink)?;
            return Ok(length);
        }
        let mut all = 0;
        loop {
            let line = self.line()?;
            let size = line.split(';').next().unwrap_or_default().trim();
            let size = u64::from_str_radix(size, 16).with_context(|| format!("chunk {line:?}"))?;
            self.pieces(size, sink)?;
            // After a chunk's bytes its line ends; after the last one there are trailers, of which
            // no server here has any.
            let rest = self.line()?;
            ensure!(rest.is_empty(), "after a chunk: {rest:?}");
            all += size;
            if size == 0 {
                return Ok(all);
            }
        }
    }

    fn pieces(&mut self, length: u64, sink: &mut dyn FnMut(&[u8])) -> Result<()> {
        let mut left = length;
        while left > 0 {
            if self.at == self.buffer.len() {
                self.fill()?;
            }
            let here = &self.buffer[self.at..];
            let here = &here[..here.len().min(usize::try_from(left).unwrap_or(usize::MAX))];
            sink(here);
            left -= here.len() as u64;
            self.at += here.len();
        }
        Ok(())
    }

    fn line(&mut self) -> Result<String> {
        loop {
            let unused = &self.buffer[self.at..];
            if let Some(end) = unused.windows(2).position(|two| two == b"\r\n") {
                let line =
                    std::str::from_utf8(&unused[..end]).context("a chunk's line")?.to_owned();
                self.at += end + 2;
                return Ok(line);
            }
            self.fill()?;
        }
    }
}
