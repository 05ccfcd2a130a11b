//! From an SDK error to a [`Failure`]: one table of AWS's error codes, one rule for each way to get no answer.
//!
//! ```text
//!   AWS answered        code in the table ─► verdict; no such code ─► by HTTP status
//!   no credentials      codes named in the chain, else a login is needed
//!   no connection       what the connector said
//!   no answer in time   unreachable
//! ```
//!
//! What AWS said becomes the cause, in AWS's words and with the request id; the SDK's wrapping is left out.

use std::error::Error;
use std::fmt;

use aws_credential_types::provider::error::CredentialsError;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use aws_types::request_id::RequestId;
use tunneld_wire::eice::Denial;

use super::credentials::Login;
use crate::failure::{Failure, Reason, Remedy};

/// What an error code means for us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// The credentials are missing, expired or unknown to AWS.
    Login,
    /// A permission is missing.
    Denied,
    /// The signature is wrong: a clock, or a secret key.
    Signature,
    /// The SSM agent has no connection to AWS.
    AgentOffline,
    /// What was named does not exist.
    NotFound,
    /// Too many calls.
    Throttled,
    /// The call asks for something that cannot be.
    Invalid,
    /// AWS itself is in trouble.
    Unreachable,
}

/// AWS's codes as EC2, its Instance Connect, ECS, RDS, SSM, STS and SSO send them; a `*` at the end stands for any rest. The first match counts.
const VERDICTS: &[(&str, Verdict)] = &[
    ("ExpiredToken*", Verdict::Login),
    ("RequestExpired", Verdict::Login),
    ("UnrecognizedClientException", Verdict::Login),
    ("InvalidClientTokenId", Verdict::Login),
    ("AuthFailure", Verdict::Login),
    ("UnauthorizedException", Verdict::Login),
    ("InvalidGrantException", Verdict::Login),
    ("SignatureDoesNotMatch", Verdict::Signature),
    ("InvalidSignatureException", Verdict::Signature),
    ("RequestTimeTooSkewed", Verdict::Signature),
    ("AccessDenied*", Verdict::Denied),
    ("UnauthorizedOperation", Verdict::Denied),
    ("ForbiddenException", Verdict::Denied),
    ("OptInRequired", Verdict::Denied),
    ("AuthException", Verdict::Denied),
    ("TargetNotConnected", Verdict::AgentOffline),
    ("InvalidInstanceID*", Verdict::NotFound),
    ("InvalidInstanceId*", Verdict::NotFound),
    ("InvalidTarget", Verdict::NotFound),
    ("InvalidInstanceConnectEndpointId*", Verdict::NotFound),
    ("ResourceNotFound*", Verdict::NotFound),
    ("EC2InstanceNotFound*", Verdict::NotFound),
    ("DBInstanceNotFound*", Verdict::NotFound),
    ("DBClusterNotFound*", Verdict::NotFound),
    ("ClusterNotFound*", Verdict::NotFound),
    ("ServiceNotFound*", Verdict::NotFound),
    ("DoesNotExistException", Verdict::NotFound),
    ("Throttling*", Verdict::Throttled),
    ("RequestLimitExceeded", Verdict::Throttled),
    ("TooManyRequests*", Verdict::Throttled),
    ("ServiceQuotaExceeded*", Verdict::Throttled),
    ("InvalidDocument*", Verdict::Invalid),
    ("InvalidParameter*", Verdict::Invalid),
    ("Validation*", Verdict::Invalid),
    ("InvalidArgs*", Verdict::Invalid),
    ("InternalServerError", Verdict::Unreachable),
    ("InternalFailure", Verdict::Unreachable),
    ("InternalError", Verdict::Unreachable),
    ("ServiceException", Verdict::Unreachable),
    ("EC2InstanceStateInvalid*", Verdict::Unreachable),
    ("EC2InstanceUnavailable*", Verdict::Unreachable),
    ("ServiceUnavailable*", Verdict::Unreachable),
    ("Unavailable", Verdict::Unreachable),
    ("RequestTimeout*", Verdict::Unreachable),
];

/// The most of AWS's message that is kept: some carry kilobytes of encoded detail.
const LONGEST_MESSAGE: usize = 400;

