//! The wire: HTTP requests in, deeds of the registry done, answers out.
//!
//! A request goes one way: [`route`] reads its line into one typed action, `origin` finds out where
//! it came from, `gate` asks `auth` who is there and whether they may, a handler (`blobs`,
//! `manifests`, `uploads`, `lists`, `token`) calls the registry, and `errors` turns whatever went
//! wrong into status, code and message. No other room knows a status code or a header.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use http::request::Parts;
use http::{Method, Request, StatusCode};

use crate::auth::Auth;
use crate::registry::Registry;

mod accel;
mod audit;
mod blobs;
mod body;
mod conn;
mod download;
mod encoding;
mod errors;
mod faults;
mod framing;
#[doc(hidden)]
pub mod fuzz;
mod gate;
mod head;
mod http2;
mod keys;
mod lists;
mod log;
mod manifests;
mod memory;
mod origin;
mod places;
mod reply;
pub mod route;
mod sendfile;
mod server;
mod speak;
mod strict;
mod tls;
mod token;
mod uploads;
mod visit;
pub mod webhooks;

pub use accel::{Accel, AccelError, Prefix};
use errors::{Failure, Refusal};
pub use keys::token_keys;
use log::Record;
use memory::Memory;
use origin::Origin;
pub use origin::{BaseUrl, Network};
use route::{Action, Deed, RouteError};
pub use server::Server;
pub use tls::{KeyFiles, Own, OwnError, Tls, TlsError};
use visit::Visit;

/// What the wire needs to know, besides where to listen.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The URL under which clients reach the server, where that is not what their `Host` says.
    pub external_url: Option<BaseUrl>,
    /// Proxies whose word about a client's address and URL counts.
    pub trusted_proxies: Vec<Network>,
    /// Where trusted proxies send blobs themselves: how they are told which.
    pub accel: Option<Arc<Accel>>,
    /// The certificate, where the listener speaks TLS.
    pub tls: Option<Tls>,
    /// No logins: then pages of other sites are kept out.
    pub open: bool,
    /// How long a client may keep us waiting: for a request's head, for more of its body, or for
    /// room to send it more of an answer.
    pub patience: Duration,
    /// How many connections are served at once; others are told to come again. Files that are
    /// open take descriptors too: no more than those leave.
    pub connections: usize,
    /// How many connections one client may have: an IPv4 address, or an IPv6 network of one link.
    /// A quarter of all, unless said otherwise.
    pub connections_each: Option<usize>,
    /// How long requests in flight may take to finish after the server was told to stop.
    pub farewell: Duration,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            external_url: None,
            trusted_proxies: Vec::new(),
            accel: None,
            tls: None,
            open: false,
            patience: Duration::from_secs(60),
            connections: 16 * 1024,
            connections_each: None,
            farewell: Duration::from_secs(30),
        }
    }
}

/// What all requests share.
pub(crate) struct App {
    registry: Registry,
    auth: Auth,
    settings: Settings,
    memory: Arc<Memory>,
}

impl App {
    /// Answers one request that came from `peer`. Never fails: whatever goes wrong is an answer.
    async fn answer(self: Arc<App>, request: Request<Body>, peer: IpAddr) -> Response {
        let (mut request, body) = request.into_parts();
        let mut record = Record::begin(&request, peer);
        let action = route::parse(&request.method, request.uri.path(), request.uri.query());
        let closed = self.registry.is_read_only() && would_change(&request.method, &action);
        let (mut response, is_token) = match action {
            _ if closed => (self.changes_nothing(&request, peer, &mut record), false),
            Ok(action) => {
                let outcome =
                    Arc::clone(&self).act(&mut request, body, peer, &action, &mut record).await;
                let outcome = match outcome {
                    Ok(response) => self.memory.count(response).await.map_err(Failure::from),
                    failed => failed,
                };
                let response = outcome.unwrap_or_else(|failure| match &action {
                    Action::Repo(repo, _) => failure.into_response(Some(repo)),
                    _ => failure.into_response(None),
                });
                (response, matches!(action, Action::Token { .. } | Action::TokenForm))
            }
            Err(error) => (Failure::from(error).into_response(None), false),
        };
        if is_token {
            token::finish(&mut response);
        }
        reply::finish(&mut response);
        record.end(response)
    }

