//! One direction of the line between a client and an endpoint: bytes come out a delay after they went in, in order.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep_until};

/// Most bytes under way: 300 MB/s at 100 ms, more than loopback carries.
const UNDER_WAY: usize = 32 << 20;

/// What is under way.
#[derive(Default)]
pub(super) struct Line {
    under_way: VecDeque<(Instant, Bytes)>,
    bytes: usize,
}

impl Line {
    /// Returns whether more may be pushed.
    pub(super) fn has_room(&self) -> bool {
        self.bytes < UNDER_WAY
    }

    /// Returns whether something is under way, which nothing may overtake.
    pub(super) fn is_busy(&self) -> bool {
        !self.under_way.is_empty()
    }

    /// Puts bytes on their way.
    pub(super) fn push(&mut self, bytes: Bytes, delay: Duration) {
        let arrival = Instant::now() + delay;
        let latest = self.under_way.back().map(|(latest, _)| *latest);
        self.bytes += bytes.len();
        self.under_way
            .push_back((latest.map_or(arrival, |latest| latest.max(arrival)), bytes));
    }

    /// Waits until bytes have arrived; for ever, if there are none.
    pub(super) async fn arrive(&self) {
        match self.under_way.front() {
            Some((arrival, _)) => sleep_until(*arrival).await,
            None => std::future::pending().await,
        }
    }

    /// Returns the next bytes that have arrived.
    pub(super) fn poll(&mut self) -> Option<Bytes> {
        let now = Instant::now();
        let (_, bytes) = self.under_way.pop_front_if(|(arrival, _)| *arrival <= now)?;
        self.bytes -= bytes.len();
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bytes_travel_at_once_and_keep_their_order() {
        let began = Instant::now();
        let delay = Duration::from_millis(50);
        let mut line = Line::default();
        for text in ["a", "b"] {
            line.push(Bytes::from(text), delay);
            tokio::time::advance(Duration::from_millis(10)).await;
        }
        // The last ones have a shorter way, and wait for those before.
        line.push(Bytes::from("c"), Duration::ZERO);
        let mut arrived = Vec::new();
        while line.is_busy() {
            line.arrive().await;
            while let Some(bytes) = line.poll() {
                arrived.push((bytes, began.elapsed().as_millis()));
            }
        }
        assert_eq!(
            arrived,
            [("a", 50), ("b", 60), ("c", 60)].map(|(text, time)| (Bytes::from(text), time))
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_line_has_room_again_once_something_came_out() {
        let mut line = Line::default();
        line.push(Bytes::from(vec![0; UNDER_WAY]), Duration::ZERO);
        assert!(!line.has_room());
        assert!(line.poll().is_some() && line.has_room());
    }
}
