//! What a run came to: a table and the goals for people, JSON for programs.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::client::Who;
use crate::figures::{Figures, Outcome};
use crate::goals::{Goal, Verdict};

/// Returns the figures as a table, one setting after the other: tunneld's, then each other client's with the ratio of
/// tunneld's to it.
pub(crate) fn table(figures: &Figures) -> String {
    let mut rows = Vec::new();
    for (setting, quantity, _, _) in figures.iter() {
        if rows.last() != Some(&(setting, quantity)) {
            rows.push((setting, quantity));
        }
    }
    let mut text = String::new();
    let mut failures = Vec::new();
    let mut above = None;
    for (setting, quantity) in rows {
        let clients = Who::facing(setting.far);
        if above != Some(setting) {
            above = Some(setting);
            let names = clients.iter().map(|who| (who.to_string(), "ratio".to_owned()));
            line(&mut text, &format!("\n{setting}"), "", names);
        }
        let outcome = |who| figures.get(setting, quantity, who);
        let ours = outcome(Who::Ours).and_then(Outcome::value);
        let cells = clients.iter().map(|who| {
            let shown = match outcome(*who) {
                None => "–".to_owned(),
                Some(Outcome::Failed(why)) => {
                    let known = failures.iter().position(|known| *known == why);
                    let at = known.unwrap_or_else(|| {
                        failures.push(why);
                        failures.len() - 1
                    });
                    format!("failed ({})", at + 1)
                }
                Some(outcome) => outcome.value().map_or_else(String::new, rounded),
            };
            let ratio = ours
                .zip(outcome(*who).and_then(Outcome::value))
                .map_or_else(String::new, |(ours, other)| rounded(ours / other));
            (shown, ratio)
        });
        line(&mut text, &format!("  {quantity}"), quantity.unit(), cells);
    }
    for (number, why) in (1..).zip(failures) {
        let why: String = why.chars().take(LONGEST_REASON).collect();
        // Writing to a string cannot fail.
        let _ = write!(text, "\n({number}) {why}");
    }
    for note in figures.notes() {
        // Writing to a string cannot fail.
        let _ = write!(text, "\nnote: {note}");
    }
    text
}

/// The most of a failure's reason that the table shows; the JSON has it all.
const LONGEST_REASON: usize = 400;

/// Returns the goals, the missed ones last.
pub(crate) fn goals(goals: &[Goal]) -> String {
    let mut text = String::new();
    for verdict in [Verdict::Open, Verdict::Met, Verdict::Missed] {
        for goal in goals.iter().filter(|goal| goal.verdict() == verdict) {
            let value = goal
                .value
                .as_ref()
                .map_or_else(|lack| lack.to_string(), |value| rounded(*value));
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{verdict:<7} {}: {value} ({})", goal.name, goal.bound);
        }
    }
    text
}

/// Returns everything, with the value of each run.
pub(crate) fn json(figures: &Figures, goals: &[Goal], conditions: &Value) -> Value {
    let entries: Vec<Value> = figures
        .iter()
        .map(|(setting, quantity, who, outcome)| {
            let (runs, failure) = match outcome {
                Outcome::Runs(runs) => (runs.as_slice(), None),
                Outcome::Failed(why) => (&[][..], Some(why)),
            };
            json!({
                "far": setting.far.to_string(),
                "round_trip_ms": setting.round_trip,
                "quantity": quantity.to_string(),
                "unit": quantity.unit(),
                "client": who.to_string(),
                "value": outcome.value(),
                "runs": runs,
                "failure": failure,
            })
        })
        .collect();
    let goals: Vec<Value> = goals
        .iter()
        .map(|goal| {
            json!({
                "goal": goal.name,
                "bound": goal.bound.to_string(),
                "value": goal.value.as_ref().ok(),
                "lack": goal.value.as_ref().err().map(ToString::to_string),
                "verdict": goal.verdict().to_string(),
            })
        })
        .collect();
    json!({ "schema": 1, "conditions": conditions, "figures": entries, "notes": figures.notes(), "goals": goals })
}

/// Writes a line of the table: what each client has, and the ratio to it, which the first has to itself.
fn line(text: &mut String, name: &str, unit: &str, clients: impl Iterator<Item = (String, String)>) {
    // Writing to a string cannot fail.
    let _ = write!(text, "{name:<56} {unit:<9}");
    for (at, (value, ratio)) in clients.enumerate() {
        let _ = match at {
            0 => write!(text, " {value:>12}"),
            _ => write!(text, " {value:>14} {ratio:>8}"),
        };
    }
    text.push('\n');
}

/// Three digits that count, and no more.
fn rounded(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emulator::{Agent, Far};
    use crate::figures::{Holding, Quantity, Setting};
    use crate::goals::{Bound, Lack};

    const SETTING: Setting = Setting {
        far: Far::Agent(Agent::Stock),
        round_trip: 20,
    };

    fn figures() -> Figures {
        let mut figures = Figures::default();
        let first_byte = Quantity::FirstByte;
        figures.add(
            SETTING,
            first_byte,
            Who::Ours,
            Outcome::Runs(vec![21.0, 20.0, 30.0]),
        );
        figures.add(SETTING, first_byte, Who::Peer, Outcome::Runs(vec![84.0]));
        let memory = Quantity::Memory(Holding::Tunnels(10));
        figures.add(SETTING, memory, Who::Ours, Outcome::Runs(vec![12.34]));
        figures.add(
            SETTING,
            memory,
            Who::Peer,
            Outcome::Failed("the peer left".to_owned()),
        );
        figures.note("rough".to_owned());
        figures
    }

    #[test]
    fn the_table_shows_medians_ratios_and_why_something_failed() {
        let table = table(&figures());
        let lines: Vec<String> = table
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(
            lines,
            [
                "",
                "agent stock, 20 ms added round trip tunneld aws-ssm-bridge ratio",
                "first byte of a download ms 21.0 84.0 0.250",
                "memory, 10 tunnels MiB 12.3 failed (1)",
                "",
                "(1) the peer left",
                "note: rough",
            ]
        );
    }

    #[test]
    fn missed_goals_come_last() {
        let goal = |name: &str, value| Goal {
            name: name.to_owned(),
            bound: Bound::AtMost(2.0),
            value,
        };
        let all = [
            goal("slow", Ok(3.0)),
            goal("quick", Ok(1.0)),
            goal("skipped", Err(Lack::NotMeasured)),
        ];
        assert_eq!(
            goals(&all),
            "open    skipped: not measured (at most 2)\n\
             met     quick: 1.00 (at most 2)\n\
             missed  slow: 3.00 (at most 2)\n"
        );
    }

    #[test]
    fn the_json_has_every_run() {
        let json = json(&figures(), &[], &json!({}));
        assert_eq!(json["figures"][0]["runs"], json!([21.0, 20.0, 30.0]));
        assert_eq!(json["figures"][0]["value"], json!(21.0));
        assert_eq!(json["figures"][3]["failure"], json!("the peer left"));
        assert_eq!(json["figures"][3]["value"], Value::Null);
    }
}
