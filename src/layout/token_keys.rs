//! The keys that sign tokens: `.stillage/token-key`.
//!
//! The file holds the current key and the one before, so that tokens outlive a change of keys. It
//! is replaced as a whole, under a lock, by whichever server of the tree is first to find the
//! current key too old; the others see that the file changed. Where the tree is only read and has no
//! such file, keys live in memory: tokens are good at the server that signed them, until it ends.

use std::fmt;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rustix::fs::{Mode, OFlags};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use zeroize::Zeroizing;

use super::dir::{self, Dir};
use super::error::{At, Error, OrAbsent, Result};
use super::inherit::Purpose;
use super::tree::Tree;
use super::version::Version;
use super::{durable, lock, path};

/// How old the key that signs may become.
const MAX_AGE: Duration = Duration::from_secs(30 * 24 * 3600);
/// A key from so far ahead was made under a wrong clock: its age is not known.
const AHEAD: Duration = Duration::from_secs(24 * 3600);
/// How long a server waits for another that makes the first key.
const FIRST_WAIT: Duration = Duration::from_secs(5);
/// The largest file that is read; two lines are 170 bytes.
const MAX_FILE: u64 = 512;

/// A key and when it was made.
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    /// Whoever knows it can sign a token for anybody.
    pub secret: Zeroizing<[u8; 32]>,
    /// In whole seconds; 1970 where it is not known.
    pub made: SystemTime,
}

/// What the file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    /// The key that signs.
    pub current: Key,
    /// The one that signed before.
    pub previous: Option<Key>,
}

/// Without the secret: it must not come into a log.
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("made", &self.made).finish_non_exhaustive()
    }
}

impl Keys {
    /// Reads the file: a line for each key, the current one first; or 32 bytes, as the first
    /// versions wrote, which are a key of unknown age.
    pub fn parse(bytes: &[u8]) -> Option<Keys> {
        if let Ok(secret) = <[u8; 32]>::try_from(bytes) {
            let current = Key { secret: Zeroizing::new(secret), made: SystemTime::UNIX_EPOCH };
            return Some(Keys { current, previous: None });
        }
        let text = str::from_utf8(bytes).ok()?.strip_suffix('\n')?;
        let mut keys = text.split('\n').map(Key::parse);
        let (current, previous, rest) = (keys.next()??, keys.next(), keys.next());
        let previous = match previous {
            None => None,
            Some(previous) => Some(previous?),
        };
        rest.is_none().then_some(Keys { current, previous })
    }

    /// The file's text.
    fn text(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(256));
        for key in std::iter::once(&self.current).chain(&self.previous) {
            key.write(&mut text);
        }
        text
    }

    fn is_due(&self, now: SystemTime) -> bool {
        match now.duration_since(self.current.made) {
            Ok(age) => age > MAX_AGE,
            Err(ahead) => ahead.duration() > AHEAD,
        }
    }
}

impl Key {
    fn new() -> std::io::Result<Key> {
        let mut secret = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *secret).map_err(std::io::Error::other)?;
        Ok(Key { secret, made: SystemTime::now() })
    }

    /// `2026-11-26T10:00:00Z 00112233…`
    fn parse(line: &str) -> Option<Key> {
        let (made, hex) = line.split_once(' ')?;
        let made = OffsetDateTime::parse(made, &Rfc3339).ok()?.into();
        let digits = hex.len() == 64 && hex.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
        let mut secret = Zeroizing::new([0; 32]);
        for (at, byte) in secret.iter_mut().enumerate() {
            *byte = u8::from_str_radix(digits.then(|| &hex[2 * at..2 * at + 2])?, 16).ok()?;
        }
        Some(Key { secret, made })
    }

    fn write(&self, text: &mut String) {
        let made = OffsetDateTime::from(self.made);
        let made = made.replace_nanosecond(0).unwrap_or(made).format(&Rfc3339);
        // Only a year beyond 9999 cannot be written: then the age is not known.
        text.push_str(made.as_deref().unwrap_or("1970-01-01T00:00:00Z"));
        text.push(' ');
        for byte in self.secret.iter() {
            for digit in [byte >> 4, byte & 15] {
                text.push(char::from_digit(digit.into(), 16).unwrap_or('0'));
            }
        }
        text.push('\n');
    }
}

