//! What the server and its worker processes say to each other over two pipes.
//!
//! A message is its length (four bytes, little-endian) and that many bytes. Both sides are the same
//! program file, so there is no version; what does not parse ends the worker.

use zeroize::Zeroizing;

use super::pam::{Failure, Step};
use super::user::User;

/// The longest request: every field at its limit fits.
pub(super) const MAX_REQUEST: usize = 16 << 10;
/// The longest answer: 65,536 groups, the most that Linux gives a process, fit.
pub(super) const MAX_ANSWER: usize = 512 << 10;

/// What the server asks.
pub(super) enum Ask<'a> {
    /// Is this the user's password, and may the account be used?
    Check(Check<'a>),
    /// Who is this user?
    Lookup(&'a str),
}

/// One login.
pub(super) struct Check<'a> {
    pub(super) user: &'a str,
    pub(super) password: &'a [u8],
    pub(super) service: &'a str,
    /// Empty for `/etc/pam.d`.
    pub(super) confdir: &'a [u8],
    pub(super) rhost: &'a str,
}

/// What a worker answers.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The login is good, or the user looked up exists.
    User(User),
    /// The name service knows no such user.
    Absent,
    /// PAM's verdict is no. `known`: the name service has the name that was given.
    Refused { failure: Failure, known: bool },
    /// No verdict, and why.
    Broken(String),
}

impl Ask<'_> {
    /// The whole message with its length; wiped when dropped, as it may hold a password.
    pub(super) fn encode(&self) -> Zeroizing<Vec<u8>> {
        let (kind, fields): (u8, Vec<&[u8]>) = match self {
            Ask::Check(check) => (
                0,
                vec![
                    check.user.as_bytes(),
                    check.password,
                    check.service.as_bytes(),
                    check.confdir,
                    check.rhost.as_bytes(),
                ],
            ),
            Ask::Lookup(name) => (1, vec![name.as_bytes()]),
        };
        let length = 1 + fields.iter().map(|field| 4 + field.len()).sum::<usize>();
        // Sized once: growing would leave a copy of the password behind.
        let mut message = Zeroizing::new(Vec::with_capacity(4 + length));
        put_length(&mut message, length);
        message.push(kind);
        for field in fields {
            put_bytes(&mut message, field);
        }
        message
    }

    /// Reads a message's body; `None` if it is not one that [`Ask::encode`] makes.
    pub(super) fn decode(body: &[u8]) -> Option<Ask<'_>> {
        let mut rest = Rest(body);
        let ask = match rest.byte()? {
            0 => Ask::Check(Check {
                user: rest.text()?,
                password: rest.bytes()?,
                service: rest.text()?,
                confdir: rest.bytes()?,
                rhost: rest.text()?,
            }),
            1 => Ask::Lookup(rest.text()?),
            _ => return None,
        };
        rest.0.is_empty().then_some(ask)
    }
}

impl Answer {
    /// The whole message with its length.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        match self {
            Answer::User(user) => {
                body.push(0);
                put_bytes(&mut body, user.name.as_bytes());
                put_number(&mut body, user.uid);
                put_number(&mut body, user.gid);
                for group in &user.groups {
                    put_number(&mut body, *group);
                }
            }
            Answer::Absent => body.push(1),
            Answer::Refused { failure, known } => {
                body.extend([2, failure.step as u8, u8::from(*known)]);
                body.extend(failure.code.to_le_bytes());
            }
            Answer::Broken(why) => {
                body.push(3);
                put_bytes(&mut body, why.as_bytes());
            }
        }
        let mut message = Vec::with_capacity(4 + body.len());
        put_length(&mut message, body.len());
        message.append(&mut body);
        message
    }

    /// Reads a message's body; `None` if it is not one that [`Answer::encode`] makes.
    pub(super) fn decode(body: &[u8]) -> Option<Answer> {
        let mut rest = Rest(body);
        let answer = match rest.byte()? {
            0 => Answer::User(User {
                name: rest.text()?.to_owned(),
                uid: rest.number()?,
                gid: rest.number()?,
                groups: rest.numbers()?,
            }),
            1 => Answer::Absent,
            2 => {
                let (step, known) = (Step::from_byte(rest.byte()?)?, rest.byte()? != 0);
                let code = i32::from_le_bytes(rest.array()?);
                Answer::Refused { failure: Failure { step, code }, known }
            }
            3 => Answer::Broken(rest.text()?.to_owned()),
            _ => return None,
        };
        rest.0.is_empty().then_some(answer)
    }
}

/// Lengths above 4 GiB cannot occur: every field is bounded far below before it comes here.
fn put_length(out: &mut Vec<u8>, length: usize) {
    put_number(out, u32::try_from(length).unwrap_or(u32::MAX));
}

fn put_number(out: &mut Vec<u8>, number: u32) {
    out.extend(number.to_le_bytes());
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_length(out, bytes.len());
    out.extend_from_slice(bytes);
}

/// What is still unread of a message's body.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk()?;
        self.0 = tail;
        Some(*head)
    }

    fn byte(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn number(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.number()?).ok()?;
        let (head, tail) = self.0.split_at_checked(length)?;
        self.0 = tail;
        Some(head)
    }

    fn text(&mut self) -> Option<&'a str> {
        std::str::from_utf8(self.bytes()?).ok()
    }

    fn numbers(&mut self) -> Option<Vec<u32>> {
        let mut numbers = Vec::with_capacity(self.0.len() / 4);
        while !self.0.is_empty() {
            numbers.push(self.number()?);
        }
        Some(numbers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn body(message: &[u8]) -> &[u8] {
        let (length, body) = message.split_first_chunk().expect("a length");
        assert_eq!(u32::from_le_bytes(*length) as usize, body.len());
        body
    }

    #[test]
    fn answers_come_through() {
        let failure = Failure { step: Step::Account, code: 13 };
        let user = User { name: "anna".into(), uid: 1000, gid: 1000, groups: vec![1000, 42] };
        for answer in [
            Answer::User(user),
            Answer::Absent,
            Answer::Refused { failure, known: true },
            Answer::Broken("no such directory".into()),
        ] {
            assert_eq!(Answer::decode(body(&answer.encode())), Some(answer));
        }
    }

    #[test]
    fn a_login_comes_through_byte_for_byte() {
        let message = Ask::Check(Check {
            user: "ännä",
            password: b"p:\xff ss",
            service: "stillage",
            confdir: b"/tmp/x",
            rhost: "::1",
        })
        .encode();
        let Some(Ask::Check(check)) = Ask::decode(body(&message)) else { panic!("not a login") };
        assert_eq!(check.user, "ännä");
        assert_eq!(check.password, b"p:\xff ss");
        assert_eq!((check.service, check.rhost), ("stillage", "::1"));
        assert_eq!(check.confdir, b"/tmp/x");
    }

    #[test]
    fn what_is_cut_or_too_long_is_refused() {
        let message = Ask::Lookup("anna").encode();
        let whole = body(&message);
        assert!(Ask::decode(whole).is_some());
        for end in 0..whole.len() {
            assert!(Ask::decode(&whole[..end]).is_none(), "cut at {end}");
        }
        let longer = [whole, b"x"].concat();
        assert!(Ask::decode(&longer).is_none());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_readers_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Ask::decode(&bytes);
            let _ = Answer::decode(&bytes);
        }
    }
}
