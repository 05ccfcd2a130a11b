//! Lines that are not TOML: what to say of them, and when nothing else can be said of the file.

use toml::de::Error;

use super::problem::{Findings, Refusal, quoted, shown};

/// Notes each broken line. Returns whether the rest of the file can be understood without them: a broken header leaves
/// the keys below it in another table, where all that can be said of them is wrong.
pub(super) fn note_broken_lines(text: &str, errors: &[Error], findings: &mut Findings<'_>) -> bool {
    let mut headers_are_sound = true;
    for error in errors {
        let at = error.span().map_or(0, |span| span.start);
        findings.push_broken(at, not_toml(text, at, error));
        headers_are_sound &= !line_at(text, at).starts_with('[');
    }
    headers_are_sound
}

fn not_toml(text: &str, at: usize, error: &Error) -> Refusal {
    if error.message() == "duplicate key" {
        let key = error.span().and_then(|span| text.get(span)).unwrap_or_default();
        return Refusal::new(format!("{} is there twice", quoted(key))).instead("each name once");
    }
    let line = line_at(text, at);
    if let Some((key, value)) = line
        .split_once('=')
        .map(|(key, value)| (key.trim(), value.trim()))
        && !value.is_empty()
        && !value.contains(['"', '\'', '[', ']', '{', '}', '#', ','])
        && (error.message().starts_with("string values must be quoted")
            || error.message().starts_with("invalid "))
    {
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

fn line_at(text: &str, at: usize) -> &str {
    let (before, after) = text.split_at_checked(at).unwrap_or((text, ""));
    let start = before.rfind('\n').map_or(0, |end| end + 1);
    let end = after.find('\n').map_or(text.len(), |end| at + end);
    text[start..end].trim()
}
