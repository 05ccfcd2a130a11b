//! The other doors of the one port: TLS, and the emulator's own endpoints.

mod common;

use std::sync::Arc;

use common::{Answer, Caller, example, over, plain};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::json;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tunneld_emulator::{Config, Emulator, StartError};

#[tokio::test]
async fn tls_is_served_on_the_same_port_for_every_name_of_aws() {
    let emulator = example("").await;
    let caller = Caller::of(&emulator);
    for name in [
        "127.0.0.1",
        "::1",
        "localhost",
        "ssm.ap-northeast-1.amazonaws.com",
        "sts.amazonaws.com",
    ] {
        let tls = secure(&emulator, name)
            .await
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let body = "Version=2011-06-15&Action=GetCallerIdentity";
        let headers = caller.sign("sts", "POST", "/", &[], body);
        let answer = over(tls, "POST", "/", &headers, body).await;
        assert_eq!(answer.texts("Account"), ["123456789012"], "{name}");
    }
    assert!(secure(&emulator, "example.com").await.is_err());
}

#[tokio::test]
async fn an_api_called_over_tls_gives_a_wss_stream_url() {
    let emulator = example("").await;
    let caller = Caller::of(&emulator);
    let input = json!({
        "Target": "i-0123456789abcdef0",
        "DocumentName": "AWS-StartPortForwardingSession",
    })
    .to_string();
    let own = [("x-amz-target", "AmazonSSM.StartSession")];
    let mut headers = caller.sign("ssm", "POST", "/", &own, &input);
    headers.push((own[0].0.to_owned(), own[0].1.to_owned()));
    let tls = secure(&emulator, "localhost")
        .await
        .expect("the authority is trusted");
    let started = over(tls, "POST", "/", &headers, &input).await.json();
    let url = started["StreamUrl"].as_str().expect("a URL").to_owned();
    assert!(
        url.starts_with(&format!("wss://{}/v1/data-channel/emulator-", emulator.address())),
        "{url}"
    );
}

#[tokio::test]
async fn faults_are_switched_over_http_and_sessions_and_calls_are_told() {
    let emulator = example("").await;
    let caller = Caller::of(&emulator);
    let answer = admin(&emulator, "PUT", "faults/throttle-start-session?count=1").await;
    assert_eq!(
        answer.json(),
        json!([{ "name": "throttle-start-session", "subject": null, "left": 1 }])
    );
    admin(&emulator, "PUT", "faults/agent-offline%3Di-0fedcba9876543210").await;
    assert_eq!(emulator.faults().active().len(), 2);
    admin(&emulator, "DELETE", "faults/agent-offline=i-0fedcba9876543210").await;
    let input = json!({
        "Target": "i-0123456789abcdef0",
        "DocumentName": "AWS-StartPortForwardingSessionToRemoteHost",
        "Parameters": { "host": ["10.1.2.3"], "portNumber": ["3306"] },
    });
    assert_eq!(caller.ssm("StartSession", &input).await.status, 400);
    assert_eq!(admin(&emulator, "GET", "faults").await.json(), json!([]));
    let started = caller.ssm("StartSession", &input).await.json();
    let sessions = admin(&emulator, "GET", "sessions").await.json();
    assert_eq!(
        sessions,
        json!([{
            "id": started["SessionId"],
            "target": "i-0123456789abcdef0",
            "document": "AWS-StartPortForwardingSessionToRemoteHost",
            "host": "10.1.2.3",
            "port": 3306,
            "ended": null,
        }])
    );
    assert_eq!(
        admin(&emulator, "GET", "calls").await.json(),
        json!({ "ssm:StartSession": 2 })
    );
    assert_eq!(admin(&emulator, "POST", "cut").await.json(), json!({ "cut": 1 }));
    emulator.faults().set("expired-token").expect("a known fault");
    assert_eq!(admin(&emulator, "DELETE", "faults").await.json(), json!([]));
}

#[tokio::test]
async fn wrong_faults_and_unknown_endpoints_are_told() {
    let emulator = example("").await;
    let answer = admin(&emulator, "PUT", "faults/earthquake").await;
    assert_eq!(answer.status, 400);
    assert!(
        answer.body.contains("there is no fault `earthquake`"),
        "{}",
        answer.body
    );
    assert_eq!(
        admin(&emulator, "PUT", "faults/expired-token?count=x")
            .await
            .status,
        400
    );
    assert_eq!(admin(&emulator, "GET", "weather").await.status, 404);
    assert_eq!(admin(&emulator, "POST", "faults").await.status, 404);
}

#[tokio::test]
async fn nobody_but_loopback_is_served() {
    let config = Config::parse("").expect("defaults");
    let address = "0.0.0.0:0".parse().expect("an address");
    let started = Emulator::start_on(config, address).await;
    assert!(matches!(started.err(), Some(StartError::NotLoopback(_))));
}

async fn admin(emulator: &Emulator, method: &str, path: &str) -> Answer {
    plain(emulator.address(), method, &format!("/_emulator/{path}"), &[], "").await
}

async fn secure(emulator: &Emulator, name: &'static str) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(emulator.ca_pem().as_bytes()).expect("a certificate"))
        .expect("an authority");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has them")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tcp = TcpStream::connect(emulator.address()).await?;
    let name = ServerName::try_from(name).expect("a name");
    TlsConnector::from(Arc::new(config)).connect(name, tcp).await
}
