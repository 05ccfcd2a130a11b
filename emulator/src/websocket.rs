//! What all websocket upgrades have in common, whatever is behind them.

use bytes::Bytes;
use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};
use http_body_util::Full;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// An upgrade that can be accepted, as far as HTTP is concerned.
pub(crate) struct Handshake {
    accept: HeaderValue,
}

impl Handshake {
    /// Reads the request of a client.
    pub(crate) fn of(request: &Parts) -> Result<Self, (StatusCode, &'static str)> {
        let headers = &request.headers;
        let is_upgrade = request.method == Method::GET
            && has_token(headers, CONNECTION, "upgrade")
            && has_token(headers, UPGRADE, "websocket");
        let Some(key) = headers.get(SEC_WEBSOCKET_KEY).filter(|_| is_upgrade) else {
            return Err((StatusCode::BAD_REQUEST, "this is the place of websocket upgrades"));
        };
        if headers
            .get(SEC_WEBSOCKET_VERSION)
            .is_none_or(|version| version != "13")
        {
            return Err((
                StatusCode::UPGRADE_REQUIRED,
                "websockets of version 13 alone are served",
            ));
        }
        let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes()))
            .expect("base64 is made of characters that a header may hold");
        Ok(Self { accept })
    }

    /// Returns the answer that turns the connection into a websocket.
    pub(crate) fn response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(SEC_WEBSOCKET_ACCEPT, self.accept);
        response
    }
}

/// Whether a header that lists words, such as `keep-alive, Upgrade`, has this one.
fn has_token(headers: &HeaderMap, name: HeaderName, token: &str) -> bool {
    let values = headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .any(|word| word.trim().eq_ignore_ascii_case(token))
}
