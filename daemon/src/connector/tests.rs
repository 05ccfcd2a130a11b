use std::io::Write;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::*;

/// A certificate authority and a server that answers each connection with `hello`.
struct TlsServer {
    port: u16,
    authority: String,
    _task: JoinSet<()>,
}

async fn tls_server(name: &str) -> TlsServer {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new([name.to_owned()])
        .unwrap()
        .signed_by(&key, &issuer)
        .unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key.serialize_der().try_into().unwrap())
        .unwrap();

    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut task = JoinSet::new();
    task.spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            // A client that does not trust us ends the handshake: that is its test, not ours.
            if let Ok(mut stream) = acceptor.accept(stream).await {
                stream.write_all(b"hello").await.unwrap();
                stream.shutdown().await.unwrap();
            }
        }
    });
    TlsServer {
        port,
        authority: issuer.pem(),
        _task: task,
    }
}

/// A proxy that sends every CONNECT to one local port, if it brings the right name and password.
struct Proxy {
    port: u16,
    asked: tokio::sync::mpsc::Receiver<String>,
    _task: JoinSet<()>,
}

async fn proxy_to(port: u16, user: &str) -> Proxy {
    let expected = format!("Basic {}", BASE64_STANDARD.encode(user));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy_port = listener.local_addr().unwrap().port();
    let (tell, asked) = tokio::sync::mpsc::channel(8);
    let mut task = JoinSet::new();
    task.spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            let (mut line, mut authorization) = (String::new(), String::new());
            stream.read_line(&mut line).await.unwrap();
            tell.send(line.trim().to_owned()).await.unwrap();
            loop {
                line.clear();
                stream.read_line(&mut line).await.unwrap();
                match line.trim().split_once(": ") {
                    None => break,
                    Some((name, value)) if name.eq_ignore_ascii_case("proxy-authorization") => {
                        authorization = value.to_owned();
                    }
                    Some(_) => {}
                }
            }
            if authorization != expected {
                let refusal = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n";
                stream.write_all(refusal).await.unwrap();
                continue;
            }
            stream
                .write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
                .await
                .unwrap();
            let mut far = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            tokio::io::copy_bidirectional(&mut stream, &mut far)
                .await
                .unwrap();
        }
    });
    Proxy {
        port: proxy_port,
        asked,
        _task: task,
    }
}

fn pem_file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn connector(variables: &[(&str, &str)]) -> Result<Connector, Failure> {
    Connector::new(&variables.iter().copied().collect())
}

async fn read_all(mut socket: Socket) -> String {
    let mut text = String::new();
    socket.read_to_string(&mut text).await.unwrap();
    text
}

#[tokio::test]
async fn tls_trusts_the_authorities_of_the_bundle() {
    let server = tls_server("localhost").await;
    let bundle = pem_file(&server.authority);
    let connector = connector(&[("AWS_CA_BUNDLE", bundle.path().to_str().unwrap())]).unwrap();
    let uri = format!("https://localhost:{}/", server.port).parse().unwrap();
    assert_eq!(read_all(connector.connect(&uri).await.unwrap()).await, "hello");
}

#[tokio::test]
async fn tls_distrusts_every_other_authority_and_says_what_to_do() {
    let server = tls_server("localhost").await;
    let other = tls_server("localhost").await;
    let bundle = pem_file(&other.authority);
    let connector = connector(&[("AWS_CA_BUNDLE", bundle.path().to_str().unwrap())]).unwrap();
    let uri = format!("wss://localhost:{}/", server.port).parse().unwrap();
    let failure = connector.connect(&uri).await.err().unwrap();
    assert_eq!(failure.reason(), Reason::Unreachable);
    assert!(
        failure.in_one_line().contains("certificate"),
        "{}",
        failure.in_one_line()
    );
    assert!(
        failure.hints()[0].contains("AWS_CA_BUNDLE"),
        "{:?}",
        failure.hints()
    );
}

#[tokio::test]
async fn tls_distrusts_a_certificate_for_another_name() {
    let server = tls_server("elsewhere.example").await;
    let bundle = pem_file(&server.authority);
    let connector = connector(&[("AWS_CA_BUNDLE", bundle.path().to_str().unwrap())]).unwrap();
    let uri = format!("https://localhost:{}/", server.port).parse().unwrap();
    let failure = connector.connect(&uri).await.err().unwrap();
    assert!(
        failure.in_one_line().contains("certificate"),
        "{}",
        failure.in_one_line()
    );
}

