//! The one task that owns a session: the service, with a line to the client on one side and the agent on the other.
//!
//! ```text
//!   client ─► line ───► service ─► agent ─► targets
//!          ◄─ line ◄─ greeting ◄────┘
//! ```
//!
//! It moves frames and keeps the time; what is done with them is decided by those machines.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::agent::{Agent, DRAIN, End};
use super::client::{Arrival, Farewell};
use super::greeting::Greeting;
use super::line::Line;
use super::message::{channel_closed, pause_publication, start_publication};
use super::service::{Action, Service};
use super::sketch::{Sort, sort};
use super::streams::AtTarget;
use super::{AgentKind, Command, SessionSpec};
use crate::conditions::{AbsentClient, Conditions, Noise, StartPublication};

/// One session's service and agent.
pub(super) struct Relay {
    session_id: String,
    conditions: watch::Receiver<Arc<Conditions>>,
    line: Line,
    service: Service,
    greeting: Greeting,
    agent: Agent,
    /// The agent has lost its own websocket until then.
    agent_back: Option<std::time::Instant>,
    arrivals: mpsc::Receiver<Arrival>,
    commands: mpsc::Receiver<Command>,
    over: CancellationToken,
    client: Option<Arrival>,
    latest_generation: u64,
}

/// What stopped frames to the client.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    /// There are none, or the line holds them.
    Free,
    /// The websocket's queue.
    Full,
    /// The websocket is gone, as its frames will tell once they are read to the end.
    Closed,
}

enum Wake {
    Over,
    Conditions,
    Command(Command),
    Arrival(Option<Arrival>),
    Frame(Option<Bytes>),
    Room,
    AtTarget(AtTarget),
    Timeout,
}

impl Relay {
    pub(super) fn new(
        spec: SessionSpec,
        conditions: watch::Receiver<Arc<Conditions>>,
        arrivals: mpsc::Receiver<Arrival>,
        commands: mpsc::Receiver<Command>,
        over: CancellationToken,
    ) -> Self {
        let now = clock();
        let mut relay = Self {
            session_id: spec.session_id.clone(),
            line: Line::new(spec.number),
            service: Service::new(now),
            greeting: Greeting::new(),
            agent: Agent::new(spec, conditions.clone(), now),
            conditions,
            agent_back: None,
            arrivals,
            commands,
            over,
            client: None,
            latest_generation: 0,
        };
        relay.set_conditions(now);
        relay
    }

    /// Runs the session to its end and returns the cause.
    pub(super) async fn run(mut self) -> String {
        let End { cause, words } = self.relay().await;
        // The client may be gone, or not read any more.
        let _ = timeout(DRAIN, self.close(&words)).await;
        cause
    }

    async fn relay(&mut self) -> End {
        loop {
            // One reading for all, as `Session::poll_timeout` asks.
            let now = clock();
            self.carry_up(now);
            let flow = self.carry_down(now);
            self.agent.return_permits();
            if let Some(action) = self.service.poll_action() {
                match self.act(action, now) {
                    Some(end) => return end,
                    None => continue,
                }
            }
            if let Some(end) = self.agent.poll_end(now) {
                return end;
            }
            match self.wait(flow, now).await {
                Wake::Over => return ended("terminated"),
                Wake::Conditions => self.set_conditions(clock()),
                Wake::Command(command) => self.handle_command(command),
                Wake::Arrival(Some(arrival)) => self.handle_arrival(arrival),
                Wake::Arrival(None) => return ended("the emulator stopped"),
                Wake::Frame(Some(frame)) => self.handle_frames(frame),
                Wake::Frame(None) => self.lose_client(),
                Wake::Room => {}
                Wake::AtTarget(happened) => self.agent.handle_target(happened, clock()),
                Wake::Timeout => self.handle_timeout(),
            }
        }
    }

