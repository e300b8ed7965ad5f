//! The report for people.

use std::fmt::{self, Display, Formatter};

use super::people::{Kind, Principal};
use super::report::{Answer, Answers, LevelRow, Report, State, Subject};
use super::words::plain;

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let what = match self.state {
            State::Repository => "",
            State::Directory => ": a directory that holds no repository yet",
            State::Absent => ": not there yet",
            State::Unknown => ": cannot be looked at",
        };
        writeln!(f, "{}{what}", plain(&self.path))?;
        if self.read_only {
            writeln!(f, "read-only: its mount or its file system takes no writes")?;
        }
        if let (Some(subject), Some(answers)) = (&self.user, &self.answers) {
            about(f, subject)?;
            all(f, answers)?;
        }
        if let Some(who) = &self.who {
            writeln!(f)?;
            everybody(f, self.state, who)?;
        }
        writeln!(f)?;
        levels(f, &self.levels, self.user.as_ref())?;
        server(f, self)
    }
}

fn about(f: &mut Formatter<'_>, subject: &Subject) -> fmt::Result {
    let Some(uid) = subject.uid else {
        return writeln!(f, "without a login: the permissions of others, and nothing is written\n");
    };
    let groups: Vec<&str> = subject.groups.iter().map(|group| group.name.as_str()).collect();
    writeln!(f, "{} (uid {uid}), groups {}\n", plain(&subject.name), groups.join(", "))?;
    if uid == 0 {
        writeln!(f, "root logs in only where the server was started with --allow-root\n")?;
    }
    Ok(())
}

fn all(f: &mut Formatter<'_>, answers: &Answers) -> fmt::Result {
    let Answers { pull, push, create, delete } = answers;
    let all = [("pull", pull), ("push", push), ("create", create), ("delete", delete)];
    for (at, (what, answer)) in all.iter().enumerate() {
        writeln!(f, "  {what:<7}{:<4} {}", word(answer.allowed), answer.reason)?;
        // One command that would do for several is printed after the last of them.
        if all.get(at + 1).is_none_or(|(_, next)| next.grant != answer.grant) {
            grant(f, answer)?;
        }
    }
    Ok(())
}

fn grant(f: &mut Formatter<'_>, answer: &Answer) -> fmt::Result {
    if let Some(grant) = &answer.grant {
        writeln!(f, "              {grant}")?;
    }
    for other in &answer.alternatives {
        writeln!(f, "              or: {} ({})", other.command, plain(&other.effect))?;
    }
    Ok(())
}

/// Whether somebody may. The server answers 403 where it cannot look far enough to tell.
fn word(allowed: Option<bool>) -> &'static str {
    match allowed {
        Some(true) => "yes",
        Some(false) => "no",
        None => "?",
    }
}

fn everybody(f: &mut Formatter<'_>, state: State, who: &[Principal]) -> fmt::Result {
    let push = if state == State::Absent { "create" } else { "push" };
    let mut rows = vec![["", "pull", push, ""].map(str::to_owned)];
    for principal in who {
        let name = principal.named.as_ref().map_or("", |named| named.name.as_str());
        let who = match principal.kind {
            Kind::Administrators => format!("administrators: group {name}"),
            Kind::User => format!("user {name}"),
            Kind::Group => format!("group {name}"),
            Kind::Other => "everybody else".to_owned(),
            Kind::Anonymous => "without a login".to_owned(),
        };
        let words = [principal.pull, principal.push].map(|may| word(may).to_owned());
        let [pull, push] = words;
        rows.push([who, pull, push, principal.reason.clone()]);
        for member in &principal.members {
            let [pull, push] = [member.pull, member.push].map(|may| word(may).to_owned());
            rows.push([format!("  {}", member.name), pull, push, String::new()]);
        }
    }
    table(f, &rows)
}

fn levels(f: &mut Formatter<'_>, levels: &[LevelRow], subject: Option<&Subject>) -> fmt::Result {
    let to = subject.map_or("everybody else", |subject| subject.name.as_str());
    let heads = ["directory", "owner:group", "mode", &format!("gives {}", plain(to)), "ACL"];
    let mut rows = vec![heads.map(str::to_owned)];
    for level in levels {
        // Those that the mode shows already are left out.
        let shown = |entry: &&String| !entry.starts_with("user::") && !entry.starts_with("other:");
        let acl: Vec<&str> = level.acl.iter().filter(shown).map(String::as_str).collect();
        rows.push([
            plain(&level.path),
            format!("{}:{}", level.owner.name, level.group.name),
            level.mode.clone(),
            level.gives.clone(),
            acl.join(" "),
        ]);
    }
    table(f, &rows)
}

fn server(f: &mut Formatter<'_>, report: &Report) -> fmt::Result {
    let Some(server) = &report.server else {
        return writeln!(f, "\nnothing was ever served here: there is no .stillage");
    };
    if server.problems.is_empty() {
        return Ok(());
    }
    let name = &server.account.name;
    writeln!(f, "\nthe server's own account, {name}, cannot use all of this:")?;
    for problem in &server.problems {
        writeln!(f, "  {} lacks {}: {}", plain(&problem.path), problem.lacks, problem.mend)?;
    }
    Ok(())
}

/// Columns as wide as their widest cell, but for the last.
fn table<const N: usize>(f: &mut Formatter<'_>, rows: &[[String; N]]) -> fmt::Result {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let wide = width(column).unwrap_or(0);
            line.push_str(&format!("  {cell:<wide$}"));
        }
        writeln!(f, "{}", line.trim_end())?;
    }
    Ok(())
}
