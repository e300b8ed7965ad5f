//! The test machinery itself: a server starts, answers, restarts, and leaves a sound tree.

mod support;

use support::Registry;
use support::content::Image;

#[test]
fn a_pushed_image_is_pulled_again_after_a_restart() {
    let mut registry = Registry::start(&["--auth", "none"]);
    let image = Image::random(10_000);
    registry.client().push_image("a/b", "v1", &image);
    registry.client().assert_pulls("a/b", "v1", &image);

    registry.restart();

    registry.client().assert_pulls("a/b", "v1", &image);
    registry.client().assert_pulls("a/b", &image.digest, &image);
}
