//! A file system as far as a crash is concerned: what may be there when the machine comes up again.
//!
//! # What is assumed, and what is not
//! - fsync of a file makes its content durable, and nothing of its names. fsync of a directory makes
//!   all names in it durable as they are, and nothing of what they name.
//! - **Every name for itself.** After a crash a name has any of the values that it had since its
//!   directory was last synced, whatever other names have: in no order, also within one directory.
//!   A rename may be seen at its new name, at its old one, at both or at neither. ext4, XFS and btrfs
//!   keep an order here; the model does not rely on it.
//! - **Every file for itself.** Of what was written since the last fsync there is nothing, or each
//!   write in turn whole, in half, or as its length in zeros.
//! - A symlink says what it says from the moment that its name is there: it is content like a file's,
//!   made at once and never changed.
//! - Not assumed to happen: that a directory has two names (no file system has that), that a name
//!   which was synced is lost, that bytes which were synced change. Modes and owners are those at the
//!   time of the crash.

mod walk;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use stillage::layout::path;
use walk::{Pick, Walk};

use super::record::{ABOVE, Id, Step};
use crate::support::random::Random;

/// Some bytes that a file may hold.
pub type Content = usize;
/// A path of the tree.
pub type PathId = usize;
/// A name in a directory.
type NameId = usize;

/// All contents and paths that were met, each once.
#[derive(Debug, Default)]
pub struct Interner {
    by_bytes: HashMap<Arc<[u8]>, Content>,
    /// By [`Content`].
    pub contents: Vec<Arc<[u8]>>,
    by_text: HashMap<Arc<str>, NameId>,
    names: Vec<Arc<str>>,
    /// By [`PathId`]: the paths right beneath that were met.
    beneath: Vec<Vec<(NameId, PathId)>>,
    /// By [`PathId`], relative to ROOT; the first is the directory above it, and empty as well.
    pub paths: Vec<String>,
    /// By [`PathId`]: what no acknowledgement rests on, the room and what is derived. Its states are
    /// not all combined with all of the rest.
    aside: Vec<bool>,
}

impl Interner {
    /// Only ROOT.
    pub fn new() -> Interner {
        Interner {
            paths: vec![String::new()],
            beneath: vec![Vec::new()],
            aside: vec![false],
            ..Interner::default()
        }
    }

    fn content(&mut self, bytes: &[u8]) -> Content {
        if let Some(known) = self.by_bytes.get(bytes) {
            return *known;
        }
        let bytes: Arc<[u8]> = bytes.into();
        self.contents.push(Arc::clone(&bytes));
        self.by_bytes.insert(bytes, self.contents.len() - 1);
        self.contents.len() - 1
    }

    fn name(&mut self, text: &str) -> NameId {
        if let Some(known) = self.by_text.get(text) {
            return *known;
        }
        self.names.push(text.into());
        self.by_text.insert(text.into(), self.names.len() - 1);
        self.names.len() - 1
    }

    fn path(&mut self, parent: PathId, name: NameId) -> PathId {
        if let Some((_, known)) = self.beneath[parent].iter().find(|(known, _)| *known == name) {
            return *known;
        }
        let (above, text) = (&self.paths[parent], &self.names[name]);
        let path = match above.as_str() {
            // ROOT, in the directory that it was made in.
            "" if parent == 0 && **text == *"registry" => String::new(),
            // A snapshot beside it.
            "" if parent == 0 => format!("../{text}"),
            "" => text.to_string(),
            above => format!("{above}/{text}"),
        };
        const ASIDE: [&str; 5] = ["pool", "holders", "uploads", "unreferenced", "trash"];
        let of_room = path.strip_prefix(".stillage/").and_then(|path| path.split('/').next());
        let derived = |part: &str| {
            [path::REFERRERS, path::MANIFESTS, path::TAGS].contains(&part)
                || part.starts_with(&format!(".{}.", path::TAGS))
        };
        let aside =
            of_room.is_some_and(|part| ASIDE.contains(&part)) || path.split('/').any(derived);
        self.aside.push(aside);
        self.paths.push(path);
        self.beneath.push(Vec::new());
        self.beneath[parent].push((name, self.paths.len() - 1));
        self.paths.len() - 1
    }
}

#[derive(Clone, Debug)]
enum Node {
    /// For each name, in the order of their first use, what it may be; the last is what it is.
    Dir(Vec<(NameId, Vec<Option<Id>>)>),
    /// What may be in it; the last is what is in it.
    File { may: Vec<Content>, now: Vec<u8> },
}

impl Node {
    /// It is durable as it is.
    fn settle(&mut self) {
        match self {
            Node::File { may, .. } => drop(may.drain(..may.len() - 1)),
            Node::Dir(names) => {
                names.iter_mut().for_each(|(_, may)| drop(may.drain(..may.len() - 1)));
                names.retain(|(_, may)| may[0].is_some());
            }
        }
    }
}

