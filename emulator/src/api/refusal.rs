//! A refused call, and each service's own words for a bad signature.

use http::StatusCode;

use super::Service;
use crate::sigv4::Rejection;

/// An error that AWS would answer.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) code: &'static str,
    pub(crate) message: String,
}

impl Refusal {
    /// An error of the caller's, with status 400.
    pub(crate) fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            code,
            message: message.into(),
        }
    }

    /// The same error with another status.
    pub(crate) fn with_status(self, status: StatusCode) -> Self {
        Self { status, ..self }
    }

    /// Says of a rejected signature what the service says.
    ///
    /// The JSON services answer 400 and exceptions; EC2 hides most causes behind AuthFailure; RDS and STS answer 403
    /// with the codes of the common errors.
    pub(crate) fn of_signature(service: Service, rejection: Rejection) -> Self {
        match service {
            Service::Ssm | Service::Ecs | Service::InstanceConnect => Self::of_json(rejection),
            Service::Ec2 => Self::of_ec2(rejection),
            Service::Rds | Service::Sts => Self::of_query(rejection),
        }
    }

    fn of_json(rejection: Rejection) -> Self {
        match rejection {
            Rejection::Missing => Self::new(
                "MissingAuthenticationTokenException",
                "Missing Authentication Token",
            ),
            Rejection::Incomplete(what) => Self::new("IncompleteSignatureException", what),
            Rejection::UnknownKey => Self::new("UnrecognizedClientException", INVALID_TOKEN),
            Rejection::ExpiredKey => Self::new("ExpiredTokenException", EXPIRED_TOKEN),
            Rejection::Stale(what) | Rejection::Scope(what) => Self::new("InvalidSignatureException", what),
            Rejection::Mismatch => Self::new("InvalidSignatureException", MISMATCH),
        }
    }

    fn of_ec2(rejection: Rejection) -> Self {
        let unauthorized =
            |message: &str| Self::new("AuthFailure", message).with_status(StatusCode::UNAUTHORIZED);
        match rejection {
            Rejection::Missing => Self::new("MissingAuthenticationToken", MISSING_TOKEN),
            Rejection::Incomplete(what) => Self::new("IncompleteSignature", what),
            Rejection::ExpiredKey | Rejection::Stale(_) => {
                Self::new("RequestExpired", "Request has expired.")
            }
            Rejection::Scope(what) => unauthorized(&what),
            Rejection::UnknownKey | Rejection::Mismatch => {
                unauthorized("AWS was not able to validate the provided access credentials")
            }
        }
    }

    fn of_query(rejection: Rejection) -> Self {
        let refusal = match rejection {
            Rejection::Missing => Self::new("MissingAuthenticationToken", MISSING_TOKEN),
            Rejection::Incomplete(what) => return Self::new("IncompleteSignature", what),
            Rejection::UnknownKey => Self::new("InvalidClientTokenId", INVALID_TOKEN),
            Rejection::ExpiredKey => Self::new("ExpiredToken", EXPIRED_TOKEN),
            Rejection::Stale(what) | Rejection::Scope(what) => Self::new("SignatureDoesNotMatch", what),
            Rejection::Mismatch => Self::new("SignatureDoesNotMatch", MISMATCH),
        };
        refusal.with_status(StatusCode::FORBIDDEN)
    }
}

const MISSING_TOKEN: &str = "Request is missing Authentication Token";
const INVALID_TOKEN: &str = "The security token included in the request is invalid.";
const EXPIRED_TOKEN: &str = "The security token included in the request is expired";
const MISMATCH: &str = "The request signature we calculated does not match the signature you provided. Check your AWS \
                        Secret Access Key and signing method. Consult the service documentation for details.";
