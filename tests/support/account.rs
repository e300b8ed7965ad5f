//! System accounts with a password, made for one test.

use std::fs::File;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use super::command::run;

/// A system account; removed when dropped. Needs root.
pub struct Account {
    name: String,
    password: String,
}

impl Account {
    /// `useradd` and `chpasswd`: a name that nobody has, a random password, no home directory.
    pub fn new() -> Account {
        Account::with_password(&super::content::random_hex(12))
    }

    /// The same with this password.
    pub fn with_password(password: &str) -> Account {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("stlt{}x{number}", std::process::id());
        let password = password.to_owned();
        let lock = lock();
        run(Command::new("useradd").args(["--no-create-home", "--shell", "/bin/sh", &name])).ok();
        let account = Account { name, password };
        account.set_password(&account.password);
        drop(lock);
        account
    }

    /// The login name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The password in clear.
    pub fn password(&self) -> &str {
        &self.password
    }

    /// The numeric user id.
    pub fn uid(&self) -> u32 {
        let id = run(Command::new("id").args(["-u", &self.name])).ok();
        id.stdout.trim().parse().expect("id prints a number")
    }

    /// The account expired long ago (`chage -E 0`): the password is right, the account phase refuses.
    pub fn expire(&self) {
        let _lock = lock();
        run(Command::new("chage").args(["-E", "0", &self.name])).ok();
    }

    /// Ends the expiry.
    pub fn unexpire(&self) {
        let _lock = lock();
        run(Command::new("chage").args(["-E", "-1", &self.name])).ok();
    }

    /// `usermod -L`: the password is kept, and counts no more.
    pub fn lock(&self) {
        self.change("usermod", &["-L"]);
    }

    /// Ends that.
    pub fn unlock(&self) {
        self.change("usermod", &["-U"]);
    }

    /// `chage -d 0`: the password must be changed before anything else.
    pub fn must_change_password(&self) {
        self.change("chage", &["-d", "0"]);
    }

    /// `passwd -d`: no password is asked for at the console.
    pub fn without_password(&self) {
        self.change("passwd", &["-q", "-d"]);
    }

    /// The shell that a login at the console would get.
    pub fn shell(&self, shell: &str) {
        self.change("usermod", &["-s", shell]);
    }

    /// Takes the account out of a group.
    pub fn leave(&self, group: &Group) {
        self.change("gpasswd", &["-d", &self.name, &group.name]);
    }

    fn change(&self, tool: &str, args: &[&str]) {
        let _lock = lock();
        let name = (tool != "gpasswd").then_some(self.name.as_str());
        run(Command::new(tool).args(args).args(name)).ok();
    }

    /// Puts the account into a group, which is made when missing and stays until its guard drops.
    pub fn join(&self, group: &Group) {
        let _lock = lock();
        run(Command::new("usermod").args(["-a", "-G", &group.name, &self.name])).ok();
    }

    fn set_password(&self, password: &str) {
        let mut chpasswd =
            Command::new("chpasswd").stdin(Stdio::piped()).spawn().expect("chpasswd is installed");
        let line = format!("{}:{password}\n", self.name);
        let mut stdin = chpasswd.stdin.take().expect("stdin is piped");
        stdin.write_all(line.as_bytes()).expect("chpasswd reads");
        drop(stdin);
        assert!(chpasswd.wait().expect("chpasswd ends").success(), "chpasswd refused {line:?}");
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let _lock = lock();
        // Its primary group of the same name goes with it.
        let removed = Command::new("userdel").arg("--force").arg(&self.name).output();
        if !matches!(&removed, Ok(output) if output.status.success()) {
            eprintln!("userdel {}: {removed:?}", self.name);
        }
    }
}

/// A system group; removed when dropped. Drop the accounts that joined it first.
pub struct Group {
    name: String,
}

impl Group {
    /// `groupadd` of a name that nobody has.
    pub fn new() -> Group {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("stltg{}x{number}", std::process::id());
        let _lock = lock();
        run(Command::new("groupadd").arg(&name)).ok();
        Group { name }
    }

    /// The group's name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _lock = lock();
        let _ = Command::new("groupdel").arg(&self.name).output();
    }
}

/// shadow's tools fail at once when another holds their lock: one at a time, over all processes.
fn lock() -> File {
    let path = std::env::temp_dir().join("stillage-test-accounts.lock");
    let file = File::create(&path).expect("the lock file of the account tools");
    file.lock().expect("the lock of the account tools");
    file
}
