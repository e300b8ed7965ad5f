//! Views, against index.json.

use std::time::Duration;

use super::finding::Findings;
use super::rule::Rule;
use super::{Look, probe};
use crate::graph::Knowledge;
use crate::graph::views::Place;
use crate::layout::rights::Rights;
use crate::layout::{Dir, IndexFile, Result, lock, path};
use crate::oci::RepoName;

/// Checks the views of a repository, if it has any. Which facts are wrong is another rule's matter.
/// What nothing speaks for in this boot is compared all the same, unless somebody works on the repository
/// right now: no server may come by to do so.
pub(super) fn check(
    look: &Look<'_>,
    name: &str,
    dir: &Dir,
    index: &IndexFile,
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
    probe::look(try_check(look, &name, dir, index, findings), findings);
}

fn try_check(
    look: &Look<'_>,
    name: &RepoName,
    dir: &Dir,
    index: &IndexFile,
    findings: &mut Findings,
) -> Result<()> {
    let way = Rights::look(&Dir::open_root(look.root)?, name)?;
    let place = Place::on(&way, name, dir)?;
    let says = place.say()?;
    let at = dir.at(path::MANIFESTS);
    if says && !place.has_views_of(index)? {
        let message = "was made from another index.json, or under another name";
        findings.add(Rule::ViewsStale, &at, message);
        return Ok(());
    }
    let known = Knowledge::of(dir, &index.index)?;
    let steps = place.difference(index, &known)?;
    let unfit = match says {
        _ if steps.is_empty() => None,
        _ if !place.shows(index) => Some("shows what is not for everybody to read"),
        false if !look.repairing && (is_locked(dir)? || place.say()?) => return Ok(()),
        false => Some("is not what index.json asks for, and nothing says what it was made from"),
        true => None,
    };
    if let Some(message) = unfit {
        findings.add(Rule::ViewsStale, &at, message);
        return Ok(());
    }
    for step in steps {
        let at = dir.path().join(step.path());
        findings.add(Rule::ViewWrong, &at, step.wants());
    }
    Ok(())
}

/// Whether somebody changes the repository right now, and then its views. Who may not open its lock
/// cannot tell.
fn is_locked(dir: &Dir) -> Result<bool> {
    let free = lock::shared_within(dir, path::LOCK, Duration::ZERO);
    Ok(matches!(free, Ok(None)) && dir.stat_name(path::LOCK)?.is_some())
}
