//! StartSession and what follows it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::inventory::is_online;
use super::{Call, Refusal, epoch, every, invalid, paged, range, required};
use crate::config::{Agent, ExecAgent, ResumeAfterEnd, TaskStatus};
use crate::documents::{self, DocumentError};
use crate::faults::Fault;
use crate::sessions::{Opening, Session, Ticket};

/// The document that runs when none is named: a shell, which is not served.
const DEFAULT_DOCUMENT: &str = "SSM-SessionManagerRunShell";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct StartSession {
    target: Option<String>,
    document_name: Option<String>,
    #[serde(default)]
    parameters: BTreeMap<String, Vec<String>>,
    reason: Option<String>,
}

pub(super) fn start(call: &Call<'_>, input: StartSession) -> Result<Value, Refusal> {
    let config = &call.world.config;
    let faults = &call.world.faults;
    let target = required(input.target, "target")?;
    if faults.strikes(Fault::ThrottleStartSession) {
        return Err(Refusal::new("ThrottlingException", "Rate exceeded"));
    }
    if faults.strikes_subject(Fault::StartSessionDenied, &target) {
        let resource = resource(call, &target);
        return Err(Refusal::new(
            "AccessDeniedException",
            format!(
                "User: {} is not authorized to perform: ssm:StartSession on resource: {resource} because no \
                 identity-based policy allows the ssm:StartSession action",
                call.caller.arn
            ),
        ));
    }
    let document = input.document_name.unwrap_or_else(|| DEFAULT_DOCUMENT.to_owned());
    let forward = documents::resolve(&document, &input.parameters).map_err(|error| match error {
        DocumentError::Unknown => Refusal::new(
            "InvalidDocument",
            format!("Document with name {document} does not exist."),
        ),
        DocumentError::Parameters(what) => Refusal::new("InvalidParameters", what),
    })?;
    let far_end = far_end(call, &target)
        .ok_or_else(|| Refusal::new("TargetNotConnected", format!("{target} is not connected.")))?;

    let address = match &forward.host {
        None => far_end.ports.get(&forward.port).copied(),
        Some(_) if faults.strikes(Fault::UnknownHost) => None,
        Some(host) => config.address_of(far_end.ports, host, forward.port),
    };
    let (session, ticket) = call.world.sessions.start(Opening {
        target,
        document,
        region: call.region.to_owned(),
        owner: call.caller.arn.clone(),
        reason: input.reason,
        agent: far_end.agent,
        forward,
        address,
    });
    Ok(ticket_json(call, &session, &ticket))
}

/// The agent that serves a session, and the ports of the machine or task that it runs in.
struct FarEnd<'a> {
    agent: &'a Agent,
    ports: &'a BTreeMap<u16, SocketAddr>,
}

/// Finds the agent of a target. What does not exist, what has no agent and what has one that is away are told alike.
fn far_end<'a>(call: &Call<'a>, target: &str) -> Option<FarEnd<'a>> {
    let config = &call.world.config;
    if let Some(instance) = config
        .instances_in(call.region)
        .find(|instance| instance.id == target)
    {
        let agent = instance.ssm.as_ref()?;
        return is_online(call, instance, agent).then_some(FarEnd {
            agent,
            ports: &instance.ports,
        });
    }
    let (task, container) = config
        .tasks_in(call.region)
        .find_map(|task| Some((task, task.container_of(target)?)))?;
    let agent = task.ssm.as_ref()?;
    let is_reached = agent.online
        && call.world.status_of(task) == TaskStatus::Running
        && container.exec_agent == ExecAgent::Running
        && !call.world.faults.strikes_subject(Fault::AgentOffline, &task.id);
    is_reached.then_some(FarEnd {
        agent,
        ports: &task.ports,
    })
}

