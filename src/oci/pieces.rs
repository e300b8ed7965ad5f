//! The entries of an index as they are written, each by its slot. Copies share what they have in common.

use std::sync::Arc;

use super::Descriptor;

/// So many slots are in one run. A change copies one run.
const EACH: usize = 256;

/// So many holes are no matter.
const FEW_HOLES: usize = 64;

/// Entries in their order; one that was taken out leaves a hole, so that slots stay true.
#[derive(Clone, Debug, Default)]
pub(super) struct Pieces {
    runs: Vec<Arc<Run>>,
    slots: usize,
    /// How many are no holes.
    full: usize,
    /// How long all are.
    bytes: usize,
}

/// Some entries, each with a comma after it.
#[derive(Clone, Debug, Default)]
struct Run {
    text: Vec<u8>,
    /// Where each ends, its comma included; a hole has no length.
    ends: Vec<u32>,
}

impl Run {
    fn range(&self, at: usize) -> Option<std::ops::Range<usize>> {
        let begin = at.checked_sub(1).map_or(Some(0), |before| self.end(before))?;
        Some(begin..self.end(at)?)
    }

    fn end(&self, at: usize) -> Option<usize> {
        usize::try_from(*self.ends.get(at)?).ok()
    }

    fn get(&self, at: usize) -> Option<&[u8]> {
        self.text.get(self.range(at)?)?.split_last().map(|(_comma, piece)| piece)
    }

    /// Gives a slot another text, of which the comma is part.
    fn set(&mut self, at: usize, text: &[u8]) {
        let Some(range) = self.range(at) else { return };
        let (old, new) = (range.len(), text.len());
        self.text.splice(range, text.iter().copied());
        for end in &mut self.ends[at..] {
            *end = short(usize::try_from(*end).unwrap_or(0) + new - old);
        }
    }
}

/// An index.json is read up to 256 MiB, and what is pushed adds far less.
fn short(len: usize) -> u32 {
    u32::try_from(len).unwrap_or_else(|_| unreachable!("{len} bytes of few entries"))
}

fn write(entry: &Descriptor, text: &mut Vec<u8>) {
    // Strings, numbers and maps with string keys cannot fail to serialise.
    serde_json::to_writer(text, entry)
        .unwrap_or_else(|error| unreachable!("a descriptor serialises: {error}"));
}

impl Pieces {
    /// Adds an entry at the end; gives its slot.
    pub(super) fn push(&mut self, entry: &Descriptor) -> usize {
        self.append(|text| write(entry, text));
        self.slots - 1
    }

    fn append(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        if self.slots.is_multiple_of(EACH) {
            self.runs.push(Arc::default());
        }
        let Some(run) = self.runs.last_mut() else { unreachable!("one was pushed") };
        let run = Arc::make_mut(run);
        let before = run.text.len();
        write(&mut run.text);
        run.text.push(b',');
        run.ends.push(short(run.text.len()));
        self.bytes += run.text.len() - before;
        self.full += 1;
        self.slots += 1;
        if self.slots.is_multiple_of(EACH) {
            run.text.shrink_to_fit();
        }
    }

    /// Puts an entry into a slot that is a hole.
    pub(super) fn fill(&mut self, slot: usize, entry: &Descriptor) {
        let mut text = Vec::new();
        write(entry, &mut text);
        text.push(b',');
        if let Some(run) = self.runs.get_mut(slot / EACH) {
            Arc::make_mut(run).set(slot % EACH, &text);
            self.bytes += text.len();
            self.full += 1;
        }
    }

    /// Takes an entry out.
    pub(super) fn take(&mut self, slot: usize) -> Option<Descriptor> {
        let piece = self.get(slot)?;
        let (entry, len) = (read(piece), piece.len() + 1);
        Arc::make_mut(self.runs.get_mut(slot / EACH)?).set(slot % EACH, b"");
        self.bytes -= len;
        self.full -= 1;
        Some(entry)
    }

    /// The text of an entry.
    pub(super) fn get(&self, slot: usize) -> Option<&[u8]> {
        self.runs.get(slot / EACH)?.get(slot % EACH)
    }

    /// An entry.
    pub(super) fn entry(&self, slot: usize) -> Option<Descriptor> {
        self.get(slot).map(read)
    }

    /// All entries, in their order.
    pub(super) fn entries(&self) -> impl Iterator<Item = Descriptor> {
        (0..self.slots).filter_map(|slot| self.entry(slot))
    }

    /// The texts of all entries with commas between them, in few parts.
    pub(super) fn parts(&self) -> impl Iterator<Item = &[u8]> {
        let texts = self.runs.iter().map(|run| run.text.as_slice());
        let mut texts = texts.filter(|text| !text.is_empty()).peekable();
        std::iter::from_fn(move || {
            let text = texts.next()?;
            let last = texts.peek().is_none();
            Some(&text[..text.len() - usize::from(last)])
        })
    }

    /// How many slots there are.
    #[cfg(test)]
    pub(super) fn slots(&self) -> usize {
        self.slots
    }

    /// About how much memory they take, in bytes.
    pub(super) fn weight(&self) -> usize {
        self.bytes + 4 * self.slots + 64 * self.runs.len()
    }

    /// An index is changed again and again and never read anew: holes do not outnumber entries. Gives
    /// the new slot of each old one, if there were too many.
    pub(super) fn close_holes(&mut self) -> Option<Vec<usize>> {
        if self.slots <= 2 * self.full + FEW_HOLES {
            return None;
        }
        let mut closed = Pieces::default();
        let now = (0..self.slots).map(|slot| {
            let next = closed.slots;
            if let Some(piece) = self.get(slot) {
                closed.append(|text| text.extend_from_slice(piece));
            }
            next
        });
        let now = now.collect();
        *self = closed;
        Some(now)
    }
}

/// What was written here is read as it was.
fn read(piece: &[u8]) -> Descriptor {
    serde_json::from_slice(piece)
        .unwrap_or_else(|error| unreachable!("a descriptor that was written is read: {error}"))
}
