//! One PAM transaction: is this the user's password, and may the account be used now?
//!
//! A narrow safe wrapper over `libpam-sys`. Only worker processes call it: modules may hang, crash,
//! take over signal handlers or change the credentials of every thread of the process.
//!
//! `pam_setcred` and `pam_open_session` are never called: a registry opens no session.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_int, c_uint, c_void};
use std::ptr;

use libpam_sys as ffi;
use nix::libc;
use zeroize::Zeroize;

/// Longest user name handed to PAM, in bytes.
pub(super) const MAX_USER: usize = 255;
/// Longest password handed to PAM, in bytes: PAM's own answers end at 512 with the final NUL.
pub(super) const MAX_PASSWORD: usize = 511;

/// What one transaction needs. No field holds a NUL.
pub(super) struct Request {
    pub(super) service: CString,
    pub(super) user: CString,
    pub(super) password: Secret,
    /// Where service files are looked for instead of `/etc/pam.d`.
    pub(super) confdir: Option<CString>,
    /// The client's address, for modules such as `pam_access`.
    pub(super) rhost: CString,
}

/// A password as C wants it, wiped when dropped.
pub(super) struct Secret(Vec<u8>);

impl Secret {
    /// `None` for a password that PAM could only misread: with a NUL in it, or too long.
    pub(super) fn new(bytes: &[u8]) -> Option<Secret> {
        if bytes.len() > MAX_PASSWORD || bytes.contains(&0) {
            return None;
        }
        // Sized once: growing would leave a copy behind in freed memory.
        let mut copy = Vec::with_capacity(bytes.len() + 1);
        copy.extend_from_slice(bytes);
        copy.push(0);
        Some(Secret(copy))
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// How a transaction ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Authenticated, and the account is in order. The name is PAM's own, read back, because a
    /// module may map one name to another.
    Accepted(String),
    /// A verdict against the user: wrong password, unknown, locked, expired.
    Refused(Failure),
    /// No verdict: PAM or what stands behind it does not work.
    Broken(Failure),
}

/// Which step failed, with PAM's code for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) step: Step,
    pub(super) code: i32,
}

/// The steps of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Step {
    Start = 0,
    Authenticate = 1,
    Account = 2,
    ReadBack = 3,
}

impl Step {
    pub(super) fn from_byte(byte: u8) -> Option<Step> {
        [Step::Start, Step::Authenticate, Step::Account, Step::ReadBack]
            .into_iter()
            .find(|step| *step as u8 == byte)
    }

    fn call(self) -> &'static str {
        match self {
            Step::Start => "pam_start",
            Step::Authenticate => "pam_authenticate",
            Step::Account => "pam_acct_mgmt",
            Step::ReadBack => "pam_get_item(PAM_USER)",
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} (PAM code {})", self.step.call(), describe(self.code), self.code)
    }
}

impl Failure {
    /// Sorts a failure into a verdict or a breakdown. What is not known to be a verdict is none.
    fn judge(self) -> Outcome {
        let verdict = matches!(
            self.code,
            ffi::PAM_PERM_DENIED
                | ffi::PAM_AUTH_ERR
                | ffi::PAM_CRED_INSUFFICIENT
                | ffi::PAM_USER_UNKNOWN
                | ffi::PAM_MAXTRIES
                | ffi::PAM_NEW_AUTHTOK_REQD
                | ffi::PAM_ACCT_EXPIRED
                | ffi::PAM_CRED_EXPIRED
                | ffi::PAM_AUTHTOK_EXPIRED
        );
        if verdict { Outcome::Refused(self) } else { Outcome::Broken(self) }
    }
}

/// Runs one transaction to its end. Blocks for as long as the modules do.
pub(super) fn check(request: &Request) -> Outcome {
    let conversation =
        Conversation { user: request.user.as_bytes(), password: &request.password.0 };
    match transact(request, &conversation) {
        Ok(user) => Outcome::Accepted(user),
        Err(failure) => failure.judge(),
    }
}

fn transact(request: &Request, conversation: &Conversation<'_>) -> Result<String, Failure> {
    let mut handle = Handle::start(request, conversation)?;
    handle.set_rhost(&request.rhost)?;
    handle.silence_fail_delay()?;
    let flags = ffi::PAM_SILENT | ffi::PAM_DISALLOW_NULL_AUTHTOK;
    handle.authenticate(flags)?;
    handle.account(flags)?;
    handle.user()
}

