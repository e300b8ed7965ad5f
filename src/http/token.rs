//! `/token`: a password or nothing for a token (the token authentication specification of
//! distribution, and its OAuth2 form with the password grant).

use std::time::SystemTime;

use axum::body::Body;
use axum::response::Response;
use http::header::{CACHE_CONTROL, WWW_AUTHENTICATE};
use http::request::Parts;
use http::{HeaderValue, StatusCode};
use serde_json::json;
use time::OffsetDateTime;
use time::macros::format_description;

use super::body::Upload;
use super::errors::{self, Failure, Refusal};
use super::origin::Origin;
use super::{App, encoding, gate, reply};
use crate::access;
use crate::auth::{self, Access, Issued, Who};
use crate::oci::{RepoName, essence};

/// The largest form that is read: names, a password, some scopes.
const MAX_FORM: usize = 64 * 1024;

/// `GET /token`: credentials in `Authorization`, or none.
pub(super) async fn get(
    app: &App,
    request: &Parts,
    origin: &Origin,
    scopes: &[String],
) -> Result<(Who, Response), Failure> {
    let caller = gate::identify(app, &request.headers, origin).await?;
    let caller = caller.map_err(Failure::Auth)?;
    let asked = auth::parse_scopes(scopes.iter().map(String::as_str));
    let issued = grant(app, &caller.who, &asked)?;
    Ok((caller.who, answer(&issued, None)))
}

/// `POST /token`: credentials in the form.
pub(super) async fn post(
    app: &App,
    request: &Parts,
    origin: &Origin,
    body: Body,
) -> Result<(Who, Response), Failure> {
    let form = Form::read(app, request, body).await?;
    match form.one("grant_type")? {
        "password" => {}
        // We never hand out refresh tokens; 404 tells clients to use GET.
        other => return Err(Refusal::Grant(other.chars().take(40).collect()).into()),
    }
    let (user, password) = (form.one("username")?, form.one("password")?);
    let who = app.auth.login(user, password, gate::peer(origin)).await;
    let who = who.map_err(Failure::Auth)?;
    let asked = auth::parse_scopes(form.all("scope"));
    let issued = grant(app, &who, &asked)?;
    // RFC 6749 (5.1) wants to have it said where it may be less than was asked.
    let granted: Vec<String> = issued.access.iter().map(ToString::to_string).collect();
    Ok((who, answer(&issued, Some(granted.join(" ")))))
}

/// A repository that cannot be looked at is left out of the token: the request for it will say why.
fn grant(app: &App, who: &Who, asked: &[Access]) -> Result<Issued, Failure> {
    let look = |repo: &RepoName, write| match app.registry.way(repo, write) {
        Ok(found) => Some(access::way(&found)),
        Err(error) => {
            tracing::warn!(cause = ?error.to_string(), "a repository is left out of a token");
            None
        }
    };
    if app.registry.is_read_only() {
        let pulls: Vec<Access> = asked.iter().filter_map(Access::reading).collect();
        return app.auth.grant(who, &pulls, look).map_err(Failure::Auth);
    }
    app.auth.grant(who, asked, look).map_err(Failure::Auth)
}

fn answer(issued: &Issued, scope: Option<String>) -> Response {
    let mut body = json!({
        "token": issued.token,
        "access_token": issued.token,
        "expires_in": issued.expires_in,
    });
    // Clients reckon the end from this; a wrong one is worse than none.
    if let Some(at) = rfc3339(issued.issued_at) {
        body["issued_at"] = at.into();
    }
    if let Some(scope) = scope {
        body["scope"] = scope.into();
    }
    let mut response = reply::json(StatusCode::OK, &body);
    no_store(&mut response);
    response
}

fn rfc3339(at: SystemTime) -> Option<String> {
    let form = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z");
    OffsetDateTime::from(at).format(&form).ok()
}

/// Nothing that `/token` answers may lie in a cache, and its 401 names the way to log in.
pub(super) fn finish(response: &mut Response) {
    no_store(response);
    if response.status() == StatusCode::UNAUTHORIZED {
        let basic = HeaderValue::from_static(auth::BASIC_CHALLENGE);
        response.headers_mut().insert(WWW_AUTHENTICATE, basic);
    }
}

fn no_store(response: &mut Response) {
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
}

struct Form(Vec<(String, String)>);

impl Form {
    async fn read(app: &App, request: &Parts, body: Body) -> Result<Form, Failure> {
        let kind = request.headers.get(http::header::CONTENT_TYPE);
        let kind = kind.and_then(|value| value.to_str().ok()).unwrap_or_default();
        if essence(kind) != "application/x-www-form-urlencoded" {
            let text = "must be application/x-www-form-urlencoded".to_owned();
            return Err(Refusal::Form(text).into());
        }
        let body = Upload::new(body, app.settings.patience).collect(MAX_FORM, &app.memory).await;
        let bytes = body.map_err(|error| errors::body(&error))?;
        let bytes = bytes.ok_or(Refusal::FormTooLarge(MAX_FORM))?;
        let text = str::from_utf8(&bytes).map_err(|_| Refusal::Form("is not UTF-8".to_owned()))?;
        let pairs = encoding::form(text).map_err(|error| Refusal::Form(error.to_string()))?;
        Ok(Form(pairs))
    }

    fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let named = self.0.iter().filter(move |(key, _)| key == name);
        named.map(|(_, value)| value.as_str())
    }

    /// The one value of a field, empty where it is absent.
    fn one<'a>(&'a self, name: &'a str) -> Result<&'a str, Refusal> {
        let mut values = self.all(name);
        let first = values.next().unwrap_or_default();
        match values.next() {
            None => Ok(first),
            Some(_) => Err(Refusal::Form(format!("names {name} twice"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times_are_whole_seconds_of_utc() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_763_942_400_999);
        assert_eq!(rfc3339(at).unwrap(), "2025-11-24T00:00:00Z");
    }
}
