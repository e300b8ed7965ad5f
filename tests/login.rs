//! Who is let in, and what those are told who are not.

#[path = "support/pam.rs"]
mod pam;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pam::{HERE, Host, PASSWORD};
use stillage::auth::{
    Action, Anonymous, Auth, AuthError, Caller, Granted, Mode, Permissions, TokenError, User,
    Verdict, Way, Who, parse_scopes,
};
use stillage::oci::RepoName;

fn basic(user: &str, password: &str) -> Vec<u8> {
    use base64::Engine as _;
    let pair = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    format!("Basic {pair}").into_bytes()
}

fn repo(name: &str) -> RepoName {
    RepoName::parse(name).expect("a name")
}

/// A repository that everybody may read and write.
fn open(_: &RepoName, _: bool) -> Option<Way> {
    let everybody = Permissions { owner: 0, group: 0, mode: 0o777, acl: None };
    Some(Way { levels: vec![everybody], whole: true, read_only: false, stopped: false })
}

fn verdict(auth: &Auth, caller: &Caller, repo: &RepoName, action: Action) -> Verdict {
    let way = open(repo, true).expect("a way");
    auth.decide(caller, repo, &way, action).0
}

async fn refused(auth: &Auth, user: &str, password: &str) {
    let result = auth.login(user, password, HERE).await;
    assert_eq!(result, Err(AuthError::Refused), "{user:?} {password:?}");
}

#[tokio::test]
async fn the_right_password_gives_the_account() {
    let host = Host::new();
    let who = host.auth().login("daemon", PASSWORD, HERE).await.expect("let in");
    let Who::User(user) = who else { panic!("{who:?}") };
    assert_eq!((user.name.as_str(), user.uid, user.gid), ("daemon", 1, 1));
    assert!(user.groups.contains(&1), "{user:?}");
    let asked = host.asked();
    assert_eq!((asked[0].1.as_str(), asked[0].2.as_str()), ("daemon", "127.0.0.1"));
}

#[tokio::test]
async fn enumeration_every_refusal_is_the_same_and_takes_the_same() {
    let host = Host::new();
    host.service(
        "expired",
        "auth required MATRIX\naccount required pam_debug.so acct=acct_expired\n",
    );
    let mut settings = host.settings();
    settings.limits.failure_floor = Duration::from_millis(400);
    let auth = Auth::new(settings).expect("good settings");
    let mut settings = host.settings();
    settings.limits.failure_floor = Duration::from_millis(400);
    settings.pam_service = "expired".into();
    let expired = Auth::new(settings).expect("good settings");

    for (auth, user, password) in [
        (&auth, "daemon", "wrong"),
        (&auth, "daemon", ""),
        (&auth, "no-such-user", "wrong"),
        (&auth, "", "wrong"),
        (&auth, "root", PASSWORD),
        (&auth, "nobody-has-this-name", PASSWORD),
        (&auth, "dae\0mon", PASSWORD),
        (&expired, "daemon", PASSWORD),
        (&auth, "daemon", "wrong"),
    ] {
        let began = Instant::now();
        refused(auth, user, password).await;
        let took = began.elapsed();
        assert!(took >= Duration::from_millis(400), "{user:?} {password:?}: {took:?}");
        assert!(took < Duration::from_millis(1200), "{user:?} {password:?}: {took:?}");
    }
}

#[tokio::test]
async fn account_phase_every_verdict_against_the_user_is_a_refusal() {
    let host = Host::new();
    let verdicts = [
        ("auth", "perm_denied"),
        ("auth", "auth_err"),
        ("auth", "cred_insufficient"),
        ("auth", "user_unknown"),
        ("auth", "maxtries"),
        ("acct", "perm_denied"),
        ("acct", "auth_err"),
        ("acct", "user_unknown"),
        ("acct", "new_authtok_reqd"),
        ("acct", "acct_expired"),
        ("acct", "cred_expired"),
        ("acct", "authtok_expired"),
    ];
    let failures = [
        ("auth", "authinfo_unavail"),
        ("auth", "system_err"),
        ("auth", "service_err"),
        ("auth", "abort"),
        ("auth", "conv_err"),
        ("acct", "authinfo_unavail"),
        ("acct", "system_err"),
    ];
    let checks = verdicts
        .map(|case| (case, AuthError::Refused))
        .into_iter()
        .chain(failures.map(|case| (case, AuthError::Unavailable)));
    for ((phase, code), expected) in checks {
        let service = format!("{phase}-{code}");
        let (auth, account) = match phase {
            "auth" => (code, "success"),
            _ => ("success", code),
        };
        host.service(
            &service,
            &format!(
                "auth required MATRIX\nauth required pam_debug.so auth={auth}\n\
                 account required pam_debug.so acct={account}\n"
            ),
        );
        let mut settings = host.settings();
        settings.pam_service = service.clone();
        settings.limits.failure_floor = Duration::from_millis(1);
        let auth = Auth::new(settings).expect("good settings");
        let result = auth.login("daemon", PASSWORD, HERE).await;
        assert_eq!(result, Err(expected), "{service}");
    }
}

