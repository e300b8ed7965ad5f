//! Webhooks: what happened in the tree is posted to whoever is named by `--webhook`.
//!
//! The journal is the queue. For each receiver a thread of its own looks at what changed, posts it, and
//! keeps durably how far the receiver was told; so neither a restart nor a dead receiver loses
//! anything, nobody waits for one, and one that is dead for long costs what one envelope takes. What
//! was posted and not yet noted down when the process died is posted again.

mod client;
mod envelope;
mod receiver;
mod url;

use std::io;
use std::sync::Arc;

pub use url::{WebhookError, WebhookUrl};

use crate::events::Pending;
use crate::layout::Tree;
use envelope::Source;
use receiver::Receiver;

/// Begins to tell each receiver, in a thread of its own, which ends with the process. Gives what has to
/// be told of changes, one for each.
///
/// `base` is the URL under which clients reach the server.
pub fn start(tree: &Tree, urls: &[WebhookUrl], base: &str) -> io::Result<Vec<Arc<Pending>>> {
    let source = Source::new(base);
    urls.iter().map(|url| Receiver::start(tree, url, source.clone())).collect()
}
