//! Verifies Signature Version 4, as AWS does: sign the same request again, with the secret that belongs to the access
//! key id, and compare. Here the signature is in the `Authorization` header; in [`presigned`] it is in the URL.
//!
//! Signing again is left to `aws-sigv4`, restricted to the headers that the caller signed and set to the caller's
//! X-Amz-Date. Its canonical query decodes `+` as a space, and so does the Go SDK, with which the official plugin
//! signs StreamUrls that hold raw `+`.

mod presigned;

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use http::request::Parts;

use crate::keys::{Caller, Key, Keys};

pub(crate) use self::presigned::verify as verify_presigned;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const DATE: &str = "x-amz-date";
const SECURITY_TOKEN: &str = "x-amz-security-token";

/// Longest path and query whose signature is computed. Escaping can triple it, and `http` ends at 64 KiB; a
/// StreamUrl has less than 1 KiB.
pub(crate) const LONGEST_TARGET: usize = 8 * 1024;

/// What a signature must be good for.
pub(crate) struct Expected<'a> {
    pub(crate) service: &'a str,
    pub(crate) regions: &'a [String],
    /// How far the caller's clock may be from ours.
    pub(crate) skew: Duration,
}

/// A good signature, and what it tells.
#[derive(Debug)]
pub(crate) struct Verified {
    pub(crate) signature: String,
    pub(crate) caller: Caller,
    pub(crate) region: String,
}

/// Why a signature is refused; each service has its own words for it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Rejection {
    /// There is none.
    Missing,
    /// A part is absent or cannot be read.
    Incomplete(String),
    /// The access key id is unknown, or the session token is not the one that belongs to it.
    UnknownKey,
    /// The key was temporary.
    ExpiredKey,
    /// Made too long ago, or too far in the future.
    Stale(String),
    /// Made for another date, region or service.
    Scope(String),
    /// Made with another secret, or for another request.
    Mismatch,
}

/// Checks the signature of a request.
pub(crate) fn verify(
    request: &Parts,
    body: &[u8],
    keys: &Keys,
    expected: &Expected<'_>,
    now: SystemTime,
) -> Result<Verified, Rejection> {
    let authorization = Authorization::of(&request.headers)?;
    let stamp = header(&request.headers, DATE)?.ok_or_else(|| {
        Rejection::Incomplete("Authorization header requires existence of 'X-Amz-Date'.".to_owned())
    })?;
    let signed_at = parse_stamp(stamp).ok_or_else(|| {
        Rejection::Incomplete(format!("Date must be in ISO-8601 'basic format'. Got '{stamp}'."))
    })?;

    let key = keys
        .find(authorization.scope.access_key_id)
        .ok_or(Rejection::UnknownKey)?;
    if header(&request.headers, SECURITY_TOKEN)? != key.session_token.as_deref() {
        return Err(Rejection::UnknownKey);
    }
    if key.expires.is_some_and(|expires| expires <= now) {
        return Err(Rejection::ExpiredKey);
    }
    authorization.scope.check(stamp, expected)?;
    check_freshness(stamp, signed_at, now, expected.skew)?;

    let signature = signature_of(request, body, &authorization, &key, signed_at)?;
    if !equal_in_constant_time(signature.as_bytes(), authorization.signature.as_bytes()) {
        return Err(Rejection::Mismatch);
    }
    Ok(Verified {
        signature,
        caller: key.caller,
        region: authorization.scope.region.to_owned(),
    })
}

/// The parts of an `Authorization` header.
struct Authorization<'a> {
    scope: Scope<'a>,
    signed_headers: BTreeSet<&'a str>,
    signature: &'a str,
}

impl<'a> Authorization<'a> {
    fn of(headers: &'a HeaderMap) -> Result<Self, Rejection> {
        let text = header(headers, AUTHORIZATION.as_str())?.ok_or(Rejection::Missing)?;
        let Some(parameters) = text.strip_prefix(ALGORITHM) else {
            return Err(Rejection::Incomplete(format!(
                "Unsupported AWS 'algorithm': '{text}'."
            )));
        };
        let parameter = |name: &str| {
            parameters
                .split(',')
                .filter_map(|parameter| parameter.trim().split_once('='))
                .find_map(|(key, value)| (key == name).then_some(value))
                .ok_or_else(|| {
                    Rejection::Incomplete(format!("Authorization header requires '{name}' parameter."))
                })
        };
        let scope = Scope::of(parameter("Credential")?)?;
        let signed_headers: BTreeSet<&str> = parameter("SignedHeaders")?.split(';').collect();
        if !signed_headers.contains("host") {
            return Err(Rejection::Incomplete(
                "'Host' must be a 'SignedHeader' in the AWS Authorization.".to_owned(),
            ));
        }
        Ok(Self {
            scope,
            signed_headers,
            signature: parameter("Signature")?,
        })
    }
}

