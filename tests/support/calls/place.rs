//! What a call's place is called: the same each time the same is done.

use std::path::Path;

/// A path without what is another each time: numbers, what is drawn by lot, and, unless the content
/// is `known`, digests.
pub(super) fn of(path: &Path, known: bool) -> String {
    let is_hex =
        |text: &str| text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    let mut place = String::new();
    let mut above = "";
    for part in path.iter().map(|part| part.to_str().unwrap_or_default()) {
        let digest = part.strip_prefix("sha256:").unwrap_or(part);
        // The pool's directories and the files of hints are called by the beginning of digests.
        let shelves = matches!(above, "sha256" | "sha512");
        let shelf = shelves && matches!(part.len(), 2 | 3);
        let unfinished = part.strip_prefix('.').and_then(|part| part.split_once('.'));
        if !place.is_empty() {
            place.push('/');
        }
        if is_hex(digest) && (shelf || digest.len() >= 64) {
            place.push_str(if known { part } else { "*" });
        } else if shelves && !known && unfinished.is_some_and(|(shelf, _)| is_hex(shelf)) {
            place.push_str(".*");
        } else if is_hex(digest) && digest.len() >= 32 {
            place.push('*');
        } else if matches!(part, "sha256" | "sha512") {
            place.push_str(part);
        } else {
            place.push_str(&without_numbers(part, &is_hex));
        }
        above = part;
    }
    place
}

/// A name without numbers, and without the random digits of one that is not finished.
fn without_numbers(name: &str, is_hex: &dyn Fn(&str) -> bool) -> String {
    let name = name.trim_end_matches(" (deleted)");
    let name = match name.rsplit_once('.') {
        Some((name, random)) if random.len() == 16 && is_hex(random) => name,
        _ => name,
    };
    let mut text = String::new();
    for letter in name.chars() {
        match letter.is_ascii_digit() {
            true if text.ends_with('#') => {}
            true => text.push('#'),
            false => text.push(letter),
        }
    }
    text
}
