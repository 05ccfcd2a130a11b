//! A signature in the URL, as the official AWS CLI makes it for a tunnel: the host is the only header that is signed,
//! the body is empty, and a session token is signed too.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use aws_sigv4::http_request::{SignatureLocation, SigningSettings};
use http::header::HOST;
use http::request::Parts;

use super::{
    ALGORITHM, Again, Expected, Rejection, Scope, Verified, equal_in_constant_time, format_stamp, header,
    parse_stamp,
};
use crate::keys::Keys;

/// Longest life of a signature: what every known client asks for, or less.
const LONGEST_LIFE: Duration = Duration::from_secs(60);

/// Checks the signature of a request without a body. It is good for as long as it says, and the caller's clock may be
/// ahead of ours by the skew.
pub(crate) fn verify(
    request: &Parts,
    keys: &Keys,
    expected: &Expected<'_>,
    now: SystemTime,
) -> Result<Verified, Rejection> {
    let signed = SignedQuery::of(request.uri.query().unwrap_or_default())?;
    let key = keys
        .find(signed.scope().access_key_id)
        .ok_or(Rejection::UnknownKey)?;
    if signed.session_token.as_deref() != key.session_token.as_deref() {
        return Err(Rejection::UnknownKey);
    }
    if key.expires.is_some_and(|expires| expires <= now) {
        return Err(Rejection::ExpiredKey);
    }
    signed.scope().check(&signed.stamp, expected)?;
    if now > signed.at + signed.life.min(LONGEST_LIFE) {
        return Err(Rejection::Stale("Signature expired".to_owned()));
    }
    if signed.at > now + expected.skew {
        return Err(Rejection::Stale(format!(
            "Signature not yet current: {} is still later than {}",
            signed.stamp,
            format_stamp(now + expected.skew)
        )));
    }
    let mut settings = SigningSettings::default();
    settings.signature_location = SignatureLocation::QueryParams;
    settings.expires_in = Some(signed.life);
    let again = Again {
        method: request.method.as_str(),
        target: &format!("{}?{}", request.uri.path(), signed.rest),
        headers: vec![(
            HOST.as_str(),
            header(&request.headers, HOST.as_str())?.ok_or(Rejection::Mismatch)?,
        )],
        body: b"",
    };
    let signature = again.sign(&signed.scope(), &key, signed.at, settings)?;
    if !equal_in_constant_time(signature.as_bytes(), signed.signature.as_bytes()) {
        return Err(Rejection::Mismatch);
    }
    Ok(Verified {
        signature,
        caller: key.caller,
        region: signed.scope().region.to_owned(),
    })
}

/// The parts of a query that hold the signature, and the others.
struct SignedQuery {
    credential: String,
    stamp: String,
    at: SystemTime,
    life: Duration,
    session_token: Option<String>,
    signature: String,
    /// The query without all of these.
    rest: String,
}

impl SignedQuery {
    fn of(query: &str) -> Result<Self, Rejection> {
        let is_of_signature = |part: &&str| part.starts_with("X-Amz-");
        let (signature, rest): (Vec<&str>, Vec<&str>) = query.split('&').partition(is_of_signature);
        if signature.is_empty() {
            return Err(Rejection::Missing);
        }
        let mut parameters = Parameters(
            signature
                .iter()
                .flat_map(|part| url::form_urlencoded::parse(part.as_bytes()))
                .collect(),
        );
        if parameters.take("X-Amz-Algorithm")? != ALGORITHM {
            return Err(incomplete("X-Amz-Algorithm"));
        }
        if parameters.take("X-Amz-SignedHeaders")? != "host" {
            return Err(incomplete("X-Amz-SignedHeaders"));
        }
        let stamp = parameters.take("X-Amz-Date")?;
        let life: u32 = parameters
            .take("X-Amz-Expires")?
            .parse()
            .map_err(|_| incomplete("X-Amz-Expires"))?;
        let credential = parameters.take("X-Amz-Credential")?;
        Scope::of(&credential)?;
        let signed = Self {
            credential,
            at: parse_stamp(&stamp).ok_or_else(|| incomplete("X-Amz-Date"))?,
            stamp,
            life: Duration::from_secs(life.into()),
            session_token: parameters.take("X-Amz-Security-Token").ok(),
            signature: parameters.take("X-Amz-Signature")?,
            rest: rest.join("&"),
        };
        match parameters.0.first() {
            // Twice, or of another sort.
            Some((name, _)) => Err(incomplete(name)),
            None => Ok(signed),
        }
    }

    fn scope(&self) -> Scope<'_> {
        Scope::of(&self.credential).expect("it was read when the query was")
    }
}

/// Parameters that have not been looked at.
struct Parameters<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl Parameters<'_> {
    fn take(&mut self, name: &str) -> Result<String, Rejection> {
        let place = self.0.iter().position(|(key, _)| key == name);
        let (_, value) = self.0.remove(place.ok_or_else(|| incomplete(name))?);
        Ok(value.into_owned())
    }
}

fn incomplete(name: &str) -> Rejection {
    Rejection::Incomplete(format!("The query parameter '{name}' is missing or not valid."))
}
