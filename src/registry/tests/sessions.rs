//! Upload sessions.

use super::*;
use crate::oci::ContentRange;

fn alice() -> Actor {
    Actor { who: Some("alice".into()), ..Actor::default() }
}

#[tokio::test]
async fn a_session_is_resumed_after_a_restart_and_hashed_again() {
    let f = fixture();
    let (name, actor) = (repo("a"), alice());
    let id = f.registry.begin_upload(&name, None, &actor).await.unwrap().id;
    let status = f.registry.append_upload(&name, &id, &actor, None, body(b"hello ")).await.unwrap();
    assert_eq!(status.size, 6);
    let again = f.reopened();
    assert_eq!(again.upload_status(&name, &id, &actor).await.unwrap().size, 6);
    let range = ContentRange { first: 6, last: 10 };
    let status =
        again.append_upload(&name, &id, &actor, Some(range), body(b"world")).await.unwrap();
    assert_eq!(status.size, 11);
    let digest = sha256(b"hello world");
    again.finish_upload(&name, &id, &actor, None, body(b""), &digest).await.unwrap();
    assert_eq!(std::fs::read(f.blob_path("a", &digest)).unwrap(), b"hello world");
    assert_eq!(std::fs::read_dir(f.path(".stillage/uploads")).unwrap().count(), 0);
    let gone = again.upload_status(&name, &id, &actor).await;
    assert!(matches!(gone, Err(Error::UploadUnknown(_))));
}

#[tokio::test]
async fn a_session_belongs_to_one_user_and_one_repository() {
    let f = fixture();
    let id = f.registry.begin_upload(&repo("a"), None, &alice()).await.unwrap().id;
    let bob = Actor { who: Some("bob".into()), ..Actor::default() };
    for (name, actor) in [("a", bob), ("b", alice()), ("a", Actor::default())] {
        let refused = f.registry.upload_status(&repo(name), &id, &actor).await;
        assert!(matches!(refused, Err(Error::UploadUnknown(_))), "{name} {actor:?}");
        let refused = f.registry.cancel_upload(&repo(name), &id, &actor).await;
        assert!(matches!(refused, Err(Error::UploadUnknown(_))), "{name} {actor:?}");
    }
    f.registry.cancel_upload(&repo("a"), &id, &alice()).await.unwrap();
    assert_eq!(std::fs::read_dir(f.path(".stillage/uploads")).unwrap().count(), 0);
}

#[tokio::test]
async fn chunks_out_of_order_and_of_a_wrong_length_are_refused_and_the_session_lives_on() {
    let f = fixture();
    let (name, actor) = (repo("a"), alice());
    let id = f.registry.begin_upload(&name, None, &actor).await.unwrap().id;
    let range = |first, last| Some(ContentRange { first, last });
    let append = |range, bytes| f.registry.append_upload(&name, &id, &actor, range, body(bytes));
    assert!(matches!(append(range(1, 3), b"abc").await, Err(Error::UploadRange { size: 0, .. })));
    append(range(0, 2), b"abc").await.unwrap();
    let refused = append(range(0, 2), b"abc").await;
    assert!(matches!(refused, Err(Error::UploadRange { size: 3, .. })));
    let refused = append(range(3, 9), b"de").await;
    assert!(matches!(refused, Err(Error::UploadLength { announced: 7, received: 2 })));
    assert_eq!(f.registry.upload_status(&name, &id, &actor).await.unwrap().size, 3);
    let digest = sha256(b"abcdef");
    let finish = |range| f.registry.finish_upload(&name, &id, &actor, range, body(b"def"), &digest);
    assert!(matches!(finish(range(0, 2)).await, Err(Error::UploadRange { .. })));
    finish(range(3, 5)).await.unwrap();
}

#[tokio::test]
async fn a_body_that_breaks_off_keeps_what_arrived() {
    let f = fixture();
    let (name, actor) = (repo("a"), alice());
    let id = f.registry.begin_upload(&name, None, &actor).await.unwrap().id;
    let broken = stream::iter(vec![
        Ok(Bytes::from_static(b"abc")),
        Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset)),
    ]);
    let refused = f.registry.append_upload(&name, &id, &actor, None, broken).await;
    assert!(matches!(refused, Err(Error::Body(_))));
    assert_eq!(f.registry.upload_status(&name, &id, &actor).await.unwrap().size, 3);
    let digest = sha256(b"abcdef");
    f.registry.finish_upload(&name, &id, &actor, None, body(b"def"), &digest).await.unwrap();
}

#[tokio::test]
async fn two_requests_on_one_session_do_not_mix() {
    let f = fixture();
    let (name, actor) = (repo("a"), alice());
    let id = f.registry.begin_upload(&name, None, &actor).await.unwrap().id;
    let (mut sender, receiver) = channel();
    let (registry, first) = (f.registry.clone(), (name.clone(), id.clone(), actor.clone()));
    let slow = tokio::spawn(async move {
        let (name, id, actor) = first;
        registry.append_upload(&name, &id, &actor, None, receiver).await
    });
    sender.send(Ok(Bytes::from_static(b"abc"))).await;
    // The first has taken the session once its bytes are in the file.
    while f.registry.upload_status(&name, &id, &actor).await.unwrap().size < 3 {
        tokio::task::yield_now().await;
    }
    let second = f.registry.append_upload(&name, &id, &actor, None, body(b"x")).await;
    assert!(matches!(second, Err(Error::UploadBusy(_))), "{second:?}");
    drop(sender);
    assert_eq!(slow.await.unwrap().unwrap().size, 3);
}

