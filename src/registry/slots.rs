//! How many uploads each user has open: counted in memory, so that a limit costs no look at the disk.
//!
//! What lies on the disk is counted once; from then on every upload that begins or ends here is. gc,
//! another server or a person may end some too: every sweep compares again.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::{Mutex as AsyncMutex, OnceCell};

use super::{Actor, Error, Registry, Result, locked};
use crate::layout::uploads::UploadId;

/// Whoever is at the limit makes the server compare with the disk at most this often.
const COMPARE_AGAIN: Duration = Duration::from_secs(10);

/// The uploads that are open.
#[derive(Debug)]
pub(super) struct Slots {
    limit: usize,
    /// Whether what lies on the disk was counted.
    counted: OnceCell<()>,
    /// Held by who compares with the disk.
    comparing: AsyncMutex<()>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    taken: HashMap<Option<String>, usize>,
    uploads: HashMap<UploadId, Upload>,
    compared: Option<Instant>,
}

#[derive(Debug)]
struct Upload {
    who: Option<String>,
    /// A session lies on the disk. One in the making does not yet, a blob in one request never.
    on_disk: bool,
}

/// An upload's place among its user's; free again when dropped.
#[derive(Debug)]
pub(super) struct Slot {
    slots: Arc<Slots>,
    id: UploadId,
    kept: bool,
}

impl Slot {
    /// The name for its session.
    pub(super) fn id(&self) -> &UploadId {
        &self.id
    }

    /// The session lies on the disk: the slot is taken until [`Slots::free`].
    pub(super) fn keep(mut self) -> UploadId {
        self.kept = true;
        if let Some(upload) = locked(&self.slots.state).uploads.get_mut(&self.id) {
            upload.on_disk = true;
        }
        self.id.clone()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if !self.kept {
            self.slots.free(&self.id);
        }
    }
}

impl Slots {
    pub(super) fn new(limit: usize) -> Slots {
        Slots {
            limit,
            counted: OnceCell::new(),
            comparing: AsyncMutex::default(),
            state: Mutex::default(),
        }
    }

    /// The session has ended, or never came to be.
    pub(super) fn free(&self, id: &UploadId) {
        locked(&self.state).free(id);
    }

    /// The sessions that lie on the disk, before somebody looks there.
    pub(super) fn on_disk(&self) -> HashSet<UploadId> {
        let mut state = locked(&self.state);
        state.compared = Some(Instant::now());
        let on_disk = state.uploads.iter().filter(|(_, upload)| upload.on_disk);
        on_disk.map(|(id, _)| id.clone()).collect()
    }

    /// Compares with what was found on the disk after [`Slots::on_disk`] gave `before`: what is gone is
    /// free, and what others began counts if it is there still.
    pub(super) fn compare(
        &self,
        before: HashSet<UploadId>,
        found: Vec<(UploadId, Option<String>)>,
        is_there: impl Fn(&UploadId) -> bool,
    ) {
        let there: HashSet<&UploadId> = found.iter().map(|(id, _)| id).collect();
        let mut state = locked(&self.state);
        for id in before.iter().filter(|id| !there.contains(id)) {
            state.free(id);
        }
        for (id, who) in found {
            // Whoever ends a session frees it after it is gone: so it cannot be freed before this.
            if !state.uploads.contains_key(&id) && is_there(&id) {
                state.take(id, who, true);
            }
        }
    }

    /// A slot, if the user has one left.
    fn take(self: &Arc<Slots>, who: &Option<String>) -> Option<Slot> {
        let mut state = locked(&self.state);
        if state.taken.get(who).is_some_and(|taken| *taken >= self.limit) {
            return None;
        }
        let id = UploadId::random();
        state.take(id.clone(), who.clone(), false);
        Some(Slot { slots: Arc::clone(self), id, kept: false })
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        let state = locked(&self.state);
        state.taken.is_empty() && state.uploads.is_empty()
    }

    /// The next one at the limit compares, whenever that was done last.
    #[cfg(test)]
    pub(super) fn forget_comparison(&self) {
        locked(&self.state).compared = None;
    }

    fn may_compare_again(&self) -> bool {
        locked(&self.state).compared.is_none_or(|last| last.elapsed() >= COMPARE_AGAIN)
    }
}

impl State {
    fn take(&mut self, id: UploadId, who: Option<String>, on_disk: bool) {
        *self.taken.entry(who.clone()).or_default() += 1;
        self.uploads.insert(id, Upload { who, on_disk });
    }

    fn free(&mut self, id: &UploadId) {
        let Some(Upload { who, .. }) = self.uploads.remove(id) else {
            return;
        };
        if let Some(taken) = self.taken.get_mut(&who) {
            *taken -= 1;
            if *taken == 0 {
                self.taken.remove(&who);
            }
        }
    }
}

impl Registry {
    /// A place for one more upload of a user.
    ///
    /// # Errors
    /// [`Error::TooManyUploads`].
    pub(super) async fn slot(&self, actor: &Actor) -> Result<Slot> {
        let slots = &self.inner.slots;
        slots.counted.get_or_try_init(|| self.look()).await?;
        if let Some(slot) = slots.take(&actor.who) {
            return Ok(slot);
        }
        // Whoever comes while another compares waits for what comes of that.
        let _comparing = slots.comparing.lock().await;
        if slots.may_compare_again() {
            self.look().await?;
        }
        slots.take(&actor.who).ok_or(Error::TooManyUploads { limit: slots.limit })
    }

    /// Counts what lies on the disk.
    async fn look(&self) -> Result<()> {
        self.blocking(|inner| inner.sweep(None).map(|_| ())).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots() -> Arc<Slots> {
        Arc::new(Slots::new(2))
    }

    #[test]
    fn a_slot_is_free_again_when_its_upload_ends() {
        let slots = slots();
        let (anna, bert) = (Some("anna".to_owned()), Some("bert".to_owned()));
        let one = slots.take(&anna).unwrap();
        let two = slots.take(&anna).unwrap().keep();
        assert!(slots.take(&anna).is_none());
        assert!(slots.take(&bert).is_some());
        drop(one);
        let three = slots.take(&anna).unwrap().keep();
        assert!(slots.take(&anna).is_none());
        for id in [&two, &two, &three] {
            slots.free(id);
        }
        assert!(slots.is_empty());
    }

    #[test]
    fn a_comparison_finds_what_others_began_and_ended() {
        let slots = slots();
        let gone = slots.take(&None).unwrap().keep();
        let before = slots.on_disk();
        assert_eq!(before, HashSet::from([gone]));
        // In the making while somebody looks, and found or not: it counts once.
        let making = slots.take(&None).unwrap();
        let (other, ended) = (UploadId::random(), UploadId::random());
        let found = [making.id(), &other, &ended].map(|id| (id.clone(), None)).to_vec();
        slots.compare(before, found, |id| *id != ended);
        assert_eq!(locked(&slots.state).taken[&None], 2);
        slots.compare(slots.on_disk(), Vec::new(), |_| true);
        assert_eq!(locked(&slots.state).taken[&None], 1);
        drop(making);
        assert!(slots.is_empty());
    }
}
