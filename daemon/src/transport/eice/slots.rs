//! The places on each endpoint, shared by all tunnels that go through it.
//!
//! AWS refuses the twenty-first connection. Others in the VPC take places too, of which nothing is known here; but ours
//! wait for one another instead of being refused.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
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

    /// Waits for a place.
    pub(super) async fn take(&self) -> Slot {
        let permit = Arc::clone(&self.0).acquire_owned().await;
        Slot(permit.expect("nobody closes this semaphore"))
    }
}

/// A place on an endpoint, given back when dropped.
#[derive(Debug)]
pub(super) struct Slot(#[expect(dead_code, reason = "it is held")] OwnedSemaphorePermit);

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn an_endpoint_has_twenty_places_and_another_one_has_its_own() {
        let slots = Slots::default();
        let gate = slots.gate("eice-1");
        let mut taken: Vec<_> = (0..CONNECTIONS).map_while(|_| gate.try_take()).collect();
        assert_eq!(taken.len(), 20);
        assert!(slots.gate("eice-1").try_take().is_none());
        assert!(slots.gate("eice-2").try_take().is_some());

        let mut next = Box::pin(gate.take());
        assert!((&mut next).now_or_never().is_none());
        taken.pop();
        next.await;
    }
}
