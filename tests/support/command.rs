//! Other programs: their whole output belongs to the failure message.

use std::process::Command;

/// What a program printed and how it ended.
pub struct Outcome {
    /// The command line, for messages.
    pub line: String,
    /// The exit code; none after a signal.
    pub code: Option<i32>,
    /// Standard output, lossily as UTF-8.
    pub stdout: String,
    /// Standard error, lossily as UTF-8.
    pub stderr: String,
}

impl Outcome {
    /// The outcome if the program ended well; fails the test otherwise.
    #[track_caller]
    pub fn ok(self) -> Outcome {
        assert_eq!(self.code, Some(0), "{self}");
        self
    }

    /// The outcome if the program ended with an error; fails the test otherwise.
    #[track_caller]
    pub fn refused(self) -> Outcome {
        assert!(self.code.is_some_and(|code| code != 0), "expected a refusal: {self}");
        self
    }

    /// Both outputs together.
    pub fn text(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Outcome { line, code, stdout, stderr } = self;
        write!(f, "{line}\nended with {code:?}\n--- stdout\n{stdout}\n--- stderr\n{stderr}")
    }
}

/// Runs a command to its end. A program that is not installed fails the test.
#[track_caller]
pub fn run(command: &mut Command) -> Outcome {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        line.push(' ');
        line.push_str(&arg.to_string_lossy());
    }
    let output = command
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{line}: {error} (tests/run installs what is missing)"));
    Outcome {
        line,
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
