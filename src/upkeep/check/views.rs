//! Views, against index.json.

use super::finding::Findings;
use super::probe;
use super::rule::Rule;
use crate::graph::Knowledge;
use crate::graph::views::Place;
use crate::layout::{Dir, IndexFile, Result, path};
use crate::oci::RepoName;

/// Checks the views of a repository, if it has any. Which facts are wrong is another rule's matter.
pub(super) fn check(name: &str, dir: &Dir, index: &IndexFile, findings: &mut Findings) {
    // What has no name that a client can spell is not served, and its views are nobody's.
    let Ok(name) = RepoName::parse(name) else { return };
    // Of another type they are reported as that.
    let manifests = probe::dir(dir, path::MANIFESTS, findings).there().is_some();
    let tags = probe::file(dir, path::TAGS, findings).there().is_some();
    if !manifests && !tags {
        return;
    }
    let place = Place { name: &name, dir };
    probe::look(try_check(place, index, findings), findings);
}

fn try_check(place: Place<'_>, index: &IndexFile, findings: &mut Findings) -> Result<()> {
    if !place.has_views_of(index)? {
        let message = "was not made, to its end, from index.json as it is";
        findings.add(Rule::ViewsStale, &place.dir.at(path::MANIFESTS), message);
        return Ok(());
    }
    let known = Knowledge::of(place.dir, &index.index)?;
    for step in place.difference(index, &known)? {
        let at = place.dir.path().join(step.path());
        findings.add(Rule::ViewWrong, &at, step.wants());
    }
    Ok(())
}
