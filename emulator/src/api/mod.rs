//! The AWS APIs, on `POST /`, each in its real wire format.
//!
//! ```text
//! X-Amz-Target: AmazonSSM.…  ─► ssm              ┐ awsJson 1.1            {"__type":…}
//! X-Amz-Target: AmazonEC2C…  ─► ecs              │
//! X-Amz-Target: AWSEC2Inst…  ─► instance_connect ┘
//! Version=2016-11-15         ─► ec2   EC2 Query, XML         <Response><Errors>…
//! Version=2014-10-31         ─► rds ┐ Query, XML             <ErrorResponse>…
//! Version=2011-06-15         ─► sts ┘
//! ```
//!
//! What the request is for is read from the request, and the signature has to be made for that service: so a
//! signature for the wrong one is told as such, in the words of the service that was called.

mod ec2;
mod ecs;
mod form;
mod instance_connect;
mod json;
mod page;
mod rds;
mod refusal;
mod ssm;
mod sts;
mod xml;

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::request::Parts;
use http::{HeaderMap, Method, Response, StatusCode};
use http_body_util::Full;
use serde_json::json;

use crate::faults::Fault;
use crate::keys::Caller;
use crate::sigv4::{self, Expected, Rejection};
use crate::world::World;

use form::Form;
use page::page;
use refusal::Refusal;
use xml::Xml;

/// A verified call.
struct Call<'a> {
    world: &'a World,
    region: &'a str,
    caller: &'a Caller,
    /// Scheme and authority of the websockets that belong to this endpoint.
    websockets: String,
    request_id: String,
    now: SystemTime,
}

impl Call<'_> {
    /// Returns how long a page is, given what the caller asked for and what the service does by itself.
    fn page_length(&self, asked: Option<usize>, default: usize) -> usize {
        asked
            .unwrap_or(default)
            .min(self.world.config.page_size.unwrap_or(usize::MAX))
    }
}

/// A service whose API is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Service {
    Ssm,
    Ecs,
    InstanceConnect,
    Ec2,
    Rds,
    Sts,
}

impl Service {
    fn name(self) -> &'static str {
        match self {
            Self::Ssm => "ssm",
            Self::Ecs => "ecs",
            Self::InstanceConnect => "ec2-instance-connect",
            Self::Ec2 => "ec2",
            Self::Rds => "rds",
            Self::Sts => "sts",
        }
    }

    /// The namespace of its XML; the JSON services have none.
    fn namespace(self) -> &'static str {
        match self {
            Self::Ssm | Self::Ecs | Self::InstanceConnect => "",
            Self::Ec2 => "http://ec2.amazonaws.com/doc/2016-11-15/",
            Self::Rds => "http://rds.amazonaws.com/doc/2014-10-31/",
            Self::Sts => "https://sts.amazonaws.com/doc/2011-06-15/",
        }
    }

    /// Seen in the services' own messages: "… - 5 min." from the JSON services, "… - 15 min." from STS.
    fn skew(self) -> Duration {
        match self {
            Self::Ssm | Self::Ecs | Self::InstanceConnect | Self::Ec2 => Duration::from_secs(5 * 60),
            Self::Rds | Self::Sts => Duration::from_secs(15 * 60),
        }
    }
}

/// The operation that a request asks for.
struct Request {
    service: Service,
    operation: String,
    /// Empty for the JSON services, which read the body themselves.
    form: Form,
}

impl Request {
    fn parse(request: &Parts, body: &[u8]) -> Option<Self> {
        if request.method != Method::POST || request.uri.path() != "/" {
            return None;
        }
        if let Some(target) = request.headers.get("x-amz-target") {
            let (service, operation) = match target.to_str().ok()?.split_once('.')? {
                ("AmazonSSM", operation) => (Service::Ssm, operation),
                ("AmazonEC2ContainerServiceV20141113", operation) => (Service::Ecs, operation),
                ("AWSEC2InstanceConnectService", operation) => (Service::InstanceConnect, operation),
                _ => return None,
            };
            return Some(Self {
                service,
                operation: operation.to_owned(),
                form: Form::default(),
            });
        }
        let form = Form::parse(body);
        let service = match form.value("Version")? {
            "2016-11-15" => Service::Ec2,
            "2014-10-31" => Service::Rds,
            "2011-06-15" => Service::Sts,
            _ => return None,
        };
        let operation = form.value("Action")?.to_owned();
        Some(Self {
            service,
            operation,
            form,
        })
    }

    fn answer(&self, call: &Call<'_>, body: &[u8]) -> Result<String, Refusal> {
        let Self {
            service,
            operation,
            form,
        } = self;
        match service {
            Service::Ssm => ssm::answer(call, operation, body).map(|value| value.to_string()),
            Service::Ecs => ecs::answer(call, operation, body).map(|value| value.to_string()),
            Service::InstanceConnect => {
                instance_connect::answer(call, operation, body).map(|value| value.to_string())
            }
            Service::Ec2 => ec2::answer(call, operation, form).map(|content| {
                self.document(|xml| {
                    xml.text("requestId", &call.request_id);
                    xml.append(&content);
                })
            }),
            Service::Rds => rds::answer(call, operation, form).map(|content| self.result(call, &content)),
            Service::Sts => sts::answer(call, operation, form).map(|content| self.result(call, &content)),
        }
    }

    fn document(&self, content: impl FnOnce(&mut Xml)) -> String {
        Xml::document(
            &format!("{}Response", self.operation),
            Some(self.service.namespace()),
            content,
        )
    }

