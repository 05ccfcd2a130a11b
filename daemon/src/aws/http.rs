//! The SDK's HTTP client, on top of our own [`Connector`].
//!
//! The client that comes with the SDK knows neither AWS_CA_BUNDLE nor a connector from outside; hyper's does the
//! work here as it does there. HTTP/1.1 only: the calls are few and small.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use http::Uri;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::time::timeout;
use tower::Service;

use crate::connector::{Connector, Socket};
use crate::failure::{Failure, Reason, Remedy};

/// How long an unused connection is kept. Calls come in bursts; what is older has often been cut silently, by a
/// sleep or a change of network, and would cost the next call its whole attempt. A websocket that died with it is
/// noticed after this time at the earliest.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5);

/// The call whose answer is waited for also when the network changes: it is not made again, and the session that it
/// may have started is known by its answer alone.
const START_SESSION: &str = "AmazonSSM.StartSession";

/// Makes the SDK's HTTP requests over a [`Connector`]. Clones share the connections.
#[derive(Clone)]
pub(super) struct Http {
    connector: Connector,
    /// One per pair of time limits, as the SDK asks for them.
    clients: Arc<Mutex<HashMap<Limits, SharedHttpConnector>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Limits {
    connect: Option<Duration>,
    read: Option<Duration>,
}

impl Http {
    pub(super) fn new(connector: Connector) -> Self {
        Self {
            connector,
            clients: Arc::default(),
        }
    }

    /// Lets go of the connections that no request uses: they may be dead, and would cost the next one its time. The SDK
    /// asks for its client with each attempt of a call, and so gets one without any.
    pub(super) fn let_go(&self) {
        self.clients
            .lock()
            .expect("nothing panics while it is held")
            .clear();
    }
}

impl HttpClient for Http {
    fn http_connector(&self, settings: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        let limits = Limits {
            connect: settings.connect_timeout(),
            read: settings.read_timeout(),
        };
        let mut clients = self.clients.lock().expect("nothing panics while it is held");
        let client = clients.entry(limits).or_insert_with(|| {
            let dial = Dial {
                connector: self.connector.clone(),
                limit: limits.connect,
            };
            let client = Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(IDLE_TIMEOUT)
                .build(dial);
            SharedHttpConnector::new(Requests {
                client,
                connector: self.connector.clone(),
                limit: limits.read,
            })
        });
        client.clone()
    }
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http").finish_non_exhaustive()
    }
}

struct Requests {
    client: Client<Dial, SdkBody>,
    connector: Connector,
    limit: Option<Duration>,
}

impl fmt::Debug for Requests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Requests")
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}

impl HttpConnector for Requests {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let (client, connector, limit) = (self.client.clone(), self.connector.clone(), self.limit);
        HttpConnectorFuture::new(async move {
            let request = request
                .try_into_http1x()
                .map_err(|error| ConnectorError::user(error.into()))?;
            let target = request.headers().get("x-amz-target");
            let is_given_up = target.is_none_or(|target| target != START_SESSION);
            let answer = async {
                tokio::select! {
                    answer = client.request(request) => answer.map_err(|error| ConnectorError::io(error.into())),
                    stranded = connector.stranded(), if is_given_up => Err(ConnectorError::io(stranded.into())),
                }
            };
            let answer = match limit {
                Some(limit) => timeout(limit, answer)
                    .await
                    .map_err(|late| ConnectorError::timeout(late.into()))?,
                None => answer.await,
            };
            HttpResponse::try_from(answer?.map(SdkBody::from_body_1_x))
                .map_err(|error| ConnectorError::other(error.into(), None))
        })
    }
}

/// The connector as hyper wants it, within a time limit.
#[derive(Clone)]
struct Dial {
    connector: Connector,
    limit: Option<Duration>,
}

impl Service<Uri> for Dial {
    type Response = TokioIo<Socket>;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Failure>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let Self { connector, limit } = self.clone();
        Box::pin(async move {
            let socket = match limit {
                Some(limit) => timeout(limit, connector.connect(&uri)).await.map_err(|_| {
                    let host = uri.host().unwrap_or_default();
                    let doing = format!("cannot connect to `{host}` within {} s", limit.as_secs_f32());
                    Failure::new(Reason::Unreachable, Remedy::Retry, doing)
                })?,
                None => connector.connect(&uri).await,
            }?;
            Ok(TokioIo::new(socket))
        })
    }
}

impl Connection for Socket {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}