/// What was done up to some step, and what of it is durable.
#[derive(Debug)]
pub struct Model {
    nodes: Vec<Node>,
    modes: Vec<u32>,
    symlinks: HashSet<Id>,
}

/// A state in which a crash may leave the tree: parents come before what is in them.
#[derive(Clone, Debug, Default)]
pub struct State {
    pub entries: Vec<Entry>,
}

/// A name in a state.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub path: PathId,
    pub id: Id,
    /// `None` for a directory.
    pub content: Option<Content>,
    /// A directory with all that is in it: settled, and aside.
    folded: bool,
}

impl State {
    /// Equal states have equal hashes, and no two others that are met.
    pub fn hash(&self) -> u64 {
        let mut hash = 0_u64;
        for Entry { path, id, content, .. } in &self.entries {
            let content = content.map_or(0, |content| content as u64 + 1);
            let entry = (*path as u64) << 42 | (*id as u64) << 21 | content;
            let mixed = (hash.rotate_left(25) ^ entry).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            hash = mixed ^ (mixed >> 31);
        }
        hash
    }
}

impl Model {
    /// An empty ROOT.
    pub fn new() -> Model {
        let nodes = vec![Node::Dir(Vec::new())];
        Model { nodes, modes: vec![0o755], symlinks: HashSet::new() }
    }

    /// Whether something is a symlink; its content is what it says.
    pub fn is_symlink(&self, id: Id) -> bool {
        self.symlinks.contains(&id)
    }

    /// The mode of a file or directory.
    pub fn mode(&self, id: Id) -> u32 {
        self.modes[id]
    }

    /// One step more.
    pub fn take(&mut self, step: &Step, interner: &mut Interner) {
        match step {
            Step::MakeDir { dir, name, id } => {
                self.node(*id, Node::Dir(Vec::new()));
                self.name(*dir, interner.name(name), Some(*id));
            }
            Step::Create { at, id } => {
                let empty = interner.content(b"");
                self.node(*id, Node::File { may: vec![empty], now: Vec::new() });
                if let Some((dir, name)) = at {
                    self.name(*dir, interner.name(name), Some(*id));
                }
            }
            Step::Symlink { dir, name, id, target } => {
                let may = vec![interner.content(target)];
                self.node(*id, Node::File { may, now: target.to_vec() });
                self.symlinks.insert(*id);
                self.name(*dir, interner.name(name), Some(*id));
            }
            Step::Link { dir, name, id } => self.name(*dir, interner.name(name), Some(*id)),
            Step::Rename { from, old, to, new, id } => {
                self.name(*to, interner.name(new), Some(*id));
                self.name(*from, interner.name(old), None);
            }
            Step::Remove { dir, name } => self.name(*dir, interner.name(name), None),
            Step::Mode { id, mode } => self.modes[*id] = *mode,
            Step::Write { id, offset, bytes } => {
                let offset = usize::try_from(*offset).expect("a small file");
                self.change(*id, interner, |now| {
                    let end = offset + bytes.len();
                    now.resize(now.len().max(end), 0);
                    now[offset..end].copy_from_slice(bytes);
                });
            }
            Step::SetLen { id, len } => {
                let len = usize::try_from(*len).expect("a small file");
                self.change(*id, interner, |now| now.resize(len, 0));
            }
            Step::Sync { id, .. } | Step::SyncDir { id, .. } => self.nodes[*id].settle(),
            Step::Settled | Step::SyncAll { .. } => {
                for node in &mut self.nodes {
                    node.settle();
                }
            }
            Step::Begin(_) | Step::Acknowledged(_) => {}
        }
    }

    fn node(&mut self, id: Id, node: Node) {
        assert_eq!(id, self.nodes.len(), "files come in the order of their numbers");
        self.nodes.push(node);
        self.modes.push(0);
    }

    fn name(&mut self, dir: Id, name: NameId, value: Option<Id>) {
        let Node::Dir(names) = &mut self.nodes[dir] else { panic!("a name in a file") };
        match names.iter_mut().find(|(known, _)| *known == name) {
            Some((_, may)) => {
                // The last is what it is; each value counts once.
                may.retain(|known| *known != value);
                may.push(value);
            }
            None => names.push((name, vec![None, value])),
        }
    }

    fn change(&mut self, id: Id, interner: &mut Interner, change: impl FnOnce(&mut Vec<u8>)) {
        let Node::File { may, now } = &mut self.nodes[id] else { panic!("bytes in a directory") };
        let before = now.clone();
        change(now);
        if *now == before {
            return;
        }
        let same = before.iter().zip(now.iter()).take_while(|(a, b)| a == b).count();
        let middle = same + (now.len().max(before.len()) - same) / 2;
        let half: Vec<u8> = match before.len() > now.len() {
            // Cut to half of what was to go.
            true => before[..middle].to_vec(),
            // Half of the new bytes, over what was there.
            false => {
                let mut half = now[..middle].to_vec();
                half.extend(before.get(middle..).unwrap_or_default());
                half
            }
        };
        let mut zeros = now[..same].to_vec();
        zeros.resize(now.len(), 0);
        for bytes in [half, zeros, now.clone()] {
            let content = interner.content(&bytes);
            may.retain(|known| *known != content);
            may.push(content);
        }
    }

