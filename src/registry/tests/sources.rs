//! Mounts whose sources are not what they should be.

use std::os::unix::fs::symlink;

use super::*;

const LAYER: &[u8] = b"layer";

impl Fixture {
    async fn mounts(&self, from: MountFrom) -> Result<bool> {
        self.registry.mount(&repo("target"), &sha256(LAYER), from, &Actor::default()).await
    }
}

#[tokio::test]
async fn a_broken_source_is_passed_over_and_the_next_one_is_tried() {
    for broken in ["bad", "bad/blobs", "bad/blobs/sha256"] {
        let f = fixture();
        f.blob("good", LAYER).await;
        f.blob("bad", LAYER).await;
        std::fs::rename(f.path(broken), f.path("aside")).unwrap();
        symlink(f.path("aside"), f.path(broken)).unwrap();
        assert!(
            !f.mounts(MountFrom::Repo(repo("bad"), Account::default())).await.unwrap(),
            "{broken}"
        );
        let anywhere = MountFrom::Anywhere(Arc::new(|_| Ok(Some(Account::default()))));
        assert!(f.mounts(anywhere).await.unwrap(), "{broken}");
        assert_eq!(std::fs::read(f.blob_path("target", &sha256(LAYER))).unwrap(), LAYER);
    }
}

#[tokio::test]
async fn a_broken_target_is_an_error() {
    let f = fixture();
    f.blob("good", LAYER).await;
    std::fs::create_dir(f.path("aside")).unwrap();
    for broken in ["target/blobs", "target"] {
        let at = f.path(broken);
        std::fs::create_dir_all(at.parent().unwrap()).unwrap();
        let _ = std::fs::remove_dir_all(&at);
        symlink(f.path("aside"), at).unwrap();
        let refused =
            f.mounts(MountFrom::Repo(repo("good"), Account::default())).await.unwrap_err();
        assert!(refused.to_string().contains("target"), "{refused}");
    }
}
