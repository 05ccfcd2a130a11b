//! Lines that are not TOML: what to say of them, and how to read on behind them.

use std::borrow::Cow;
use std::ops::Range;

use toml::de::{DeTable, Error};

use super::problem::{Findings, Refusal, quoted, shown};

/// The most lines that are blanked, each at the cost of reading the file once more.
const MOST_DEAD_ENDS: usize = 32;

/// Notes the lines at which the parser gives up on the rest of the file, a key without a value, and returns the text
/// with spaces in their place.
pub(super) fn past_dead_ends<'t>(text: &'t str, findings: &mut Findings<'_>) -> Cow<'t, str> {
    let mut text = Cow::Borrowed(text);
    for _ in 0..MOST_DEAD_ENDS {
        let (_, errors) = DeTable::parse_recoverable(&text);
        let Some(error) = errors
            .iter()
            .find(|error| error.message().starts_with("key with no value"))
        else {
            break;
        };
        findings.push_broken(position(error), not_toml(&text, error));
        let line = line_range(&text, position(error));
        let blank = " ".repeat(line.len());
        text.to_mut().replace_range(line, &blank);
    }
    text
}

/// Notes each broken line. Returns whether the rest of the file can be understood without them: a broken header leaves
/// the keys below it in another table, where all that can be said of them is wrong.
pub(super) fn note_broken_lines(text: &str, errors: &[Error], findings: &mut Findings<'_>) -> bool {
    let mut errors: Vec<_> = errors.iter().collect();
    errors.sort_by_key(|error| position(error));
    let mut headers_are_sound = true;
    let mut doubled_table = 0..0;
    for error in errors {
        let at = position(error);
        if findings.is_broken(at) {
            continue;
        }
        let line = line_range(text, at).start;
        let (is_header, is_double) = (text[line..].starts_with('['), error.message() == DUPLICATE);
        if is_header && is_double {
            let next_header = text[line..].find("\n[").map_or(text.len(), |end| line + end);
            doubled_table = line..next_header;
        } else if is_header {
            headers_are_sound = false;
        } else if is_double && doubled_table.contains(&line) {
            // The parser puts both tables into one: their keys meet there, and only there.
            continue;
        }
        findings.push_broken(at, not_toml(text, error));
    }
    headers_are_sound
}

/// What the parser says of a name that is there already.
const DUPLICATE: &str = "duplicate key";

fn not_toml(text: &str, error: &Error) -> Refusal {
    let line = line_at(text, position(error));
    if error.message() == DUPLICATE {
        return Refusal::new(format!("{} is there twice", quoted(line))).instead("each name once");
    }
    let lacks_quotes = |message: &str| {
        message.starts_with("string values must be quoted")
            || message.starts_with("invalid float")
            || message.starts_with("invalid integer")
            || message.starts_with("invalid datetime")
    };
    if let Some((key, value)) = line
        .split_once('=')
        .map(|(key, value)| (key.trim(), value.trim()))
        && !value.contains(['"', '\'', '[', ']', '{', '}', '#', ','])
        && lacks_quotes(error.message())
    {
        if value.is_empty() {
            return Refusal::new(format!("{} has no value", quoted(line)));
        }
        return Refusal::new(format!("{} lacks the quotes around text", quoted(line))).instead(format!(
            r#"{} = "{}""#,
            shown(key),
            shown(value)
        ));
    }
    Refusal::new(format!(
        "{} is not TOML: {}",
        quoted(line),
        shown(error.message())
    ))
}

fn position(error: &Error) -> usize {
    error.span().map_or(0, |span| span.start)
}

fn line_at(text: &str, at: usize) -> &str {
    text[line_range(text, at)].trim()
}

fn line_range(text: &str, at: usize) -> Range<usize> {
    let (before, after) = text.split_at_checked(at).unwrap_or((text, ""));
    let start = before.rfind('\n').map_or(0, |end| end + 1);
    let end = after.find('\n').unwrap_or(after.len());
    start..before.len() + end
}