#[tokio::test]
async fn data_that_is_a_blob_already_is_never_written_again() {
    let f = fixture();
    let (name, actor) = (repo("a"), alice());
    let id = f.registry.begin_upload(&name, None, &actor).await.unwrap().id;
    f.registry.append_upload(&name, &id, &actor, None, body(b"abc")).await.unwrap();
    // As after a kill between the link into the repository and the end of the session.
    let data = f.path(".stillage/uploads").join(id.as_str()).join("data");
    let digest = sha256(b"abc");
    let blob = f.blob_path("a", &digest);
    std::fs::create_dir_all(blob.parent().unwrap()).unwrap();
    std::fs::hard_link(&data, &blob).unwrap();
    let refused = f.registry.append_upload(&name, &id, &actor, None, body(b"def")).await;
    assert!(matches!(refused, Err(Error::UploadUnknown(_))), "{refused:?}");
    let refused = f.registry.finish_upload(&name, &id, &actor, None, body(b"def"), &digest).await;
    assert!(matches!(refused, Err(Error::UploadUnknown(_))), "{refused:?}");
    assert_eq!(std::fs::read(&blob).unwrap(), b"abc");
    let refused = f.registry.upload_status(&name, &id, &actor).await;
    assert!(matches!(refused, Err(Error::UploadUnknown(_))), "{refused:?}");
    // Killed one step earlier, the bytes are the session's still.
    std::fs::remove_file(&blob).unwrap();
    std::fs::set_permissions(&data, PermissionsExt::from_mode(0o444)).unwrap();
    let digest = sha256(b"abcdef");
    f.registry.finish_upload(&name, &id, &actor, None, body(b"def"), &digest).await.unwrap();
}

/// A body whose pieces come when the test wants.
struct Sender(tokio::sync::mpsc::Sender<std::io::Result<Bytes>>);

impl Sender {
    async fn send(&mut self, piece: std::io::Result<Bytes>) {
        self.0.send(piece).await.unwrap();
    }
}

fn channel() -> (Sender, impl futures_util::Stream<Item = std::io::Result<Bytes>> + Send + Unpin) {
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let stream = stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|piece| (piece, receiver))
    });
    (Sender(sender), Box::pin(stream))
}

#[tokio::test]
async fn another_algorithm_at_the_end_reads_the_file_once_more() {
    let f = fixture();
    let (name, actor) = (repo("a"), alice());
    let id = f.registry.begin_upload(&name, Some(Algorithm::Sha256), &actor).await.unwrap().id;
    f.registry.append_upload(&name, &id, &actor, None, body(b"abc")).await.unwrap();
    let digest = Digest::of(Algorithm::Sha512, b"abcdef");
    f.registry.finish_upload(&name, &id, &actor, None, body(b"def"), &digest).await.unwrap();
    assert_eq!(std::fs::read(f.blob_path("a", &digest)).unwrap(), b"abcdef");
}

#[tokio::test]
async fn a_wrong_digest_leaves_nothing() {
    let f = fixture();
    let (name, actor) = (repo("a"), alice());
    let wrong = sha256(b"other");
    let refused = f.registry.put_blob(&name, &actor, body(b"abc"), &wrong).await;
    assert!(matches!(refused, Err(Error::DigestMismatch { .. })));
    let id = f.registry.begin_upload(&name, None, &actor).await.unwrap().id;
    let refused = f.registry.finish_upload(&name, &id, &actor, None, body(b"abc"), &wrong).await;
    assert!(matches!(refused, Err(Error::DigestMismatch { .. })));
    assert!(!f.path("a").exists());
    assert_eq!(std::fs::read_dir(f.path(".stillage/uploads")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_large_upload_is_cut_to_its_length() {
    let f = fixture();
    let bytes = vec![7u8; 9 * 1024 * 1024 + 13];
    let pieces: Vec<_> =
        bytes.chunks(100_000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    let digest = sha256(&bytes);
    f.registry.put_blob(&repo("a"), &alice(), stream::iter(pieces), &digest).await.unwrap();
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::metadata(f.blob_path("a", &digest)).unwrap();
    assert_eq!(meta.len(), bytes.len() as u64);
    assert!(meta.blocks() * 512 < meta.len() + 1024 * 1024, "reserved space was given back");
}

#[tokio::test]
async fn a_session_that_ended_leaves_nothing_behind_for_a_late_request() {
    let f = fixture();
    let (name, actor) = (repo("a"), alice());
    let id = f.registry.begin_upload(&name, None, &actor).await.unwrap().id;
    let dir = f.path(".stillage/uploads").join(id.as_str());
    let late = layout::uploads::Session::find(&f.registry.inner.tree, &id).unwrap().unwrap();
    f.registry.cancel_upload(&name, &id, &actor).await.unwrap();
    assert!(late.lock().unwrap_err().is_absent());
    assert!(!dir.exists());
}

#[tokio::test]
async fn a_blob_that_comes_byte_by_byte_is_joined() {
    let f = fixture();
    let bytes: Vec<u8> = (0..20_000u32).map(|n| n.to_le_bytes()[0]).collect();
    let pieces: Vec<_> = bytes.iter().map(|byte| Ok(Bytes::copy_from_slice(&[*byte]))).collect();
    let digest = sha256(&bytes);
    f.registry.put_blob(&repo("a"), &alice(), stream::iter(pieces), &digest).await.unwrap();
    assert_eq!(std::fs::read(f.blob_path("a", &digest)).unwrap(), bytes);
}