#[test]
fn a_bad_bundle_is_refused_with_its_path_and_what_is_wrong() {
    let empty = pem_file("");
    let broken = pem_file("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    for (path, problem) in [
        ("/nowhere/ca.pem", "No such file"),
        (empty.path().to_str().unwrap(), "it holds no certificate"),
        (broken.path().to_str().unwrap(), "certificate"),
    ] {
        let failure = connector(&[("AWS_CA_BUNDLE", path)]).err().unwrap();
        let text = failure.in_one_line();
        assert!(text.contains(path) && text.contains(problem), "{text}");
        assert_eq!(
            (failure.reason(), failure.remedy()),
            (Reason::Invalid, &Remedy::Fix)
        );
    }
}

#[tokio::test]
async fn a_proxy_carries_tls_to_a_name_that_only_it_can_resolve() {
    let server = tls_server("ssm.eu-central-1.amazonaws.test").await;
    let mut proxy = proxy_to(server.port, "me:p@ss").await;
    let bundle = pem_file(&server.authority);
    let connector = connector(&[
        (
            "HTTPS_PROXY",
            &format!("http://me:p%40ss@127.0.0.1:{}", proxy.port),
        ),
        ("AWS_CA_BUNDLE", bundle.path().to_str().unwrap()),
    ])
    .unwrap();
    let uri = "https://ssm.eu-central-1.amazonaws.test/".parse().unwrap();
    assert_eq!(read_all(connector.connect(&uri).await.unwrap()).await, "hello");
    assert_eq!(
        proxy.asked.recv().await.unwrap(),
        "CONNECT ssm.eu-central-1.amazonaws.test:443 HTTP/1.1"
    );
}

#[tokio::test]
async fn a_proxy_that_wants_a_password_is_a_thing_for_a_person_to_fix() {
    let proxy = proxy_to(1, "me:right").await;
    let connector = connector(&[(
        "HTTPS_PROXY",
        &format!("http://me:wrong@127.0.0.1:{}", proxy.port),
    )])
    .unwrap();
    let failure = connector
        .connect(&"wss://far.test/".parse().unwrap())
        .await
        .err()
        .unwrap();
    assert_eq!(
        (failure.reason(), failure.remedy()),
        (Reason::Denied, &Remedy::Fix)
    );
    let text = failure.in_one_line();
    assert!(
        text.contains(&format!("through the proxy `127.0.0.1:{}`", proxy.port)),
        "{text}"
    );
    assert!(text.contains("407") && !text.contains("wrong"), "{text}");
}

#[tokio::test]
async fn a_loopback_destination_is_reached_directly_even_when_a_proxy_is_set() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let connector = connector(&[("ALL_PROXY", "http://127.0.0.1:1")]).unwrap();
    let uri = format!("ws://127.0.0.1:{port}/").parse().unwrap();
    connector.connect(&uri).await.unwrap();
}

#[tokio::test]
async fn a_destination_that_refuses_is_unreachable_and_worth_a_retry() {
    let port = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let uri = format!("http://127.0.0.1:{port}/").parse().unwrap();
    let failure = connector(&[]).unwrap().connect(&uri).await.err().unwrap();
    assert_eq!(
        (failure.reason(), failure.remedy()),
        (Reason::Unreachable, &Remedy::Retry)
    );
    assert_eq!(
        failure.to_string(),
        format!("cannot connect to `127.0.0.1:{port}`")
    );
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_for_an_answer_is_told_soon_after_the_network_changed() {
    let connector = Connector::new(&Environment::default()).unwrap();
    connector.network_changed();
    let patient = tokio::time::timeout(STRANDED * 100, connector.stranded()).await;
    assert!(patient.is_err(), "it asked after that change");
    let began = tokio::time::Instant::now();
    let change = async { connector.network_changed() };
    let (failure, ()) = tokio::join!(connector.stranded(), change);
    assert_eq!((failure.remedy(), began.elapsed()), (&Remedy::Retry, STRANDED));
}