    /// Whether a file or directory is, without what is in it and but for temporary names, durable as
    /// it is.
    pub fn is_clean(&self, interner: &Interner, id: Id) -> bool {
        let temporary = |name: NameId| path::is_temporary(&interner.names[name]);
        match &self.nodes[id] {
            Node::Dir(names) => names.iter().all(|(name, may)| may.len() == 1 || temporary(*name)),
            Node::File { may, .. } => may.len() == 1,
        }
    }

    /// For each file and directory, whether it and all in it is as it is, whatever happens.
    fn settled(&self) -> Vec<bool> {
        // What is in a directory may have been made before it or after it, by links and renames.
        let mut settled = vec![true; self.nodes.len()];
        loop {
            let before = settled.clone();
            for (id, node) in self.nodes.iter().enumerate() {
                settled[id] = match node {
                    Node::File { may, .. } => may.len() == 1,
                    Node::Dir(names) => names.iter().all(|(_, may)| {
                        may.len() == 1 && may[0].is_none_or(|inner| settled[inner])
                    }),
                };
            }
            if before == settled {
                return settled;
            }
        }
    }

    /// How many combinations there are beneath a directory or in a file, at most.
    fn combinations(&self, interner: &mut Interner, picks: [Pick; 2], path: PathId, id: Id) -> u64 {
        let all = |aside: bool| picks[usize::from(aside)] == Pick::All;
        match &self.nodes[id] {
            Node::File { may, .. } if all(interner.aside[path]) => may.len() as u64,
            Node::File { .. } => 1,
            Node::Dir(names) => names.iter().fold(1, |product: u64, (name, may)| {
                let inner = interner.path(path, *name);
                let values =
                    if all(interner.aside[inner]) { &may[..] } else { &may[may.len() - 1..] };
                let of = |value: &Option<Id>| {
                    value.map_or(1, |value| self.combinations(interner, picks, inner, value))
                };
                product.saturating_mul(values.iter().map(of).fold(0, u64::saturating_add))
            }),
        }
    }

    /// The whole of a state: also what is settled and aside.
    pub fn whole(&self, interner: &mut Interner, state: &State) -> State {
        let mut whole = State::default();
        let mut todo: Vec<Entry> = state.entries.iter().rev().copied().collect();
        while let Some(mut entry) = todo.pop() {
            let unfold = std::mem::take(&mut entry.folded);
            whole.entries.push(entry);
            let Node::Dir(names) = &self.nodes[entry.id] else { continue };
            for (name, may) in names.iter().filter(|_| unfold) {
                let Some(id) = may[may.len() - 1] else { continue };
                let path = interner.path(entry.path, *name);
                let (content, folded) = match &self.nodes[id] {
                    Node::Dir(_) => (None, true),
                    Node::File { may, .. } => (may.last().copied(), false),
                };
                todo.push(Entry { path, id, content, folded });
            }
        }
        whole
    }

    /// Gives states to `each`: all combinations of what acknowledgements rest on, each with the rest
    /// as it is, as it was, and drawn; then, with all else as it is and as it was, the rest in all its
    /// combinations. What has more than so many combinations is drawn by seed instead, as often.
    pub fn states(
        &self,
        interner: &mut Interner,
        most: [usize; 2],
        random: &mut Random,
        each: &mut dyn FnMut(&State),
    ) -> Coverage {
        let settled = self.settled();
        let mut some = |picks: [Pick; 2], most: usize| {
            let whole = self.combinations(interner, picks, 0, ABOVE) <= most as u64;
            let drawn = picks.map(|pick| if pick == Pick::All { Pick::Any } else { pick });
            let (picks, times) = if whole { (picks, 1) } else { (drawn, most) };
            for _ in 0..times {
                let (settled, random) = (&settled, &mut *random);
                Walk { model: self, settled, interner, picks, random, each }.run();
            }
            whole
        };
        let combine = [Pick::Last, Pick::First, Pick::Any];
        let combined = combine.map(|aside| some([Pick::All, aside], most[0]));
        let aside_combined = combine.map(|core| some([core, Pick::All], most[1]));
        let all = |whole: [bool; 3]| whole.iter().all(|whole| *whole);
        Coverage { combined: all(combined), aside_combined: all(aside_combined) }
    }
}

/// How much of what is possible was looked at.
#[derive(Clone, Copy, Debug, Default)]
pub struct Coverage {
    /// All combinations of what acknowledgements rest on.
    pub combined: bool,
    /// All of the rest.
    pub aside_combined: bool,
}
