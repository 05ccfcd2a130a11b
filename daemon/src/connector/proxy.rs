//! HTTP proxies: which destination goes through which, and the CONNECT exchange that makes the tunnel.
//!
//! Read from HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY (or their lower-case twins, which come second), by
//! curl's rules: NO_PROXY lists names (with their subdomains), addresses, networks (`10.0.0.0/8`) or `*`. Loopback
//! destinations never use a proxy, nor do link-local ones: there EC2 serves each instance its own metadata.
//! Every destination is reached by CONNECT, plain HTTP too: one way for all.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::pin;

use http::header::{HOST, PROXY_AUTHORIZATION};
use http::{Request, StatusCode, Uri};
use hyper::client::conn::http1;
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioIo;

use super::{Environment, Socket, authority};
use crate::failure::{Failure, Reason, Remedy};

/// The proxies of an environment.
pub(super) struct Proxies(Matcher);

impl Proxies {
    /// Reads the proxy variables. One that is set but unusable is a failure: to go around a proxy that somebody
    /// meant to be used would only look like a dead network.
    pub(super) fn new(environment: &Environment) -> Result<Self, Failure> {
        let bypassed = environment
            .first_of(&["NO_PROXY", "no_proxy"])
            .map_or("", |(_, value)| value);
        if bypassed.split(',').any(|entry| entry.trim() == "*") {
            return Ok(Self(Matcher::builder().build()));
        }
        Ok(Self(
            Matcher::builder()
                .all(usable(environment, &["ALL_PROXY", "all_proxy"])?)
                .https(usable(environment, &["HTTPS_PROXY", "https_proxy"])?)
                .http(usable(environment, &["HTTP_PROXY", "http_proxy"])?)
                .no(bypassed)
                .build(),
        ))
    }

    /// Returns the proxy on the way to a destination.
    pub(super) fn for_destination(&self, destination: &Uri) -> Option<Intercept> {
        let host = destination.host()?;
        if is_loopback(host) || is_link_local(host) {
            None
        } else {
            self.0.intercept(destination)
        }
    }
}

fn is_link_local(host: &str) -> bool {
    host.parse::<Ipv4Addr>()
        .is_ok_and(|address| address.is_link_local())
}

/// Returns whether a host, with or without brackets, is this machine itself.
pub(crate) fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    match host.parse::<IpAddr>() {
        Ok(address) => address.is_loopback(),
        Err(_) => host.eq_ignore_ascii_case("localhost") || host.to_ascii_lowercase().ends_with(".localhost"),
    }
}

/// Asks the proxy at the other end of `stream` for a tunnel to `host:port`.
pub(super) async fn tunnel(
    stream: Socket,
    proxy: &Intercept,
    host: &str,
    port: u16,
) -> Result<Socket, Refusal> {
    let destination = authority(host, port);
    let mut request = Request::connect(destination.as_str()).header(HOST, destination.as_str());
    if let Some(authorization) = proxy.basic_auth() {
        request = request.header(PROXY_AUTHORIZATION, authorization);
    }
    let request = request
        .body(String::new())
        .map_err(|error| Refusal::Broken(Box::new(error)))?;

    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let mut exchange = pin!(async move {
        let response = sender.send_request(request).await?;
        if !response.status().is_success() {
            return Err(Refusal::Answered(response.status()));
        }
        Ok(hyper::upgrade::on(response).await?)
    });
    // Nothing moves unless somebody drives the connection, which is over as soon as it has handed its socket over.
    let upgraded = tokio::select! {
        outcome = &mut exchange => outcome?,
        ended = connection.with_upgrades() => {
            ended?;
            exchange.await?
        }
    };
    Ok(Socket::new(TokioIo::new(upgraded)))
}

/// Why a proxy made no tunnel.
#[derive(Debug)]
pub(super) enum Refusal {
    /// It answered, with this status.
    Answered(StatusCode),
    /// The exchange did not come to an answer.
    Broken(Box<dyn std::error::Error + Send + Sync>),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered(status) => write!(f, "it answered {status}"),
            Self::Broken(_) => f.write_str("it did not answer as a proxy does"),
        }
    }
}

impl std::error::Error for Refusal {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Answered(_) => None,
            Self::Broken(error) => Some(error.as_ref()),
        }
    }
}

