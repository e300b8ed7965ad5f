//! How many connections there may be, of all clients and of one: whoever comes when there is no
//! place is told to come again, and nobody can take all places.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Network;
use super::errors::Refusal;

/// The places of a listener. A connection takes one, and so does each request of HTTP/2, of which
/// one connection may have several at once.
#[derive(Debug)]
pub(super) struct Places {
    free: Arc<Semaphore>,
    all: usize,
    each: usize,
    /// Who stands for many clients: bounded by `all` only.
    proxies: Vec<Network>,
    taken: Mutex<HashMap<IpAddr, usize>>,
}

/// One place; free again when dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    /// Whose it is, where that is counted.
    of: Option<IpAddr>,
    _one: OwnedSemaphorePermit,
}

impl Places {
    pub(super) fn new(all: usize, each: usize, proxies: Vec<Network>) -> Arc<Places> {
        let all = all.clamp(1, Semaphore::MAX_PERMITS);
        let free = Arc::new(Semaphore::new(all));
        Arc::new(Places { free, all, each, proxies, taken: Mutex::default() })
    }

    /// A place for a client at this address, or what it is told instead.
    pub(super) fn take(self: &Arc<Places>, client: IpAddr) -> Result<Place, Refusal> {
        let one = Arc::clone(&self.free).try_acquire_owned().map_err(|_| Refusal::Crowded)?;
        let is_proxy = self.proxies.iter().any(|network| network.contains(client));
        let of = (!is_proxy).then(|| prefix(client));
        if let Some(of) = of {
            let mut taken = self.taken();
            let count = taken.entry(of).or_default();
            if *count >= self.each {
                return Err(Refusal::CrowdedAddress);
            }
            *count += 1;
        }
        Ok(Place { places: Arc::clone(self), of, _one: one })
    }

    /// Waits until nobody has a place, and leaves none.
    pub(super) async fn all_free(&self) {
        let all = u32::try_from(self.all).unwrap_or(u32::MAX);
        let _ = self.free.acquire_many(all).await;
    }

    fn taken(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// One more for the same client.
    pub(super) fn another(&self, client: IpAddr) -> Result<Place, Refusal> {
        self.places.take(client)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(of) = self.of else { return };
        let mut taken = self.places.taken();
        if let Some(count) = taken.get_mut(&of) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&of);
            }
        }
    }
}

/// Who counts as one client: an IPv4 address, or the IPv6 network of one link (/64).
fn prefix(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_client_cannot_take_all_places() {
        let places = Places::new(4, 2, Vec::new());
        let first = places.take(at("192.0.2.1")).unwrap();
        let second = places.take(at("::ffff:192.0.2.1")).unwrap();
        assert!(matches!(places.take(at("192.0.2.1")), Err(Refusal::CrowdedAddress)));
        assert!(matches!(first.another(at("192.0.2.1")), Err(Refusal::CrowdedAddress)));
        let other = [places.take(at("2001:db8::1")), places.take(at("2001:db8::2:1"))];
        assert!(other.iter().all(Result::is_ok));
        assert!(matches!(places.take(at("192.0.2.9")), Err(Refusal::Crowded)));
        drop(other);
        assert!(matches!(places.take(at("192.0.2.1")), Err(Refusal::CrowdedAddress)));
        drop((first, second));
        assert!(places.taken().is_empty());
        let again = [places.take(at("2001:db8::1")), places.take(at("2001:db8::2"))];
        assert!(again.iter().all(Result::is_ok));
        assert!(matches!(places.take(at("2001:db8::3")), Err(Refusal::CrowdedAddress)));
        assert!(places.take(at("2001:db8:0:1::3")).is_ok());
    }

    #[test]
    fn a_trusted_proxy_stands_for_many() {
        let places = Places::new(3, 1, vec!["10.0.0.0/8".parse().unwrap()]);
        let all: Vec<_> = (0..3).map(|_| places.take(at("10.1.2.3")).unwrap()).collect();
        assert!(matches!(places.take(at("10.1.2.3")), Err(Refusal::Crowded)));
        drop(all);
        assert!(places.take(at("10.1.2.3")).is_ok());
    }

    #[tokio::test]
    async fn the_end_waits_for_every_place() {
        let places = Places::new(2, 2, Vec::new());
        let place = places.take(at("::1")).unwrap();
        assert!(tokio::time::timeout(std::time::Duration::ZERO, places.all_free()).await.is_err());
        drop(place);
        places.all_free().await;
    }
}