/// Returns the failure that an SDK error is. `doing` says what the call was for.
pub(super) fn failure<E>(doing: impl Into<String>, error: SdkError<E, HttpResponse>, login: &Login) -> Failure
where
    E: Error + ProvideErrorMetadata + Send + Sync + 'static,
{
    let doing = doing.into();
    match &error {
        SdkError::ServiceError(_) | SdkError::ResponseError(_) => answered(doing, &error, login),
        SdkError::TimeoutError(_) => {
            Failure::new(Reason::Unreachable, Remedy::Retry, doing).because(format!(
                "AWS did not answer within {} s",
                super::OPERATION_TIMEOUT.as_secs()
            ))
        }
        SdkError::ConstructionFailure(_) => {
            Failure::new(Reason::Invalid, Remedy::Fix, doing).because(Said::chain(&texts(&error)))
        }
        SdkError::DispatchFailure(_) | _ => unanswered(doing, &error, login),
    }
}

/// Returns the failure that a refused websocket is.
pub(super) fn refused(
    doing: impl Into<String>,
    status: u16,
    denial: &Denial,
    request_id: Option<&str>,
    login: &Login,
) -> Failure {
    let code = denial.code.as_deref();
    let said = Said::of_aws(code, &denial.message, status, request_id);
    judged(doing.into(), verdict(code, status), said, Remedy::Retry, login).answered()
}

/// Returns the failure that missing credentials are.
pub(super) fn no_credentials(doing: impl Into<String>, error: &CredentialsError, login: &Login) -> Failure {
    unanswered(doing.into(), error, login)
}

/// Returns whether AWS answered with this code.
pub(super) fn has_code<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>, code: &str) -> bool {
    error
        .code()
        .is_some_and(|found| found.split('.').next() == Some(code))
}

fn answered<E>(doing: String, error: &SdkError<E, HttpResponse>, login: &Login) -> Failure
where
    E: Error + ProvideErrorMetadata + Send + Sync + 'static,
{
    let response = error.raw_response();
    let status = response.map_or(0, |response| response.status().as_u16());
    let verdict = verdict(error.code(), status);
    let message = error.message().unwrap_or_default();
    let said = Said::of_aws(error.code(), message, status, error.request_id());
    let asked = response.and_then(|response| response.headers().get("retry-after"));
    judged(doing, verdict, said, Remedy::after(asked), login).answered()
}

/// `retry` is what to do where time may mend it.
fn judged(doing: String, verdict: Verdict, said: Said, retry: Remedy, login: &Login) -> Failure {
    match verdict {
        Verdict::Login => Failure::new(
            Reason::Login,
            Remedy::Login {
                profile: login.profile.clone(),
            },
            doing,
        )
        .hint(&login.hint)
        .because(said.under(format!(
            "{} are missing, expired or not accepted",
            login.credentials()
        ))),
        Verdict::Denied => {
            let hint = match action_in(&said.text) {
                Some(action) => format!("ask for a policy that allows `{action}` to {}", login.principal()),
                None => format!("ask for a policy that allows this to {}", login.principal()),
            };
            Failure::new(Reason::Denied, Remedy::Fix, doing)
                .hint(hint)
                .because(said)
        }
        Verdict::Signature => Failure::new(Reason::Denied, Remedy::Fix, doing)
            .hint("check the clock of this machine: timedatectl")
            .hint(format!("check the secret key: {}", login.hint))
            .because(said),
        Verdict::AgentOffline => Failure::new(Reason::AgentOffline, Remedy::Retry, doing).because(said),
        Verdict::NotFound => Failure::new(Reason::NotFound, Remedy::Fix, doing).because(said),
        Verdict::Throttled => Failure::new(Reason::Throttled, retry, doing).because(said),
        Verdict::Invalid => Failure::new(Reason::Invalid, Remedy::Fix, doing).because(said),
        Verdict::Unreachable => Failure::new(Reason::Unreachable, retry, doing).because(said),
    }
}