/// What a credential is for: a key, and a day, region and service.
struct Scope<'a> {
    access_key_id: &'a str,
    date: &'a str,
    region: &'a str,
    service: &'a str,
}

impl<'a> Scope<'a> {
    fn of(credential: &'a str) -> Result<Self, Rejection> {
        let credential: Vec<&str> = credential.split('/').collect();
        let &[access_key_id, date, region, service, "aws4_request"] = credential.as_slice() else {
            return Err(Rejection::Incomplete(
                "Credential must have exactly 5 slash-delimited elements, e.g. \
                 keyid/date/region/service/term."
                    .to_owned(),
            ));
        };
        Ok(Self {
            access_key_id,
            date,
            region,
            service,
        })
    }

    fn check(&self, stamp: &str, expected: &Expected<'_>) -> Result<(), Rejection> {
        if !stamp.starts_with(self.date) || self.date.len() != "YYYYMMDD".len() {
            return Err(Rejection::Scope(format!(
                "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: \
                 '{}' != '{stamp}'.",
                self.date
            )));
        }
        if !expected.regions.iter().any(|region| region == self.region) {
            return Err(Rejection::Scope(
                "Credential should be scoped to a valid region.".to_owned(),
            ));
        }
        if self.service != expected.service {
            return Err(Rejection::Scope(format!(
                "Credential should be scoped to correct service: '{}'.",
                expected.service
            )));
        }
        Ok(())
    }
}

fn check_freshness(
    stamp: &str,
    signed_at: SystemTime,
    now: SystemTime,
    skew: Duration,
) -> Result<(), Rejection> {
    let minutes = skew.as_secs() / 60;
    if signed_at + skew < now {
        let (now, limit) = (format_stamp(now), format_stamp(now - skew));
        return Err(Rejection::Stale(format!(
            "Signature expired: {stamp} is now earlier than {limit} ({now} - {minutes} min.)"
        )));
    }
    if signed_at > now + skew {
        let (now, limit) = (format_stamp(now), format_stamp(now + skew));
        return Err(Rejection::Stale(format!(
            "Signature not yet current: {stamp} is still later than {limit} ({now} + {minutes} min.)"
        )));
    }
    Ok(())
}

fn signature_of(
    request: &Parts,
    body: &[u8],
    authorization: &Authorization<'_>,
    key: &Key,
    signed_at: SystemTime,
) -> Result<String, Rejection> {
    let mut headers = Vec::new();
    for name in &authorization.signed_headers {
        let values = request.headers.get_all(*name);
        // `aws-sigv4` would make up a Host header out of a URI that has no authority.
        if values.iter().next().is_none() {
            return Err(Rejection::Mismatch);
        }
        for value in values {
            headers.push((*name, value.to_str().map_err(|_| unreadable(name))?));
        }
    }
    let target = request.uri.path_and_query().map_or("/", |target| target.as_str());
    let mut settings = SigningSettings::default();
    settings.excluded_headers = None;
    // The token, where there is one, is among the headers already.
    let key = Key {
        session_token: None,
        ..key.clone()
    };
    let again = Again {
        method: request.method.as_str(),
        target,
        headers,
        body,
    };
    again.sign(&authorization.scope, &key, signed_at, settings)
}

/// A request that is to be signed again.
struct Again<'a> {
    method: &'a str,
    /// Its path and query.
    target: &'a str,
    headers: Vec<(&'a str, &'a str)>,
    body: &'a [u8],
}

