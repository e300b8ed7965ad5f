//! What a collection takes, what it notes for later, and what it must say.

use std::collections::BTreeSet;

use stillage::oci::Digest;

use super::{Place, World};
use crate::model::face::{Collected, Collection};

impl World {
    /// A collection of everything, or of one repository. What it must do, and what it must say.
    ///
    /// What outsiders wrote, and lies as they wrote it, is unreferenced for no longer than it has been
    /// there: by real time, which hardly passes here. Only grace 0 takes it.
    pub fn collect(&mut self, collection: &Collection, theirs: &BTreeSet<Place>) -> Collected {
        let (grace, undo) =
            if collection.now { (0, 0) } else { (collection.grace, collection.undo_window) };
        let wanted = |name: &str| collection.only.as_deref().is_none_or(|only| only == name);
        let mut did = Collected::default();
        for name in self.names() {
            if !wanted(&name) {
                continue;
            }
            if self.is_unreadable(&name) {
                did.stopped.insert(name);
            } else {
                self.collect_repository(&name, (grace, undo), theirs, &mut did);
            }
        }
        // Notes of what is not there any more say nothing.
        let there =
            |(name, digest): &Place| self.repos.get(name).is_some_and(|r| r.blobs.contains(digest));
        let gone: Vec<Place> = self
            .notes
            .keys()
            .filter(|place| wanted(&place.0) && !did.stopped.contains(&place.0) && !there(place))
            .cloned()
            .collect();
        for place in gone {
            self.notes.remove(&place);
        }
        let now = self.now;
        let over = |at: u64| collection.now || now - at > undo;
        self.trash.retain(|(at, name, _)| !(wanted(name) && over(*at)));
        if collection.only.is_none() {
            // A day, and some of it passes while the run does.
            self.end_uploads(24);
        }
        did
    }

    /// Uploads that got no byte for so many hours end.
    pub fn end_uploads(&mut self, expiry: u64) {
        let now = self.now;
        self.sessions.retain(|session| now - session.touched < expiry);
    }

    fn collect_repository(
        &mut self,
        name: &str,
        (grace, undo): (u64, u64),
        theirs: &BTreeSet<Place>,
        did: &mut Collected,
    ) {
        let Some(repo) = self.repos.get(name) else { return };
        let mut kept = self.reached(name);
        let young = repo.journal.iter().filter(|(at, _)| undo > 0 && self.now - at <= undo);
        let named: BTreeSet<Digest> = young.flat_map(|(_, digests)| digests.clone()).collect();
        kept.extend(self.walk(name, named).1);
        for digest in repo.blobs.clone() {
            let place = (name.to_owned(), digest.clone());
            if kept.contains(&digest) {
                self.notes.remove(&place);
                continue;
            }
            let noted = self.notes.get(&place).copied();
            let is_old = noted.is_some_and(|at| self.now - at > grace) && !theirs.contains(&place);
            if grace == 0 || is_old {
                self.notes.remove(&place);
                self.lose(name, &digest);
                did.unlinked.insert(place);
            } else if noted.is_none() {
                self.notes.insert(place.clone(), self.now);
                did.noted.insert(place);
            }
        }
    }
}
