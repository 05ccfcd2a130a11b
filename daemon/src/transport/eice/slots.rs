//! The places on each endpoint, shared by all tunnels that go through it.
//!
//! AWS refuses the twenty-first connection. Others in the VPC take places too, of which nothing is known here; but ours
//! wait for one another instead of being refused.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tunneld_wire::eice::CONNECTIONS;

/// The places on every endpoint.
#[derive(Debug, Default)]
pub struct Slots(Mutex<HashMap<String, Arc<Semaphore>>>);

impl Slots {
    /// Returns where places on an endpoint are given out, in the order of asking.
    pub(super) fn gate(&self, endpoint: &str) -> Gate {
        let mut gates = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let gate = gates
            .entry(endpoint.to_owned())
            .or_insert_with(|| Arc::new(Semaphore::new(CONNECTIONS)));
        Gate(Arc::clone(gate))
    }
}

/// Where the places on one endpoint are given out.
pub(super) struct Gate(Arc<Semaphore>);

impl Gate {
    /// Takes a place if there is one.
    pub(super) fn try_take(&self) -> Option<Slot> {
        Arc::clone(&self.0).try_acquire_owned().ok().map(Slot)
    }

    /// Waits for a place; returns none when the patience is over.
    pub(super) async fn take(&self, patience: Patience) -> Option<Slot> {
        let taken = async {
            let permit = Arc::clone(&self.0).acquire_owned().await;
            Slot(permit.expect("nobody closes this semaphore"))
        };
        match patience {
            Patience::None => self.try_take(),
            Patience::Limited(time) => timeout(time, taken).await.ok(),
            Patience::Callers => Some(taken.await),
        }
    }
}

/// How long a place is waited for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Patience {
    /// Not at all.
    None,
    /// So long.
    Limited(Duration),
    /// As long as whoever asks does.
    Callers,
}

/// A place on an endpoint, given back when dropped.
#[derive(Debug)]
pub(super) struct Slot(#[expect(dead_code, reason = "it is held")] OwnedSemaphorePermit);

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_endpoint_has_twenty_places_and_another_one_has_its_own() {
        let slots = Slots::default();
        let gate = slots.gate("eice-1");
        let mut taken: Vec<_> = (0..CONNECTIONS).map_while(|_| gate.try_take()).collect();
        assert_eq!(taken.len(), 20);
        assert!(slots.gate("eice-1").try_take().is_none());
        assert!(slots.gate("eice-2").try_take().is_some());

        let mut next = Box::pin(gate.take(Patience::Callers));
        assert!((&mut next).now_or_never().is_none());
        assert!(gate.take(Patience::None).await.is_none());
        let minute = Duration::from_secs(60);
        assert!(gate.take(Patience::Limited(minute)).await.is_none());
        taken.pop();
        let first = next.await;
        let mut next = Box::pin(gate.take(Patience::Limited(minute)));
        assert!((&mut next).now_or_never().is_none());
        drop(first);
        assert!(next.await.is_some());
    }
}
