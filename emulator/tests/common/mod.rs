//! A caller of AWS made of raw HTTP and a signer, so that nothing between it and the emulator forgives a mistake.

#![allow(
    dead_code,
    clippy::allow_attributes,
    reason = "each test file uses its own part"
)]

pub(crate) mod client;
pub(crate) mod far;

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign};
use aws_sigv4::sign::v4;
use http::Request;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tunneld_emulator::{Config, Emulator};

pub(crate) const REGION: &str = "ap-northeast-1";

/// Starts an emulator that holds what `example.toml` shows, after some more lines of TOML at its top.
pub(crate) async fn example(top: &str) -> Emulator {
    let text = format!("{top}\n{}", include_str!("../../example.toml"));
    Emulator::start(Config::parse(&text).expect("a good configuration"))
        .await
        .expect("the emulator starts")
}

/// Someone with keys.
#[derive(Clone)]
pub(crate) struct Caller {
    pub(crate) address: SocketAddr,
    pub(crate) access_key_id: String,
    pub(crate) secret: String,
    pub(crate) token: Option<String>,
    pub(crate) region: String,
    pub(crate) time: SystemTime,
}

/// An HTTP answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    /// Returns the texts of all elements of a name, in order.
    pub(crate) fn texts(&self, element: &str) -> Vec<&str> {
        let (open, close) = (format!("<{element}>"), format!("</{element}>"));
        let pieces = self.body.split(open.as_str()).skip(1);
        pieces
            .map(|piece| piece.split(close.as_str()).next().expect("split yields a piece"))
            .collect()
    }

    /// Returns status and error code, of either protocol.
    pub(crate) fn error(&self) -> (u16, String) {
        let code = match self.texts("Code").first() {
            Some(code) => (*code).to_owned(),
            None => self.json()["__type"].as_str().unwrap_or_default().to_owned(),
        };
        (self.status, code)
    }
}

impl Caller {
    /// The caller that the emulator tells everybody to be.
    pub(crate) fn of(emulator: &Emulator) -> Self {
        let environment = emulator.environment();
        Self {
            address: emulator.address(),
            access_key_id: environment["AWS_ACCESS_KEY_ID"].clone(),
            secret: environment["AWS_SECRET_ACCESS_KEY"].clone(),
            token: environment.get("AWS_SESSION_TOKEN").cloned(),
            region: REGION.to_owned(),
            time: wall_clock(),
        }
    }

    pub(crate) async fn ssm(&self, operation: &str, input: &Value) -> Answer {
        self.json("ssm", &format!("AmazonSSM.{operation}"), input).await
    }

    pub(crate) async fn ecs(&self, operation: &str, input: &Value) -> Answer {
        let target = format!("AmazonEC2ContainerServiceV20141113.{operation}");
        self.json("ecs", &target, input).await
    }

    pub(crate) async fn push_key(&self, instance: &str, user: &str, key: &str) -> Answer {
        let input = json!({ "InstanceId": instance, "InstanceOSUser": user, "SSHPublicKey": key });
        let target = "AWSEC2InstanceConnectService.SendSSHPublicKey";
        self.json("ec2-instance-connect", target, &input).await
    }

    async fn json(&self, service: &str, target: &str, input: &Value) -> Answer {
        let headers = [
            ("content-type", "application/x-amz-json-1.1"),
            ("x-amz-target", target),
        ];
        self.call(service, &headers, &input.to_string()).await
    }

    pub(crate) async fn ec2(&self, parameters: &str) -> Answer {
        self.ec2_call("DescribeInstances", parameters).await
    }

    pub(crate) async fn ec2_call(&self, operation: &str, parameters: &str) -> Answer {
        self.query(
            "ec2",
            &format!("Version=2016-11-15&Action={operation}&{parameters}"),
        )
        .await
    }

    pub(crate) async fn rds(&self, operation: &str, parameters: &str) -> Answer {
        self.query(
            "rds",
            &format!("Version=2014-10-31&Action={operation}&{parameters}"),
        )
        .await
    }

    pub(crate) async fn sts(&self, operation: &str, parameters: &str) -> Answer {
        self.query(
            "sts",
            &format!("Version=2011-06-15&Action={operation}&{parameters}"),
        )
        .await
    }