    /// The envelope of the Query services other than EC2.
    fn result(&self, call: &Call<'_>, content: &Xml) -> String {
        self.document(|xml| {
            xml.element(&format!("{}Result", self.operation), |xml| xml.append(content));
            xml.element("ResponseMetadata", |xml| xml.text("RequestId", &call.request_id));
        })
    }
}

/// Answers one API request.
pub(crate) fn answer(
    world: &World,
    request: &Parts,
    body: &[u8],
    encrypted: bool,
    now: SystemTime,
) -> Response<Full<Bytes>> {
    let request_id = uuid::Uuid::from_u128(fastrand::u128(..)).to_string();
    let Some(parsed) = Request::parse(request, body) else {
        tracing::warn!(method = %request.method, path = request.uri.path(), "no API that is served here");
        let refusal = unknown_operation().with_status(StatusCode::NOT_FOUND);
        return refused(Service::Ssm, &refusal, &request_id);
    };
    let service = parsed.service;
    let outcome = verify(world, service, request, body, now).and_then(|verified| {
        let call = Call {
            world,
            region: &verified.region,
            caller: &verified.caller,
            websockets: websockets(&request.headers, encrypted),
            request_id: request_id.clone(),
            now,
        };
        parsed.answer(&call, body)
    });
    let code = outcome.as_ref().err().map_or("OK", |refusal| refusal.code);
    tracing::info!(
        service = service.name(),
        operation = parsed.operation,
        code,
        "answered"
    );
    // Operations that are not served have any name, and would let a client grow the table of calls.
    if code != UNKNOWN_OPERATION && code != UNKNOWN_ACTION {
        world.calls.count(service.name(), &parsed.operation);
    }
    match outcome {
        Ok(body) => response(service, StatusCode::OK, body, &request_id),
        Err(refusal) => refused(service, &refusal, &request_id),
    }
}

const UNKNOWN_OPERATION: &str = "UnknownOperationException";
const UNKNOWN_ACTION: &str = "InvalidAction";

/// The answer to an operation of the JSON services that is not served.
fn unknown_operation() -> Refusal {
    Refusal::new(UNKNOWN_OPERATION, "")
}

/// The answer to an operation of the Query services that is not served.
fn unknown_action(operation: &str) -> Refusal {
    Refusal::new(
        UNKNOWN_ACTION,
        format!("The action {operation} is not valid for this web service."),
    )
}

fn verify(
    world: &World,
    service: Service,
    request: &Parts,
    body: &[u8],
    now: SystemTime,
) -> Result<sigv4::Verified, Refusal> {
    let mut regions = world.config.regions.clone();
    if service == Service::Sts {
        // The global endpoint, which older SDKs and AWS CLI 1 can be told to use.
        regions.push("us-east-1".to_owned());
    }
    let expected = Expected {
        service: service.name(),
        regions: &regions,
        skew: service.skew(),
    };
    let verified = sigv4::verify(request, body, &world.keys, &expected, now);
    verified
        .and_then(|verified| {
            world.secrets.note(&verified.signature);
            if world.faults.strikes(Fault::ExpiredToken) {
                Err(Rejection::ExpiredKey)
            } else {
                Ok(verified)
            }
        })
        .map_err(|rejection| Refusal::of_signature(service, rejection))
}

/// The websockets are where the API was called: `wss` over TLS, and `ws` for a plugin that is not made to trust us.
fn websockets(headers: &HeaderMap, encrypted: bool) -> String {
    let host = headers
        .get(HOST)
        .and_then(|host| host.to_str().ok())
        .unwrap_or("localhost");
    let scheme = if encrypted { "wss" } else { "ws" };
    format!("{scheme}://{host}")
}

fn refused(service: Service, refusal: &Refusal, request_id: &str) -> Response<Full<Bytes>> {
    let body = match service {
        Service::Ssm | Service::Ecs | Service::InstanceConnect => {
            json!({ "__type": refusal.code, "message": refusal.message }).to_string()
        }
        Service::Ec2 => Xml::document("Response", None, |xml| {
            xml.element("Errors", |xml| {
                xml.element("Error", |xml| {
                    xml.text("Code", refusal.code);
                    xml.text("Message", &refusal.message);
                });
            });
            xml.text("RequestID", request_id);
        }),
        Service::Rds | Service::Sts => Xml::document("ErrorResponse", Some(service.namespace()), |xml| {
            xml.element("Error", |xml| {
                let whose = if refusal.status.is_server_error() {
                    "Receiver"
                } else {
                    "Sender"
                };
                xml.text("Type", whose);
                xml.text("Code", refusal.code);
                xml.text("Message", &refusal.message);
            });
            xml.text("RequestId", request_id);
        }),
    };
    response(service, refusal.status, body, request_id)
}

fn response(service: Service, status: StatusCode, body: String, request_id: &str) -> Response<Full<Bytes>> {
    let content_type = match service {
        Service::Ssm | Service::Ecs | Service::InstanceConnect => "application/x-amz-json-1.1",
        Service::Ec2 => "text/xml;charset=UTF-8",
        Service::Rds | Service::Sts => "text/xml",
    };
    Response::builder()
        .status(status)
        .header(CONTENT_TYPE, content_type)
        .header("x-amzn-requestid", request_id)
        .body(Full::from(body))
        .expect("a header made of ASCII letters and digits")
}