/// The file as it was read last.
#[derive(Debug, Default)]
pub struct KeyFile {
    last: Mutex<Option<Last>>,
    /// Of a server that may not write the file.
    own: Mutex<Option<Arc<Keys>>>,
}

#[derive(Debug)]
struct Last {
    keys: Arc<Keys>,
    version: Version,
    settled: bool,
    /// Held open, so that the inode's number cannot be given to another file.
    _file: File,
}

impl KeyFile {
    /// The keys as the file has them now; it is read only if its status changed. One that is
    /// missing is made: tokens that were signed before are void from then on.
    pub fn now(&self, tree: &Tree) -> Result<Arc<Keys>> {
        match self.look(tree, Trust::Status)? {
            Some(keys) => Ok(keys),
            None => self.made(tree),
        }
    }

    /// The same, read again whatever its status says: on a network file system that may be old.
    pub fn again(&self, tree: &Tree) -> Result<Arc<Keys>> {
        match self.look(tree, Trust::Nothing)? {
            Some(keys) => Ok(keys),
            None => self.made(tree),
        }
    }

    /// The keys to sign with: a current key that is too old is replaced first. Where that fails or
    /// another process is at it, the old one goes on.
    pub fn to_sign(&self, tree: &Tree) -> Result<Arc<Keys>> {
        let keys = self.now(tree)?;
        // Those who may write a tree renew its key; those who may not believe it as long as it is there.
        if tree.is_read_only() || !keys.is_due(SystemTime::now()) {
            return Ok(keys);
        }
        self.renew(tree).or_else(|error| {
            tracing::error!(%error, "the key that signs tokens is old and cannot be replaced");
            Ok(keys)
        })
    }

    fn look(&self, tree: &Tree, trust: Trust) -> Result<Option<Arc<Keys>>> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Trust::Status, Some(last)) = (trust, last.as_ref().filter(|last| last.settled))
            && let Some(stat) = tree.room.stat_name(path::TOKEN_KEY)?
            && Version::of(&stat) == last.version
        {
            return Ok(Some(Arc::clone(&last.keys)));
        }
        *last = read(&tree.room)?;
        Ok(last.as_ref().map(|last| Arc::clone(&last.keys)))
    }

    /// Keys for a tree that has none.
    fn made(&self, tree: &Tree) -> Result<Arc<Keys>> {
        if tree.is_read_only() { self.in_memory(tree) } else { self.renew(tree) }
    }

    fn in_memory(&self, tree: &Tree) -> Result<Arc<Keys>> {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(keys) = own.as_ref().filter(|keys| !keys.is_due(SystemTime::now())) {
            return Ok(Arc::clone(keys));
        }
        let current = Key::new().at(|| tree.room.at(path::TOKEN_KEY))?;
        let previous = own.take().map(|old| old.current.clone());
        Ok(Arc::clone(own.insert(Arc::new(Keys { current, previous }))))
    }

    /// Makes a key, under the lock that keeps other servers of the tree from making one too.
    fn renew(&self, tree: &Tree) -> Result<Arc<Keys>> {
        let exists = self.look(tree, Trust::Nothing)?.is_some();
        let wait = if exists { Duration::ZERO } else { FIRST_WAIT };
        let held = lock::exclusive_within(&tree.room, path::TOKEN_LOCK, wait)?;
        let old = self.look(tree, Trust::Nothing)?;
        match (&old, &held) {
            (Some(keys), Some(_)) if keys.is_due(SystemTime::now()) => {}
            // Another server was first, or is about to be done.
            (Some(keys), _) => return Ok(Arc::clone(keys)),
            (None, Some(_)) => {}
            (None, None) => {
                let at = tree.room.at(path::TOKEN_LOCK);
                return Err(Error::damaged(at, "is held by another process"));
            }
        }
        let at = || tree.room.at(path::TOKEN_KEY);
        let previous = old.map(|keys| keys.current.clone());
        let keys = Keys { current: Key::new().at(at)?, previous };
        let text = keys.text();
        let disk = &*tree.disk;
        durable::replace(disk, &tree.room, path::TOKEN_KEY, text.as_bytes(), Purpose::Lock)?;
        disk.sync_dir(&tree.room)?;
        if keys.previous.is_some() {
            tracing::info!("a new key signs tokens; those of the old one stay good for their life");
        }
        self.look(tree, Trust::Nothing)?
            .ok_or_else(|| Error::damaged(at(), "was removed while it was made"))
    }
}

