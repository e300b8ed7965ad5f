//! Every way in which a token can be wrong.

use super::super::scope::parse_scopes;
use super::*;

const KEY: [u8; 32] = [7; 32];

fn signer() -> Signer {
    Signer::new(Arc::new(KEY), "stillage")
}

fn key(secret: [u8; 32], made: SystemTime) -> SigningKey {
    SigningKey { secret: Zeroizing::new(secret), made }
}

fn sign_with(header: &str, claims: &Claims) -> String {
    sign(&key(KEY, UNIX_EPOCH), header, claims)
}

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn access() -> Vec<Access> {
    parse_scopes(["repository:a/b:pull,push registry:catalog:*"])
}

fn issued() -> String {
    signer().issue_at(now(), Some("anna"), access()).expect("random").token
}

/// A token with claims of our choice, signed with the right key.
fn forged(change: impl FnOnce(&mut Claims)) -> Result<Claims, TokenError> {
    let mut claims = signer().verify_at(now(), &issued()).expect("good");
    change(&mut claims);
    signer().verify_at(now(), &sign_with(HEADER, &claims))
}

#[test]
fn what_was_issued_is_believed() {
    let issued = signer().issue_at(now(), Some("anna"), access()).expect("random");
    assert_eq!((issued.expires_in, issued.issued_at), (300, now()));
    let claims = signer().verify_at(now(), &issued.token).expect("good");
    assert_eq!(claims.sub.as_deref(), Some("anna"));
    assert_eq!(claims.access, access());
    let again = signer().issue_at(now(), Some("anna"), access()).expect("random");
    assert_ne!(issued.token, again.token, "each has its own id");
    let anonymous = signer().issue_at(now(), None, Vec::new()).expect("random");
    assert_eq!(signer().verify_at(now(), &anonymous.token).expect("good").sub, None);
}

#[test]
fn the_header_is_what_it_says() {
    assert_eq!(decode(HEADER).expect("base64"), br#"{"typ":"JWT","alg":"HS256"}"#);
}

#[test]
fn token_key_no_other_header_is_believed() {
    let (_, rest) =
        issued().split_once('.').map(|(a, b)| (a.to_owned(), b.to_owned())).expect("dots");
    for header in [
        r#"{"alg":"none"}"#,
        r#"{"typ":"JWT","alg":"none"}"#,
        r#"{"alg":"HS256","typ":"JWT"}"#,
        r#"{"typ":"JWT","alg":"HS512"}"#,
        r#"{"typ":"JWT","alg":"RS256"}"#,
        r#"{"typ":"JWT","alg":"HS256","kid":"../../x"}"#,
        r#"{"typ":"JWT","alg":"HS256","jwk":{"kty":"oct","k":"AAAA"}}"#,
        r#"{"typ":"JWT","alg":"HS256","jku":"http://127.0.0.1:9/x"}"#,
        r#"{"typ":"JWT","alg":"HS256","x5u":"http://127.0.0.1:9/x"}"#,
        r#"{"typ":"JWT","alg":"HS256","crit":["exp"]}"#,
    ] {
        let header = URL_SAFE_NO_PAD.encode(header);
        let swapped = format!("{header}.{rest}");
        assert_eq!(signer().verify_at(now(), &swapped), Err(TokenError::Header));
        let claims = signer().verify_at(now(), &issued()).expect("good");
        let signed = sign_with(&header, &claims);
        assert_eq!(signer().verify_at(now(), &signed), Err(TokenError::Header), "even if signed");
    }
}

#[test]
fn a_changed_token_is_not_believed() {
    let token = issued();
    for position in HEADER.len() + 1..token.len() {
        let mut changed = token.clone().into_bytes();
        changed[position] = if changed[position] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(changed).expect("ASCII");
        assert!(signer().verify_at(now(), &changed).is_err(), "changed at {position}");
    }
    let other = Signer::new(Arc::new([8; 32]), "stillage");
    assert_eq!(other.verify_at(now(), &token), Err(TokenError::Signature));
    let (signed, _) = token.rsplit_once('.').expect("dots");
    for signature in ["", "AAAA", &"A".repeat(43)] {
        let forged = format!("{signed}.{signature}");
        assert_eq!(signer().verify_at(now(), &forged), Err(TokenError::Signature), "{signature}");
    }
}

#[test]
fn the_encoding_is_strict() {
    let token = issued();
    let malformed = [
        String::new(),
        ".".into(),
        "..".into(),
        "a.b.c".into(),
        HEADER.into(),
        format!("{token}="),
        format!("{token}\n"),
        format!(" {token}"),
        format!("{token}.x"),
        token.replacen('.', "..", 1),
        token.to_uppercase(),
    ];
    for bad in malformed {
        assert!(signer().verify_at(now(), &bad).is_err(), "{bad:?}");
    }
    // 43 characters carry 258 bits: the last two must be zero, or one token would have four forms.
    let last = token.chars().last().expect("not empty");
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let next = alphabet.chars().skip_while(|c| *c != last).nth(1).expect("zero bits are not last");
    let stray = format!("{}{next}", &token[..token.len() - 1]);
    assert_eq!(signer().verify_at(now(), &stray), Err(TokenError::Malformed));
    let long = format!("{token}{}", "A".repeat(MAX_TOKEN));
    assert_eq!(signer().verify_at(now(), &long), Err(TokenError::Long));
}

#[test]
fn token_claims_audience_must_be_ours() {
    assert_eq!(forged(|claims| claims.aud = "other".into()), Err(TokenError::Audience));
    assert_eq!(forged(|claims| claims.aud = String::new()), Err(TokenError::Audience));
}

#[test]
fn token_claims_none_may_be_missing() {
    let whole = serde_json::to_value(signer().verify_at(now(), &issued()).expect("good"))
        .expect("claims are JSON");
    for claim in ["aud", "nbf", "iat", "exp", "jti", "access"] {
        let mut less = whole.clone();
        less.as_object_mut().expect("an object").remove(claim).expect("it was there");
        let body = URL_SAFE_NO_PAD.encode(less.to_string());
        let signed = format!("{HEADER}.{body}");
        let signature = mac(&key(KEY, UNIX_EPOCH), signed.as_bytes()).finalize().into_bytes();
        let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature));
        assert_eq!(signer().verify_at(now(), &token), Err(TokenError::Malformed), "{claim}");
    }
}

