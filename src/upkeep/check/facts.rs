//! What is known of manifests, against the manifests.

use super::blobs::Blobs;
use super::finding::Findings;
use super::rule::Rule;
use super::{Look, hands, lines, probe};
use crate::layout::facts::Fact;
use crate::layout::{self, Dir, path};
use crate::oci::{MAX_MANIFEST, Manifest, ManifestError};

/// So many lines are compared together.
const TOGETHER: usize = 1 << 12;

/// Or as many as take so many bytes of memory.
const WEIGHT: usize = 4 << 20;

/// Checks every line that parses against the manifest, if that is there and sound.
pub(super) fn check(look: &Look<'_>, repo: &Dir, blobs: &Blobs, findings: &mut Findings) {
    let Some(dir) = probe::dir(repo, path::REFERRERS, findings).there() else {
        return;
    };
    let Some((file, _)) = probe::file(&dir, path::FACTS, findings).there() else {
        return;
    };
    let at = dir.at(path::FACTS);
    let mut some: Vec<(u64, Fact)> = Vec::new();
    let mut weight = 0;
    let mut compare = |some: &mut Vec<(u64, Fact)>| {
        // Of a truth nothing is kept: a short line may name an index of 4 MiB.
        let wrong = hands::each(look.hands, some, |(_, fact)| {
            truth(repo, fact).map(|truth| truth.is_some_and(|truth| truth != *fact))
        });
        for ((number, fact), wrong) in some.drain(..).zip(wrong) {
            if probe::look(wrong, findings) == Some(true) {
                let message = format!("line {number} is not what manifest {} says", fact.digest);
                findings.add(Rule::FactsWrong, &at, message);
            }
        }
    };
    let read = lines::each(&file, |number, line| {
        let Some(fact) = line.and_then(Fact::parse) else {
            return;
        };
        if !blobs.bad.contains(&fact.digest) {
            weight += fact.weight();
            some.push((number, fact));
        }
        if some.len() >= TOGETHER || weight >= WEIGHT {
            compare(&mut some);
            weight = 0;
        }
    });
    compare(&mut some);
    if let Err(error) = read {
        findings.add(Rule::Unreadable, &at, format!("cannot be read: {error}"));
    }
}

/// What the manifest itself says; `None` if it is none.
pub(super) fn truth(repo: &Dir, fact: &Fact) -> layout::Result<Option<Fact>> {
    let name = path::blob(&fact.digest);
    let file = repo.file(&name)?;
    let bytes = layout::read_all(&file, MAX_MANIFEST as u64, || repo.at(&name))?;
    let manifest = match Manifest::parse(&bytes, None) {
        Err(ManifestError::Untyped) => Manifest::parse(&bytes, Some(&fact.media_type)),
        parsed => parsed,
    };
    let manifest = manifest.ok();
    Ok(manifest.map(|of| Fact::of(fact.digest.clone(), bytes.len() as u64, &of)))
}