/// What is believed of the file as it was read last.
#[derive(Clone, Copy)]
enum Trust {
    /// Everything, if its status is the same.
    Status,
    Nothing,
}

fn read(room: &Dir) -> Result<Option<Last>> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK;
    let Some(file) = room.regular(path::TOKEN_KEY, flags, Mode::empty()).or_absent()? else {
        return Ok(None);
    };
    let at = || -> PathBuf { room.at(path::TOKEN_KEY) };
    let version = Version::of(&dir::stat_file(&file, at)?);
    let bytes = Zeroizing::new(dir::read_all(&file, MAX_FILE, at)?);
    let keys = Keys::parse(&bytes).ok_or_else(|| {
        Error::damaged(at(), "is no file of keys: remove it, and a new one is made")
    })?;
    Ok(Some(Last { keys: Arc::new(keys), version, settled: version.settled(), _file: file }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::RealDisk;

    fn tree(root: &std::path::Path) -> Tree {
        Tree::open(root, Arc::new(RealDisk)).unwrap()
    }

    fn put(tree: &Tree, bytes: &[u8]) {
        std::fs::write(tree.room.at(path::TOKEN_KEY), bytes).unwrap();
    }

    fn line(made: &str, digit: &str) -> String {
        format!("{made} {}\n", digit.repeat(64))
    }

    #[test]
    fn the_form_is_strict() {
        let (old, new) = (line("2026-09-01T00:00:00Z", "a"), line("2026-11-01T12:00:00Z", "0"));
        let keys = Keys::parse(format!("{new}{old}").as_bytes()).unwrap();
        assert_eq!(keys.current.secret, Zeroizing::new([0; 32]));
        assert_eq!(keys.previous.as_ref().unwrap().secret, Zeroizing::new([0xaa; 32]));
        assert_eq!(*keys.text(), format!("{new}{old}"));
        assert_eq!(Keys::parse(&[7; 32]).unwrap().current.made, SystemTime::UNIX_EPOCH);
        let wide = new.replace('0', "é");
        for bad in [
            "",
            "\n",
            "x",
            &new[..new.len() - 1],
            &format!("{new}\n"),
            &format!("{new}x\n"),
            &format!("{new}{old}{old}"),
            &new.replace(' ', "  "),
            &old.to_uppercase(),
            &wide,
            &line("yesterday", "a"),
            &format!(" {new}"),
        ] {
            assert_eq!(Keys::parse(bad.as_bytes()), None, "{bad:?}");
        }
    }

    #[test]
    fn a_key_is_made_once_and_kept() {
        let temp = tempfile::tempdir().unwrap();
        let (one, other) = (tree(temp.path()), tree(temp.path()));
        let keys = KeyFile::default();
        let made = keys.to_sign(&one).unwrap();
        assert_eq!(made.previous, None);
        assert_eq!(keys.to_sign(&one).unwrap(), made);
        assert_eq!(KeyFile::default().now(&other).unwrap(), made);
        let stat = one.room.stat_name(path::TOKEN_KEY).unwrap().unwrap();
        assert_eq!(stat.st_mode & 0o7777, 0o600);
    }

    #[test]
    fn an_old_key_is_replaced_and_stays_as_the_previous_one() {
        let temp = tempfile::tempdir().unwrap();
        let tree = tree(temp.path());
        let raw = [7; 32].to_vec();
        for old in [
            raw,
            line("2026-01-01T00:00:00Z", "5").into(),
            line("2999-01-01T00:00:00Z", "5").into(),
        ] {
            put(&tree, &old);
            let keys = KeyFile::default();
            let before = keys.now(&tree).unwrap();
            let after = keys.to_sign(&tree).unwrap();
            assert_eq!(after.previous.as_ref(), Some(&before.current));
            assert_ne!(after.current.secret, before.current.secret);
            assert_eq!(keys.to_sign(&tree).unwrap(), after, "it is young now");
        }
        let young = SystemTime::now() - MAX_AGE + Duration::from_secs(60);
        let secret = Zeroizing::new([9; 32]);
        let keys = Keys { current: Key { secret, made: young }, previous: None };
        put(&tree, keys.text().as_bytes());
        let same = KeyFile::default().to_sign(&tree).unwrap();
        assert_eq!(same.current.secret, keys.current.secret);
    }

    #[test]
    fn of_many_servers_one_replaces_the_key_and_all_take_it_up() {
        let temp = tempfile::tempdir().unwrap();
        let servers: Vec<_> = (0..8).map(|_| (tree(temp.path()), KeyFile::default())).collect();
        put(&servers[0].0, &[7; 32]);
        std::thread::scope(|scope| {
            for (tree, keys) in &servers {
                scope.spawn(|| keys.to_sign(tree).unwrap());
            }
        });
        let last = servers[0].1.now(&servers[0].0).unwrap();
        assert_eq!(*last.previous.as_ref().unwrap().secret, [7; 32], "replaced once");
        for (tree, keys) in &servers {
            assert_eq!(keys.now(tree).unwrap(), last);
        }
    }

    #[test]
    fn a_removed_file_is_made_anew_and_a_damaged_one_is_an_error() {
        let temp = tempfile::tempdir().unwrap();
        let tree = tree(temp.path());
        let keys = KeyFile::default();
        let before = keys.now(&tree).unwrap();
        std::fs::remove_file(tree.room.at(path::TOKEN_KEY)).unwrap();
        let after = keys.now(&tree).unwrap();
        assert_ne!(after.current.secret, before.current.secret);
        assert_eq!(after.previous, None, "nothing signed before is good any more");
        put(&tree, b"short");
        let error = keys.now(&tree).unwrap_err();
        assert!(error.to_string().contains("token-key: is no file of keys"), "{error}");
    }

    #[test]
    fn a_tree_that_is_only_read_gets_no_key_and_keeps_the_one_it_has() {
        let temp = tempfile::tempdir().unwrap();
        let writable = tree(temp.path());
        let read_only = Tree::open_read_only(temp.path()).unwrap();
        let (one, other) = (KeyFile::default(), KeyFile::default());
        let own = one.to_sign(&read_only).unwrap();
        assert_eq!(one.now(&read_only).unwrap(), own);
        assert_eq!(one.again(&read_only).unwrap(), own);
        assert_ne!(other.now(&read_only).unwrap().current.secret, own.current.secret);
        assert!(writable.room.stat_name(path::TOKEN_KEY).unwrap().is_none());
        assert!(writable.room.stat_name(path::TOKEN_LOCK).unwrap().is_none());
        // Of whatever age: to check what the others sign takes the key that they have.
        put(&writable, &[7; 32]);
        for keys in [&one, &other] {
            assert_eq!(*keys.to_sign(&read_only).unwrap().current.secret, [7; 32]);
        }
        assert_eq!(std::fs::read(writable.room.at(path::TOKEN_KEY)).unwrap(), [7; 32]);
    }

    #[test]
    fn a_key_in_memory_is_replaced_when_it_is_old() {
        let temp = tempfile::tempdir().unwrap();
        let tree = Tree::open_read_only(temp.path()).unwrap();
        let keys = KeyFile::default();
        let first = keys.to_sign(&tree).unwrap();
        let made = SystemTime::UNIX_EPOCH;
        let old = Key { made, ..first.current.clone() };
        *keys.own.lock().unwrap() = Some(Arc::new(Keys { current: old, previous: None }));
        let second = keys.to_sign(&tree).unwrap();
        assert_ne!(second.current.secret, first.current.secret);
        assert_eq!(second.previous.as_ref().unwrap().secret, first.current.secret);
    }

    #[test]
    fn the_old_key_goes_on_while_somebody_holds_the_lock() {
        let temp = tempfile::tempdir().unwrap();
        let tree = tree(temp.path());
        put(&tree, &[7; 32]);
        let _held = lock::exclusive_within(&tree.room, path::TOKEN_LOCK, FIRST_WAIT).unwrap();
        let keys = KeyFile::default().to_sign(&tree).unwrap();
        assert_eq!(*keys.current.secret, [7; 32]);
    }
}