#[tokio::test]
async fn what_pam_must_not_see_never_reaches_it() {
    let host = Host::new();
    let mut settings = host.settings();
    settings.limits.failure_floor = Duration::from_millis(1);
    let auth = Auth::new(settings).expect("good settings");
    let long = "p".repeat(600);
    for (user, password) in [
        ("daemon", "a\0b"),
        ("daemon", "a\nb"),
        ("daemon", &long),
        ("daemon", &long[..512]),
        ("dae\0mon", "x"),
        ("daemon\n", "x"),
        ("\u{1b}[2J", "x"),
        (&long, "x"),
        ("", "x"),
    ] {
        refused(&auth, user, password).await;
    }
    assert!(host.asked().is_empty());
    let encoded = basic("daemon", "a\0b");
    assert_eq!(auth.identify(Some(&encoded), HERE).await, Err(AuthError::Refused));
    assert!(host.asked().is_empty());

    let accepted = auth.login("man", &long[..511], HERE).await;
    assert!(matches!(accepted, Ok(Who::User(_))), "511 bytes work: {accepted:?}");
}

#[tokio::test]
async fn root_may_log_in_only_if_told_so() {
    let host = Host::new();
    refused(&host.auth(), "root", PASSWORD).await;
    let mut settings = host.settings();
    settings.allow_root = true;
    let auth = Auth::new(settings).expect("good settings");
    let who = auth.login("root", PASSWORD, HERE).await.expect("let in");
    assert_eq!(who.name(), Some("root"));
    let token = auth.grant(&who, &[], open).expect("a token").token;
    let bearer = format!("Bearer {token}");
    assert!(auth.identify(Some(bearer.as_bytes()), HERE).await.is_ok());
    let strict = host.auth().identify(Some(bearer.as_bytes()), HERE).await;
    assert_eq!(
        strict,
        Err(AuthError::InvalidToken(TokenError::Subject)),
        "a token outlives no option"
    );
}

#[tokio::test]
async fn a_missing_service_means_other() {
    let host = Host::new();
    host.service("other", "auth required pam_permit.so\naccount required pam_permit.so\n");
    let mut settings = host.settings();
    settings.pam_service = "elsewhere".into();
    let auth = Auth::new(settings).expect("good settings");
    assert!(auth.login("daemon", "whatever", HERE).await.is_ok());
}

