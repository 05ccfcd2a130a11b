//! The emulator's own endpoints, under `/_emulator/`, unsigned: the emulator listens on loopback alone.
//!
//! ```text
//! GET    /_emulator/faults                  what is switched on
//! PUT    /_emulator/faults/NAME[?count=N]   switches a fault on; NAME may be NAME=SUBJECT
//! DELETE /_emulator/faults/NAME             switches it off
//! DELETE /_emulator/faults                  switches all of them off
//! GET    /_emulator/conditions              the conditions, as TOML
//! PUT    /_emulator/conditions              replaces them: the tables of a file of `--faults`, without its switches
//! GET    /_emulator/sessions                every session, open or ended
//! POST   /_emulator/cut                     resets the websocket of every open session
//! POST   /_emulator/recycle                 closes it with code 1000
//! POST   /_emulator/freeze                  makes it half-open for ever; later ones work
//! POST   /_emulator/outage[?kind=frozen]    resets all connections, present and to come; or lets them hang for ever
//! DELETE /_emulator/outage                  ends that
//! POST   /_emulator/agent-outage?for=2s     the agents lose their own websockets for that long
//! POST   /_emulator/restart-agents[?for=1s] ends every session; no agent is online for that long
//! POST   /_emulator/rotate-credentials      replaces the long-term key; the one before has expired
//! POST   /_emulator/tasks/ID/stop           stops an ECS task, whose sessions end
//! GET    /_emulator/tunnels                 every tunnel of an endpoint of Instance Connect, open or ended
//! POST   /_emulator/tunnels/end?how=reset   ends the open ones; or fin, or close&code=1011&reason=…
//! PUT    /_emulator/endpoints/ID?state=…    changes the state of an endpoint
//! GET    /_emulator/keys?instance=…&user=…  the public keys by which a user can log in, as `authorized_keys` has them
//! GET    /_emulator/calls                   how often each operation was called
//! ```

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{Method, Response, StatusCode};
use http_body_util::Full;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use crate::conditions::Conditions;
use crate::config::EndpointState;
use crate::eice::TunnelEnd;
use crate::faults::FaultError;
use crate::network::Outage;
use crate::sessions::SessionSummary;
use crate::world::World;

/// Where these endpoints are.
pub(crate) const PREFIX: &str = "/_emulator/";

