//! Lines about logins for the record: who came in, who was turned away.
//!
//! A name is written only if the host has an account of that name: anything else may be a password
//! that was typed into the wrong field. Strings are written as Debug writes them, so that no name
//! can end a line or begin one.

use std::net::IpAddr;

use super::login::Refused;

/// Where these lines go: the target of everything that is for the record.
pub const AUDIT: &str = "stillage::audit";

/// Where a login comes from.
#[derive(Debug, Clone, Copy)]
pub struct Peer<'a> {
    /// The client's address.
    pub address: IpAddr,
    /// The request that it came with, as the record names it.
    pub request: &'a str,
}

impl From<IpAddr> for Peer<'_> {
    fn from(address: IpAddr) -> Self {
        Peer { address, request: "-" }
    }
}

pub(super) fn login(user: &str, peer: Peer<'_>) {
    let Peer { address, request } = peer;
    tracing::info!(target: AUDIT, event = "login", who = user, client = %address, request);
}

pub(super) fn refused(user: &str, peer: Peer<'_>, refused: Refused) {
    turned_away(refused.is_name_known().then_some(user), peer, &refused.to_string());
}

/// `who` is known to be the name of an account.
pub(super) fn turned_away(who: Option<&str>, peer: Peer<'_>, why: &str) {
    let (who, Peer { address, request }) = (who.unwrap_or("-"), peer);
    tracing::info!(target: AUDIT, event = "login-refused", who, client = %address, request, why);
}
