//! `tunnelctl events`: every transition of the tunnels, those that were and those that come.
//!
//! Each tunnel carries its latest transitions, numbered: so none is lost between two looks at it, however many states it
//! went through meanwhile, unless there were more than it remembers.

use std::collections::HashMap;

use tunneld_proto::v1::{Transition, Tunnel, WatchResponse};

use super::leaving::until_left;
use crate::cli::Events;
use crate::client::Client;
use crate::error::{Error, Exit};
use crate::json::{Event, Versioned};
use crate::output::Output;
use crate::render::said;
use crate::render::words::{Clock, count};
use crate::select::Selection;

/// Prints a line, or an object, for each transition: first those that are remembered, in the order of their times.
pub(super) async fn run(told: &Events, client: &mut Client, output: &Output) -> Result<Exit, Error> {
    let selection = Selection::of(&told.names)?;
    until_left(output, print(told, &selection, client, output)).await
}

async fn print(
    told: &Events,
    selection: &Selection,
    client: &mut Client,
    output: &Output,
) -> Result<Exit, Error> {
    let mut changes = client.watch().await?;
    selection.pick(&changes.present)?;
    let present = WatchResponse {
        tunnels: std::mem::take(&mut changes.present),
        removed: Vec::new(),
    };
    let mut journal = Journal {
        selection,
        output,
        told: HashMap::new(),
    };
    journal.record(present)?;
    if told.no_follow {
        return Ok(Exit::Ok);
    }
    loop {
        journal.record(changes.next().await?)?;
    }
}

struct Journal<'a> {
    selection: &'a Selection,
    output: &'a Output,
    /// The last transition of each tunnel that was told.
    told: HashMap<String, Transition>,
}

impl Journal<'_> {
    fn record(&mut self, change: WatchResponse) -> Result<(), Error> {
        let clock = Clock::read();
        for name in change.removed.iter().filter(|name| self.selection.contains(name)) {
            self.told.remove(name);
            if self.output.json() {
                let removed = Event::removed(name, clock.now_rfc3339());
                self.output.answer_json(&Versioned::new(removed))?;
            } else {
                let line = format!("{} {name} was removed from the configuration", clock.time_now());
                self.output.answer(&line)?;
            }
        }
        let meant = change.tunnels.iter();
        let meant = meant.filter(|tunnel| self.selection.contains(&tunnel.name));
        let mut fresh: Vec<_> = meant.flat_map(|tunnel| self.fresh(tunnel)).collect();
        // Stable: what happened to one tunnel stays in its order, also where a clock was set back.
        fresh.sort_by_key(|(_, transition)| {
            let at = transition.at.unwrap_or_default();
            (at.seconds, at.nanos)
        });
        fresh
            .into_iter()
            .try_for_each(|(name, transition)| self.tell(name, transition, &clock))
    }

    /// Returns the transitions of a tunnel that were not told.
    fn fresh<'t>(&self, tunnel: &'t Tunnel) -> Vec<(&'t str, &'t Transition)> {
        let last = self.told.get(&tunnel.name).map_or(0, |told| told.number);
        let fresh = tunnel.history.iter();
        let fresh = fresh.filter(|transition| transition.number > last);
        fresh
            .map(|transition| (tunnel.name.as_str(), transition))
            .collect()
    }

    fn tell(&mut self, name: &str, transition: &Transition, clock: &Clock) -> Result<(), Error> {
        let before = self.told.insert(name.to_owned(), transition.clone());
        let missed = before
            .as_ref()
            .map_or(0, |before| (transition.number - before.number).saturating_sub(1));
        if missed > 0 {
            let missed = count(missed, "transition");
            self.output.talk(&format!(
                "{missed} of {name} missed: they came faster than they were read"
            ));
        }
        if self.output.json() {
            return self
                .output
                .answer_json(&Versioned::new(Event::of(name, transition)));
        }
        let time = transition.at.as_ref().and_then(|at| clock.time(at));
        let words = said(before.as_ref(), transition);
        self.output.answer(&format!(
            "{}{name} {words}",
            time.map(|time| time + " ").unwrap_or_default()
        ))
    }
}