#[test]
fn token_claims_times_with_skew() {
    let token = issued();
    let at = |seconds: i64| {
        let time = now().moved(seconds);
        signer().verify_at(time, &token)
    };
    assert!(at(0).is_ok());
    assert!(at(359).is_ok(), "300 s, and 60 s of skew");
    assert_eq!(at(360), Err(TokenError::Expired));
    assert!(at(-60).is_ok());
    assert_eq!(at(-61), Err(TokenError::Early));
    assert_eq!(forged(|claims| claims.exp = 0), Err(TokenError::Expired));
    assert_eq!(forged(|claims| claims.nbf += 61), Err(TokenError::Early));
    assert_eq!(forged(|claims| claims.iat = u64::MAX), Err(TokenError::Early));
    assert!(forged(|claims| claims.exp = u64::MAX).is_ok(), "no overflow");
}

#[test]
fn the_largest_token_that_is_issued_is_read() {
    let name = |n: usize| format!("{n:02}{}", "/abcdefghijklm".repeat(18));
    let scopes: Vec<String> =
        (0..100).map(|n| format!("repository:{}:pull,push,delete", name(n))).collect();
    let access = parse_scopes(scopes.iter().map(String::as_str));
    assert_eq!(access.len(), super::super::scope::MAX_SCOPES);
    let user = "u".repeat(255);
    let token = signer().issue_at(now(), Some(&user), access).expect("random").token;
    assert!(signer().verify_at(now(), &token).is_ok(), "{} bytes", token.len());
}

/// Keys as a test sets them, which are seen only when somebody looks again.
#[derive(Clone)]
struct Changing(Arc<Mutex<(SigningKeys, Option<SigningKeys>)>>);

impl KeySource for Changing {
    fn keys(&self, need: Need) -> Result<SigningKeys, KeysError> {
        let mut keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if need != Need::Verify
            && let Some(next) = keys.1.take()
        {
            keys.0 = next;
        }
        Ok(keys.0.clone())
    }
}

#[test]
fn the_key_before_is_believed_as_long_as_its_tokens_live() {
    let token = issued();
    let rotated = |made: SystemTime| {
        let (current, previous) = (key([8; 32], made), Some(key(KEY, UNIX_EPOCH)));
        Signer::new(fixed(SigningKeys { current, previous }), "stillage")
    };
    assert!(rotated(now()).verify_at(now(), &token).is_ok());
    // As of a server whose clock is behind, and one whose clock is ahead.
    assert!(rotated(now()).verify_at(now().moved(-60), &token).is_ok());
    assert!(rotated(now().moved(-60)).verify_at(now().moved(359), &token).is_ok());
    // Whoever found an old key cannot sign with it.
    let since = rotated(now().moved(-420));
    assert_eq!(since.verify_at(now(), &token), Err(TokenError::Signature));
    let gone = SigningKeys { current: key([8; 32], now()), previous: None };
    let gone = Signer::new(fixed(gone), "stillage");
    assert_eq!(gone.verify_at(now(), &token), Err(TokenError::Signature));
}

fn fixed(keys: SigningKeys) -> Arc<dyn KeySource> {
    Arc::new(Changing(Arc::new(Mutex::new((keys, None)))))
}

#[test]
fn an_unknown_signature_has_the_keys_read_again_but_not_for_ever() {
    let old = SigningKeys { current: key([8; 32], UNIX_EPOCH), previous: None };
    let new = SigningKeys { current: key(KEY, UNIX_EPOCH), previous: None };
    let source = Changing(Arc::new(Mutex::new((old.clone(), Some(new.clone())))));
    let signer = Signer::new(Arc::new(source.clone()), "stillage");
    assert!(signer.verify_at(now(), &issued()).is_ok(), "another server made a key");
    *source.0.lock().expect("no panic") = (old, Some(new));
    let again = signer.verify_at(now(), &issued());
    assert_eq!(again, Err(TokenError::Signature), "within a second of the last look");
}

/// Steps in time to both sides.
trait Moved {
    fn moved(self, seconds: i64) -> SystemTime;
}

impl Moved for SystemTime {
    fn moved(self, seconds: i64) -> SystemTime {
        let step = Duration::from_secs(seconds.unsigned_abs());
        if seconds < 0 { self - step } else { self + step }
    }
}
