//! A way through all states, or through some that are drawn: each possible value of each name and file.

use super::super::record::{ABOVE, Id};
use super::{Content, Entry, Interner, Model, Node, PathId, State};
use crate::support::random::Random;

/// Which of the possible values something gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pick {
    /// Each in turn.
    All,
    /// What it is.
    Last,
    /// What it was when it was synced.
    First,
    /// One that is drawn.
    Any,
}

pub(super) struct Walk<'a> {
    pub(super) model: &'a Model,
    pub(super) settled: &'a [bool],
    pub(super) interner: &'a mut Interner,
    /// For what acknowledgements rest on, and for the rest.
    pub(super) picks: [Pick; 2],
    pub(super) random: &'a mut Random,
    pub(super) each: &'a mut dyn FnMut(&State),
}

/// A state in the making.
#[derive(Clone, Default)]
struct Partial {
    state: State,
    /// Directories and files with their paths, to be looked into.
    todo: Vec<(PathId, Id)>,
    /// The same, of what is aside: last.
    aside: Vec<(PathId, Id)>,
    /// Names of the directory that is looked into: from which on.
    at: Option<(PathId, Id, usize)>,
    files: Vec<(Id, Content)>,
    dirs: Vec<Id>,
}

impl Walk<'_> {
    pub(super) fn run(mut self) {
        self.go(Partial { todo: vec![(0, ABOVE)], ..Partial::default() });
    }

    fn go(&mut self, mut partial: Partial) {
        loop {
            if let Some((path, id, from)) = partial.at {
                let Node::Dir(names) = &self.model.nodes[id] else { unreachable!("a directory") };
                let Some((name, may)) = names.get(from) else {
                    partial.at = None;
                    continue;
                };
                partial.at = Some((path, id, from + 1));
                let inner = self.interner.path(path, *name);
                let aside = self.interner.aside[inner];
                let (last, others) = self.pick(may, aside);
                for value in others {
                    let mut other = partial.clone();
                    if self.put(&mut other, inner, value, aside) {
                        self.go(other);
                    }
                }
                if !self.put(&mut partial, inner, last, aside) {
                    return;
                }
                continue;
            }
            let Some((path, id)) = partial.todo.pop().or_else(|| partial.aside.pop()) else {
                return (self.each)(&partial.state);
            };
            match &self.model.nodes[id] {
                Node::Dir(_) => {
                    let folded = self.settled[id] && self.interner.aside[path];
                    if path != 0 {
                        partial.state.entries.push(Entry { path, id, content: None, folded });
                    }
                    if !folded {
                        partial.at = Some((path, id, 0));
                    }
                }
                Node::File { may, .. } => {
                    let known = partial.files.iter().find(|(known, _)| *known == id);
                    if let Some((_, content)) = known {
                        let content = Some(*content);
                        partial.state.entries.push(Entry { path, id, content, folded: false });
                        continue;
                    }
                    let aside = self.interner.aside[path];
                    let (last, others) = self.pick(may, aside);
                    let put = |partial: &mut Partial, content| {
                        partial.files.push((id, content));
                        let content = Some(content);
                        partial.state.entries.push(Entry { path, id, content, folded: false });
                    };
                    for content in others {
                        let mut other = partial.clone();
                        put(&mut other, content);
                        self.go(other);
                    }
                    put(&mut partial, last);
                }
            }
        }
    }

    /// One value to go on with, and others to try before.
    fn pick<T: Copy>(&mut self, may: &[T], aside: bool) -> (T, Vec<T>) {
        let (last, others) = may.split_last().expect("a value");
        match self.picks[usize::from(aside)] {
            _ if others.is_empty() => (*last, Vec::new()),
            Pick::All => (*last, others.to_vec()),
            Pick::Last => (*last, Vec::new()),
            Pick::First => (may[0], Vec::new()),
            Pick::Any => (*self.random.one_of(may), Vec::new()),
        }
    }

    /// `false` if no file system can be so: a directory would have two names.
    fn put(&self, partial: &mut Partial, path: PathId, value: Option<Id>, aside: bool) -> bool {
        let Some(id) = value else { return true };
        let todo = if aside { &mut partial.aside } else { &mut partial.todo };
        todo.push((path, id));
        if let Node::File { .. } = self.model.nodes[id] {
            return true;
        }
        let twice = partial.dirs.contains(&id);
        partial.dirs.push(id);
        !twice
    }
}
