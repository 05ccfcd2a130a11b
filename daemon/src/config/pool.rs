//! How many of something a tunnel has: `{ min = 1, max = 4 }`, either half of which may be left out.

use std::ops::RangeInclusive;

use toml::Spanned;

use super::problem::{Findings, Refusal};
use super::section::{Key, Section};
use super::{PoolSize, quantity};

/// How many a tunnel has unless told otherwise: one is enough for a person at work, four for a dump by parallel jobs.
pub(super) const DEFAULT: PoolSize = PoolSize { min: 1, max: 4 };

/// What a tunnel can have: 16 sessions download about what a line of 100 Mbit/s carries.
const COUNTS: RangeInclusive<usize> = 1..=16;

/// A size as written.
#[derive(Debug)]
pub(super) struct Written {
    min: Option<Spanned<String>>,
    max: Option<Spanned<String>>,
}

impl Written {
    /// Takes the table of this key out of a section.
    pub(super) fn read(section: &mut Section<'_, '_, '_>, key: &Key) -> Option<Spanned<Self>> {
        let table = section.table(key)?;
        let span = table.span();
        let place = format!("in the `{}` {}", key.name, section.place);
        let mut inner = Section::new(&place, table.into_inner(), span.start, section.findings);
        let size = Self {
            min: inner.number(&Key::new("min", key.example)),
            max: inner.number(&Key::new("max", key.example)),
        };
        inner.close();
        Some(Spanned::new(span, size))
    }
}

/// Reads the size that belongs to a key.
pub(super) fn size(
    key: &Key,
    written: Option<&Spanned<Written>>,
    findings: &mut Findings<'_>,
) -> Option<PoolSize> {
    let written = written?;
    let mut half = |name: &'static str, text: Option<&Spanned<String>>, unwritten: usize| {
        let Some(text) = text else {
            return Some(unwritten);
        };
        let count = quantity::count(&Key::new(name, key.example), text.get_ref(), &COUNTS);
        findings.accept(text, count)
    };
    let Written {
        min: least,
        max: most,
    } = written.get_ref();
    let min = half("min", least.as_ref(), DEFAULT.min);
    let max = half("max", most.as_ref(), DEFAULT.max);
    let (min, max) = (min?, max?);
    if min > max {
        let unwritten = if most.is_none() {
            ", which is the default"
        } else {
            ""
        };
        let name = key.name;
        let message = format!("`{name}` has `min = {min}` above `max = {max}`{unwritten}");
        let hint = format!("{name} = {{ min = {min}, max = {min} }}");
        findings.push(written.span().start, Refusal::new(message).instead(hint));
        return None;
    }
    Some(PoolSize { min, max })
}