#[tokio::test]
async fn pam_sleeps_in_no_worker_after_a_failure() {
    let host = Host::new();
    host.service(
        "slow",
        "auth optional pam_faildelay.so delay=8000000\nauth required MATRIX\naccount required MATRIX\n",
    );
    let mut settings = host.settings();
    settings.pam_service = "slow".into();
    let auth = Auth::new(settings).expect("good settings");
    let began = Instant::now();
    refused(&auth, "daemon", "wrong").await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

#[tokio::test]
async fn pam_is_asked_once_for_the_same_pair() {
    let host = Host::new();
    let auth = Arc::new(host.auth());
    let many = (0..32).map(|_| {
        let auth = Arc::clone(&auth);
        tokio::spawn(async move { auth.login("daemon", PASSWORD, HERE).await })
    });
    for login in many.collect::<Vec<_>>() {
        assert!(login.await.expect("no panic").is_ok());
    }
    assert_eq!(host.asked().len(), 1, "32 at once");
    assert!(auth.login("daemon", PASSWORD, HERE).await.is_ok());
    assert_eq!(host.asked().len(), 1, "and one a moment later");

    refused(&auth, "daemon", "wrong").await;
    refused(&auth, "daemon", "wrong").await;
    assert_eq!(host.asked().len(), 2, "a wrong pair is remembered too");
    refused(&auth, "bin", "wrong").await;
    assert_eq!(host.asked().len(), 3, "but not for another user");
}

#[tokio::test]
async fn different_users_at_once_are_all_let_in() {
    let host = Host::new();
    let auth = Arc::new(host.auth());
    let users = ["daemon", "bin", "sys", "games"];
    let logins = (0..32).map(|n| {
        let auth = Arc::clone(&auth);
        tokio::spawn(async move { auth.login(users[n % 4], PASSWORD, HERE).await })
    });
    for (n, login) in logins.collect::<Vec<_>>().into_iter().enumerate() {
        let who = login.await.expect("no panic").expect("let in");
        assert_eq!(who.name(), Some(users[n % 4]));
    }
}

#[tokio::test]
async fn a_guess_counts_even_if_the_client_hangs_up() {
    let host = Host::new();
    let auth = host.auth();
    for n in 0..6 {
        let password = format!("wrong {n}");
        let login = auth.login("daemon", &password, HERE);
        let gave_up = tokio::time::timeout(Duration::from_millis(20), login).await;
        assert!(gave_up.is_err(), "a refusal does not come so early");
    }
    // The seventh has to wait for the sixth's turn and half a second, unless nothing was counted.
    let began = Instant::now();
    assert!(auth.login("daemon", PASSWORD, HERE).await.is_ok());
    assert!(began.elapsed() >= Duration::from_millis(250), "{:?}", began.elapsed());
}

#[tokio::test]
async fn guessing_ends_in_too_many() {
    let host = Host::new();
    let auth = Arc::new(host.auth());
    let guesses = (0..60).map(|n| {
        let auth = Arc::clone(&auth);
        tokio::spawn(async move { auth.login("daemon", &format!("wrong {n}"), HERE).await })
    });
    let guesses: Vec<_> = guesses.collect();
    // The refused ones answer at once; those that wait for their turn are not waited for here.
    let mut too_many = 0;
    for guess in guesses {
        if let Ok(result) = tokio::time::timeout(Duration::from_millis(300), guess).await
            && let Err(AuthError::TooMany { retry_after }) = result.expect("no panic")
        {
            assert!(retry_after > Duration::from_secs(15));
            too_many += 1;
        }
    }
    assert!(too_many > 40, "{too_many}");
    let elsewhere: IpAddr = "192.0.2.7".parse().expect("an address");
    let other = auth.login("bin", PASSWORD, elsewhere).await;
    assert!(other.is_ok(), "nobody else is held up: {other:?}");
}

#[tokio::test]
async fn credential_cache_what_is_remembered_cannot_be_guessed_against() {
    let host = Host::new();
    let auth = Arc::new(host.auth());
    let elsewhere: IpAddr = "192.0.2.7".parse().expect("an address");
    assert!(auth.login("daemon", PASSWORD, elsewhere).await.is_ok());
    let guesses: Vec<_> = (0..60)
        .map(|n| {
            let auth = Arc::clone(&auth);
            tokio::spawn(async move { auth.login("daemon", &format!("wrong {n}"), HERE).await })
        })
        .collect();
    // The tasks begin in turn on the one thread of this runtime: the right guess is the last.
    let right = {
        let auth = Arc::clone(&auth);
        tokio::spawn(async move { auth.login("daemon", PASSWORD, HERE).await })
    };
    let right = right.await.expect("no panic");
    assert!(matches!(right, Err(AuthError::TooMany { .. })), "as a wrong one: {right:?}");
    assert!(auth.login("daemon", PASSWORD, elsewhere).await.is_ok(), "the user goes on");
    guesses.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn tokens_carry_the_login_and_what_was_granted() {
    let host = Host::new();
    let mut settings = host.settings();
    settings.anonymous = Anonymous::Pull;
    let auth = Auth::new(settings).expect("good settings");
    let (ours, other) = (repo("team/app"), repo("other"));
    let asked = parse_scopes(["repository:team/app:pull,push registry:catalog:*"]);

    let caller = auth.identify(Some(&basic("daemon", PASSWORD)), HERE).await.expect("let in");
    assert_eq!(caller.granted, Granted::All);
    assert_eq!(verdict(&auth, &caller, &other, Action::Delete), Verdict::Allowed);
    let issued = auth.grant(&caller.who, &asked, open).expect("a token");
    let bearer = format!("bEaReR {}", issued.token);
    let caller = auth.identify(Some(bearer.as_bytes()), HERE).await.expect("believed");
    assert_eq!(caller.who.name(), Some("daemon"));
    assert_eq!(caller.granted, Granted::Token(asked.clone()));
    for (repo, action, verdict) in [
        (&ours, Action::Pull, Verdict::Allowed),
        (&ours, Action::Push, Verdict::Allowed),
        (&ours, Action::Delete, Verdict::NeedsScope),
        (&other, Action::Pull, Verdict::NeedsScope),
    ] {
        assert_eq!(self::verdict(&auth, &caller, repo, action), verdict, "{repo} {action:?}");
    }

    let nobody = auth.identify(None, HERE).await.expect("nobody");
    assert!(!nobody.presented());
    assert_eq!(verdict(&auth, &nobody, &ours, Action::Pull), Verdict::NeedsToken);
    let issued = auth.grant(&nobody.who, &asked, open).expect("anonymous pulls here");
    let bearer = format!("Bearer {}", issued.token);
    let anonymous = auth.identify(Some(bearer.as_bytes()), HERE).await.expect("believed");
    assert_eq!((&anonymous.who, anonymous.presented()), (&Who::Anonymous, true));
    assert_eq!(verdict(&auth, &anonymous, &ours, Action::Pull), Verdict::Allowed);
    assert_eq!(verdict(&auth, &anonymous, &ours, Action::Push), Verdict::NeedsScope);
    assert_eq!(verdict(&auth, &anonymous, &other, Action::Pull), Verdict::NeedsScope);
}

#[tokio::test]
async fn a_token_ends_with_its_account() {
    let host = Host::new();
    let auth = host.auth();
    let gone = User { name: "no-such-user".into(), uid: 4711, gid: 4711, groups: vec![4711] };
    let token = auth.grant(&Who::User(Arc::new(gone)), &[], open).expect("a token").token;
    let result = auth.identify(Some(format!("Bearer {token}").as_bytes()), HERE).await;
    assert_eq!(result, Err(AuthError::InvalidToken(TokenError::Subject)));
}

#[tokio::test]
async fn headers_that_make_no_sense_are_told_so() {
    let host = Host::new();
    let auth = host.auth();
    for header in
        [&b""[..], b"Negotiate abc", b"Basic", b"Basic ???", b"Basic YW5uYQ==", b"\xff\xff"]
    {
        let result = auth.identify(Some(header), HERE).await;
        assert!(matches!(result, Err(AuthError::Malformed(_))), "{header:?}: {result:?}");
    }
    for header in [&b"Bearer"[..], b"Bearer x", b"Bearer a.b.c", b"Bearer \xff"] {
        let result = auth.identify(Some(header), HERE).await;
        assert!(matches!(result, Err(AuthError::InvalidToken(_))), "{header:?}: {result:?}");
    }
    // What podman sends when it has neither user nor password.
    let empty = auth.identify(Some(b"bAsIc  Og=="), HERE).await.expect("anonymous");
    assert_eq!((&empty.who, empty.presented()), (&Who::Anonymous, false));
    assert_eq!(auth.login("", "", HERE).await, Ok(Who::Anonymous));
    assert!(matches!(auth.grant(&Who::Anonymous, &[], open), Err(AuthError::NoCredentials)));
    assert!(host.asked().is_empty());
}

#[tokio::test]
async fn without_logins_everyone_is_the_server() {
    let host = Host::new();
    let mut settings = host.settings();
    settings.mode = Mode::None;
    let auth = Auth::new(settings).expect("good settings");
    for header in [None, Some(&b"Basic ???"[..])] {
        let caller = auth.identify(header, HERE).await.expect("let in");
        assert!(matches!(caller.who, Who::Server(_)) && caller.presented());
        assert_eq!(verdict(&auth, &caller, &repo("a"), Action::Delete), Verdict::Allowed);
    }
    assert!(auth.who_can_log_in().starts_with("no login: every request acts as "));
    assert!(host.workers().is_empty());
}

#[tokio::test]
async fn settings_that_make_no_sense_are_refused() {
    let host = Host::new();
    for service in ["", "../other", "a/b", ".hidden", "a b", "a\nb"] {
        let mut settings = host.settings();
        settings.pam_service = service.into();
        assert!(Auth::new(settings).is_err(), "{service:?}");
    }
    let mut settings = host.settings();
    settings.pam_confdir = Some("pam.d".into());
    assert!(Auth::new(settings).is_err());
    assert!(Auth::new(stillage::auth::Settings::new(Mode::Pam, Arc::new([0; 32]))).is_err());
}