impl Again<'_> {
    fn sign(
        self,
        scope: &Scope<'_>,
        key: &Key,
        signed_at: SystemTime,
        settings: SigningSettings,
    ) -> Result<String, Rejection> {
        if self.target.len() > LONGEST_TARGET {
            return Err(Rejection::Mismatch);
        }
        let identity = Credentials::new(
            scope.access_key_id,
            &key.secret,
            key.session_token.clone(),
            None,
            "emulator",
        )
        .into();
        let parameters = v4::SigningParams::builder()
            .identity(&identity)
            .region(scope.region)
            .name(scope.service)
            .time(signed_at)
            .settings(settings)
            .build()
            .expect("all parameters are given above")
            .into();
        let request = SignableRequest::new(
            self.method,
            self.target,
            self.headers.into_iter(),
            SignableBody::Bytes(self.body),
        )
        .map_err(|_| Rejection::Mismatch)?;
        let output = sign(request, &parameters).map_err(|_| Rejection::Mismatch)?;
        Ok(output.signature().to_owned())
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, Rejection> {
    headers
        .get(name)
        .map(|value| value.to_str().map_err(|_| unreadable(name)))
        .transpose()
}

fn unreadable(name: &str) -> Rejection {
    Rejection::Incomplete(format!("header '{name}' is not readable text"))
}

/// Reads `YYYYMMDDTHHMMSSZ`.
fn parse_stamp(stamp: &str) -> Option<SystemTime> {
    let digits = |range: std::ops::Range<usize>| {
        stamp
            .get(range)
            .filter(|part| part.bytes().all(|byte| byte.is_ascii_digit()))
    };
    if stamp.len() != 16 || stamp.get(8..9) != Some("T") || stamp.get(15..) != Some("Z") {
        return None;
    }
    let (year, month, day) = (digits(0..4)?, digits(4..6)?, digits(6..8)?);
    let (hour, minute, second) = (digits(9..11)?, digits(11..13)?, digits(13..15)?);
    humantime::parse_rfc3339(&format!("{year}-{month}-{day}T{hour}:{minute}:{second}Z")).ok()
}

fn format_stamp(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time)
        .to_string()
        .replace(['-', ':'], "")
}

