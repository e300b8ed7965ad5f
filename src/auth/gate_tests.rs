//! Back-off, with the clock in hand.

use super::*;
use tokio::time::advance;

const ANNA: Mark = [1; 32];
const BERT: Mark = [2; 32];

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// One wrong guess, made when the gate lets it; the time that it had to wait.
async fn guess(gate: &Gate, user: Mark, peer: IpAddr) -> Duration {
    let ticket = gate.admit(user, peer, Instant::now()).expect("a turn");
    let waited = ticket.begin - Instant::now();
    advance(waited).await;
    ticket.failed(Instant::now());
    waited
}

/// A right password, if the gate lets it at once.
fn log_in(gate: &Gate, user: Mark, peer: IpAddr) {
    let ticket = gate.admit(user, peer, Instant::now()).expect("a turn");
    ticket.succeeded(Instant::now());
}

fn is_open(gate: &Gate, user: Mark, peer: &str) -> bool {
    gate.is_open(user, ip(peer), Instant::now())
}

#[tokio::test(start_paused = true)]
async fn guessing_one_user_gets_slow_at_that_address_only() {
    let gate = Gate::new();
    let mut waits = Vec::new();
    for _ in 0..14 {
        waits.push(guess(&gate, ANNA, ip("192.0.2.1")).await);
    }
    assert_eq!(waits[..6], [Duration::ZERO; 6], "the first ones are free");
    assert_eq!(waits[6], Duration::from_millis(500));
    assert!(waits[6..].is_sorted(), "{waits:?}");
    assert_eq!(waits[13], MAX_DELAY);

    assert!(!is_open(&gate, ANNA, "192.0.2.1"));
    assert!(is_open(&gate, BERT, "192.0.2.1"), "another user there");
    assert!(is_open(&gate, ANNA, "192.0.2.2"), "no account is locked");
}

#[tokio::test(start_paused = true)]
async fn guessing_many_users_from_one_prefix_gets_slow() {
    for (first, other, outside) in [
        ("192.0.2.1", "192.0.2.1", "192.0.2.2"),
        ("2001:db8:0:1200::1", "2001:db8:0:12ff::9", "2001:db8:0:1300::1"),
        ("::ffff:192.0.2.1", "192.0.2.1", "192.0.2.2"),
    ] {
        let gate = Gate::new();
        for user in 0..60 {
            guess(&gate, [user; 32], ip(first)).await;
        }
        assert!(!is_open(&gate, [200; 32], other), "{other}");
        assert!(is_open(&gate, [200; 32], outside), "{outside}");
    }
}

#[tokio::test(start_paused = true)]
async fn many_at_once_gain_nothing() {
    let (gate, now) = (Gate::new(), Instant::now());
    let mut tickets = Vec::new();
    let refused = loop {
        match gate.admit(ANNA, ip("192.0.2.1"), now) {
            Ok(ticket) => tickets.push(ticket),
            Err(wait) => break wait,
        }
        assert!(tickets.len() < 50, "no end");
    };
    assert!(refused > MAX_DELAY);
    assert_eq!(tickets.iter().filter(|ticket| ticket.begin == now).count(), 6);
    assert!(!is_open(&gate, ANNA, "192.0.2.1"), "nor against what is remembered");
}

#[tokio::test(start_paused = true)]
async fn what_came_to_no_verdict_does_not_count() {
    let gate = Gate::new();
    for _ in 0..100 {
        let ticket = gate.admit(ANNA, ip("192.0.2.1"), Instant::now()).expect("a turn");
        assert_eq!(ticket.begin, Instant::now());
    }
    assert!(is_open(&gate, ANNA, "192.0.2.1"));
}

#[tokio::test(start_paused = true)]
async fn a_success_forgives_the_user_and_exempts_them_from_their_neighbours() {
    let gate = Gate::new();
    let office = "192.0.2.1";
    for _ in 0..8 {
        guess(&gate, ANNA, ip(office)).await;
    }
    log_in(&gate, ANNA, ip(office));
    assert!(is_open(&gate, ANNA, office));
    for user in 50..130 {
        guess(&gate, [user; 32], ip(office)).await;
    }
    assert!(is_open(&gate, ANNA, office), "logged in here a moment ago");
    assert!(!is_open(&gate, BERT, office));

    advance(EXEMPT).await;
    for user in 50..130 {
        guess(&gate, [user; 32], ip(office)).await;
    }
    assert!(!is_open(&gate, ANNA, office), "an hour is over");
}

#[tokio::test(start_paused = true)]
async fn a_success_does_not_reset_the_prefix() {
    let gate = Gate::new();
    for user in 0..60 {
        guess(&gate, [user; 32], ip("192.0.2.1")).await;
        log_in(&gate, [255; 32], ip("192.0.2.1"));
    }
    assert!(!is_open(&gate, BERT, "192.0.2.1"), "who has one account may guess another's");
}

#[tokio::test(start_paused = true)]
async fn failures_fade() {
    let gate = Gate::new();
    for _ in 0..8 {
        guess(&gate, ANNA, ip("192.0.2.1")).await;
    }
    assert!(!is_open(&gate, ANNA, "192.0.2.1"));
    advance(HALVING).await;
    assert!(is_open(&gate, ANNA, "192.0.2.1"));
}
