//! A refused upgrade: what the HTTP answer says.

use serde::Deserialize;

use crate::text::in_one_line;

/// The most of a body that is looked at: what AWS says fits many times.
const LONGEST_BODY: usize = 16 << 10;

/// The most characters that are kept of a message, or of a body that is none of AWS's.
const LONGEST_MESSAGE: usize = 400;

/// What the body of a refusal says. Nothing in it can be relied on; everything in it can be printed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Denial {
    /// AWS's code, where there is one.
    pub code: Option<String>,
    /// What was said, in one line; empty where nothing was.
    pub message: String,
}

/// The body as AWS writes it. Other services of AWS begin these names in lower case, or call the code `__type`.
#[derive(Deserialize)]
struct Body {
    #[serde(rename = "ErrorCode", alias = "errorCode", alias = "__type", alias = "code")]
    code: Option<String>,
    #[serde(rename = "Message", alias = "message")]
    message: Option<String>,
}

impl Denial {
    /// Reads a body, whatever its bytes are.
    pub fn read(body: &[u8]) -> Self {
        let body = body.get(..LONGEST_BODY).unwrap_or(body);
        let Ok(Body { code, message }) = serde_json::from_slice(body) else {
            return Self {
                code: None,
                message: in_one_line(&String::from_utf8_lossy(body), LONGEST_MESSAGE),
            };
        };
        let is_code = |code: &String| {
            let mut letters = code.chars();
            (1..=100).contains(&code.len())
                && letters.all(|letter| letter.is_ascii_alphanumeric() || letter == '.')
        };
        Self {
            code: code.filter(is_code),
            message: in_one_line(&message.unwrap_or_default(), LONGEST_MESSAGE),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn denial(code: Option<&str>, message: &str) -> Denial {
        Denial {
            code: code.map(str::to_owned),
            message: message.to_owned(),
        }
    }

    #[test]
    fn the_body_that_was_seen_is_read() {
        let body = br#"{"ErrorCode":"InvalidParameter","Message":"The specified RemotePort is not valid. Specify either 22 or 3389 as the RemotePort and retry your request."}"#;
        let message = "The specified RemotePort is not valid. Specify either 22 or 3389 as the RemotePort and \
                       retry your request.";
        assert_eq!(Denial::read(body), denial(Some("InvalidParameter"), message));
    }

    #[test]
    fn other_bodies_are_read_leniently() {
        for (body, expected) in [
            ("", denial(None, "")),
            ("{}", denial(None, "")),
            (r#"{"message":"no"}"#, denial(None, "no")),
            (
                r#"{"__type":"AccessDeniedException","Message":null,"more":[1]}"#,
                denial(Some("AccessDeniedException"), ""),
            ),
            (r#"{"ErrorCode":"a b","Message":"no"}"#, denial(None, "no")),
            (r#"{"ErrorCode":5}"#, denial(None, r#"{"ErrorCode":5}"#)),
            (
                "<html>\r\n<b>\u{1b}[1mBad Gateway</b>",
                denial(None, "<html> <b> [1mBad Gateway</b>"),
            ),
        ] {
            assert_eq!(Denial::read(body.as_bytes()), expected, "{body}");
        }
        let long = Denial::read(&vec![b'x'; 1 << 20]);
        assert_eq!(long.message.chars().count(), LONGEST_MESSAGE + 1);
    }

    proptest! {
        #[test]
        fn any_body_is_read_and_can_be_printed(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let Denial { code, message } = Denial::read(&body);
            prop_assert!(!message.contains(char::is_control));
            prop_assert!(code.is_none_or(|code| code.is_ascii()));
        }
    }
}