    pub(crate) async fn query(&self, service: &str, form: &str) -> Answer {
        let headers = [("content-type", "application/x-www-form-urlencoded; charset=utf-8")];
        self.call(service, &headers, form).await
    }

    async fn call(&self, service: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let mut all: Vec<(String, String)> = headers
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        all.extend(self.sign(service, "POST", "/", headers, body));
        plain(self.address, "POST", "/", &all, body).await
    }

    /// Returns the target of a tunnel's request, with a signature for a host.
    pub(crate) fn presign(&self, host: &str, query: &str) -> String {
        let identity = Credentials::new(
            &self.access_key_id,
            &self.secret,
            self.token.clone(),
            None,
            "test",
        )
        .into();
        let mut settings = SigningSettings::default();
        settings.signature_location = SignatureLocation::QueryParams;
        settings.expires_in = Some(Duration::from_secs(60));
        let parameters = v4::SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name("ec2-instance-connect")
            .time(self.time)
            .settings(settings)
            .build()
            .expect("all parameters are given")
            .into();
        let url = format!("wss://{host}/openTunnel?{query}");
        let request = SignableRequest::new("GET", url, [].into_iter(), SignableBody::Bytes(b""))
            .expect("a good request");
        let output = sign(request, &parameters).expect("a signature");
        let mut target = format!("/openTunnel?{query}");
        for (name, value) in output.output().params() {
            let value = percent_encoding::utf8_percent_encode(value, percent_encoding::NON_ALPHANUMERIC);
            target.push_str(&format!("&{name}={value}"));
        }
        target
    }

    /// Returns the request that opens a tunnel at an endpoint.
    pub(crate) fn opening(&self, host: &str, query: &str) -> Request<()> {
        Request::builder()
            .uri(format!("ws://{host}{}", self.presign(host, query)))
            .header("host", host)
            .header("upgrade", "websocket")
            .header("connection", "Upgrade")
            .header("sec-websocket-key", generate_key())
            .header("sec-websocket-version", "13")
            .body(())
            .expect("a good request")
    }

    /// Returns the headers that a signature adds, `host` included.
    pub(crate) fn sign(
        &self,
        service: &str,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Vec<(String, String)> {
        let identity = Credentials::new(
            &self.access_key_id,
            &self.secret,
            self.token.clone(),
            None,
            "test",
        )
        .into();
        let parameters = v4::SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name(service)
            .time(self.time)
            .settings(SigningSettings::default())
            .build()
            .expect("all parameters are given")
            .into();
        let uri = format!("http://{}{path}", self.address);
        let request = SignableRequest::new(
            method,
            uri,
            headers.iter().copied(),
            SignableBody::Bytes(body.as_bytes()),
        )
        .expect("a good request");
        let output = sign(request, &parameters).expect("a signature");
        let added = output
            .output()
            .headers()
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
        added
            .chain([("host".to_owned(), self.address.to_string())])
            .collect()
    }
}

/// Sends one request over a connection of its own.
pub(crate) async fn plain(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(String, String)],
    body: &str,
) -> Answer {
    let tcp = TcpStream::connect(address).await.expect("the emulator listens");
    over(tcp, method, path, headers, body).await
}

/// Sends one request over a connection.
pub(crate) async fn over(
    mut io: impl AsyncRead + AsyncWrite + Unpin,
    method: &str,
    path: &str,
    headers: &[(String, String)],
    body: &str,
) -> Answer {
    let mut request = format!(
        "{method} {path} HTTP/1.1\r\ncontent-length: {}\r\nconnection: close\r\n",
        body.len()
    );
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    if !headers.iter().any(|(name, _)| name == "host") {
        request.push_str("host: localhost\r\n");
    }
    request.push_str("\r\n");
    request.push_str(body);
    io.write_all(request.as_bytes())
        .await
        .expect("the request goes out");
    let mut text = String::new();
    // A TLS peer may leave without close_notify; what counts is the answer.
    let _ = io.read_to_string(&mut text).await;
    let (head, body) = text
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("no HTTP answer: {text:?}"));
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .expect("a status line");
    Answer {
        status,
        head: head.to_ascii_lowercase(),
        body: body.to_owned(),
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "signatures are checked against the wall clock"
)]
pub(crate) fn wall_clock() -> SystemTime {
    SystemTime::now()
}