    async fn wait(&mut self, flow: Flow, now: std::time::Instant) -> Wake {
        let down = match (&self.client, flow) {
            (Some(_), Flow::Free) => self.line.down.poll_timeout(),
            (Some(_), Flow::Full | Flow::Closed) | (None, _) => None,
        };
        let times = [
            self.agent.poll_timeout(now),
            self.service.poll_timeout(),
            self.line.up.poll_timeout(),
            down,
            self.agent_back,
        ];
        let due = times.into_iter().flatten().min().map(Instant::from_std);
        let reading = self.line.up.has_room();
        let (frames, writer) = match &mut self.client {
            Some(Arrival { frames, writer, .. }) => (Some(frames), Some(writer)),
            None => (None, None),
        };
        tokio::select! {
            () = self.over.cancelled() => Wake::Over,
            Ok(()) = self.conditions.changed() => Wake::Conditions,
            Some(command) = self.commands.recv() => Wake::Command(command),
            arrival = self.arrivals.recv() => Wake::Arrival(arrival),
            Some(frame) = of(frames.map(mpsc::Receiver::recv)), if reading => Wake::Frame(frame),
            Some(_) = of(writer.map(|writer| writer.reserve())), if flow == Flow::Full => Wake::Room,
            happened = self.agent.at_target() => Wake::AtTarget(happened),
            Some(()) = of(due.map(sleep_until)) => Wake::Timeout,
        }
    }

    fn set_conditions(&mut self, now: std::time::Instant) {
        let conditions = Arc::clone(&self.conditions.borrow_and_update());
        let Conditions {
            line, service, agent, ..
        } = &*conditions;
        self.line.set(line);
        self.service.set(service.clone(), now);
        self.greeting
            .set(agent.handshake_requests, agent.late_handshake_ack);
        self.agent.set(agent);
        if self.client.is_none() && self.pauses_for_nobody() {
            self.agent.detach();
        }
    }

    fn handle_command(&mut self, command: Command) {
        match command {
            Command::Recycle => self.hang_up(Farewell::Bye),
            Command::AgentOutage(duration) => {
                self.agent_back = Some(clock() + duration);
                match self.agent.kind() {
                    AgentKind::Fast => self.agent.detach(),
                    AgentKind::Stock | AgentKind::Unpaced => {}
                }
            }
        }
    }

    fn handle_arrival(&mut self, arrival: Arrival) {
        if arrival.generation < self.latest_generation {
            return;
        }
        let now = clock();
        self.latest_generation = arrival.generation;
        if self.client.replace(arrival).is_some() {
            self.forget_client();
        }
        self.service.connected(now);
        match self.service.conditions().start_publication {
            StartPublication::First => self.line.down.push(start_publication(), now),
            StartPublication::AfterHandshake if self.greeting.is_complete() => {
                self.line.down.push(start_publication(), now);
            }
            StartPublication::AfterHandshake | StartPublication::Never => {}
        }
        if self.agent_back.is_none() || self.agent.kind() != AgentKind::Fast {
            self.agent.attach(now);
        }
    }

    /// Takes what the client has sent.
    fn handle_frames(&mut self, first: Bytes) {
        let now = clock();
        self.line.up.push(first, now);
        while self.line.up.has_room()
            && let Some(client) = &mut self.client
            && let Ok(frame) = client.frames.try_recv()
        {
            self.line.up.push(frame, now);
        }
    }

    fn handle_timeout(&mut self) {
        let now = clock();
        self.service.handle_timeout(now);
        self.agent.handle_timeout(now);
        if self.agent_back.is_some_and(|back| back <= now) {
            self.agent_back = None;
            if self.client.is_some() {
                self.line.down.push(start_publication(), now);
                self.agent.attach(now);
            }
        }
    }

    fn carry_up(&mut self, now: std::time::Instant) {
        while !self.service.wants_to_act()
            && let Some(frame) = self.line.up.poll(now)
        {
            if !self.service.relays_up(&frame, now) {
                continue;
            }
            if self.agent_back.is_none() {
                self.agent.handle_frame(frame, now);
            } else if sort(&frame) == Sort::Input {
                self.line.down.push(pause_publication(), now);
            }
        }
    }