/// What the modules may ask for. The password ends in NUL.
struct Conversation<'a> {
    user: &'a [u8],
    password: &'a [u8],
}

/// An open transaction; ends it when dropped.
struct Handle<'a> {
    raw: *mut ffi::pam_handle,
    last: c_int,
    /// Modules call back into it until `pam_end`.
    _conversation: &'a Conversation<'a>,
}

impl<'a> Handle<'a> {
    fn start(
        request: &'a Request,
        conversation: &'a Conversation<'a>,
    ) -> Result<Handle<'a>, Failure> {
        let mut conv = ffi::pam_conv {
            conv: converse,
            appdata_ptr: ptr::from_ref(conversation).cast_mut().cast(),
        };
        let mut raw = ptr::null_mut();
        let (service, user) = (request.service.as_ptr(), request.user.as_ptr());
        // SAFETY: every string is NUL-terminated and outlives the call, which copies them; Linux-PAM
        // copies `conv` too. `appdata_ptr` is only read through, and points to a value that is
        // borrowed for as long as the handle lives.
        let code = unsafe {
            match &request.confdir {
                None => ffi::pam_start(service, user, &raw mut conv, &raw mut raw),
                Some(confdir) => ffi::pam_start_confdir(
                    service,
                    user,
                    &raw mut conv,
                    confdir.as_ptr(),
                    &raw mut raw,
                ),
            }
        };
        if code != ffi::PAM_SUCCESS || raw.is_null() {
            return Err(Failure { step: Step::Start, code });
        }
        Ok(Handle { raw, last: code, _conversation: conversation })
    }

    fn set_rhost(&mut self, rhost: &CStr) -> Result<(), Failure> {
        // SAFETY: the handle is open; PAM_RHOST takes a NUL-terminated string and copies it.
        let code = unsafe { ffi::pam_set_item(self.raw, ffi::PAM_RHOST, rhost.as_ptr().cast()) };
        self.result(Step::Start, code)
    }

    /// Without this PAM sleeps for seconds inside the call after a failure. Failures are slowed by
    /// the server's own timer, which holds no worker.
    fn silence_fail_delay(&mut self) -> Result<(), Failure> {
        let callback: unsafe extern "C" fn(c_int, c_uint, *mut c_void) = no_delay;
        // SAFETY: for PAM_FAIL_DELAY the item is the function's address itself (pam_fail_delay(3));
        // `no_delay` has the signature that PAM calls it with, and lives for ever.
        let code =
            unsafe { ffi::pam_set_item(self.raw, ffi::PAM_FAIL_DELAY, callback as *const c_void) };
        self.result(Step::Start, code)
    }

    fn authenticate(&mut self, flags: c_int) -> Result<(), Failure> {
        // SAFETY: the handle is open, and used by this thread alone.
        let code = unsafe { ffi::pam_authenticate(self.raw, flags) };
        self.result(Step::Authenticate, code)
    }

    fn account(&mut self, flags: c_int) -> Result<(), Failure> {
        // SAFETY: the handle is open, and used by this thread alone.
        let code = unsafe { ffi::pam_acct_mgmt(self.raw, flags) };
        self.result(Step::Account, code)
    }

    fn user(&mut self) -> Result<String, Failure> {
        let mut item: *const c_void = ptr::null();
        // SAFETY: the handle is open; PAM stores a pointer that it keeps owning.
        let code = unsafe { ffi::pam_get_item(self.raw, ffi::PAM_USER, &raw mut item) };
        self.result(Step::ReadBack, code)?;
        let missing = Failure { step: Step::ReadBack, code: ffi::PAM_USER_UNKNOWN };
        if item.is_null() {
            return Err(missing);
        }
        // SAFETY: PAM_USER is a NUL-terminated string that stays until the item is set again or the
        // handle is closed, neither of which happens before it is copied here.
        let name = unsafe { CStr::from_ptr(item.cast()) };
        name.to_str().map(str::to_owned).map_err(|_| missing)
    }

    fn result(&mut self, step: Step, code: c_int) -> Result<(), Failure> {
        self.last = code;
        if code == ffi::PAM_SUCCESS { Ok(()) } else { Err(Failure { step, code }) }
    }
}

