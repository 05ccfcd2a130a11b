//! Waiting for tunnels to come up, and telling how each of them does.
//!
//! ```text
//!                    ┌── up, idle ──► answer, done
//!   a tunnel's state ┼── blocked, down again, removed ──► told, done, exit code raised
//!                    └── connecting, waiting ──► cause told once, goes on ──► timeout
//! ```

use std::time::Duration;

use tokio::time::{Instant, timeout};
use tunneld_proto::v1::tunnel::State;
use tunneld_proto::v1::{Tunnel, UpRequest};

use crate::client::{Changes, Client};
use crate::error::{Error, Exit, report};
use crate::json::{self, Versioned};
use crate::output::Output;
use crate::render::words::{Clock, elapsed, engine, span};
use crate::render::{sentence, trouble};
use crate::tunnel;

/// Tunnels on their way up.
pub(super) struct Settling<'a> {
    output: &'a Output,
    started: Instant,
    /// Those that have not settled yet.
    pending: Vec<Pending>,
    exit: Exit,
}

struct Pending {
    latest: Tunnel,
    /// What Watch sent about the time before this generation is stale.
    generation: u64,
    /// Since when it had been up before anything was asked.
    up_since: Option<Duration>,
    /// The cause of waiting that was told last.
    told: Vec<String>,
}

impl Pending {
    fn new(tunnel: &Tunnel, up_since: Option<Duration>) -> Self {
        Self {
            latest: tunnel.clone(),
            generation: tunnel.generation,
            up_since,
            told: Vec::new(),
        }
    }
}

impl<'a> Settling<'a> {
    /// Nothing asked for yet.
    pub(super) fn new(output: &'a Output) -> Self {
        Self {
            output,
            started: Instant::now(),
            pending: Vec::new(),
            exit: Exit::Ok,
        }
    }

    /// Wants tunnels up and follows them until each has settled or `limit` has passed since the start.
    pub(super) async fn bring_up(
        mut self,
        request: UpRequest,
        client: &mut Client,
        changes: &mut Changes,
        limit: Duration,
    ) -> Result<Exit, Error> {
        let left = limit.saturating_sub(self.started.elapsed());
        let followed = timeout(left, async {
            self.ask(request, client, &changes.present).await?;
            self.follow(changes).await
        });
        match followed.await {
            Ok(outcome) => outcome.map(|()| self.exit),
            Err(_elapsed) => self.give_up(limit),
        }
    }

    /// Follows tunnels that a daemon brings up by itself, because they were before it started, until each has settled or
    /// `limit` has passed since the start.
    pub(super) async fn come_back(
        mut self,
        names: &[String],
        changes: &mut Changes,
        limit: Duration,
    ) -> Result<Exit, Error> {
        let present = std::mem::take(&mut changes.present);
        for name in names {
            let back = present
                .iter()
                .find(|tunnel| tunnel.name == *name && !matches!(tunnel.state, Some(State::Down(_))));
            let Some(tunnel) = back else {
                self.output.talk(&format!("{name} did not come back"));
                self.exit = self.exit.max(Exit::Failed);
                continue;
            };
            self.pending.push(Pending::new(tunnel, None));
            self.observe(tunnel)?;
        }
        let left = limit.saturating_sub(self.started.elapsed());
        match timeout(left, self.follow(changes)).await {
            Ok(followed) => followed.map(|()| self.exit),
            Err(_elapsed) => self.give_up(limit),
        }
    }

    /// Wants tunnels up and tells only how they stand.
    pub(super) async fn ask_only(
        mut self,
        request: UpRequest,
        client: &mut Client,
        changes: &Changes,
        limit: Duration,
    ) -> Result<Exit, Error> {
        let Ok(asked) = timeout(limit, self.ask(request, client, &changes.present)).await else {
            return self.give_up(limit);
        };
        asked?;
        for pending in &self.pending {
            self.answer(&pending.latest, &sentence(&pending.latest))?;
        }
        Ok(self.exit)
    }

    async fn ask(&mut self, request: UpRequest, client: &mut Client, before: &[Tunnel]) -> Result<(), Error> {
        let tunnels = client.up(request).await?;
        let clock = Clock::read();
        for tunnel in &tunnels {
            let untouched = |earlier: &&Tunnel| earlier.name == tunnel.name && earlier.state == tunnel.state;
            let up_since = before
                .iter()
                .find(untouched)
                .filter(|earlier| matches!(earlier.state, Some(State::Up(_))))
                .and_then(|earlier| clock.age(earlier.since.as_ref()?));
            self.pending.push(Pending::new(tunnel, up_since));
        }
        tunnels.iter().try_for_each(|tunnel| self.observe(tunnel))
    }

