//! What an endpoint is asked for: the target of the upgrade request, before it is signed.

use std::fmt::Write as _;
use std::time::Duration;

/// Where connections are opened.
pub const PATH: &str = "/openTunnel";

/// A connection that is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Opening<'a> {
    /// The endpoint's id, which its host name says as well.
    pub endpoint: &'a str,
    /// The target's port: one of [`PORTS`](super::PORTS).
    pub port: u16,
    /// The target's private address, without brackets.
    pub address: &'a str,
    /// How long it may last, in whole seconds; `None` asks for nothing. Who is allowed less than an hour has to ask.
    pub duration: Option<Duration>,
}

impl Opening<'_> {
    /// Returns path and query, in the official client's order.
    pub fn target(&self) -> String {
        let Self {
            endpoint,
            port,
            address,
            duration,
        } = self;
        let mut target = format!(
            "{PATH}?instanceConnectEndpointId={}&remotePort={port}&privateIpAddress={}",
            encoded(endpoint),
            encoded(address)
        );
        if let Some(duration) = duration {
            target.push_str("&maxTunnelDuration=");
            target.push_str(&duration.as_secs().to_string());
        }
        target
    }
}

/// Encodes text for a query as signatures want it (RFC 3986): everything but letters, digits and `-._~`.
pub fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_unreserved_is_encoded_once() {
        assert_eq!(encoded("2001:DB8::1"), "2001%3ADB8%3A%3A1");
        assert_eq!(encoded("a/b+c=d e%é~"), "a%2Fb%2Bc%3Dd%20e%25%C3%A9~");
    }
}