/// A call that never reached its service: for want of a connection, or of credentials.
fn unanswered(doing: String, error: &(dyn Error + 'static), login: &Login) -> Failure {
    if let Some(connecting) = find::<Failure>(error) {
        let failure = Failure::new(connecting.reason(), connecting.remedy().clone(), doing);
        let failure = connecting
            .hints()
            .iter()
            .fold(failure, |failure, hint| failure.hint(hint));
        return failure.because(Said::chain(&connecting.chain()));
    }
    let Some(credentials) = find::<CredentialsError>(error) else {
        return Failure::new(Reason::Unreachable, Remedy::Retry, doing).because(Said::chain(&texts(error)));
    };
    let texts = texts(credentials);
    let named = texts
        .iter()
        .flat_map(|text| text.split(|c: char| !c.is_ascii_alphanumeric()))
        .find_map(verdict_on);
    let verdict = match (named, credentials) {
        (Some(verdict), _) => verdict,
        (None, CredentialsError::ProviderTimedOut(_)) => Verdict::Unreachable,
        (None, CredentialsError::InvalidConfiguration(_)) => Verdict::Invalid,
        (None, _) => Verdict::Login,
    };
    judged(doing, verdict, Said::chain(&texts), Remedy::Retry, login)
}

fn verdict(code: Option<&str>, status: u16) -> Verdict {
    code.and_then(verdict_on).unwrap_or(match status {
        429 => Verdict::Throttled,
        401 | 403 => Verdict::Denied,
        404 => Verdict::NotFound,
        400..500 => Verdict::Invalid,
        _ => Verdict::Unreachable,
    })
}

fn verdict_on(code: &str) -> Option<Verdict> {
    VERDICTS
        .iter()
        .find(|(pattern, _)| matches(pattern, code))
        .map(|(_, verdict)| *verdict)
}

fn matches(pattern: &str, code: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => code.starts_with(beginning),
        None => code == pattern,
    }
}

/// Finds the action in "… is not authorized to perform: ssm:StartSession on resource: …".
fn action_in(message: &str) -> Option<&str> {
    let (_, rest) = message.split_once("to perform: ")?;
    let action = rest.split_whitespace().next()?.trim_end_matches(['.', ',']);
    action.contains(':').then_some(action)
}

fn find<'e, E: Error + 'static>(error: &'e (dyn Error + 'static)) -> Option<&'e E> {
    chain(error).find_map(|error| error.downcast_ref())
}

