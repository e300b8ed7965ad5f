//! The access log: one line for every request, written when its answer has been sent or given up.

use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::header::HeaderName;
use http::request::Parts;
use http_body::{Frame, SizeHint};

use super::audit::RequestId;
use super::reply::value;
use crate::auth::Who;

/// Tells the client the name that the request has in the log.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Stands for the status where the client hung up before there was one, as in nginx's log.
const GIVEN_UP: u16 = 499;

/// What is known of a request so far. Dropped, it is written down.
pub(super) struct Record {
    id: RequestId,
    begun: Instant,
    client: IpAddr,
    method: String,
    path: String,
    who: Option<String>,
    status: u16,
    sent: u64,
}

impl Record {
    pub(super) fn begin(request: &Parts, peer: IpAddr) -> Record {
        Record {
            id: RequestId::next(),
            begun: Instant::now(),
            client: peer,
            method: beginning(request.method.as_str(), 32),
            // Without the query: that of `/token` names accounts that may be passwords.
            path: beginning(request.uri.path(), 512),
            who: None,
            status: GIVEN_UP,
            sent: 0,
        }
    }

    /// The request's own name.
    pub(super) fn id(&self) -> &RequestId {
        &self.id
    }

    /// The address behind trusted proxies.
    pub(super) fn client(&mut self, client: IpAddr) {
        self.client = client;
    }

    /// Only those who proved their name are named: what others type as a name may be a password.
    pub(super) fn who(&mut self, who: &Who) {
        self.who = who.name().map(str::to_owned);
    }

    /// The answer, with a body that takes the record along until it ends.
    pub(super) fn end(mut self, mut response: Response) -> Response {
        response.headers_mut().insert(REQUEST_ID, value(self.id.as_str()));
        self.status = response.status().as_u16();
        response.map(|body| Body::new(Logged { body, record: self }))
    }
}

/// No more than so many bytes of a text.
fn beginning(text: &str, most: usize) -> String {
    text[..text.floor_char_boundary(most)].to_owned()
}

struct Logged {
    body: Body,
    record: Record,
}

impl http_body::Body for Logged {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &frame {
            self.record.sent += frame.data_ref().map_or(0, |data| data.len() as u64);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let Record { id, begun, client, method, path, who, status, sent } = self;
        // Debug writes control characters as escapes: no request can forge a line.
        tracing::info!(
            target: "stillage::access",
            who = who.as_deref().unwrap_or("-"),
            %client,
            method,
            path,
            status,
            bytes = sent,
            ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
            request = id.as_str(),
        );
    }
}
