//! Views, against index.json.

use super::finding::Findings;
use super::probe;
use super::rule::Rule;
use crate::graph::Knowledge;
use crate::graph::views::Place;
use crate::layout::readers::Readers;
use crate::layout::{Dir, IndexFile, Result, path};
use crate::oci::RepoName;

/// Checks the views of a repository, if it has any. Which facts are wrong is another rule's matter.
/// What says nothing in this boot is in the making, and whoever opens the repository compares it: that
/// is for a repair to do.
pub(super) fn check(
    name: &str,
    dir: &Dir,
    index: &IndexFile,
    repairing: bool,
    findings: &mut Findings,
) {
    // What has no name that a client can spell is not served, and its views are nobody's.
    let Ok(name) = RepoName::parse(name) else { return };
    // Of another type they are reported as that.
    let manifests = probe::dir(dir, path::MANIFESTS, findings).there().is_some();
    let tags = probe::file(dir, path::TAGS, findings).there().is_some();
    if !manifests && !tags {
        return;
    }
    let place = Place { name: &name, dir };
    probe::look(try_check(place, index, repairing, findings), findings);
}

fn try_check(
    place: Place<'_>,
    index: &IndexFile,
    repairing: bool,
    findings: &mut Findings,
) -> Result<()> {
    let says = place.say()?;
    if !says && !repairing {
        return Ok(());
    }
    let at = place.dir.at(path::MANIFESTS);
    if says && !place.has_views_of(index)? {
        let message = "was made from another index.json, or under another name";
        findings.add(Rule::ViewsStale, &at, message);
        return Ok(());
    }
    let known = Knowledge::of(place.dir, &index.index)?;
    let steps = place.difference(index, &known)?;
    let unfit = match says {
        _ if steps.is_empty() => None,
        false => Some("was not made to its end"),
        true if index.readers != Readers::Everybody => {
            Some("shows an index.json that is not for everybody to read any more")
        }
        true => None,
    };
    if let Some(message) = unfit {
        findings.add(Rule::ViewsStale, &at, message);
        return Ok(());
    }
    for step in steps {
        let at = place.dir.path().join(step.path());
        findings.add(Rule::ViewWrong, &at, step.wants());
    }
    Ok(())
}
