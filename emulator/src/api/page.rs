//! Cuts lists into pages.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

/// A token that this emulator never gave.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct UnknownToken;

/// Returns the page that a token points at, and the token of the next one if there is more.
pub(crate) fn page<T>(
    mut items: Vec<T>,
    token: Option<&str>,
    length: usize,
) -> Result<(Vec<T>, Option<String>), UnknownToken> {
    let start = match token {
        None => 0,
        Some(token) => start_of(token)
            .filter(|start| *start < items.len())
            .ok_or(UnknownToken)?,
    };
    items.drain(..start);
    let next =
        (items.len() > length).then(|| BASE64_URL_SAFE_NO_PAD.encode(format!("from {}", start + length)));
    items.truncate(length);
    Ok((items, next))
}

fn start_of(token: &str) -> Option<usize> {
    let text = String::from_utf8(BASE64_URL_SAFE_NO_PAD.decode(token).ok()?).ok()?;
    text.strip_prefix("from ")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_come_to_the_whole_list() {
        let all: Vec<u32> = (0..7).collect();
        let (mut seen, mut token) = (Vec::new(), None);
        loop {
            let (items, next) = page(all.clone(), token.as_deref(), 3).expect("our own token");
            assert!(items.len() <= 3 && !items.is_empty());
            seen.extend(items);
            token = next;
            if token.is_none() {
                break;
            }
        }
        assert_eq!(seen, all);
    }

    #[test]
    fn a_foreign_token_is_refused() {
        for token in [
            "",
            "!",
            "AAAA",
            &BASE64_URL_SAFE_NO_PAD.encode("from 7"),
            &BASE64_URL_SAFE_NO_PAD.encode("from -1"),
        ] {
            assert_eq!(page(vec![0; 7], Some(token), 3), Err(UnknownToken), "{token}");
        }
    }

    #[test]
    fn an_empty_list_is_one_empty_page() {
        assert_eq!(page(Vec::<u32>::new(), None, 3), Ok((Vec::new(), None)));
    }
}
