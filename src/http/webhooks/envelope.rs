//! Events in the envelope that distribution's registry sends
//! (`application/vnd.docker.distribution.events.v2+json`).
//!
//! | what happened | `action` | `target` |
//! |---|---|---|
//! | push | `push` | the manifest; left out where a tag of the same manifest is in the same envelope |
//! | tag | `push` | the manifest, and `tag` |
//! | untag | `delete` | `tag`, no digest: the manifest stays |
//! | delete | `delete` | `digest` |

use serde::Serialize;

use crate::events::{By, Event};
use crate::layout::path::random_hex;
use crate::oci::{Digest, Tag, What};

/// The media type of the envelope.
pub(super) const MEDIA_TYPE: &str = "application/vnd.docker.distribution.events.v2+json";

/// The name that stands for whoever changed the tree without the server.
const OUTSIDE: &str = "unknown (outside)";

/// Which server tells.
#[derive(Clone, Debug)]
pub(super) struct Source {
    base: String,
    instance: String,
}

impl Source {
    /// One that clients reach at `base`.
    pub(super) fn new(base: &str) -> Source {
        let instance = random_hex::<16>();
        Source { base: base.to_owned(), instance }
    }

    fn address(&self) -> &str {
        self.base.split_once("://").map_or(&*self.base, |(_, address)| address)
    }

    /// Events as the body of one request.
    pub(super) fn envelope(&self, events: &[Event]) -> Vec<u8> {
        let told = |at: usize, event: &Event| {
            let again = |later: &Event| later.what == What::Tag && later.digest == event.digest;
            event.what != What::Push || !events[at + 1..].iter().any(again)
        };
        let events = events.iter().enumerate().filter(|(at, event)| told(*at, event));
        let envelope = Envelope { events: events.map(|(_, event)| self.spelled(event)).collect() };
        // Texts and numbers cannot fail to serialise.
        serde_json::to_vec(&envelope).unwrap_or_default()
    }

    fn spelled<'a>(&'a self, event: &'a Event) -> Spelled<'a> {
        let comes = matches!(event.what, What::Push | What::Tag);
        let repository = event.repository.as_str();
        let size = comes.then_some(event.manifest.size);
        let target = Target {
            media_type: comes.then_some(&event.manifest.media_type),
            size,
            digest: (event.what != What::Untag).then_some(&event.digest),
            length: size,
            repository,
            url: comes.then(|| format!("{}/v2/{repository}/manifests/{}", self.base, event.digest)),
            tag: event.tag.as_ref().map(Tag::as_str),
        };
        let (name, addr, method) = match &event.by {
            By::Us { who, from } => {
                let method = if comes { "PUT" } else { "DELETE" };
                (who.as_deref(), from.map(|from| from.to_string()), method)
            }
            By::Outside | By::Unknown => (Some(OUTSIDE), None, ""),
        };
        Spelled {
            id: &event.id,
            timestamp: &event.time,
            action: if comes { "push" } else { "delete" },
            target,
            request: Request { id: "", addr, host: self.address(), method, useragent: "" },
            actor: Actor { name },
            source: Node { addr: self.address(), instance_id: &self.instance },
        }
    }
}

#[derive(Serialize)]
struct Envelope<'a> {
    events: Vec<Spelled<'a>>,
}

#[derive(Serialize)]
struct Spelled<'a> {
    id: &'a str,
    timestamp: &'a str,
    action: &'a str,
    target: Target<'a>,
    request: Request<'a>,
    actor: Actor<'a>,
    source: Node<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Target<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    media_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<&'a Digest>,
    #[serde(skip_serializing_if = "Option::is_none")]
    length: Option<u64>,
    repository: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tag: Option<&'a str>,
}

#[derive(Serialize)]
struct Request<'a> {
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    addr: Option<String>,
    host: &'a str,
    method: &'a str,
    useragent: &'a str,
}

#[derive(Serialize)]
struct Actor<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
}

#[derive(Serialize)]
struct Node<'a> {
    addr: &'a str,
    #[serde(rename = "instanceID")]
    instance_id: &'a str,
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::events::Manifest;
    use crate::oci::{Algorithm, RepoName};

    fn event(what: What, tag: Option<&str>, by: By) -> Event {
        Event {
            id: "1-2".into(),
            time: "2026-11-26T10:00:00Z".into(),
            repository: RepoName::parse("team/app").unwrap(),
            what,
            tag: tag.map(|tag| Tag::parse(tag).unwrap()),
            digest: Digest::of(Algorithm::Sha256, b"x"),
            manifest: Manifest { media_type: "a/b".into(), size: 7 },
            before: None,
            by,
        }
    }

    #[test]
    fn events_are_spelled_as_distribution_spells_them() {
        let us = By::Us { who: Some("alice".into()), from: Some([192, 0, 2, 1].into()) };
        let digest = Digest::of(Algorithm::Sha256, b"x");
        let source = Source::new("https://registry.example");
        let events = [
            event(What::Push, None, us.clone()),
            event(What::Tag, Some("v1"), us),
            event(What::Untag, Some("v1"), By::Outside),
            event(What::Delete, None, By::Us { who: None, from: None }),
        ];
        let told: Value = serde_json::from_slice(&source.envelope(&events)).unwrap();
        let node = json!({"addr": "registry.example", "instanceID": source.instance});
        let request = |method: &str| json!({"id": "", "host": "registry.example", "method": method, "useragent": ""});
        let mut put = request("PUT");
        put["addr"] = json!("192.0.2.1");
        let wanted = json!({"events": [
            {
                "id": "1-2", "timestamp": "2026-11-26T10:00:00Z", "action": "push",
                "target": {
                    "mediaType": "a/b", "size": 7, "length": 7, "digest": digest,
                    "repository": "team/app", "tag": "v1",
                    "url": format!("https://registry.example/v2/team/app/manifests/{digest}"),
                },
                "request": put, "actor": {"name": "alice"}, "source": node,
            },
            {
                "id": "1-2", "timestamp": "2026-11-26T10:00:00Z", "action": "delete",
                "target": {"repository": "team/app", "tag": "v1"},
                "request": request(""), "actor": {"name": "unknown (outside)"}, "source": node,
            },
            {
                "id": "1-2", "timestamp": "2026-11-26T10:00:00Z", "action": "delete",
                "target": {"repository": "team/app", "digest": digest},
                "request": request("DELETE"), "actor": {}, "source": node,
            },
        ]});
        assert_eq!(told, wanted);
    }
}