impl Drop for Handle<'_> {
    fn drop(&mut self) {
        // SAFETY: opened by `start`, closed only here. It wipes PAM's own copy of the password.
        unsafe { ffi::pam_end(self.raw, self.last) };
    }
}

unsafe extern "C" fn no_delay(_result: c_int, _microseconds: c_uint, _appdata: *mut c_void) {}

/// Answers a module's questions: the password to what is hidden, the user's name to what is shown.
unsafe extern "C" fn converse(
    count: c_int,
    messages: *const *const ffi::pam_message,
    responses: *mut *mut ffi::pam_response,
    appdata: *mut c_void,
) -> c_int {
    let Ok(count) = usize::try_from(count) else {
        return ffi::PAM_CONV_ERR;
    };
    let most = usize::try_from(ffi::PAM_MAX_NUM_MSG).unwrap_or(32);
    if count == 0 || count > most || messages.is_null() || responses.is_null() || appdata.is_null()
    {
        return ffi::PAM_CONV_ERR;
    }
    // SAFETY: `appdata` is the pointer that `start` gave, to a Conversation that outlives the handle.
    let conversation = unsafe { &*appdata.cast::<Conversation<'_>>() };
    // SAFETY: PAM frees the answers with free(3), so they come from calloc(3); zeroed is a valid
    // pam_response (no answer).
    let answers: *mut ffi::pam_response =
        unsafe { libc::calloc(count, size_of::<ffi::pam_response>()) }.cast();
    if answers.is_null() {
        return ffi::PAM_BUF_ERR;
    }
    for index in 0..count {
        // SAFETY: Linux-PAM passes an array of `count` pointers to messages.
        let style = unsafe { (**messages.add(index)).msg_style };
        let text = match style {
            ffi::PAM_PROMPT_ECHO_OFF => conversation.password.strip_suffix(&[0]),
            ffi::PAM_PROMPT_ECHO_ON => Some(conversation.user),
            ffi::PAM_ERROR_MSG | ffi::PAM_TEXT_INFO => continue,
            _ => None,
        };
        let copy = text.map_or(ptr::null_mut(), c_copy);
        if copy.is_null() {
            // SAFETY: `answers` has `count` entries, each null or from `c_copy`; nobody else has it.
            unsafe { discard(answers, count) };
            return ffi::PAM_CONV_ERR;
        }
        // SAFETY: `index` is below `count`, the length of the array just allocated.
        unsafe { (*answers.add(index)).resp = copy };
    }
    // SAFETY: checked above not to be null; PAM takes over the array.
    unsafe { *responses = answers };
    ffi::PAM_SUCCESS
}

/// A NUL-terminated copy that free(3) can take; null when memory is short.
fn c_copy(text: &[u8]) -> *mut std::ffi::c_char {
    // SAFETY: calloc may be asked for any size; the result is checked before use.
    let copy: *mut u8 = unsafe { libc::calloc(text.len() + 1, 1) }.cast();
    if !copy.is_null() {
        // SAFETY: `copy` has room for one byte more than `text`, is fresh, and so does not overlap.
        unsafe { ptr::copy_nonoverlapping(text.as_ptr(), copy, text.len()) };
    }
    copy.cast()
}

/// Wipes and frees answers that PAM will not get.
///
/// # Safety
/// `answers` came from calloc with `count` entries, whose `resp` are null or from [`c_copy`].
unsafe fn discard(answers: *mut ffi::pam_response, count: usize) {
    for index in 0..count {
        // SAFETY: within the array, as the caller promises.
        let text = unsafe { (*answers.add(index)).resp };
        if !text.is_null() {
            // SAFETY: NUL-terminated by `c_copy`, not shared; the bytes before the NUL are ours.
            unsafe {
                let length = libc::strlen(text);
                std::slice::from_raw_parts_mut(text.cast::<u8>(), length).zeroize();
                libc::free(text.cast());
            }
        }
    }
    // SAFETY: from calloc, as the caller promises, and freed once.
    unsafe { libc::free(answers.cast()) };
}

/// PAM's own words for a code.
fn describe(code: i32) -> String {
    // SAFETY: Linux-PAM ignores the handle and returns a static, NUL-terminated string.
    let text = unsafe { ffi::pam_strerror(ptr::null(), code) };
    if text.is_null() {
        return "unknown PAM code".to_owned();
    }
    // SAFETY: as above.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
