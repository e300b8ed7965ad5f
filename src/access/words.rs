//! A decision in words: for the log, and for whoever asks why.

use crate::auth::{Judgement, Reason};
use crate::layout::rights::Way;

/// Why somebody may not, in one line.
pub fn refusal(way: &Way, judgement: &Judgement) -> String {
    match judgement.reason {
        Reason::Level { at, wanted, ruling } => {
            let level = &way.levels[at];
            format!("{}: {ruling:?} wanted {wanted}", level.path.display())
        }
        other => format!("{other:?}"),
    }
}
