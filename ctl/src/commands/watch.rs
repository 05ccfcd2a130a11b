//! `tunnelctl watch`: the present, then every change, until interrupted.

use std::collections::HashMap;

use tunneld_proto::v1::{Tunnel, WatchResponse};

use super::leaving::until_left;
use crate::client::Client;
use crate::error::{Error, Exit};
use crate::json::{self, Versioned};
use crate::output::Output;
use crate::render::words::Clock;
use crate::render::{one_line, sentence};
use crate::select::Selection;
use crate::tunnel;

/// Prints a line, or an object, for each tunnel that is meant, and again whenever one changes.
///
/// A glob also catches tunnels that a reload adds. Ends quietly on an interrupt, and when the reader leaves.
pub(super) async fn run(names: &[String], client: &mut Client, output: &Output) -> Result<Exit, Error> {
    let selection = Selection::of(names)?;
    until_left(output, follow(&selection, client, output)).await
}

async fn follow(selection: &Selection, client: &mut Client, output: &Output) -> Result<Exit, Error> {
    let mut changes = client.watch().await?;
    selection.pick(&changes.present)?;
    let mut journal = Journal {
        selection,
        output,
        seen: HashMap::new(),
    };
    journal.record(changes.take_present())?;
    loop {
        journal.record(changes.next().await?)?;
    }
}

struct Journal<'a> {
    selection: &'a Selection,
    output: &'a Output,
    /// Each tunnel as it was told last.
    seen: HashMap<String, Tunnel>,
}

impl Journal<'_> {
    fn record(&mut self, change: WatchResponse) -> Result<(), Error> {
        let clock = Clock::read();
        for name in change.removed.iter().filter(|name| self.selection.contains(name)) {
            self.seen.remove(name);
            if self.output.json() {
                self.output
                    .answer_json(&Versioned::new(json::Removed::new(name)))?;
            } else {
                self.output.answer(&format!(
                    "{} {name} was removed from the configuration",
                    clock.time_now()
                ))?;
            }
        }
        for tunnel in change.tunnels {
            if !self.selection.contains(&tunnel.name) {
                continue;
            }
            if let Some(news) = news(self.seen.get(&tunnel.name), &tunnel, &clock) {
                if self.output.json() {
                    self.output
                        .answer_json(&Versioned::new(json::Tunnel::from(&tunnel)))?;
                } else {
                    self.output.answer(&news)?;
                }
            }
            self.seen.insert(tunnel.name.clone(), tunnel);
        }
        Ok(())
    }
}

/// Says what a person would call a change: another state, another cause, a failed connection. Not traffic.
fn news(before: Option<&Tunnel>, tunnel: &Tunnel, clock: &Clock) -> Option<String> {
    let same_state = before.is_some_and(|before| {
        tunnel::state_name(before) == tunnel::state_name(tunnel)
            && before.since == tunnel.since
            && tunnel::attempt(before) == tunnel::attempt(tunnel)
            && tunnel::cause(before) == tunnel::cause(tunnel)
            && before.local == tunnel.local
    });
    if !same_state {
        let time = tunnel.since.as_ref().and_then(|since| clock.time(since));
        let mut line = time.map(|time| time + " ").unwrap_or_default() + &sentence(tunnel);
        for deeper in tunnel::cause(tunnel)
            .and_then(|cause| cause.chain.get(1..))
            .unwrap_or_default()
        {
            line.push_str(": ");
            line.push_str(deeper);
        }
        if let Some(failure) = tunnel::setback(tunnel) {
            line.push_str(&format!(" ({})", one_line(failure)));
        }
        return Some(line);
    }
    let failure = tunnel.last_error.as_ref()?;
    if before.is_some_and(|before| before.last_error_at == tunnel.last_error_at) {
        return None;
    }
    let time = tunnel.last_error_at.as_ref().and_then(|at| clock.time(at));
    Some(format!(
        "{}{}: {}",
        time.map(|time| time + " ").unwrap_or_default(),
        tunnel.name,
        one_line(failure)
    ))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tunneld_proto::v1::tunnel::State;
    use tunneld_proto::v1::{Blocked, Failure, Idle, Traffic, Up};

    use super::*;

    fn clock() -> Clock {
        Clock::standing_at("2025-11-24T09:00:00Z")
    }

    fn up() -> Tunnel {
        Tunnel {
            name: "db".to_owned(),
            state: Some(State::Up(Up {})),
            local: vec!["127.0.0.1:1".to_owned()],
            since: Some(clock().ago(Duration::from_secs(60))),
            ..Tunnel::default()
        }
    }

    fn failure() -> Failure {
        Failure {
            chain: vec!["cannot open".to_owned(), "refused".to_owned()],
            ..Failure::default()
        }
    }

    #[test]
    fn the_first_sight_of_a_tunnel_is_news_and_the_second_is_not() {
        assert_eq!(
            news(None, &up(), &clock()).unwrap(),
            "08:59:00 db is up on 127.0.0.1:1"
        );
        assert_eq!(news(Some(&up()), &up(), &clock()), None);
    }

    #[test]
    fn traffic_alone_is_no_news() {
        let busy = Tunnel {
            traffic: Some(Traffic {
                bytes_in: 7,
                ..Traffic::default()
            }),
            generation: 9,
            ..up()
        };
        assert_eq!(news(Some(&up()), &busy, &clock()), None);
    }

    #[test]
    fn a_change_of_state_tells_every_cause_in_one_line() {
        let blocked = Tunnel {
            state: Some(State::Blocked(Blocked {
                cause: Some(failure()),
            })),
            ..up()
        };
        let line = news(Some(&up()), &blocked, &clock()).unwrap();
        assert_eq!(line, "08:59:00 db is blocked: cannot open: refused");
    }

    #[test]
    fn a_tunnel_that_lost_its_link_and_is_idle_tells_why() {
        let since = Some(clock().ago(Duration::from_secs(60)));
        let idle = Tunnel {
            state: Some(State::Idle(Idle {})),
            last_error: Some(failure()),
            last_error_at: since,
            ..up()
        };
        assert_eq!(
            news(Some(&up()), &idle, &clock()).unwrap(),
            "08:59:00 db listens on 127.0.0.1:1 and connects on first use (cannot open: refused)"
        );
        let long_mended = Tunnel {
            last_error_at: Some(clock().ago(Duration::from_secs(600))),
            ..idle
        };
        assert_eq!(
            news(Some(&up()), &long_mended, &clock()).unwrap(),
            "08:59:00 db listens on 127.0.0.1:1 and connects on first use"
        );
    }

    #[test]
    fn a_connection_that_fails_is_news_though_the_tunnel_stays_up() {
        let failed = Tunnel {
            last_error: Some(failure()),
            last_error_at: Some(clock().ago(Duration::ZERO)),
            ..up()
        };
        assert_eq!(
            news(Some(&up()), &failed, &clock()).unwrap(),
            "09:00:00 db: cannot open: refused"
        );
        assert_eq!(news(Some(&failed), &failed, &clock()), None);
    }
}
