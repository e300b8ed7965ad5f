//! Whether what a repair takes out is kept: it lies in quarantine, and a list says where it lay.

use std::collections::{HashMap, HashSet};

use stillage::layout::path;
use stillage::oci::Digest;

use super::judge::Wrong;
use super::model::{Content, Interner, PathId, State};
use super::promises::Expected;

/// What is remembered of contents and paths: it never changes.
#[derive(Debug, Default)]
pub struct Lists {
    places: HashMap<PathId, Place>,
    lists: HashMap<Content, Result<List, String>>,
}

/// What a path in the room is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// `quarantine/<time>/…`
    Kept,
    /// `quarantine/<time>.jsonl`
    List,
    Other,
}

/// What the whole lines of a list say.
#[derive(Debug, Default)]
struct List {
    kept: HashSet<String>,
    entries: HashSet<String>,
}

impl Lists {
    /// Why a state must not be, as far as quarantine is concerned.
    pub fn wrong(
        &mut self,
        interner: &Interner,
        state: &State,
        expected: &Expected,
    ) -> Option<Wrong> {
        let (mut kept, mut lists) = (Vec::new(), Vec::new());
        for entry in &state.entries {
            let Some(content) = entry.content else { continue };
            let place = self.places.entry(entry.path);
            match place.or_insert_with(|| Place::of(&interner.paths[entry.path])) {
                Place::Kept => kept.push((&interner.paths[entry.path], content)),
                Place::List => lists.push(content),
                Place::Other => {}
            }
        }
        for list in &lists {
            let parse = || List::parse(&interner.contents[*list]);
            if let Err(why) = self.lists.entry(*list).or_insert_with(parse) {
                return Some(Wrong::remembered(format!("a list of what was taken out: {why}")));
            }
        }
        let told = || lists.iter().filter_map(|list| self.lists[list].as_ref().ok());
        let untold = kept.iter().find(|(path, _)| !told().any(|list| list.kept.contains(*path)));
        if let Some((path, _)) = untold {
            return Some(Wrong::remembered(format!("no list tells of {path}")));
        }
        let lies = |bytes: &Vec<u8>| kept.iter().any(|(_, is)| *interner.contents[*is] == **bytes);
        if !expected.quarantined.iter().all(lies) {
            return Some(Wrong::remembered("what was taken out is not what it was"));
        }
        let written = |digest: &Digest| {
            let digest = digest.to_string();
            told().any(|list| list.entries.contains(&digest))
        };
        if let Some(digest) = expected.listed.iter().find(|digest| !written(digest)) {
            return Some(Wrong::remembered(format!("no list has the entry of {digest}")));
        }
        let somewhere = |bytes: &Vec<u8>| {
            let mut contents = state.entries.iter().filter_map(|entry| entry.content);
            contents.any(|content| *interner.contents[content] == **bytes)
        };
        let lost = expected.survives.iter().any(|bytes| !somewhere(bytes));
        lost.then(|| Wrong::remembered("what is being replaced is nowhere"))
    }
}

impl Place {
    fn of(place: &str) -> Place {
        let room = format!("{}/{}/", path::ROOM, path::QUARANTINE);
        let Some(rest) = place.strip_prefix(&room) else { return Place::Other };
        match rest.rsplit_once('/') {
            None if rest.ends_with(".jsonl") => Place::List,
            Some((_, name)) if !path::is_temporary(name) => Place::Kept,
            _ => Place::Other,
        }
    }
}

impl List {
    fn parse(bytes: &[u8]) -> Result<List, String> {
        // A torn last line is what a crash may leave.
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let mut list = List::default();
        for line in bytes[..whole].split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let line: serde_json::Value =
                serde_json::from_slice(line).map_err(|error| error.to_string())?;
            list.kept.extend(line["kept"].as_str().map(str::to_owned));
            list.entries.extend(line["entry"]["digest"].as_str().map(str::to_owned));
        }
        Ok(list)
    }
}
