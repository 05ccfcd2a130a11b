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
    let mut journal = Journal {
        selection,
        output,
        told: HashMap::new(),
    };
    journal.record(changes.take_present())?;
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

/// A transition that was not told.
struct Fresh<'t> {
    /// The latest time, in seconds and nanoseconds, of this one and those before it: what happened to one tunnel stays
    /// in its order also where the clock was set back.
    place: (i64, i32),
    name: &'t str,
    transition: &'t Transition,
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
        fresh.sort_by_key(|fresh| fresh.place);
        fresh
            .into_iter()
            .try_for_each(|fresh| self.tell(fresh.name, fresh.transition, &clock))
    }

    /// Returns the transitions of a tunnel that were not told, in the order of their numbers.
    fn fresh<'t>(&self, tunnel: &'t Tunnel) -> Vec<Fresh<'t>> {
        let last = self.told.get(&tunnel.name).map_or(0, |told| told.number);
        let fresh = tunnel.history.iter();
        let mut fresh: Vec<_> = fresh.filter(|transition| transition.number > last).collect();
        fresh.sort_by_key(|transition| transition.number);
        let mut place = (i64::MIN, 0);
        fresh
            .into_iter()
            .map(|transition| {
                let at = transition.at.unwrap_or_default();
                place = place.max((at.seconds, at.nanos));
                Fresh {
                    place,
                    name: &tunnel.name,
                    transition,
                }
            })
            .collect()
    }

    fn tell(&mut self, name: &str, transition: &Transition, clock: &Clock) -> Result<(), Error> {
        let before = self.told.insert(name.to_owned(), transition.clone());
        let missed = before.as_ref().map_or(0, |before| {
            transition.number.saturating_sub(before.number).saturating_sub(1)
        });
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
