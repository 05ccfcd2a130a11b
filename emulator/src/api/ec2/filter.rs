//! What narrows the lists of EC2, and cuts them into pages.

use std::ops::RangeInclusive;

use crate::api::form::Filter;
use crate::api::{Call, Form, Refusal, page};

/// A page of a list, and the token of the next one.
pub(super) type Page<T> = (Vec<T>, Option<String>);

/// Returns those items that fit all filters of a call, in the page that it asks for. `longest` are the lengths of a page
/// that may be asked for.
pub(super) fn select<T>(
    call: &Call<'_>,
    form: &Form,
    items: impl IntoIterator<Item = T>,
    fits: impl Fn(&T, &Filter<'_>) -> Result<bool, Refusal>,
    lengths: RangeInclusive<usize>,
) -> Result<Page<T>, Refusal> {
    let filters = form.filters("Filter", "Value");
    let mut found = Vec::new();
    for item in items {
        let mut fits_all = true;
        for filter in &filters {
            fits_all &= fits(&item, filter)?;
        }
        if fits_all {
            found.push(item);
        }
    }
    let length = call.page_length(max_results(form, &lengths)?, *lengths.end());
    page(found, form.value("NextToken"), length)
        .map_err(|_| Refusal::new("InvalidNextToken", "The token is invalid."))
}

fn max_results(form: &Form, lengths: &RangeInclusive<usize>) -> Result<Option<usize>, Refusal> {
    let Some(text) = form.value("MaxResults") else {
        return Ok(None);
    };
    let value = text.parse().ok().filter(|value| lengths.contains(value));
    value.map(Some).ok_or_else(|| {
        let message = format!(
            "Value ( {text} ) for parameter maxResults is invalid. Expecting a value from {} to {}.",
            lengths.start(),
            lengths.end()
        );
        Refusal::new("InvalidParameterValue", message)
    })
}

/// Returns whether one of a filter's values fits.
pub(super) fn among(filter: &Filter<'_>, value: &str) -> bool {
    filter.values.iter().any(|pattern| matches(pattern, value))
}

/// The answer to a filter that the operation does not have.
pub(super) fn unknown(filter: &Filter<'_>) -> Refusal {
    Refusal::new(
        "InvalidParameterValue",
        format!("The filter '{}' is invalid", filter.name),
    )
}

/// Whether a filter's value fits: `*` stands for any text, `?` for one character, `\` takes their meaning away.
fn matches(pattern: &str, text: &str) -> bool {
    let pattern = tokens(pattern);
    let text: Vec<char> = text.chars().collect();
    // Where to go on when what follows the last `*` does not fit: that star takes one more character.
    let (mut at, mut read, mut retry) = (0, 0, None);
    while read < text.len() {
        match pattern.get(at) {
            Some(Token::Many) => {
                retry = Some((at + 1, read));
                at += 1;
            }
            Some(Token::One) => (at, read) = (at + 1, read + 1),
            Some(Token::Character(character)) if *character == text[read] => (at, read) = (at + 1, read + 1),
            Some(Token::Character(_)) | None => {
                let Some((after_star, taken)) = retry else {
                    return false;
                };
                retry = Some((after_star, taken + 1));
                (at, read) = (after_star, taken + 1);
            }
        }
    }
    pattern[at..].iter().all(|token| matches!(token, Token::Many))
}

enum Token {
    Many,
    One,
    Character(char),
}

fn tokens(pattern: &str) -> Vec<Token> {
    let mut characters = pattern.chars();
    let mut tokens = Vec::new();
    while let Some(character) = characters.next() {
        tokens.push(match character {
            '*' => Token::Many,
            '?' => Token::One,
            '\\' => Token::Character(characters.next().unwrap_or('\\')),
            other => Token::Character(other),
        });
    }
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filter_values_know_wildcards() {
        for (pattern, text, fits) in [
            ("bastion", "bastion", true),
            ("bastion", "bastion-2", false),
            ("bastion*", "bastion-2", true),
            ("*", "", true),
            ("", "", true),
            ("", "x", false),
            ("?", "é", true),
            ("?", "", false),
            ("*-prod-*", "web-pro-prod-1", true),
            ("a*b*c", "abcbcc", true),
            ("a*b*c", "abcbcd", false),
            ("\\*", "*", true),
            ("\\*", "x", false),
        ] {
            assert_eq!(matches(pattern, text), fits, "{pattern} {text}");
        }
    }

    #[test]
    fn many_stars_against_a_long_text_are_cheap() {
        assert!(!matches(&"*a".repeat(2000), &"a".repeat(1000)));
    }
}