fn equal_in_constant_time(left: &[u8], right: &[u8]) -> bool {
    left.len() == right.len()
        && left
            .iter()
            .zip(right)
            .fold(0, |difference, (a, b)| difference | (a ^ b))
            == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    const FIVE_MINUTES: Duration = Duration::from_secs(5 * 60);

    /// The first vector of the published test suite of Signature Version 4, `get-vanilla`.
    fn vanilla() -> (Parts, Keys) {
        let config = Config::parse(
            "credentials = { access_key_id = \"AKIDEXAMPLE\", \
             secret_access_key = \"wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY\" }",
        )
        .expect("a good configuration");
        let request = http::Request::builder()
            .uri("/")
            .header("host", "example.amazonaws.com")
            .header("x-amz-date", "20150830T123600Z")
            .header(
                "authorization",
                "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
                 SignedHeaders=host;x-amz-date, \
                 Signature=5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
            )
            .body(())
            .expect("a good request");
        (request.into_parts().0, Keys::new(&config))
    }

    fn at(stamp: &str) -> SystemTime {
        parse_stamp(stamp).expect("a good stamp")
    }

    fn check(
        request: &Parts,
        keys: &Keys,
        service: &str,
        region: &str,
        now: &str,
    ) -> Result<Verified, Rejection> {
        let regions = [region.to_owned()];
        let expected = Expected {
            service,
            regions: &regions,
            skew: FIVE_MINUTES,
        };
        verify(request, b"", keys, &expected, at(now))
    }

    #[test]
    fn the_published_vector_is_accepted() {
        let (request, keys) = vanilla();
        let verified =
            check(&request, &keys, "service", "us-east-1", "20150830T123900Z").expect("a good signature");
        assert_eq!(verified.region, "us-east-1");
        assert_eq!(verified.caller.arn, "arn:aws:iam::123456789012:user/emulator");
    }

    #[test]
    fn a_changed_request_body_or_header_is_refused() {
        let (mut request, keys) = vanilla();
        let regions = ["us-east-1".to_owned()];
        let expected = Expected {
            service: "service",
            regions: &regions,
            skew: FIVE_MINUTES,
        };
        let now = at("20150830T123600Z");
        assert_eq!(
            verify(&request, b"x", &keys, &expected, now).unwrap_err(),
            Rejection::Mismatch
        );
        request.uri = "/?a=b".parse().expect("a good URI");
        assert_eq!(
            verify(&request, b"", &keys, &expected, now).unwrap_err(),
            Rejection::Mismatch
        );
        let (mut request, keys) = vanilla();
        request
            .headers
            .insert("host", "other.amazonaws.com".parse().expect("a good header"));
        assert_eq!(
            verify(&request, b"", &keys, &expected, now).unwrap_err(),
            Rejection::Mismatch
        );
        request.headers.remove("host");
        assert_eq!(
            verify(&request, b"", &keys, &expected, now).unwrap_err(),
            Rejection::Mismatch
        );
    }

    #[test]
    fn another_service_region_or_date_is_out_of_scope() {
        let (request, keys) = vanilla();
        for (service, region) in [("ssm", "us-east-1"), ("service", "ap-northeast-1")] {
            let rejection = check(&request, &keys, service, region, "20150830T123600Z").unwrap_err();
            assert!(matches!(rejection, Rejection::Scope(_)), "{rejection:?}");
        }
        let (mut request, keys) = vanilla();
        request
            .headers
            .insert("x-amz-date", "20150831T123600Z".parse().expect("a good header"));
        let rejection = check(&request, &keys, "service", "us-east-1", "20150831T123600Z").unwrap_err();
        assert!(matches!(rejection, Rejection::Scope(_)), "{rejection:?}");
    }

    #[test]
    fn a_clock_may_be_five_minutes_off_and_no_more() {
        let (request, keys) = vanilla();
        for (now, fresh) in [
            ("20150830T124100Z", true),
            ("20150830T123100Z", true),
            ("20150830T124101Z", false),
            ("20150830T123059Z", false),
        ] {
            let checked = check(&request, &keys, "service", "us-east-1", now);
            assert_eq!(checked.is_ok(), fresh, "{now}: {checked:?}");
        }
        let Err(Rejection::Stale(text)) = check(&request, &keys, "service", "us-east-1", "20150830T130000Z")
        else {
            panic!("24 minutes are too many")
        };
        assert_eq!(
            text,
            "Signature expired: 20150830T123600Z is now earlier than 20150830T125500Z (20150830T130000Z - 5 min.)"
        );
    }

    #[test]
    fn an_unknown_key_and_a_token_that_is_not_the_key_s_are_refused() {
        let (mut request, keys) = vanilla();
        request
            .headers
            .insert("x-amz-security-token", "foreign".parse().expect("a good header"));
        let rejection = check(&request, &keys, "service", "us-east-1", "20150830T123600Z").unwrap_err();
        assert_eq!(rejection, Rejection::UnknownKey);
        let (request, _) = vanilla();
        let others = Keys::new(&Config::parse("").expect("defaults"));
        let rejection = check(&request, &others, "service", "us-east-1", "20150830T123600Z").unwrap_err();
        assert_eq!(rejection, Rejection::UnknownKey);
    }

    #[test]
    fn a_header_that_is_absent_or_in_pieces_is_told_apart() {
        let (mut request, keys) = vanilla();
        request.headers.remove("authorization");
        let rejection = check(&request, &keys, "service", "us-east-1", "20150830T123600Z").unwrap_err();
        assert_eq!(rejection, Rejection::Missing);
        for broken in [
            "Basic YWxhZGRpbg==",
            "AWS4-HMAC-SHA256",
            "AWS4-HMAC-SHA256 Credential=A/b/c, SignedHeaders=host, Signature=0",
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, Signature=0",
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
             SignedHeaders=x-amz-date, Signature=0",
        ] {
            request
                .headers
                .insert("authorization", broken.parse().expect("a good header"));
            let rejection = check(&request, &keys, "service", "us-east-1", "20150830T123600Z").unwrap_err();
            assert!(
                matches!(rejection, Rejection::Incomplete(_)),
                "{broken}: {rejection:?}"
            );
        }
    }

    #[test]
    fn stamps_are_read_strictly() {
        assert_eq!(format_stamp(at("20240229T235959Z")), "20240229T235959Z");
        for broken in [
            "",
            "20240229",
            "2024-02-29T23:59:59Z",
            "20240230T000000Z",
            "2024+229T235959Z",
            "20240229T23595é",
        ] {
            assert_eq!(parse_stamp(broken), None, "{broken}");
        }
    }
}