impl From<hyper::Error> for Refusal {
    fn from(error: hyper::Error) -> Self {
        Self::Broken(Box::new(error))
    }
}

/// Returns the value of a proxy variable if it names an HTTP proxy, empty if it is unset. The value itself is never
/// shown: it may hold a password.
fn usable<'e>(environment: &'e Environment, names: &[&str]) -> Result<&'e str, Failure> {
    let Some((name, value)) = environment.first_of(names) else {
        return Ok("");
    };
    let invalid = |problem: String| {
        Failure::new(
            Reason::Invalid,
            Remedy::Fix,
            format!("cannot use the proxy in {name}"),
        )
        .because(problem)
        .hint(format!("export {name}=http://USER:PASSWORD@HOST:PORT"))
    };
    let uri: Uri = value
        .parse()
        .map_err(|error| invalid(format!("it is not a URL: {error}")))?;
    if uri.host().is_none_or(str::is_empty) {
        return Err(invalid("it names no host".to_owned()));
    }
    match uri.scheme_str() {
        None | Some("http" | "https") => Ok(value),
        Some(scheme) => Err(invalid(format!(
            "only http and https proxies are supported, not {scheme}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy_for(variables: &[(&str, &str)], destination: &str) -> Option<String> {
        let proxies = Proxies::new(&variables.iter().copied().collect()).unwrap();
        let destination = destination.parse().unwrap();
        proxies
            .for_destination(&destination)
            .map(|proxy| proxy.uri().to_string())
    }

    #[test]
    fn https_and_http_destinations_use_their_own_variable_and_all_proxy_is_the_fallback() {
        let variables = [("HTTPS_PROXY", "http://secure:1"), ("ALL_PROXY", "http://all:2")];
        assert_eq!(
            proxy_for(&variables, "https://ssm.eu-central-1.amazonaws.com").unwrap(),
            "http://secure:1/"
        );
        assert_eq!(
            proxy_for(&variables, "http://example.com").unwrap(),
            "http://all:2/"
        );
    }

    #[test]
    fn a_proxy_without_a_scheme_is_an_http_proxy() {
        assert_eq!(
            proxy_for(&[("https_proxy", "proxy.corp:3128")], "https://a.b").unwrap(),
            "http://proxy.corp:3128/"
        );
    }

    #[test]
    fn no_proxy_lists_suffixes_networks_and_a_star() {
        for (bypassed, destination, expected) in [
            ("amazonaws.com", "https://ssm.eu-central-1.amazonaws.com", false),
            (".amazonaws.com", "https://ssm.eu-central-1.amazonaws.com", false),
            ("amazonaws.com", "https://notamazonaws.com", true),
            ("10.0.0.0/8", "https://10.1.2.3", false),
            ("10.0.0.0/8", "https://11.1.2.3", true),
            ("other.example, *", "https://11.1.2.3", false),
        ] {
            let variables = [("HTTPS_PROXY", "http://proxy:3128"), ("NO_PROXY", bypassed)];
            assert_eq!(
                proxy_for(&variables, destination).is_some(),
                expected,
                "{bypassed} {destination}"
            );
        }
    }

    #[test]
    fn loopback_and_link_local_never_use_a_proxy() {
        for host in [
            "127.0.0.1:4566",
            "127.9.9.9",
            "[::1]:80",
            "localhost",
            "ssm.localhost",
            "169.254.169.254",
        ] {
            assert_eq!(
                proxy_for(&[("ALL_PROXY", "http://proxy:3128")], &format!("http://{host}")),
                None,
                "{host}"
            );
        }
    }

    #[test]
    fn a_proxy_that_cannot_be_used_is_refused_without_showing_its_password() {
        for value in ["socks5://user:hunter2@proxy:1080", "http://user:hunter2@[proxy"] {
            let failure = Proxies::new(&Environment::from_iter([("HTTPS_PROXY", value)]))
                .err()
                .unwrap();
            let text = format!("{failure:?} {}", failure.in_one_line());
            assert!(text.contains("HTTPS_PROXY"), "{text}");
            assert!(!text.contains("hunter2"), "{text}");
            assert_eq!(failure.remedy(), &Remedy::Fix);
        }
    }
}