/// Answers a request whose path begins with [`PREFIX`].
pub(crate) fn answer(world: &World, request: &Parts, body: &[u8]) -> Response<Full<Bytes>> {
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
    if let (&Method::PUT, Some(id)) = (&request.method, path.strip_prefix("endpoints/")) {
        return set_endpoint_state(world, request, id);
    }
    match (&request.method, path, name) {
        (&Method::PUT, _, Some(name)) => {
            let count = parameter(request, "count");
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
        (&Method::GET, "conditions", None) => toml(&world.conditions.borrow()),
        (&Method::PUT, "conditions", None) => set_conditions(world, body),
        (&Method::POST, "cut", None) => respond(StatusCode::OK, &json!({ "cut": world.cut() })),
        (&Method::POST, "recycle", None) => respond(StatusCode::OK, &json!({ "recycled": world.recycle() })),
        (&Method::POST, "freeze", None) => respond(StatusCode::OK, &json!({ "frozen": world.freeze() })),
        (&Method::POST, "outage", None) => begin_outage(world, request),
        (&Method::DELETE, "outage", None) => {
            world.network.end();
            respond(StatusCode::OK, &json!({ "outage": null }))
        }
        (&Method::POST, "agent-outage", None) => match duration(request, "2s") {
            Ok(duration) => {
                let sessions = world.agent_outage(duration);
                respond(StatusCode::OK, &json!({ "without_agent": sessions }))
            }
            Err(error) => refuse(&error),
        },
        (&Method::POST, "restart-agents", None) => match duration(request, "1s") {
            Ok(away) => respond(StatusCode::OK, &json!({ "ended": world.restart_agents(away) })),
            Err(error) => refuse(&error),
        },
        (&Method::POST, "rotate-credentials", None) => {
            respond(StatusCode::OK, &json!(world.rotate_credentials()))
        }
        (&Method::GET, "tunnels", None) => respond(StatusCode::OK, &json!(world.tunnels.all())),
        (&Method::POST, "tunnels/end", None) => end_tunnels(world, request),
        (&Method::GET, "keys", None) => authorized_keys(world, request),
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
        Err(error) => refuse(&error.to_string()),
    }
}

fn set_conditions(world: &World, body: &[u8]) -> Response<Full<Bytes>> {
    match Conditions::parse(&String::from_utf8_lossy(body)) {
        Ok(conditions) => {
            world.conditions.send_replace(Arc::new(conditions));
            toml(&world.conditions.borrow())
        }
        // The source is where the line and the known keys are.
        Err(error) => refuse(&match std::error::Error::source(&error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        }),
    }
}

fn begin_outage(world: &World, request: &Parts) -> Response<Full<Bytes>> {
    let (outage, kind) = match parameter(request, "kind").as_deref() {
        None | Some("reset") => (Outage::Reset, "reset"),
        Some("frozen") => (Outage::Frozen, "frozen"),
        Some(other) => {
            return refuse(&format!(
                "`{other}` is no outage: allowed are `reset` and `frozen`"
            ));
        }
    };
    world.network.begin(outage);
    respond(StatusCode::OK, &json!({ "outage": kind }))
}

fn set_endpoint_state(world: &World, request: &Parts, id: &str) -> Response<Full<Bytes>> {
    let wanted = parameter(request, "state").unwrap_or_default();
    let Some(state) = EndpointState::ALL.iter().find(|state| state.name() == wanted) else {
        let names: Vec<&str> = EndpointState::ALL.iter().map(|state| state.name()).collect();
        return refuse(&format!(
            "`{wanted}` is no state: allowed are {}",
            names.join(", ")
        ));
    };
    match world.set_endpoint_state(id, *state) {
        true => respond(StatusCode::OK, &json!({ "id": id, "state": wanted })),
        false => {
            let error = format!("there is no endpoint `{id}`");
            respond(StatusCode::NOT_FOUND, &json!({ "error": error }))
        }
    }
}

fn end_tunnels(world: &World, request: &Parts) -> Response<Full<Bytes>> {
    let end = match parameter(request, "how").as_deref() {
        None | Some("reset") => TunnelEnd::Reset,
        Some("fin") => TunnelEnd::Fin,
        Some("close") => {
            let code = parameter(request, "code").unwrap_or_else(|| "1000".to_owned());
            let Ok(code @ 1000..=4999) = code.parse() else {
                return refuse(&format!("`{code}` is no close code: allowed are 1000 to 4999"));
            };
            TunnelEnd::Close(code, parameter(request, "reason").unwrap_or_default())
        }
        Some(other) => {
            return refuse(&format!(
                "`{other}` is no end: allowed are `reset`, `fin` and `close`"
            ));
        }
    };
    respond(StatusCode::OK, &json!({ "ended": world.tunnels.end(&end) }))
}

/// Answers what a server for SSH asks by its AuthorizedKeysCommand: lines of text.
fn authorized_keys(world: &World, request: &Parts) -> Response<Full<Bytes>> {
    let (Some(instance), Some(user)) = (parameter(request, "instance"), parameter(request, "user")) else {
        return refuse("`instance` and `user` are needed");
    };
    let lines: String = world
        .authorized_keys(&instance, &user)
        .iter()
        .map(|key| format!("{key}\n"))
        .collect();
    let mut response = Response::new(Full::from(lines));
    let content_type = http::HeaderValue::from_static("text/plain");
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

/// Returns a value of the query.
fn parameter(request: &Parts, name: &str) -> Option<String> {
    let query = url::form_urlencoded::parse(request.uri.query().unwrap_or_default().as_bytes());
    query
        .into_owned()
        .find_map(|(key, value)| (key == name).then_some(value))
}

/// Returns the time that the query's `for` gives.
fn duration(request: &Parts, default: &str) -> Result<Duration, String> {
    let text = parameter(request, "for").unwrap_or_else(|| default.to_owned());
    humantime::parse_duration(&text).map_err(|_| format!("`{text}` is not a time such as `2s` or `500ms`"))
}

fn refuse(error: &str) -> Response<Full<Bytes>> {
    respond(StatusCode::BAD_REQUEST, &json!({ "error": error }))
}

fn toml(conditions: &Conditions) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(conditions.to_toml()));
    let content_type = http::HeaderValue::from_static("application/toml");
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

fn respond(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(format!("{body}\n")));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}
