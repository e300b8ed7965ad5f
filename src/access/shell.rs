//! Command lines that are printed, to be run as they stand by any POSIX shell.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A directory's path as one word of a command line.
///
/// Whatever it is called, the word is one line of printable characters: what is not printable goes
/// through printf(1).
pub(super) fn quote(path: &Path) -> String {
    let bytes = path.as_os_str().as_bytes();
    if bytes.starts_with(b"-") {
        return quote(&Path::new(".").join(path));
    }
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/._-+@%=:,".contains(byte);
    if !bytes.is_empty() && bytes.iter().all(plain) {
        return path.display().to_string();
    }
    match path.to_str() {
        Some(text) if !text.chars().any(unprintable) => {
            format!("'{}'", text.replace('\'', r"'\''"))
        }
        _ => printf(path.as_os_str()),
    }
}

/// `"$(…)"` loses line feeds at its end, so the path gets one by which it means the same.
fn printf(path: &OsStr) -> String {
    let escaped = path.as_bytes().iter().map(|byte| match byte {
        b if b.is_ascii_alphanumeric() || b"/._-".contains(b) => char::from(*b).to_string(),
        other => format!("\\{other:03o}"),
    });
    format!("\"$(printf '{}/.')\"", escaped.collect::<String>())
}

/// Characters that could end a line, move a cursor, or turn the order of what is read.
pub(super) fn unprintable(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}')
        || matches!(c, '\u{61c}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}')
}

/// A user's or a group's name for setfacl(1) or usermod(8); the number where the name could be
/// taken for something else.
pub(super) fn name(name: String, id: u32) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let begins = |c: char| c.is_ascii_alphabetic() || c == '_';
    if name.starts_with(begins) && name.chars().all(plain) { name } else { id.to_string() }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::*;

    #[test]
    fn every_path_is_one_word_of_one_line_that_the_shell_takes_back() {
        let temp = tempfile::tempdir().unwrap();
        let odd: [&[u8]; 9] = [
            b"plain-1.2",
            b"two words",
            b"it's",
            b"$(touch x)`y`",
            b"line\nfeed",
            b"ends\n",
            b"\x1b[31m%s\\",
            b"\xff\xfe",
            "grün\u{202e}".as_bytes(),
        ];
        for name in odd {
            let path = temp.path().join(OsStr::from_bytes(name));
            fs::create_dir(&path).unwrap();
            let word = quote(&path);
            assert!(!word.chars().any(unprintable), "{word:?}");
            let run = Command::new("sh").args(["-c", &format!("test -d {word}")]).status();
            assert!(run.unwrap().success(), "{word}");
        }
        assert_eq!(quote(Path::new("/srv/reg/team")), "/srv/reg/team");
        assert_eq!(quote(Path::new("-x")), "./-x");
        assert_eq!(quote(Path::new("/a b")), "'/a b'");
    }

    #[test]
    fn names_that_mean_something_else_are_numbers() {
        assert_eq!(name("anna".into(), 7), "anna");
        for odd in ["", "12", "-R", "a:rwx", "a,b", "a b", "a\n", "ä"] {
            assert_eq!(name(odd.into(), 7), "7", "{odd:?}");
        }
    }
}
