//! The task that owns one tunnel: waits for an event, feeds the machine, performs its actions.
//!
//! ```text
//!            commands ─┐
//!   attempt, link lost ─┤                    ┌─► bind, connect, let go, disconnect
//!        link's health ─┼─► wait ─► machine ─┤
//!   open failed, timer ─┤                    └─► slot (connections) and board (everybody)
//!   local clients, and ─┘
//!     what they need
//! ```
//!
//! No thinking happens here: what follows from an event is the machine's affair. An attempt is a future inside
//! `wait`, so that dropping it cancels it, and every command is answered in every state.
//!
//! What belongs to one time of being wanted, from `up` to `down`, is a [`Period`]. It ends as a whole, in the order
//! written in [`Period::shut`], [`Period::drain`] and [`Period::part`], beside the next one if `up` comes quickly.

use std::future::pending;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tracing::{Instrument, error_span, info};

use crate::config::TunnelSpec;
use crate::failure::Failure;
use crate::meter::Presence;
use crate::status::{self, Entry};
use crate::surroundings::Change;
use crate::transport::{Health, Link, LinkDetails, Transport};
use crate::tunnel::client::Client;
use crate::tunnel::lifecycle::{Action, Demand, Event, Lifecycle, Parting, State};
use crate::tunnel::listener::{Listener, Taken};
use crate::tunnel::peer::Gate;
use crate::tunnel::period::{Happening, Linked, Period};
use crate::tunnel::proxy::{OpenFailed, Proxy};
use crate::tunnel::slot::Slot;
use crate::tunnel::{Afterwards, Common, Wish, shown};

/// What a handle asks for.
#[derive(Debug)]
pub(crate) enum Command {
    /// Bind, connect as the tunnel's mode and the wish say, stay.
    Up {
        /// How far.
        wish: Wish,
        /// Told once the address is bound, or known to be taken.
        bound: oneshot::Sender<()>,
    },
    /// End all of it.
    Down(oneshot::Sender<()>),
    /// Try again if blocked.
    Reloaded,
    /// Do what follows from a change around the daemon.
    Around(Change),
    /// End for good.
    Finish {
        /// How long connections may take to end by themselves.
        grace: Duration,
        /// What becomes of the local address.
        afterwards: Afterwards,
        /// Told, once nobody is accepted any more, whether the tunnel was wanted.
        unbound: oneshot::Sender<bool>,
    },
}

/// The task. See the module's documentation.
pub(crate) struct Supervisor {
    spec: Arc<TunnelSpec>,
    transport: Arc<dyn Transport>,
    entry: Entry,
    common: Common,
    lifecycle: Lifecycle,
    commands: mpsc::Receiver<Command>,
    /// Who may connect.
    gate: Gate,
    /// What connections meet.
    slot: watch::Sender<Slot>,
    /// How many of them there are, and wait.
    presence: watch::Receiver<Presence>,
    period: Period,
    /// Periods that end, each with whoever waits for it.
    ending: JoinSet<()>,
    /// Who asked for `down` and is to be answered when the period has ended.
    leaving: Vec<oneshot::Sender<()>>,
    /// Why the local address could not be bound; `None` while it is, or is not wanted.
    taken: Option<Taken>,
    /// Links made so far.
    links: u64,
    /// What was shown last of a part of a link that ended.
    ended: Option<Arc<Failure>>,
    /// What the transport waits for.
    delays: watch::Receiver<Vec<Arc<Failure>>>,
}

/// What ended a wait.
enum Wake {
    Command(Option<Command>),
    Happening(Happening),
    Delay,
    Presence,
    Timeout,
}

impl Supervisor {
    /// The supervisor of a tunnel that is down.
    pub(crate) fn new(
        spec: Arc<TunnelSpec>,
        transport: Arc<dyn Transport>,
        entry: Entry,
        common: Common,
        commands: mpsc::Receiver<Command>,
    ) -> Self {
        Self {
            lifecycle: Lifecycle::new(spec.mode, fastrand::Rng::new(), Instant::now()),
            gate: Gate::new(spec.allow_users.clone()),
            spec,
            delays: transport.delays(),
            transport,
            presence: entry.meter().presence(),
            entry,
            common,
            commands,
            slot: watch::Sender::new(Slot::Refuse { cause: None }),
            period: Period::new(),
            ending: JoinSet::new(),
            leaving: Vec::new(),
            taken: None,
            links: 0,
            ended: None,
        }
    }

    /// Runs until told to finish, or until nobody holds a handle any more.
    pub(crate) async fn run(self) {
        // At the level of errors, so that every line that is logged at all says whose it is.
        let span = error_span!("tunnel", name = %self.spec.name);
        self.supervise().instrument(span).await;
    }

