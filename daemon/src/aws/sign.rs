//! The websocket upgrade of a session, signed.
//!
//! The request is the stream URL byte for byte: its `cell-number` holds raw `+`, `/` and `=` that AWS wants back as
//! they are. Only for the signature is the query brought into canonical form, as session-manager-plugin 1.2.764 and
//! later do: read as a form, so that a raw `+` means a space, then encoded again.

use std::time::SystemTime;

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use http::uri::{Authority, Scheme};
use http::{HeaderValue, Request, Uri, header};

use crate::connector::{Environment, is_loopback};
use crate::failure::{Cause, Failure, Reason, Remedy};

/// The name of the service in the signature: that of the data channel, not `ssm`.
const SERVICE: &str = "ssmmessages";

/// Where websockets go instead of where their URL says (a VPC endpoint, a test).
pub(super) struct Override {
    /// The variable that says so.
    variable: &'static str,
    url: String,
}

impl Override {
    /// Reads a variable, if it is set.
    pub(super) fn of(environment: &Environment, variable: &'static str) -> Option<Self> {
        let url = environment.variable(variable)?.to_owned();
        Some(Self { variable, url })
    }
}

/// Returns where a websocket is reached: its URL, or the same at another server.
///
/// Without TLS only this machine itself may be reached: what follows on the socket is a token, then a database.
pub(super) fn destination(url: &str, instead: Option<&Override>) -> Result<Uri, Failure> {
    let unusable = || {
        Failure::new(
            Reason::Invalid,
            Remedy::Fix,
            "cannot use the URL of the websocket",
        )
    };
    let mut parts = url
        .parse::<Uri>()
        .map_err(|error| unusable().because(error))?
        .into_parts();
    if let Some(Override { variable, url }) = instead {
        let wrong = |problem: Cause| {
            let doing = format!("cannot use `{url}` ({variable})");
            Failure::new(Reason::Invalid, Remedy::Fix, doing).because(problem)
        };
        let replacement = url
            .parse::<Uri>()
            .map_err(|error| wrong(error.into()))?
            .into_parts();
        let (Some(scheme), Some(authority)) = (replacement.scheme, replacement.authority) else {
            return Err(wrong("it is not a URL with a scheme and a host".into()));
        };
        parts.scheme =
            Some(websocket_scheme(&scheme).ok_or_else(|| wrong("it is not an http or https URL".into()))?);
        parts.authority = Some(authority);
    }
    let uri = Uri::from_parts(parts).map_err(|error| unusable().because(error))?;
    let host = uri.host().ok_or_else(|| unusable().because("it names no host"))?;
    match uri.scheme_str() {
        Some("wss") => Ok(uri),
        Some("ws") if is_loopback(host) => Ok(uri),
        _ => Err(unusable().because(format!(
            "`{host}` is not on this machine and the URL is not a wss one"
        ))),
    }
}

fn websocket_scheme(scheme: &Scheme) -> Option<Scheme> {
    let name = match scheme.as_str() {
        "https" | "wss" => "wss",
        "http" | "ws" => "ws",
        _ => return None,
    };
    name.parse().ok()
}

/// Returns whether the URL carries its own signature. Then there is nothing to add.
pub(super) fn is_presigned(uri: &Uri) -> bool {
    let names = uri
        .query()
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| pair.split('=').next());
    names.into_iter().any(|name| name.starts_with("X-Amz-"))
}

/// Returns the upgrade request without a signature.
pub(super) fn unsigned(uri: Uri) -> Result<Request<()>, Failure> {
    let host = uri
        .authority()
        .map(|authority| host_header(&uri, authority))
        .unwrap_or_default();
    Request::get(uri)
        .header(header::HOST, host)
        .body(())
        .map_err(cannot_sign)
}

/// Returns the upgrade request, signed at `now`.
pub(super) fn signed(
    uri: Uri,
    region: &str,
    credentials: &Credentials,
    now: SystemTime,
) -> Result<Request<()>, Failure> {
    let mut request = unsigned(uri)?;
    let host = request
        .headers()
        .get(header::HOST)
        .and_then(|host| host.to_str().ok())
        .unwrap_or_default();
    // The scheme is not signed.
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let url = format!("https://{host}{path}");

    let identity = credentials.clone().into();
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name(SERVICE)
        .time(now)
        .settings(SigningSettings::default())
        .build()
        .map_err(cannot_sign)?
        .into();
    let headers = [("host", host)].into_iter();
    let signable =
        SignableRequest::new("GET", url.as_str(), headers, SignableBody::empty()).map_err(cannot_sign)?;
    let (instructions, _) = sign(signable, &params).map_err(cannot_sign)?.into_parts();
    for (name, value) in instructions.headers() {
        let mut value = HeaderValue::from_str(value).map_err(cannot_sign)?;
        value.set_sensitive(true);
        request.headers_mut().insert(
            header::HeaderName::from_bytes(name.as_bytes()).map_err(cannot_sign)?,
            value,
        );
    }
    Ok(request)
}

fn host_header(uri: &Uri, authority: &Authority) -> String {
    let is_usual = matches!(
        (uri.scheme_str(), authority.port_u16()),
        (Some("wss"), Some(443)) | (Some("ws"), Some(80))
    );
    if is_usual {
        authority.host().to_owned()
    } else {
        authority.as_str().to_owned()
    }
}