    /// Sends what there is to send, and returns what stopped it.
    ///
    /// An agent sends no more than the websocket takes, and numbers nothing that it does not send.
    fn carry_down(&mut self, now: std::time::Instant) -> Flow {
        while !self.service.wants_to_act() {
            if self.line.down.has_arrived(now)
                && let Some(Arrival { writer, .. }) = &self.client
            {
                match writer.try_reserve() {
                    Ok(room) => {
                        if let Some(frame) = self.line.down.poll(now) {
                            self.service.relays_down(&frame, now);
                            room.send(frame);
                        }
                        continue;
                    }
                    Err(TrySendError::Full(())) => return Flow::Full,
                    Err(TrySendError::Closed(())) => return Flow::Closed,
                }
            }
            let is_lost = self.agent_back.is_some() || (self.client.is_none() && !self.keeps());
            if !is_lost && !self.line.down.has_room() && self.client.is_some() {
                break;
            }
            let Some(frame) = self.next_frame(now) else {
                break;
            };
            if is_lost || !self.line.down.has_room() {
                continue;
            }
            self.line.down.push(frame, now);
        }
        Flow::Free
    }

    /// Returns the agent's next frame, in the order in which it greets.
    fn next_frame(&mut self, now: std::time::Instant) -> Option<Bytes> {
        loop {
            if let Some(frame) = self.greeting.poll() {
                return Some(frame);
            }
            let frame = self.agent.poll_transmit(now)?;
            if self.greeting.is_complete() {
                return Some(frame);
            }
            self.greeting.push(frame);
            if self.greeting.is_complete()
                && self.service.conditions().start_publication == StartPublication::AfterHandshake
            {
                self.greeting.push(start_publication());
            }
        }
    }

    /// Does what the service does by itself; returns the session's end if that is it.
    fn act(&mut self, action: Action, now: std::time::Instant) -> Option<End> {
        match action {
            Action::Pause => self.line.down.push(pause_publication(), now),
            Action::Start => self.line.down.push(start_publication(), now),
            Action::Bye => self.hang_up(Farewell::Bye),
            Action::HangUp => {
                if let Some(client) = &self.client {
                    // A client that reads nothing is not told.
                    let _ = client.writer.try_send(pause_publication());
                }
                self.hang_up(Farewell::Nothing);
            }
            Action::End { cause, words } => {
                return Some(End {
                    cause: cause.to_owned(),
                    words: words.to_owned(),
                });
            }
        }
        None
    }

    fn hang_up(&mut self, farewell: Farewell) {
        if let Some(client) = self.client.take() {
            client.leave(farewell);
            self.forget_client();
        }
    }

    fn lose_client(&mut self) {
        self.client = None;
        self.forget_client();
    }

    /// A websocket is gone: so is what was on its way to it, and the agent learns of it.
    fn forget_client(&mut self) {
        self.service.disconnected();
        if !self.keeps() {
            self.line.down.clear();
        }
        if self.pauses_for_nobody() {
            self.agent.detach();
        }
    }

    fn keeps(&self) -> bool {
        self.service.conditions().absent_client == AbsentClient::Keep
    }

    fn pauses_for_nobody(&self) -> bool {
        self.service.conditions().pause_on_cut || self.agent.kind() == AgentKind::Fast
    }

    /// Tells the client that the session is over, after what is under way to it; its websocket is closed by the drop of
    /// its writer.
    async fn close(&mut self, words: &str) {
        let Some(client) = self.client.take() else { return };
        let form = self.service.conditions().channel_closed;
        self.line.down.set(Duration::ZERO, Noise::default(), 0.0);
        self.line
            .down
            .push(channel_closed(&self.session_id, words, form), clock());
        while let Some(arrival) = self.line.down.poll_timeout() {
            sleep_until(Instant::from_std(arrival)).await;
            while let Some(frame) = self.line.down.poll(clock()) {
                if client.writer.send(frame).await.is_err() {
                    return;
                }
            }
        }
    }
}

fn ended(cause: &str) -> End {
    End {
        cause: cause.to_owned(),
        words: String::new(),
    }
}

fn clock() -> std::time::Instant {
    Instant::now().into_std()
}

/// Waits for a future that may not be there: `None` at once where it is not, which disables its branch.
async fn of<F: Future>(future: Option<F>) -> Option<F::Output> {
    match future {
        Some(future) => Some(future.await),
        None => None,
    }
}
