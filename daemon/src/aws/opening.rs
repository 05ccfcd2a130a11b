//! The request that opens a connection through an EC2 Instance Connect Endpoint: its URL carries the signature.
//!
//! Such a URL is a key for a minute: it is made right before it is used, once, and never shown.

use std::fmt;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{
    SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign as sign_request,
};
use aws_sigv4::sign::v4;
use http::{Request, header};
use tunneld_wire::eice::{Denial, Opening, encoded};

use super::{Account, classify, sign, wall_clock};
use crate::failure::{Cause, Failure, Reason, Remedy};

/// The name of the service in the signature.
const SERVICE: &str = "ec2-instance-connect";

/// How long the signature is good for: what the official client gives it.
const LIFETIME: Duration = Duration::from_secs(60);

/// What CloudTrail shows as who opened the connection.
const USER_AGENT: &str = concat!("tunneld/", env!("CARGO_PKG_VERSION"));

/// Credentials that expire within this time may be refused for their age although our clock still likes them: twice the
/// time before expiry at which they are renewed.
const STALE: Duration = Duration::from_secs(10 * 60);

/// The request that opens one connection. Never shown.
pub struct SignedOpening {
    /// Its URL says where to connect, its header `Host` for which name.
    pub request: Request<()>,
    /// When the credentials expire that signed it.
    expiry: Option<SystemTime>,
}

impl fmt::Debug for SignedOpening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SignedOpening(…)")
    }
}

/// The answer to a request that opened nothing.
#[derive(Debug)]
pub struct RefusedOpening {
    /// Its HTTP status.
    pub status: u16,
    /// What its body says.
    pub denial: Denial,
    /// What AWS knows the request by.
    pub request_id: Option<String>,
}

impl Account {
    /// Signs the request that opens a connection through the endpoint of this name. It is good for a minute.
    pub async fn sign_opening(&self, host: &str, opening: &Opening<'_>) -> Result<SignedOpening, Failure> {
        let credentials = self.credentials(DOING).await?;
        let target = presigned(host, opening, &self.region, &credentials, wall_clock())?;
        let url = sign::destination(&format!("wss://{host}{target}"), self.endpoints_at.as_ref())?;
        let request = Request::get(url)
            .header(header::HOST, host)
            .header(header::USER_AGENT, USER_AGENT)
            .body(())
            .map_err(cannot_sign)?;
        Ok(SignedOpening {
            request,
            expiry: credentials.expiry(),
        })
    }

    /// Returns the failure that a refusal is. Where the credentials may be to blame, this account is not handed out
    /// again: the next one may have better ones, and `signed` had none of its own.
    pub fn refused_opening(
        &self,
        doing: String,
        refused: &RefusedOpening,
        signed: &SignedOpening,
    ) -> Failure {
        let RefusedOpening {
            status,
            denial,
            request_id,
        } = refused;
        let failure = classify::refused(doing, *status, denial, request_id.as_deref(), &self.login);
        let is_stale = signed.expiry.is_some_and(|expiry| expiry < wall_clock() + STALE);
        if failure.reason() == Reason::Denied && is_stale {
            self.reject();
        }
        self.watched(failure)
    }
}

const DOING: &str = "cannot sign a connection through the Instance Connect Endpoint";

/// Returns path and query, signed at `now` as the official client does it: the session token is a signed parameter,
/// and the signature comes last.
fn presigned(
    host: &str,
    opening: &Opening<'_>,
    region: &str,
    credentials: &Credentials,
    now: SystemTime,
) -> Result<String, Failure> {
    let mut target = opening.target();
    let mut settings = SigningSettings::default();
    settings.signature_location = SignatureLocation::QueryParams;
    settings.expires_in = Some(LIFETIME);
    let identity = credentials.clone().into();
    let parameters = v4::SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name(SERVICE)
        .time(now)
        .settings(settings)
        .build()
        .map_err(cannot_sign)?
        .into();
    let url = format!("wss://{host}{target}");
    let signable = SignableRequest::new("GET", url, std::iter::empty(), SignableBody::Bytes(b""))
        .map_err(cannot_sign)?;
    let (instructions, signature) = sign_request(signable, &parameters)
        .map_err(cannot_sign)?
        .into_parts();
    const SIGNATURE: &str = "X-Amz-Signature";
    let beside = instructions
        .params()
        .iter()
        .filter(|(name, _)| *name != SIGNATURE);
    let all = beside
        .map(|(name, value)| (*name, value.as_ref()))
        .chain([(SIGNATURE, signature.as_str())]);
    for (name, value) in all {
        target.push('&');
        target.push_str(name);
        target.push('=');
        target.push_str(&encoded(value));
    }
    Ok(target)
}

fn cannot_sign(error: impl Into<Cause>) -> Failure {
    Failure::new(Reason::Invalid, Remedy::Fix, DOING).because(error)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// Requests of the official AWS CLI, recorded on loopback, and those of its signer with a frozen clock.
    const RECORDED: &str = include_str!("../../../wire/tests/golden/eice-upgrade-requests.json");

    #[test]
    fn every_recorded_url_of_the_official_client_is_made_again_byte_for_byte() {
        let recorded: Value = serde_json::from_str(RECORDED).unwrap();
        let mut seen = 0;
        for kind in ["signer_vectors", "wire_captures"] {
            for vector in recorded[kind].as_array().unwrap() {
                let inputs = &vector["inputs"];
                let text = |name: &str| inputs[name].as_str().unwrap();
                let token = inputs["session_token"].as_str().map(str::to_owned);
                let credentials = Credentials::new(
                    text("access_key_id"),
                    text("secret_access_key"),
                    token,
                    None,
                    "test",
                );
                let opening = Opening {
                    endpoint: text("instance_connect_endpoint_id"),
                    port: inputs["remote_port"].as_u64().unwrap().try_into().unwrap(),
                    address: text("private_ip_address"),
                    duration: inputs["max_tunnel_duration"].as_u64().map(Duration::from_secs),
                };
                let now =
                    SystemTime::UNIX_EPOCH + Duration::from_secs(vector["epoch_seconds"].as_u64().unwrap());
                let host = text("endpoint_dns_name");
                let target = presigned(host, &opening, text("region"), &credentials, now).unwrap();
                let name = vector["name"].as_str().unwrap();
                assert_eq!(format!("wss://{host}{target}"), vector["url"], "{name}");
                assert!(target.ends_with(vector["signature"].as_str().unwrap()), "{name}");
                seen += 1;
            }
        }
        assert_eq!(seen, 15 + 11);
    }

    /// From the tests of the official CLI.
    #[test]
    fn the_signature_is_that_of_the_official_clients_own_test() {
        let host = "eice-123.ec2-instance-connect-endpoint.us-west-2.amazonaws.com";
        let opening = Opening {
            endpoint: "eice-123",
            port: 22,
            address: "10.0.0.0",
            duration: Some(Duration::from_secs(1)),
        };
        let credentials = Credentials::new("access_key", "secret_key", None, None, "test");
        // 2020-01-01T01:01:01Z
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_577_840_461);
        let target = presigned(host, &opening, "us-west-2", &credentials, now).unwrap();
        let signature = "3a56740422a5b9aebd22d860b7a30c729e459a6f71a83bc0de3a2b44b7353f28";
        assert!(target.ends_with(&format!("&X-Amz-Signature={signature}")));
    }
}
