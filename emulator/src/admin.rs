//! The emulator's own endpoints, under `/_emulator/`, unsigned: the emulator listens on loopback alone.
//!
//! ```text
//! GET    /_emulator/faults                  what is switched on
//! PUT    /_emulator/faults/NAME[?count=N]   switches a fault on; NAME may be NAME=SUBJECT
//! DELETE /_emulator/faults/NAME             switches it off
//! DELETE /_emulator/faults                  switches all of them off
//! GET    /_emulator/sessions                every session, open or ended
//! POST   /_emulator/cut                     resets the websocket of every open session
//! POST   /_emulator/tasks/ID/stop           stops an ECS task, whose sessions end
//! GET    /_emulator/calls                   how often each operation was called
//! ```

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{Method, Response, StatusCode};
use http_body_util::Full;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use crate::faults::FaultError;
use crate::sessions::SessionSummary;
use crate::world::World;

/// Where these endpoints are.
pub(crate) const PREFIX: &str = "/_emulator/";

/// Answers a request whose path begins with [`PREFIX`].
pub(crate) fn answer(world: &World, request: &Parts) -> Response<Full<Bytes>> {
    let path = request.uri.path().strip_prefix(PREFIX).unwrap_or_default();
    let name = path
        .strip_prefix("faults/")
        .map(|name| percent_decode_str(name).decode_utf8_lossy());
    let task = path
        .strip_prefix("tasks/")
        .and_then(|rest| rest.strip_suffix("/stop"));
    if let (&Method::POST, Some(id)) = (&request.method, task) {
        return match world.stop_task(id) {
            Some(ended) => respond(StatusCode::OK, &json!({ "ended": ended })),
            None => {
                let error = format!("there is no task `{id}`");
                respond(StatusCode::NOT_FOUND, &json!({ "error": error }))
            }
        };
    }
    match (&request.method, path, name) {
        (&Method::PUT, _, Some(name)) => {
            let query = url::form_urlencoded::parse(request.uri.query().unwrap_or_default().as_bytes());
            let count = query
                .into_owned()
                .find_map(|(key, value)| (key == "count").then_some(value));
            let fault = count.map_or(name.to_string(), |count| format!("{name}*{count}"));
            switched(world, world.faults.set(&fault))
        }
        (&Method::DELETE, _, Some(name)) => switched(world, world.faults.clear(&name)),
        (&Method::DELETE, "faults", None) => {
            world.faults.clear_all();
            switched(world, Ok(()))
        }
        (&Method::GET, "faults", None) => switched(world, Ok(())),
        (&Method::GET, "sessions", None) => {
            let sessions: Vec<SessionSummary> = world
                .sessions
                .all()
                .iter()
                .map(|session| session.summary())
                .collect();
            respond(StatusCode::OK, &json!(sessions))
        }
        (&Method::POST, "cut", None) => respond(StatusCode::OK, &json!({ "cut": world.sessions.cut() })),
        (&Method::GET, "calls", None) => respond(StatusCode::OK, &json!(world.calls.all())),
        (method, path, _) => {
            let error = format!("there is no {method} {PREFIX}{path}");
            respond(StatusCode::NOT_FOUND, &json!({ "error": error }))
        }
    }
}

fn switched(world: &World, result: Result<(), FaultError>) -> Response<Full<Bytes>> {
    match result {
        Ok(()) => respond(StatusCode::OK, &json!(world.faults.active())),
        Err(error) => respond(StatusCode::BAD_REQUEST, &json!({ "error": error.to_string() })),
    }
}

fn respond(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(format!("{body}\n")));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}
