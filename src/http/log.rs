//! The access log: one line for every request, written when its answer has been sent or given up.

use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::request::Parts;
use http_body::{Frame, SizeHint};

use crate::auth::Who;

/// What is known of a request so far.
pub(super) struct Record {
    begun: Instant,
    client: IpAddr,
    method: String,
    path: String,
    who: Option<String>,
}

impl Record {
    pub(super) fn begin(request: &Parts, peer: IpAddr) -> Record {
        Record {
            begun: Instant::now(),
            client: peer,
            method: request.method.as_str().chars().take(32).collect(),
            // Without the query: that of `/token` names accounts that may be passwords.
            path: request.uri.path().chars().take(512).collect(),
            who: None,
        }
    }

    /// The address behind trusted proxies.
    pub(super) fn client(&mut self, client: IpAddr) {
        self.client = client;
    }

    /// Only those who proved their name are named: what others type as a name may be a password.
    pub(super) fn who(&mut self, who: &Who) {
        self.who = who.name().map(str::to_owned);
    }

    /// The answer, with a body that writes the line when it ends.
    pub(super) fn end(self, response: Response) -> Response {
        let status = response.status().as_u16();
        response.map(|body| Body::new(Logged { body, sent: 0, status, record: self }))
    }
}

struct Logged {
    body: Body,
    sent: u64,
    status: u16,
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
            self.sent += frame.data_ref().map_or(0, |data| data.len() as u64);
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

impl Drop for Logged {
    fn drop(&mut self) {
        let Record { begun, client, method, path, who } = &self.record;
        // Debug writes control characters as escapes: no request can forge a line.
        tracing::info!(
            target: "stillage::access",
            who = who.as_deref().unwrap_or("-"),
            %client,
            method,
            path,
            status = self.status,
            bytes = self.sent,
            ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
        );
    }
}
