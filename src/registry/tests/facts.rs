//! What is written down of manifests, and what is not.

use super::*;

impl Fixture {
    async fn referrer(&self, artifact_type: &str, note: &str) -> Digest {
        self.blob("a", b"{}").await;
        let body = format!(
            r#"{{"schemaVersion":2,"mediaType":"{}","artifactType":"{artifact_type}","config":{{"mediaType":"e","digest":"{}","size":2}},"layers":[],"subject":{{"mediaType":"m","digest":"{}","size":1}},"annotations":{{"k":"{note}"}}}}"#,
            Kind::OciImage.media_type(),
            sha256(b"{}"),
            sha256(b"subject")
        );
        let by = Reference::Digest(sha256(body.as_bytes()));
        self.push("a", by, body.into()).await.unwrap().digest
    }

    fn lines(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.path("a/_referrers/facts.jsonl")).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    async fn listed(&self, of_type: Option<&str>, last: Option<&Digest>) -> Vec<Digest> {
        let subject = sha256(b"subject");
        let found = self
            .registry
            .referrers(&repo("a"), &subject, of_type, last, &Account::default())
            .await
            .unwrap();
        found.into_iter().map(|descriptor| descriptor.digest).collect()
    }
}

#[tokio::test]
async fn long_annotations_are_read_from_the_manifest() {
    let f = fixture();
    let note = "v".repeat(5000);
    let artifact_type = format!("x/{}", "y".repeat(5000));
    let noted = f.referrer("x/y", &note).await;
    let typed = f.referrer(&artifact_type, "v").await;
    assert!(f.lines().iter().all(|line| line.len() < 1000 && line.contains(r#""more":true"#)));
    for registry in [f.registry.clone(), f.reopened()] {
        let find = |of: &str| {
            let (registry, of) = (registry.clone(), of.to_owned());
            async move {
                let subject = sha256(b"subject");
                registry
                    .referrers(&repo("a"), &subject, Some(&of), None, &Account::default())
                    .await
                    .unwrap()
            }
        };
        let found = find("x/y").await;
        assert_eq!(found.iter().map(|d| &d.digest).collect::<Vec<_>>(), [&noted]);
        assert_eq!(found[0].annotations["k"], note);
        let found = find(&artifact_type).await;
        assert_eq!(found.iter().map(|d| &d.digest).collect::<Vec<_>>(), [&typed]);
    }
    assert_eq!(f.listed(None, None).await.len(), 2);
}

#[tokio::test]
async fn a_list_ends_soon_after_an_answer_is_full_and_goes_on_after_its_end() {
    let f = fixture();
    let mut all = Vec::new();
    for n in 0..5 {
        all.push(f.referrer("x/y", &format!("{n}{}", "v".repeat(3 << 20))).await);
    }
    all.sort();
    assert_eq!(f.listed(None, None).await, all[..3]);
    assert_eq!(f.listed(None, Some(&all[2])).await, all[3..]);
}

#[tokio::test]
async fn a_tag_on_a_known_manifest_writes_no_fact() {
    let f = fixture();
    f.image("a", "one").await.unwrap();
    assert_eq!(f.lines().len(), 1);
    f.push("a", tag("two"), image(b"{}", b"one")).await.unwrap();
    assert_eq!((f.tags("a").await.len(), f.lines().len()), (2, 1));
}

#[tokio::test]
async fn of_manifests_that_are_gone_nothing_is_remembered_for_long() {
    let f = fixture();
    let stays = f.referrer("x/y", "stays").await;
    for n in 0..200 {
        let gone = f.referrer("x/y", &format!("{n}")).await;
        assert_eq!(f.listed(None, None).await.len(), 2);
        let by = Reference::Digest(gone);
        f.registry.delete_manifest(&repo("a"), &by, &Actor::default()).await.unwrap();
    }
    assert_eq!(f.listed(None, None).await, [stays]);
    let knowledge = f.registry.inner.knowledge(&repo("a"));
    let weight = knowledge.lock().unwrap().weight();
    assert!(weight < 150_000, "{weight} bytes");
}