    async fn supervise(mut self) {
        loop {
            let wake = self.wait().await;
            self.tell_demand();
            match wake {
                Wake::Command(Some(Command::Up { wish, bound })) => {
                    self.bind(wish).await;
                    self.perform().await;
                    bound.send(()).ok();
                }
                Wake::Command(Some(Command::Down(answer))) => {
                    self.leaving.push(answer);
                    self.handle(Event::Down);
                }
                Wake::Command(Some(Command::Reloaded)) => self.handle(Event::Reloaded),
                Wake::Command(Some(Command::Around(change))) => self.around(change),
                Wake::Command(Some(Command::Finish {
                    grace,
                    afterwards,
                    unbound,
                })) => return self.finish(grace, afterwards, Some(unbound)).await,
                Wake::Command(None) => return self.finish(Duration::ZERO, Afterwards::Free, None).await,
                Wake::Happening(Happening::Attempted(outcome)) => self.attempted(outcome),
                Wake::Happening(Happening::LinkEnded(cause)) => self.handle(Event::Lost(cause)),
                Wake::Happening(Happening::HealthChanged(health)) => self.health_changed(health),
                Wake::Happening(Happening::OpenFailed(report)) => self.open_failed(report),
                Wake::Happening(Happening::Accepted(client)) => self.serve(client),
                Wake::Delay => self.show_delay(),
                Wake::Presence => {}
                Wake::Timeout => self.lifecycle.handle_timeout(Instant::now()),
            }
            self.perform().await;
            // A tunnel that was down already has nothing to wait for.
            for answer in mem::take(&mut self.leaving) {
                answer.send(()).ok();
            }
        }
    }

    /// Waits for the next event. Every branch is cancel-safe; commands come first, so that a flood of clients cannot
    /// delay `down`, and clients last, with their presence, which any other event tells as well.
    async fn wait(&mut self) -> Wake {
        tokio::select! {
            biased;
            command = self.commands.recv() => Wake::Command(command),
            () = time(self.lifecycle.poll_timeout()) => Wake::Timeout,
            Ok(()) = self.delays.changed() => Wake::Delay,
            happening = self.period.event() => Wake::Happening(happening),
            Ok(()) = self.presence.changed() => Wake::Presence,
        }
    }

    fn handle(&mut self, event: Event) {
        self.lifecycle.handle(event, Instant::now());
    }

    /// Tells the machine what the connections need, so that it decides on what holds at the moment of an event.
    fn tell_demand(&mut self) {
        let presence = *self.presence.borrow_and_update();
        let demand = match presence {
            Presence { held: 1.., .. } => Demand::Wait,
            Presence { connections: 1.., .. } => Demand::Use,
            Presence { .. } => Demand::Nothing,
        };
        self.handle(Event::Demand(demand));
    }

    async fn perform(&mut self) {
        while let Some(action) = self.lifecycle.poll_action() {
            match action {
                Action::Bind => self.bind(Wish::Listen).await,
                Action::Connect => {
                    let transport = Arc::clone(&self.transport);
                    self.period.attempt = Some(Box::pin(async move { transport.connect().await }));
                }
                Action::Probe => self.period.linked.iter().for_each(Linked::probe),
                Action::Retry => self.period.linked.iter().for_each(Linked::retry),
                Action::Release(parting) => {
                    match parting {
                        Parting::Lost => self.entry.meter().link_lost(),
                        Parting::Unused => {}
                    }
                    self.entry.link(None);
                    self.period.release();
                }
                Action::Disconnect => {
                    self.entry.link(None);
                    self.period.shut();
                    let mut period = mem::replace(&mut self.period, Period::new());
                    self.taken = None;
                    let leaving = mem::take(&mut self.leaving);
                    let ending = async move {
                        period.drain(Duration::ZERO).await;
                        period.part().await;
                        for answer in leaving {
                            answer.send(()).ok();
                        }
                    };
                    while self.ending.try_join_next().is_some() {}
                    self.ending.spawn(ending.in_current_span());
                }
                Action::Publish => self.publish(),
            }
        }
    }

    /// Binds the local address unless it is bound, and tells the machine.
    async fn bind(&mut self, wish: Wish) {
        if self.period.listener.is_some() {
            return self.handle(Event::Up(wish));
        }
        let unbound = match Listener::bind(&self.spec.listen, &self.spec.allow_users, &self.common) {
            Ok(listener) => {
                self.period.listener = Some(listener);
                self.taken = None;
                return self.handle(Event::Up(wish));
            }
            Err(unbound) => unbound,
        };
        if self.taken.as_ref().is_some_and(|taken| taken.still(&unbound)) {
            // Nothing new. Looking through all processes each second would cost more than the tunnel.
            return;
        }
        let Ok(taken) = tokio::task::spawn_blocking(|| unbound.explain()).await else {
            // The runtime ends, and this task with it.
            return;
        };
        self.handle(Event::PortTaken(Arc::clone(&taken.failure)));
        self.taken = Some(taken);
    }

