//! Something is damaged, and then repaired.

use stillage::layout::path;
use stillage::oci::{Algorithm, Digest};

use super::deeds::{Image, OLD, Way, World};
use super::promises::Effect;
use super::scenarios::{Job, job, long, of_old, old_index, scenario};

/// The repair of what somebody damages half a minute before, and what it promises.
fn repair(
    name: &'static str,
    damage: impl FnOnce(&mut World) -> Vec<Effect> + Send + 'static,
) -> Job {
    job(move || {
        scenario(format!("the repair after {name}"), true, async |world| {
            let mends = world.damage();
            let promises = damage(world);
            let deeds = world.damaged(mends, promises);
            world.recorder.settle();
            world.mend(&deeds);
        })
    })
}

/// One for each way in which a repair makes something durable.
pub fn all() -> Vec<Job> {
    let mut all = of_blobs();
    all.extend(of_index());
    all.extend(of_other_files());
    all
}

fn of_blobs() -> Vec<Job> {
    let rotten = |world: &mut World| {
        let layer = of_old(&World::blob_paths(0)[0]);
        world.outsider_replaces(&layer, b"rotten", 0o444);
        vec![Effect::Replaced(b"rotten".to_vec())]
    };
    vec![
        repair("a layer is gone", |world| {
            world.outsider_removes(&of_old(&World::blob_paths(0)[0]));
            Vec::new()
        }),
        repair("all blobs are gone", |world| {
            for path in World::blobs(&world.root.join(OLD)) {
                world.outsider_removes(&of_old(&path));
            }
            world.outsider_removes_dir(&of_old("blobs/sha256"));
            Vec::new()
        }),
        repair("a blob is not what it says", |world| {
            world.outsider(&of_old(&World::blob_paths(7)[0]), b"wrong", 0o644);
            vec![Effect::TakenOut(b"wrong".to_vec())]
        }),
        repair("a layer is rotten", rotten),
        repair("a layer is rotten, without links", move |world| {
            world.recorder.without_links();
            rotten(world)
        }),
        repair("a layer has names under two algorithms", |world| {
            let digest = Digest::of(Algorithm::Sha512, &Image::numbered(0).layer);
            world.outsider_makes_dir(&of_old(&path::blobs(Algorithm::Sha512)));
            world.outsider_links(&of_old(&World::blob_paths(0)[0]), &of_old(&path::blob(&digest)));
            Vec::new()
        }),
    ]
}

/// A manifest that nobody has any more is lost.
fn lose_a_manifest(world: &mut World) -> Vec<Effect> {
    let manifest = Image::numbered(1).digest;
    world.outsider_removes(&of_old(&World::blob_paths(1)[1]));
    world.outsider_removes(&format!(".stillage/{}", path::pool(&manifest)));
    vec![
        Effect::Replaced(world.read(&old_index())),
        Effect::Listed(manifest.clone()),
        Effect::Remove(OLD.to_owned(), manifest),
    ]
}

fn of_index() -> Vec<Job> {
    vec![
        repair("an index.json is gone", |world| {
            world.outsider_removes(&old_index());
            Vec::new()
        }),
        repair("an index.json is none", |world| {
            world.outsider_replaces(&old_index(), b"{\"schema", 0o644);
            vec![Effect::Replaced(b"{\"schema".to_vec())]
        }),
        repair("index.json and oci-layout are gone", |world| {
            world.outsider_removes(&old_index());
            world.outsider_removes(&of_old(path::OCI_LAYOUT));
            Vec::new()
        }),
        job(|| {
            let name = "the repair of an index.json that was lost during a push";
            let repaired = scenario(name, true, async |world| {
                // It has announced its index.json.
                world.recorder.die_before("registry/group::sync_names");
                let pushed = world.put_image(OLD, "long", &long(), Way::Sha512).await;
                pushed.expect_err("the process is dead");
                world.restart();
                let mends = world.damage();
                world.outsider_removes(&old_index());
                let deeds = world.damaged(mends, vec![Effect::Nothing]);
                world.mend(&deeds);
            });
            repaired.of_the_last_deed()
        }),
        repair("a manifest is lost", lose_a_manifest),
        repair("a manifest and the journal are lost", |world| {
            world.outsider_removes(&of_old(path::JOURNAL));
            lose_a_manifest(world)
        }),
    ]
}

fn of_other_files() -> Vec<Job> {
    vec![
        repair("oci-layout is gone", |world| {
            world.outsider_removes(&of_old(path::OCI_LAYOUT));
            Vec::new()
        }),
        repair("the journal is damaged", |world| {
            world.outsider_appends(&of_old(path::JOURNAL), b"no line\n");
            vec![Effect::Replaced(world.read(&of_old(path::JOURNAL)))]
        }),
        repair("the key that signs tokens is none", |world| {
            let key = format!("{}/{}", path::ROOM, path::TOKEN_KEY);
            world.outsider(&key, b"no key", 0o600);
            vec![Effect::Without(key, b"no key".to_vec())]
        }),
    ]
}