    async fn follow(&mut self, changes: &mut Changes) -> Result<(), Error> {
        while !self.pending.is_empty() {
            let change = changes.next().await?;
            change
                .tunnels
                .iter()
                .try_for_each(|tunnel| self.observe(tunnel))?;
            for name in &change.removed {
                if self.pending.iter().any(|pending| pending.latest.name == *name) {
                    self.output
                        .talk(&format!("{name} was removed from the configuration"));
                    self.settled(name, Exit::Failed);
                }
            }
        }
        Ok(())
    }

    fn observe(&mut self, tunnel: &Tunnel) -> Result<(), Error> {
        let Some(pending) = self
            .pending
            .iter_mut()
            .find(|pending| pending.latest.name == tunnel.name)
        else {
            return Ok(());
        };
        if tunnel.generation < pending.generation {
            return Ok(());
        }
        pending.latest = tunnel.clone();
        match &tunnel.state {
            Some(State::Up(_)) => {
                let pace = pending.up_since.map_or_else(
                    || elapsed(self.started.elapsed()),
                    |age| format!("already for {}", span(age)),
                );
                self.answer(
                    tunnel,
                    &format!("{}  ({pace}, {})", sentence(tunnel), way(tunnel)),
                )?;
                self.settled(&tunnel.name, Exit::Ok);
            }
            Some(State::Idle(_)) => {
                self.answer(tunnel, &sentence(tunnel))?;
                self.settled(&tunnel.name, Exit::Ok);
            }
            Some(State::Blocked(_)) => {
                self.trouble(tunnel)?;
                self.settled(&tunnel.name, Exit::MustAct);
            }
            Some(State::Waiting(_)) => {
                let cause = tunnel::cause(tunnel)
                    .map(|cause| cause.chain.clone())
                    .unwrap_or_default();
                if pending.told != cause {
                    pending.told = cause;
                    self.output.talk(&trouble(tunnel, &Clock::read()));
                }
            }
            // The answer to Up may show the moment before; a later `down` is somebody's wish.
            Some(State::Down(_)) if tunnel.generation > pending.generation => {
                self.output
                    .talk(&format!("{} was taken down meanwhile", tunnel.name));
                self.settled(&tunnel.name, Exit::Failed);
            }
            Some(State::Down(_) | State::Connecting(_)) | None => {}
        }
        Ok(())
    }

    fn give_up(mut self, limit: Duration) -> Result<Exit, Error> {
        if self.pending.is_empty() {
            return Err(Error::new(
                Exit::TimedOut,
                format!("tunneld did not answer within {}", elapsed(limit)),
            ));
        }
        for pending in &self.pending {
            let tunnel = &pending.latest;
            let state = tunnel::state_name(tunnel);
            let headline = format!("{} is still {state} after {}", tunnel.name, elapsed(limit));
            let cause = tunnel::cause(tunnel).cloned().unwrap_or_default();
            let mut hints = cause.hints;
            hints.push(format!("tunnelctl status {}", tunnel.name));
            self.output.talk(&report(&headline, &cause.chain, &hints));
            if self.output.json() {
                self.output
                    .answer_json(&Versioned::new(json::Tunnel::from(tunnel)))?;
            }
        }
        self.exit = self.exit.max(Exit::TimedOut);
        Ok(self.exit)
    }

    fn trouble(&self, tunnel: &Tunnel) -> Result<(), Error> {
        self.output.talk(&trouble(tunnel, &Clock::read()));
        if self.output.json() {
            self.output
                .answer_json(&Versioned::new(json::Tunnel::from(tunnel)))?;
        }
        Ok(())
    }

    fn answer(&self, tunnel: &Tunnel, sentence: &str) -> Result<(), Error> {
        if self.output.json() {
            return self
                .output
                .answer_json(&Versioned::new(json::Tunnel::from(tunnel)));
        }
        self.output.answer(sentence)
    }

    fn settled(&mut self, name: &str, exit: Exit) {
        self.pending.retain(|pending| pending.latest.name != name);
        self.exit = self.exit.max(exit);
    }
}

/// Which way a tunnel goes, and what speaks at its end.
fn way(tunnel: &Tunnel) -> String {
    match tunnel
        .link
        .as_ref()
        .map(|link| engine(&link.engine))
        .filter(|engine| !engine.is_empty())
    {
        Some(engine) => format!("{}, {engine}", tunnel.route),
        None => tunnel.route.clone(),
    }
}