    fn attempted(&mut self, outcome: Result<Arc<dyn Link>, Failure>) {
        match outcome {
            Ok(link) => {
                self.links += 1;
                let linked = Linked::new(link, self.links);
                let health = linked.health.borrow().clone();
                self.period.linked = Some(linked);
                self.handle(Event::Connected);
                self.health_changed(health);
            }
            Err(failure) => {
                self.entry.link(None);
                self.handle(Event::Lost(Arc::new(failure)));
            }
        }
    }

    /// Shows what an attempt waits for; a link shows it itself.
    fn show_delay(&self) {
        if self.period.attempt.is_none() {
            return;
        }
        let delay = self.delays.borrow().first().cloned();
        self.entry.link(delay.map(|cause| LinkDetails {
            notes: vec![cause.in_one_line()],
            ..LinkDetails::default()
        }));
    }

    fn health_changed(&mut self, health: Health) {
        self.entry.link(Some(health.details));
        if let Some(ended) = health.ended
            && !self
                .ended
                .as_ref()
                .is_some_and(|shown| Arc::ptr_eq(shown, &ended))
        {
            info!("a part of the link has ended: {}", ended.in_one_line());
            self.entry.failed(&ended);
            self.ended = Some(ended);
        }
        match health.impaired {
            None => self.handle(Event::Recovered),
            Some(impaired) => self.handle(Event::Impaired(impaired.cause)),
        }
    }

    fn around(&mut self, change: Change) {
        match change {
            Change::Woke(woke) => {
                if self.period.linked.is_some() {
                    self.entry.note(&woke.to_string());
                }
                self.handle(Event::NetworkChanged);
            }
            Change::Network => self.handle(Event::NetworkChanged),
            Change::Credentials => self.handle(Event::CredentialsChanged),
        }
    }

    fn open_failed(&mut self, report: OpenFailed) {
        // A connection may have waited long enough for its link to be another one's predecessor.
        if self
            .period
            .linked
            .as_ref()
            .is_some_and(|linked| linked.number == report.number)
        {
            // Whoever reports waits for the next link, though it may not be counted as held yet.
            self.handle(Event::Demand(Demand::Wait));
            self.handle(Event::OpenFailed(report.failure));
        }
    }

    fn serve(&mut self, client: Client) {
        let Some(client) = self.gate.admit(client, self.entry.meter()) else {
            return;
        };
        self.period.accepted += 1;
        let span = error_span!("connection", number = self.period.accepted, peer = %client.peer());
        let proxy = Proxy {
            client,
            slot: self.slot.subscribe(),
            hold: self.spec.hold,
            delays: self.transport.delays(),
            entry: self.entry.clone(),
            reports: self.period.reports.0.clone(),
            stop: self.period.stop.clone(),
        };
        self.period.connections.spawn(proxy.run().instrument(span));
        // It has no stream yet. One that may not be held at all makes the link for those after it.
        self.handle(Event::Demand(Demand::Wait));
    }

    /// Shows the machine's state to connections, to the board and in the log.
    fn publish(&self) {
        let (state, now) = (self.lifecycle.state(), Instant::now());
        self.slot
            .send_replace(shown::slot(state, self.period.linked.as_ref()));
        let reason = self.entry.publish(shown::status(state, now));
        shown::log(state, &reason, now);
    }

    /// Ends everything, in this order: listener, held connections, streams (after `grace`), links, board.
    async fn finish(
        mut self,
        grace: Duration,
        afterwards: Afterwards,
        unbound: Option<oneshot::Sender<bool>>,
    ) {
        let wanted = !matches!(self.lifecycle.state(), State::Down);
        match (afterwards, self.period.listener.take()) {
            (Afterwards::Leave, Some(listener)) => listener.leave(&self.common.heritage),
            (Afterwards::Offer, Some(listener)) => listener.offer(&self.common.heritage),
            (Afterwards::Leave | Afterwards::Offer, None) | (Afterwards::Free, _) => {}
        }
        self.period.shut();
        if let Some(unbound) = unbound {
            unbound.send(wanted).ok();
        }
        // Whoever was accepted a moment ago may still take the link.
        self.slot.send_if_modified(|slot| match slot {
            Slot::Linked(_) => false,
            Slot::Hold { .. } | Slot::Refuse { .. } => {
                *slot = Slot::Refuse { cause: None };
                true
            }
        });
        self.period.drain(grace).await;
        self.slot.send_replace(Slot::Refuse { cause: None });
        self.period.part().await;
        while self.ending.join_next().await.is_some() {}
        if wanted {
            self.entry.link(None);
            self.entry.publish(status::State::Down);
            info!("down");
        }
    }
}

async fn time(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => pending().await,
    }
}

#[cfg(test)]
mod tests;
