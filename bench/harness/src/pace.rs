//! How fast the official agent sends at best: two session machines of `wire` in this process, with nothing between
//! them.
//!
//! The client acknowledges at once and takes whatever comes, so all that is left is the agent's own pace: 1,024 bytes
//! every 1,193 µs, less smux's headers, as well as this machine's timer keeps it.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use bytes::Bytes;
use tunneld_wire::smux::{Framing, StreamId};
use tunneld_wire::ssm::{AgentOptions, ClientOptions, Digests, Event, Frame, Origin, Policy, Session};

/// What the agent's target has ready: as much as one of the agent's reads takes.
const READ: usize = 32_768;

/// Downloads for this long; returns the bytes per second that came out at the client.
pub(crate) fn of_the_stock_agent(duration: Duration) -> anyhow::Result<f64> {
    let mut pair = Pair::new();
    let mut began = None;
    let mut bytes = 0_u64;
    loop {
        let now = Instant::now();
        for event in pair.exchange(now)? {
            if matches!(event, Event::Ready { .. }) {
                pair.client.open(now).context("the session takes no stream")?;
            } else if let Event::Data(_, data) = event {
                began.get_or_insert(now);
                bytes += data.len() as u64;
            } else if let Event::Ended(end) = event {
                bail!("the session ended: {end}");
            }
        }
        if let Some(began) = began
            && now - began >= duration
        {
            return Ok(bytes as f64 / (now - began).as_secs_f64());
        }
        let due = pair.due(now).context("neither side has anything to wait for")?;
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}

struct Pair {
    client: Session,
    agent: Session,
    stream: Option<StreamId>,
}

impl Pair {
    fn new() -> Self {
        let now = Instant::now();
        let origin = Origin {
            seed: 1,
            began: now,
            began_unix: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
            half_close_grace: Duration::ZERO,
        };
        let properties = [("portNumber", "7000"), ("type", "LocalPortForwarding")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
        let mut agent = Session::agent(
            AgentOptions {
                version: "3.3.1142.0".to_owned(),
                properties: BTreeMap::from(properties),
                policy: Policy::stock_agent(),
                framing: Framing::Spanning,
                digests: Digests::Trusted,
                quiet: Duration::ZERO,
            },
            origin,
        );
        let options = ClientOptions {
            policy: Policy::client(),
            keep_alive: None,
            stall_timeout: Duration::MAX,
        };
        let mut client = Session::client(options, origin);
        client.attach("", now);
        agent.attach_agent(now);
        Self {
            client,
            agent,
            stream: None,
        }
    }

    /// Moves frames both ways until neither side has any; returns what the client saw.
    fn exchange(&mut self, now: Instant) -> anyhow::Result<Vec<Event>> {
        self.client.handle_timeout(now);
        self.agent.handle_timeout(now);
        loop {
            self.feed_agent();
            let mut moved = false;
            while let Some(frame) = self.client.poll_transmit(now) {
                moved = true;
                // The text with the token is the service's to read.
                if let Frame::Binary(frame) = frame {
                    self.agent.handle_frame(frame, now)?;
                }
            }
            while let Some(Frame::Binary(frame)) = self.agent.poll_transmit(now) {
                moved = true;
                self.client.handle_frame(frame, now)?;
            }
            if !moved {
                return Ok(std::iter::from_fn(|| self.client.poll_event()).collect());
            }
        }
    }

    /// Sees to it that the agent never lacks something to send.
    fn feed_agent(&mut self) {
        while let Some(event) = self.agent.poll_event() {
            if let Event::Opened(stream) = event {
                self.stream = Some(stream);
            }
        }
        if let Some(stream) = self.stream {
            while self.agent.pending_writes(stream) < 2 {
                self.agent.write(stream, Bytes::from_static(&[7; READ]));
            }
        }
    }

    fn due(&self, now: Instant) -> Option<Instant> {
        let times = [self.client.poll_timeout(now), self.agent.poll_timeout(now)];
        times.into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_sends_a_little_less_than_a_kibibyte_each_1193_microseconds() {
        let pace = of_the_stock_agent(Duration::from_millis(200)).unwrap();
        // Much less where the machine is busy; more by the four messages that it may send at once.
        assert!((100_000.0..880_000.0).contains(&pace), "{pace}");
    }
}