    /// Answers a request that is refused whatever it asks for.
    fn refuse(&self, request: &Parts, refusal: Refusal, peer: IpAddr) -> Response {
        let record = Record::begin(request, peer);
        let mut response = Failure::from(refusal).into_response(None);
        reply::finish(&mut response);
        record.end(response)
    }

    /// Nobody is asked for a login for what nobody may.
    fn changes_nothing(&self, request: &Parts, peer: IpAddr, record: &mut Record) -> Response {
        let failure = match Origin::of(request, record.id(), peer, &self.settings) {
            Ok(origin) => {
                record.client(origin.client);
                Refusal::ReadOnly.into()
            }
            Err(refusal) => Failure::from(refusal),
        };
        failure.into_response(None)
    }

    /// Its headers are gone from the request afterwards: nobody reads them there after its handler.
    async fn act(
        self: Arc<App>,
        request: &mut Parts,
        body: Body,
        peer: IpAddr,
        action: &Action,
        record: &mut Record,
    ) -> Result<Response, Failure> {
        let origin = Origin::of(request, record.id(), peer, &self.settings)?;
        record.client(origin.client);
        gate::browsers(&self, &request.headers, &origin)?;
        match action {
            Action::Front | Action::Health => Ok(reply::empty(StatusCode::OK)),
            Action::Ready => {
                self.registry.ready().await?;
                Ok(reply::empty(StatusCode::OK))
            }
            Action::Token { .. } | Action::TokenForm if !self.auth.has_tokens() => {
                Err(RouteError::NotFound.into())
            }
            Action::Token { scopes } => {
                let (who, response) = token::get(&self, request, &origin, scopes).await?;
                record.who(&who);
                Ok(response)
            }
            Action::TokenForm => {
                let (who, response) = token::post(&self, request, &origin, body).await?;
                record.who(&who);
                Ok(response)
            }
            Action::Ping | Action::Catalog(_) | Action::Repo(..) => {
                self.visit(request, body, &origin, action, record).await
            }
        }
    }

    /// A request of the API: through the gate, then to its handler.
    async fn visit(
        self: Arc<App>,
        request: &mut Parts,
        body: Body,
        origin: &Origin,
        action: &Action,
        record: &mut Record,
    ) -> Result<Response, Failure> {
        let caller = gate::caller(&self, &request.headers, origin, action).await?;
        record.who(&caller.who);
        let permit = match gate::admit(&self, &caller, origin, action) {
            Ok(permit) => permit,
            Err(failure) => return gate::alike(Err(failure), action),
        };
        let (client, headers) = (origin.client, std::mem::take(&mut request.headers));
        let windows = request.extensions.remove();
        let (by_proxy, request) = (origin.by_proxy, origin.request.clone());
        let visit =
            Visit { app: self, caller, permit, client, by_proxy, request, headers, windows };
        let app = Arc::clone(&visit.app);
        let _turn = if makes_a_document(action) { Some(app.memory.turn().await?) } else { None };
        match action {
            Action::Catalog(page) => visit.catalog(page).await,
            Action::Repo(repo, deed) => gate::alike(visit.perform(repo, deed, body).await, action),
            _ => Ok(reply::json(StatusCode::OK, &serde_json::json!({}))),
        }
    }
}

/// Whether a request would change something, whatever it is about and whether or not it makes sense.
fn would_change(method: &Method, action: &Result<Action, RouteError>) -> bool {
    let changes = matches!(*method, Method::PUT | Method::POST | Method::PATCH | Method::DELETE);
    changes && !matches!(action, Ok(Action::TokenForm))
}

/// Whether the answer is a document that is made in memory, and may be large.
fn makes_a_document(action: &Action) -> bool {
    match action {
        Action::Catalog(_) => true,
        Action::Repo(_, deed) => matches!(
            deed,
            Deed::ReadManifest { head: false, .. } | Deed::Tags(_) | Deed::Referrers { .. }
        ),
        _ => false,
    }
}