/// Returns the name of a session's target in policies.
fn resource(call: &Call<'_>, target: &str) -> String {
    let config = &call.world.config;
    let place = format!("{}:{}", call.region, config.account);
    match config
        .tasks_in(call.region)
        .find(|task| task.container_of(target).is_some())
    {
        Some(task) => format!("arn:aws:ecs:{place}:task/{}/{}", task.cluster, task.id),
        None => format!("arn:aws:ec2:{place}:instance/{target}"),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct OneSession {
    session_id: Option<String>,
}

pub(super) fn resume(call: &Call<'_>, input: &OneSession) -> Result<Value, Refusal> {
    let faults = &call.world.faults;
    if faults.strikes(Fault::ResumeFails) {
        return Err(
            Refusal::new("InternalServerError", "An error occurred on the server side.")
                .with_status(StatusCode::INTERNAL_SERVER_ERROR),
        );
    }
    let session = find(call, input)?;
    if faults.strikes(Fault::ResumeSaysGone) {
        session.terminate("nobody resumed it in time");
    }
    if session.ended().is_none() {
        let ticket = session.ticket();
        return Ok(ticket_json(call, &session, &ticket));
    }
    match call.world.config.resume_after_end {
        ResumeAfterEnd::WithoutToken => Ok(json!({ "SessionId": session.id })),
        ResumeAfterEnd::DoesNotExist => Err(does_not_exist(&session.id)),
    }
}

pub(super) fn terminate(call: &Call<'_>, input: &OneSession) -> Result<Value, Refusal> {
    let session = find(call, input)?;
    session.terminate("TerminateSession");
    Ok(json!({ "SessionId": session.id }))
}

fn find(call: &Call<'_>, input: &OneSession) -> Result<Arc<Session>, Refusal> {
    let id = required(input.session_id.clone(), "sessionId")?;
    call.world
        .sessions
        .find(&id)
        .filter(|session| session.region == call.region)
        .ok_or_else(|| does_not_exist(&id))
}

fn does_not_exist(id: &str) -> Refusal {
    Refusal::new("DoesNotExistException", format!("Session {id} does not exist"))
}

fn ticket_json(call: &Call<'_>, session: &Session, ticket: &Ticket) -> Value {
    if call.world.faults.strikes(Fault::TokenExpires) {
        session.expire_ticket();
    }
    json!({
        "SessionId": session.id,
        "TokenValue": ticket.token,
        "StreamUrl": format!("{}{}", call.websockets, ticket.path),
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct DescribeSessions {
    state: Option<String>,
    #[serde(default)]
    filters: Vec<SessionFilter>,
    max_results: Option<usize>,
    next_token: Option<String>,
}

#[derive(Deserialize)]
struct SessionFilter {
    key: String,
    value: String,
}

pub(super) fn describe(call: &Call<'_>, input: DescribeSessions) -> Result<Value, Refusal> {
    let active = match required(input.state, "state")?.as_str() {
        "Active" => true,
        "History" => false,
        other => return Err(invalid("state", other, "[Active, History]")),
    };
    let mut found = Vec::new();
    for session in call.world.sessions.all() {
        if session.region == call.region
            && session.ended().is_none() == active
            && every(&input.filters, |filter| session_fits(&session, filter))?
        {
            found.push(session_json(&session));
        }
    }
    let asked = range(input.max_results, "maxResults", 1, 200)?;
    paged(call, "Sessions", found, input.next_token.as_deref(), asked, 200)
}

fn session_fits(session: &Session, filter: &SessionFilter) -> Result<bool, Refusal> {
    match filter.key.as_str() {
        "SessionId" => Ok(session.id == filter.value),
        "Target" => Ok(session.target == filter.value),
        "Owner" => Ok(session.owner == filter.value),
        other => Err(Refusal::new(
            "InvalidFilterKey",
            format!("The filter key {other} is not served here."),
        )),
    }
}

fn session_json(session: &Session) -> Value {
    let mut value = json!({
        "SessionId": session.id,
        "Target": session.target,
        "Status": "Connected",
        "StartDate": epoch(session.started),
        "DocumentName": session.document,
        "Owner": session.owner,
    });
    if let Some(reason) = &session.reason {
        value["Reason"] = json!(reason);
    }
    if let Some((cause, at)) = session.ended() {
        value["Status"] = json!("Terminated");
        value["EndDate"] = json!(epoch(at));
        value["Details"] = json!(cause);
    }
    value
}
