//! The sweep of uploads that nobody goes on with, beside everything else.

use std::time::{Duration, SystemTime};

use super::{Inner, Registry, Result};
use crate::layout::sweep::{self, Swept};
use crate::layout::uploads::Session;

/// The sweep comes ten times in an expiry, within these bounds.
const OFTEN: Duration = Duration::from_secs(1);
const SELDOM: Duration = Duration::from_secs(60 * 60);

impl Registry {
    /// Sweeps now, and again and again. Never ends: to be spawned once, beside the server.
    pub async fn keep_swept(self) {
        let pause = (self.inner.settings.upload_expiry / 10).clamp(OFTEN, SELDOM);
        loop {
            if let Err(error) = self.sweep_uploads().await {
                tracing::error!(cause = ?error.to_string(), "uploads were not swept");
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Ends the uploads that got no byte for longer than the expiry, and removes what killed servers
    /// left. What a request is writing to stays.
    pub async fn sweep_uploads(&self) -> Result<()> {
        let swept = self.blocking(|inner| inner.sweep(inner.cutoff())).await?;
        let (uploads, files) = (swept.ended.len(), swept.files);
        if uploads + files > 0 {
            tracing::info!(uploads, files, bytes = swept.bytes, "swept what nobody goes on with");
        }
        Ok(())
    }
}

impl Inner {
    /// Sweeps what is older than `before`, and counts what stays.
    pub(super) fn sweep(&self, before: Option<SystemTime>) -> Result<Swept> {
        let counted = self.slots.on_disk();
        let mut swept = sweep::sweep(&self.tree, before)?;
        for id in &swept.ended {
            self.hashes.forget(id);
        }
        let open = std::mem::take(&mut swept.open);
        self.slots.compare(counted, open, |id| {
            // What cannot be read is there.
            Session::find(&self.tree, id).map_or(true, |found| found.is_some())
        });
        Ok(swept)
    }

    /// Whether the sweep would end a session, if nobody held it.
    pub(super) fn is_expired(&self, session: &Session) -> bool {
        let last = session.last_activity();
        self.cutoff().is_some_and(|cutoff| last.is_ok_and(|last| last < cutoff))
    }

    fn cutoff(&self) -> Option<SystemTime> {
        SystemTime::now().checked_sub(self.settings.upload_expiry)
    }
}
