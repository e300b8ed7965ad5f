//! Upload sessions: begun, continued in pieces, asked for, given up and ended.

use std::rc::Rc;

use stillage::oci::Algorithm;

use super::deeds::{REPOS, short};
use super::face::Refused;
use super::run::{Run, Step, same};
use super::world::Session;
use crate::support::random::Random;

impl Run<'_> {
    pub(super) fn session(&mut self, random: &mut Random) -> Step {
        let open = self.world.sessions.len();
        if open == 0 || (open < 8 && random.chance(25)) {
            return self.begin_session(random);
        }
        let at = random.below(open);
        match random.below(20) {
            0 => self.cancel_session(at),
            1 => self.session_elsewhere(random, at),
            2..4 => self.session_status(at),
            4..6 => self.append_in_the_wrong_place(random, at),
            6..14 => self.append(random, at),
            _ => self.finish_session(random, at),
        }
    }

    fn begin_session(&mut self, random: &mut Random) -> Step {
        let repo = self.world.draw_repo(random);
        let target = self.world.draw_blob(random, &repo);
        let algorithm = Algorithm::ALL[usize::from(random.chance(30))];
        let begun = self.face.begin(&repo, algorithm);
        let id = begun.map_err(|refused| format!("a session in {repo}: {refused:?}"))?;
        self.tell(format!("begin {id} in {repo}"));
        let touched = self.world.now;
        self.world.sessions.push(Session { id, repo, target, received: 0, touched });
        Ok(())
    }

    fn append(&mut self, random: &mut Random, at: usize) -> Step {
        let now = self.world.now;
        let contents = Rc::clone(&self.world.contents);
        let session = &mut self.world.sessions[at];
        let rest = contents.bytes(&session.target).slice(session.received..);
        let piece = rest.slice(..random.below(rest.len() + 1));
        // Nothing that arrives is no activity, but some file systems count it as such.
        if piece.is_empty() && session.touched != now {
            return Ok(());
        }
        let first = random.chance(50).then_some(session.received as u64);
        let answer = self.face.append(&session.repo, &session.id, first, piece.clone());
        session.received += piece.len();
        session.touched = now;
        same!(answer, Ok(session.received as u64), "append to {session:?}");
        let text = format!("append {} to {}", piece.len(), session.id);
        self.tell(text);
        Ok(())
    }

    fn append_in_the_wrong_place(&mut self, random: &mut Random, at: usize) -> Step {
        let session = &self.world.sessions[at];
        let first = Some(session.received as u64 + 1 + random.below(3) as u64);
        let answer = self.face.append(&session.repo, &session.id, first, random.bytes(5).into());
        same!(answer, Err(Refused::UploadRange), "append in the wrong place to {session:?}");
        Ok(())
    }

    fn session_status(&mut self, at: usize) -> Step {
        let session = &self.world.sessions[at];
        let answer = self.face.received(&session.repo, &session.id);
        same!(answer, Ok(session.received as u64), "status of {session:?}");
        Ok(())
    }

    /// A session is one repository's.
    fn session_elsewhere(&mut self, random: &mut Random, at: usize) -> Step {
        let session = &self.world.sessions[at];
        let other = REPOS[random.below(REPOS.len())];
        if other != session.repo {
            let answer = self.face.received(other, &session.id);
            same!(answer, Err(Refused::UploadUnknown), "status of {session:?} in {other}");
        }
        Ok(())
    }

    fn cancel_session(&mut self, at: usize) -> Step {
        let session = self.world.sessions.remove(at);
        self.tell(format!("cancel {}", session.id));
        same!(self.face.cancel(&session.repo, &session.id), Ok(()), "cancel of {session:?}");
        let answer = self.face.received(&session.repo, &session.id);
        same!(answer, Err(Refused::UploadUnknown), "status of {session:?} after its end");
        Ok(())
    }

    fn finish_session(&mut self, random: &mut Random, at: usize) -> Step {
        let session = self.world.sessions.remove(at);
        let Session { id, repo, target, received, .. } = &session;
        self.tell(format!("finish {id} as {} in {repo}", short(target)));
        let mut rest = self.world.contents.bytes(target).slice(*received..);
        let wrong = random.chance(10);
        if wrong {
            rest = [&rest[..], b"and more"].concat().into();
        }
        let answer = self.face.finish(repo, id, rest, target);
        if wrong {
            same!(answer, Err(Refused::DigestMismatch), "end of {session:?} with other bytes");
            self.world.forget_note(repo, target);
        } else {
            same!(answer, Ok(()), "end of {session:?}");
            self.world.admit(repo, target);
        }
        let answer = self.face.received(repo, id);
        same!(answer, Err(Refused::UploadUnknown), "status of {session:?} after its end");
        Ok(())
    }
}