fn texts(error: &(dyn Error + 'static)) -> Vec<String> {
    chain(error).map(|error| shortened(&error.to_string())).collect()
}

fn chain<'e>(error: &'e (dyn Error + 'static)) -> impl Iterator<Item = &'e (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(LONGEST_MESSAGE) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// What somebody else said, and why.
#[derive(Debug)]
struct Said {
    text: String,
    source: Option<Box<Self>>,
}

impl Said {
    fn of_aws(code: Option<&str>, message: &str, status: u16, request_id: Option<&str>) -> Self {
        let mut text = match code {
            Some(code) => code.to_owned(),
            None => format!("AWS answered with HTTP status {status}"),
        };
        if !message.is_empty() {
            text = format!("{text}: {}", shortened(message));
        }
        if let Some(id) = request_id {
            text = format!("{text} (request {id})");
        }
        Self { text, source: None }
    }

    /// Links texts, the first outermost.
    fn chain(texts: &[String]) -> Self {
        let mut inner = None;
        for text in texts.iter().skip(1).rev() {
            inner = Some(Box::new(Self {
                text: text.clone(),
                source: inner,
            }));
        }
        Self {
            text: texts.first().cloned().unwrap_or_default(),
            source: inner,
        }
    }

    fn under(self, text: String) -> Self {
        Self {
            text,
            source: Some(Box::new(self)),
        }
    }
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Error for Said {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn Error + 'static))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use aws_sdk_ssm::operation::start_session::StartSessionError;
    use aws_smithy_runtime_api::client::result::ConnectorError;
    use aws_smithy_types::body::SdkBody;
    use aws_smithy_types::error::ErrorMetadata;

    use super::*;

    type StartError = SdkError<StartSessionError, HttpResponse>;

    fn login() -> Login {
        Login {
            profile: Some("prod".to_owned()),
            hint: "aws sso login --profile prod".to_owned(),
        }
    }

    fn response(status: u16, headers: &[(&'static str, &'static str)]) -> HttpResponse {
        let mut response = HttpResponse::new(status.try_into().unwrap(), SdkBody::empty());
        for (name, value) in headers {
            response.headers_mut().insert(*name, *value);
        }
        response
    }

    fn answer(code: Option<&str>, message: &str, response: HttpResponse) -> Failure {
        let mut meta = ErrorMetadata::builder().message(message);
        if let Some(code) = code {
            meta = meta.code(code);
        }
        let error = StartError::service_error(StartSessionError::generic(meta.build()), response);
        failure("cannot start a session", error, &login())
    }

    fn without_credentials(error: CredentialsError) -> Failure {
        let error = StartError::dispatch_failure(ConnectorError::other(error.into(), None));
        failure("cannot start a session", error, &login())
    }

    #[test]
    fn every_row_of_the_table_has_its_reason_and_remedy() {
        let mut unseen: Vec<_> = VERDICTS.iter().map(|(pattern, _)| *pattern).collect();
        let login = || Remedy::Login {
            profile: Some("prod".to_owned()),
        };
        for (code, reason, remedy) in [
            ("ExpiredToken", Reason::Login, login()),
            ("ExpiredTokenException", Reason::Login, login()),
            ("RequestExpired", Reason::Login, login()),
            ("UnrecognizedClientException", Reason::Login, login()),
            ("InvalidClientTokenId", Reason::Login, login()),
            ("AuthFailure", Reason::Login, login()),
            ("UnauthorizedException", Reason::Login, login()),
            ("InvalidGrantException", Reason::Login, login()),
            ("SignatureDoesNotMatch", Reason::Denied, Remedy::Fix),
            ("InvalidSignatureException", Reason::Denied, Remedy::Fix),
            ("RequestTimeTooSkewed", Reason::Denied, Remedy::Fix),
            ("AccessDenied", Reason::Denied, Remedy::Fix),
            ("AccessDeniedException", Reason::Denied, Remedy::Fix),
            ("UnauthorizedOperation", Reason::Denied, Remedy::Fix),
            ("ForbiddenException", Reason::Denied, Remedy::Fix),
            ("OptInRequired", Reason::Denied, Remedy::Fix),
            ("AuthException", Reason::Denied, Remedy::Fix),
            ("TargetNotConnected", Reason::AgentOffline, Remedy::Retry),
            ("InvalidInstanceID.NotFound", Reason::NotFound, Remedy::Fix),
            ("InvalidInstanceID.Malformed", Reason::NotFound, Remedy::Fix),
            ("InvalidInstanceId", Reason::NotFound, Remedy::Fix),
            ("InvalidTarget", Reason::NotFound, Remedy::Fix),
            (
                "InvalidInstanceConnectEndpointId.NotFound",
                Reason::NotFound,
                Remedy::Fix,
            ),
            ("ResourceNotFoundException", Reason::NotFound, Remedy::Fix),
            ("EC2InstanceNotFoundException", Reason::NotFound, Remedy::Fix),
            ("DBInstanceNotFound", Reason::NotFound, Remedy::Fix),
            ("DBClusterNotFoundFault", Reason::NotFound, Remedy::Fix),
            ("ClusterNotFoundException", Reason::NotFound, Remedy::Fix),
            ("ServiceNotFoundException", Reason::NotFound, Remedy::Fix),
            ("DoesNotExistException", Reason::NotFound, Remedy::Fix),
            ("Throttling", Reason::Throttled, Remedy::Retry),
            ("ThrottlingException", Reason::Throttled, Remedy::Retry),
            ("RequestLimitExceeded", Reason::Throttled, Remedy::Retry),
            ("TooManyRequestsException", Reason::Throttled, Remedy::Retry),
            ("ServiceQuotaExceededException", Reason::Throttled, Remedy::Retry),
            ("InvalidDocument", Reason::Invalid, Remedy::Fix),
            ("InvalidParameterValue", Reason::Invalid, Remedy::Fix),
            ("ValidationException", Reason::Invalid, Remedy::Fix),
            ("InvalidArgsException", Reason::Invalid, Remedy::Fix),
            ("InternalServerError", Reason::Unreachable, Remedy::Retry),
            ("InternalFailure", Reason::Unreachable, Remedy::Retry),
            ("InternalError", Reason::Unreachable, Remedy::Retry),
            ("ServiceException", Reason::Unreachable, Remedy::Retry),
            (
                "EC2InstanceStateInvalidException",
                Reason::Unreachable,
                Remedy::Retry,
            ),
            (
                "EC2InstanceUnavailableException",
                Reason::Unreachable,
                Remedy::Retry,
            ),
            ("ServiceUnavailable", Reason::Unreachable, Remedy::Retry),
            ("Unavailable", Reason::Unreachable, Remedy::Retry),
            ("RequestTimeoutException", Reason::Unreachable, Remedy::Retry),
        ] {
            // The status alone would have said otherwise for most: the code decides.
            let failure = answer(Some(code), "", response(418, &[]));
            assert_eq!((failure.reason(), failure.remedy()), (reason, &remedy), "{code}");
            unseen.retain(|pattern| !matches(pattern, code));
        }
        assert!(unseen.is_empty(), "no code here stands for {unseen:?}");
    }

    #[test]
    fn an_unknown_code_is_judged_by_its_status() {
        for (status, reason, remedy) in [
            (400, Reason::Invalid, Remedy::Fix),
            (403, Reason::Denied, Remedy::Fix),
            (404, Reason::NotFound, Remedy::Fix),
            (429, Reason::Throttled, Remedy::Retry),
            (500, Reason::Unreachable, Remedy::Retry),
            (503, Reason::Unreachable, Remedy::Retry),
        ] {
            for code in [None, Some("NeverHeardOfIt")] {
                let failure = answer(code, "", response(status, &[]));
                assert_eq!(
                    (failure.reason(), failure.remedy()),
                    (reason, &remedy),
                    "{code:?} {status}"
                );
            }
        }
    }

    #[test]
    fn the_cause_is_in_the_words_of_aws_with_the_request_id() {
        let headers = [("x-amzn-requestid", "1234")];
        let failure = answer(
            Some("TargetNotConnected"),
            "i-0abc is not connected.",
            response(400, &headers),
        );
        assert_eq!(
            failure.chain(),
            [
                "cannot start a session",
                "TargetNotConnected: i-0abc is not connected. (request 1234)"
            ]
        );
    }

    #[test]
    fn an_answer_that_cannot_be_read_is_told_by_its_status() {
        let error = StartError::response_error("<html>", response(500, &[]));
        let failure = failure("cannot start a session", error, &login());
        assert_eq!(failure.chain()[1], "AWS answered with HTTP status 500");
        assert_eq!(failure.reason(), Reason::Unreachable);
    }

    #[test]
    fn a_very_long_message_is_cut() {
        let failure = answer(Some("AccessDenied"), &"é".repeat(10_000), response(400, &[]));
        assert!(failure.in_one_line().chars().count() < LONGEST_MESSAGE + 100);
    }

    #[test]
    fn an_answer_with_a_time_waits_that_long_but_never_for_hours() {
        for (header, expected) in [("7", 7), ("86400", 300)] {
            let asking = |status| response(status, &[("retry-after", header)]);
            let expected = Remedy::RetryAfter(Duration::from_secs(expected));
            let throttled = answer(Some("ThrottlingException"), "", asking(400));
            assert_eq!(throttled.remedy(), &expected);
            let in_trouble = answer(None, "", asking(503));
            assert_eq!(in_trouble.remedy(), &expected);
        }
    }

    #[test]
    fn an_answer_is_told_from_a_silence() {
        assert!(answer(None, "", response(500, &[])).is_answered());
        let no_connection = ConnectorError::io("connection refused".into());
        let error = StartError::dispatch_failure(no_connection);
        assert!(!failure("cannot start a session", error, &login()).is_answered());
        let late = CredentialsError::provider_timed_out(Duration::from_secs(5));
        assert!(!without_credentials(late).is_answered());
    }

    #[test]
    fn a_denial_names_the_action_that_has_to_be_allowed() {
        let message = "User: arn:aws:sts::1:assumed-role/dev/me is not authorized to perform: ssm:StartSession on \
                       resource: arn:aws:ec2:eu-central-1:1:instance/i-0abc";
        let denied = answer(Some("AccessDeniedException"), message, response(400, &[]));
        assert!(
            denied.hints()[0].contains("`ssm:StartSession`"),
            "{:?}",
            denied.hints()
        );
        let silent = answer(
            Some("UnauthorizedOperation"),
            "You are not authorized.",
            response(403, &[]),
        );
        assert_eq!(silent.hints().len(), 1);
    }

    #[test]
    fn a_login_failure_says_whose_credentials_and_how_to_renew_them() {
        let failure = answer(
            Some("ExpiredTokenException"),
            "The security token is expired",
            response(400, &[]),
        );
        assert_eq!(failure.hints(), ["aws sso login --profile prod"]);
        assert_eq!(
            failure.chain(),
            [
                "cannot start a session",
                "the credentials of profile `prod` are missing, expired or not accepted",
                "ExpiredTokenException: The security token is expired"
            ]
        );
    }

    #[test]
    fn a_wrong_signature_hints_at_clock_and_key() {
        let failure = answer(Some("InvalidSignatureException"), "", response(400, &[]));
        assert!(failure.hints()[0].contains("clock") && failure.hints()[1].contains("secret key"));
    }

    #[test]
    fn credentials_that_cannot_be_loaded_need_a_login() {
        for error in [
            CredentialsError::provider_error("the SSO token has expired and cannot be refreshed"),
            CredentialsError::not_loaded("nothing here"),
        ] {
            let failure = without_credentials(error);
            assert_eq!(
                failure.remedy(),
                &Remedy::Login {
                    profile: Some("prod".to_owned())
                }
            );
            assert_eq!(failure.hints(), ["aws sso login --profile prod"]);
        }
    }

    #[test]
    fn what_kept_credentials_from_loading_decides_where_it_is_known() {
        let timeout = without_credentials(CredentialsError::provider_timed_out(Duration::from_secs(5)));
        assert_eq!(
            (timeout.reason(), timeout.remedy()),
            (Reason::Unreachable, &Remedy::Retry)
        );

        let loops = without_credentials(CredentialsError::invalid_configuration("profiles form a loop"));
        assert_eq!((loops.reason(), loops.remedy()), (Reason::Invalid, &Remedy::Fix));

        let role = without_credentials(CredentialsError::provider_error("unhandled error (AccessDenied)"));
        assert_eq!((role.reason(), role.remedy()), (Reason::Denied, &Remedy::Fix));

        let offline = Failure::new(
            Reason::Unreachable,
            Remedy::Retry,
            "cannot connect to `portal.sso`",
        );
        let portal = without_credentials(CredentialsError::provider_error(offline));
        assert_eq!(
            (portal.reason(), portal.remedy()),
            (Reason::Unreachable, &Remedy::Retry)
        );
    }

    #[test]
    fn a_failure_to_connect_keeps_its_reason_hints_and_cause() {
        let connecting = Failure::new(
            Reason::Denied,
            Remedy::Fix,
            "cannot connect through the proxy `p:1`",
        )
        .because("it answered 407")
        .hint("export HTTPS_PROXY=…");
        let error = StartError::dispatch_failure(ConnectorError::io(connecting.into()));
        let failure = failure("cannot start a session", error, &login());
        assert_eq!(
            (failure.reason(), failure.remedy()),
            (Reason::Denied, &Remedy::Fix)
        );
        assert_eq!(failure.hints(), ["export HTTPS_PROXY=…"]);
        assert_eq!(
            failure.chain(),
            [
                "cannot start a session",
                "cannot connect through the proxy `p:1`",
                "it answered 407"
            ]
        );
    }

    #[test]
    fn no_answer_at_all_is_worth_a_retry() {
        for error in [
            StartError::timeout_error("late"),
            StartError::dispatch_failure(ConnectorError::timeout("late".into())),
            StartError::dispatch_failure(ConnectorError::io("connection reset".into())),
        ] {
            let failure = failure("cannot start a session", error, &login());
            assert_eq!(
                (failure.reason(), failure.remedy()),
                (Reason::Unreachable, &Remedy::Retry)
            );
        }
    }
}
