//! Numbers with a unit or a range, as people write them.
//!
//! ```text
//! DURATION = 30s | 5m | 1m 30s | …
//! SIZE     = 16KiB | 256 MiB | 1GiB
//! RATE     = 900 | "unlimited"
//! ```

use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use super::problem::{Refusal, quoted};
use super::section::Key;

/// Reads the duration that belongs to a key and has to lie in a range.
pub(super) fn duration(key: &Key, text: &str, range: &RangeInclusive<Duration>) -> Result<Duration, Refusal> {
    let Ok(duration) = humantime::parse_duration(text) else {
        return Err(not_a("duration", key, text));
    };
    let shown = |bound| humantime::format_duration(bound).to_string();
    within(range, duration, key, text, ["short", "long"], shown)
}

/// The units of sizes, largest first.
const UNITS: [(&str, usize); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

/// Reads the size, in bytes, that belongs to a key and has to lie in a range.
pub(super) fn size(key: &Key, text: &str, range: &RangeInclusive<usize>) -> Result<usize, Refusal> {
    let size = UNITS
        .iter()
        .find_map(|(unit, bytes)| whole::<usize>(text.strip_suffix(unit)?.trim_end())?.checked_mul(*bytes));
    let Some(size) = size else {
        return Err(not_a("size", key, text));
    };
    within(range, size, key, text, ["small", "large"], in_units)
}

/// Writes a size in the largest unit that leaves no rest.
fn in_units(size: usize) -> String {
    let unit = UNITS.iter().find(|(_, bytes)| size.is_multiple_of(*bytes));
    unit.map_or_else(
        || size.to_string(),
        |(unit, bytes)| format!("{}{unit}", size / bytes),
    )
}

/// Reads a number of things that belongs to a key and has to lie in a range.
pub(super) fn count(key: &Key, text: &str, range: &RangeInclusive<usize>) -> Result<usize, Refusal> {
    whole(text).filter(|count| range.contains(count)).ok_or_else(|| {
        let (least, most) = (range.start(), range.end());
        let line = format!("{} = {text}", key.name);
        Refusal::new(format!("{} is not from {least} to {most}", quoted(&line))).instead(key.example)
    })
}

/// The highest rate that can be written: beyond it a limit limits nothing, and `unlimited` says so.
const HIGHEST_RATE: u32 = 100_000;

/// Reads the rate that belongs to a key; `None` for an unlimited one.
pub(super) fn rate(key: &Key, text: &str) -> Result<Option<NonZeroU32>, Refusal> {
    if text == "unlimited" {
        return Ok(None);
    }
    let rate = whole(text)
        .filter(|rate| *rate <= HIGHEST_RATE)
        .and_then(NonZeroU32::new);
    rate.map(Some).ok_or_else(|| {
        let message = format!(
            "{} is neither a number from 1 to {HIGHEST_RATE} nor \"unlimited\"",
            quoted(text)
        );
        Refusal::new(message).instead(key.example)
    })
}

/// Reads a whole number: digits alone.
fn whole<T: FromStr>(text: &str) -> Option<T> {
    let digits_only = text.chars().all(|letter| letter.is_ascii_digit());
    text.parse().ok().filter(|_| digits_only)
}

fn within<T: Copy + PartialOrd>(
    range: &RangeInclusive<T>,
    value: T,
    key: &Key,
    text: &str,
    [low, high]: [&str; 2],
    shown: impl Fn(T) -> String,
) -> Result<T, Refusal> {
    let (least, most) = (*range.start(), *range.end());
    let (which, bound, direction) = if value < least {
        (low, least, "more")
    } else if value > most {
        (high, most, "less")
    } else {
        return Ok(value);
    };
    let message = format!("{} is too {which}", written(key, text));
    Err(Refusal::new(message).instead(format!(r#"{} = "{}" or {direction}"#, key.name, shown(bound))))
}

fn not_a(what: &str, key: &Key, text: &str) -> Refusal {
    Refusal::new(format!("{} is not a {what}", written(key, text))).instead(key.example)
}

/// The line that has this text, to be shown.
fn written(key: &Key, text: &str) -> String {
    quoted(&format!("{} = \"{text}\"", key.name))
}