fn cannot_sign(error: impl Into<Cause>) -> Failure {
    Failure::new(
        Reason::Invalid,
        Remedy::Fix,
        "cannot sign the websocket of the session",
    )
    .because(error)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const URL: &str = "wss://ssmmessages.eu-central-1.amazonaws.com/v1/data-channel/dev-0a1b2c3d4e5f60718?role=publish_subscribe&cell-number=AAEAAa+b/c=d==";

    fn credentials(token: Option<&str>) -> Credentials {
        let secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
        Credentials::new("AKIDEXAMPLE", secret, token.map(str::to_owned), None, "test")
    }

    fn noon() -> SystemTime {
        // 2026-01-02T12:00:00Z
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_355_200)
    }

    fn instead(url: &str) -> Override {
        let variable = "AWS_ENDPOINT_URL_SSMMESSAGES";
        Override::of(&Environment::from_iter([(variable, url)]), variable).unwrap()
    }

    fn sign_at_noon(url: &str, token: Option<&str>) -> Request<()> {
        let uri = destination(url, None).unwrap();
        signed(uri, "eu-central-1", &credentials(token), noon()).unwrap()
    }

    fn header<'r>(request: &'r Request<()>, name: &str) -> &'r str {
        request.headers()[name].to_str().unwrap()
    }

    #[test]
    fn the_url_is_kept_byte_for_byte() {
        assert_eq!(sign_at_noon(URL, None).uri().to_string(), URL);
    }

    /// The expected signatures were computed by a Python script (hmac, hashlib, urllib.parse) that follows AWS's
    /// description of Signature Version 4 step by step.
    #[test]
    fn the_signature_is_that_of_an_independent_computation() {
        let request = sign_at_noon(URL, None);
        assert_eq!(header(&request, "x-amz-date"), "20260102T120000Z");
        assert_eq!(
            header(&request, "authorization"),
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20260102/eu-central-1/ssmmessages/aws4_request, \
             SignedHeaders=host;x-amz-date, \
             Signature=1e77714e4aca7370e7aea330ccf609eebf4b86027a32b972744f52401573470f"
        );

        let request = sign_at_noon(URL, Some("a/session+token=="));
        assert_eq!(header(&request, "x-amz-security-token"), "a/session+token==");
        assert_eq!(
            header(&request, "authorization"),
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20260102/eu-central-1/ssmmessages/aws4_request, \
             SignedHeaders=host;x-amz-date;x-amz-security-token, \
             Signature=05723036636d237ecf410850e493115bc2d14cb83c0f5940991d167364c6de5b"
        );
    }

    #[test]
    fn what_is_secret_in_the_request_stays_out_of_debug() {
        let text = format!("{:?}", sign_at_noon(URL, Some("hunter2")).headers());
        assert!(
            !text.contains("hunter2") && !text.contains("Signature="),
            "{text}"
        );
    }

    #[test]
    fn the_host_header_has_the_port_only_where_it_is_not_the_usual_one() {
        for (url, host) in [
            ("wss://a.test/x", "a.test"),
            ("wss://a.test:443/x", "a.test"),
            ("ws://127.0.0.1:4566/x", "127.0.0.1:4566"),
            ("ws://[::1]:4566/x", "[::1]:4566"),
        ] {
            assert_eq!(header(&sign_at_noon(url, None), "host"), host);
        }
    }

    #[test]
    fn an_endpoint_replaces_scheme_and_authority_alone() {
        let at = |url: &str| destination(URL, Some(&instead(url)));
        let through = at("https://vpce-1.ssmmessages.test:8443").unwrap();
        assert_eq!(
            through.to_string(),
            URL.replace(
                "ssmmessages.eu-central-1.amazonaws.com",
                "vpce-1.ssmmessages.test:8443"
            )
        );
        let local = at("http://127.0.0.1:4566/").unwrap();
        assert!(
            local
                .to_string()
                .starts_with("ws://127.0.0.1:4566/v1/data-channel/"),
            "{local}"
        );
        for wrong in ["vpce-1.test", "ftp://vpce-1.test", "no url"] {
            let failure = at(wrong).unwrap_err();
            assert_eq!(failure.reason(), Reason::Invalid, "{wrong}");
            let text = failure.to_string();
            assert!(text.contains("AWS_ENDPOINT_URL_SSMMESSAGES"), "{text}");
        }
    }

    #[test]
    fn without_tls_only_this_machine_is_reached() {
        for url in ["ws://localhost:1/x", "ws://127.0.0.1/x", "ws://[::1]:1/x"] {
            destination(url, None).unwrap();
        }
        for url in [
            "ws://ssmmessages.test/x",
            "http://localhost/x",
            "https://a.test/x",
            "ws://10.0.0.1/x",
            "/x",
        ] {
            let failure = destination(url, None).unwrap_err();
            assert_eq!(failure.reason(), Reason::Invalid, "{url}");
        }
        let endpoint = destination(URL, Some(&instead("http://vpce-1.test")));
        assert_eq!(endpoint.unwrap_err().reason(), Reason::Invalid);
    }

    #[test]
    fn a_presigned_url_is_known_by_its_query() {
        let presigned = |url: &str| is_presigned(&url.parse().unwrap());
        assert!(presigned(
            "wss://a.test/x?role=r&X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Signature=0"
        ));
        assert!(!presigned(URL));
        assert!(!presigned("wss://a.test/X-Amz-Signature?role=X-Amz-Signature"));
    }
}
