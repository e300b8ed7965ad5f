//! The registry's own room in the making: layout-spec/tree.md, "In the room".

use serde_json::json;

use super::Files;

/// A room that knows all blobs of `files`, put beside them.
pub fn with_room(mut files: Files) -> Files {
    let mut room = Files::new();
    room.insert("version".into(), b"1\n".to_vec());
    let key = |made: &str, digit: &str| format!("{made}T08:00:00Z {}\n", digit.repeat(64));
    let keys = key("2026-11-20", "a") + &key("2026-10-20", "5");
    room.insert("token-key".into(), keys.into_bytes());
    room.insert("token-key.lock".into(), Vec::new());
    room.insert("gc.lock".into(), Vec::new());
    for (path, bytes) in &files {
        let parts: Vec<_> = path.split('/').collect();
        if let [repository @ .., "blobs", algorithm, hex] = &parts[..]
            && !hex.starts_with('.')
        {
            let pool = format!("pool/{algorithm}/{}/{hex}", &hex[..2]);
            room.insert(pool, bytes.clone());
            let line = format!("{hex} {} {}\n", bytes.len(), repository.join("/"));
            let hints = room.entry(format!("holders/{algorithm}/{}", &hex[..3])).or_default();
            hints.extend(line.into_bytes());
        }
    }
    for (name, bytes) in room {
        files.insert(format!(".stillage/{name}"), bytes);
    }
    files
}

/// An open upload session.
pub fn session(files: &mut Files, id: &str) {
    let owner = json!({"user": "alice", "repository": "team/app", "algorithm": "sha256"});
    files.insert(format!(".stillage/uploads/{id}/owner"), owner.to_string().into_bytes());
    files.insert(format!(".stillage/uploads/{id}/data"), b"so far".to_vec());
}
