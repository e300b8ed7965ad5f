//! PAM modules that hang or crash, with a running server: everybody else goes on.

#[path = "support/pam.rs"]
mod pam;
mod support;

use std::thread;
use std::time::{Duration, Instant};

use pam::{Host, PASSWORD, line_of};
use support::Registry;
use support::content::Image;
use support::http::{Client, Request, basic};

fn serve(host: &Host) -> Registry {
    let confdir = host.path("pam.d").display().to_string();
    let registry = Registry::start(&["--pam-confdir", &confdir, "--anonymous", "pull"]);
    registry.grant("u:daemon");
    registry
}

fn log_in(client: &Client, user: &str) -> u16 {
    client.send(Request::get("/token?service=stillage").basic(user, PASSWORD)).status
}

/// Others push, pull and log in; gives how long the slowest of these took.
fn others_go_on(registry: &Registry, pushed: &Image, users: &[&str]) -> Duration {
    let client = registry.client();
    let mut slowest = Duration::ZERO;
    let mut timed = |deed: &mut dyn FnMut()| {
        let began = Instant::now();
        deed();
        slowest = slowest.max(began.elapsed());
    };
    for user in users {
        timed(&mut || assert_eq!(log_in(&client, user), 200, "{user}"));
        let them = client.with_authorization(basic(user, PASSWORD));
        timed(&mut || them.assert_pulls("a", "v1", pushed));
    }
    let token = client.token("", "", &["repository:a:pull"]).expect("an anonymous token");
    let anonymous = client.with_authorization(format!("Bearer {token}"));
    timed(&mut || anonymous.assert_pulls("a", "v1", pushed));
    let pusher = client.with_authorization(basic("daemon", PASSWORD));
    timed(&mut || pusher.push_image("a", "v2", &Image::random(1000)));
    slowest
}

#[test]
fn a_module_that_hangs_for_one_user_holds_up_nobody_else() {
    let host = Host::new();
    let hung = host.path("hung").display().to_string();
    host.ask_script(&format!(
        "[ $PAM_USER = games ] && echo $$ > {hung} && exec sleep 100; exit 0"
    ));
    let registry = serve(&host);
    let image = Image::random(1000);
    let client = registry.client();
    client.with_authorization(basic("daemon", PASSWORD)).push_image("a", "v1", &image);

    let began = Instant::now();
    thread::scope(|scope| {
        let hanging = scope.spawn(|| log_in(&client, "games"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime");
        runtime.block_on(line_of(host.path("hung"))).expect("it hangs");
        // The same user again and again holds no second worker.
        let again: Vec<_> =
            (0..8).map(|_| scope.spawn(|| log_in(&registry.client(), "games"))).collect();
        let slowest = others_go_on(&registry, &image, &["bin", "sys"]);
        assert!(!hanging.is_finished(), "after {:?}", began.elapsed());
        assert!(slowest < Duration::from_secs(5), "{slowest:?}");
        assert_eq!(hanging.join().expect("no panic"), 503);
        for login in again {
            assert_eq!(login.join().expect("no panic"), 503);
        }
    });
    // Ended at the deadline of ten seconds, and told at a multiple of the time of all refusals.
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert!(registry.stderr().contains("were ended"), "{}", registry.stderr());
}

#[test]
fn a_module_that_crashes_costs_its_one_login() {
    let host = Host::new();
    host.ask_script("[ $PAM_USER = games ] && kill -ABRT $PPID; exit 0");
    let registry = serve(&host);
    let image = Image::random(1000);
    let client = registry.client();
    client.with_authorization(basic("daemon", PASSWORD)).push_image("a", "v1", &image);
    thread::scope(|scope| {
        let crashing: Vec<_> =
            (0..4).map(|_| scope.spawn(|| log_in(&registry.client(), "games"))).collect();
        others_go_on(&registry, &image, &["bin", "sys"]);
        for login in crashing {
            assert_eq!(login.join().expect("no panic"), 503);
        }
    });
    others_go_on(&registry, &image, &["bin", "sys"]);
}
