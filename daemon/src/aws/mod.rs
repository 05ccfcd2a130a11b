//! AWS, as far as a tunnel needs it: who we are, where the target is, sessions, signatures.
//!
//! ```text
//!   Aws ──account(profile, region)──► Account ──► sessions   start, resume, terminate
//!    │                                   │   ├──► targets    instance, task, database, agent, endpoint
//!    │                                   │   ├──► keys       of users, for a minute; of hosts, from the console
//!    │                                   │   └──► upgrades   signed websocket requests
//!    └─ Connector, Environment           └─ credentials: kept here alone, lent for one call
//! ```
//!
//! An [`Account`] is made once and shared. It is made anew when the profile files changed, when somebody may have logged
//! in, or when AWS no longer accepts its credentials: so ask [`Aws::account`] before each attempt rather than keeping one.
//!
//! Nothing here logs a token, a stream URL or a credential. The SDK's own logs at level trace do: whoever sets up
//! logging keeps `aws_*`, `hyper` and `tungstenite` above it.

mod calls;
mod carrier;
mod classify;
mod credentials;
mod database;
mod endpoint;
mod http;
mod instance_connect;
mod opening;
mod session;
mod sign;
mod target;
mod task;
mod throttle;

use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use ::http::Request;
use aws_config::provider_config::ProviderConfig;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use aws_types::service_config::{LoadServiceConfig, ServiceConfigKey};
use tokio::time::timeout;

pub(crate) use self::calls::{Call, Calls, Outcome};
use self::credentials::{Identity, Login, ProfileFiles};
pub use self::database::DatabaseEndpoint;
use self::endpoint::Preference;
pub use self::endpoint::{EndpointOf, FoundEndpoint};
use self::http::Http;
pub use self::opening::{RefusedOpening, SignedOpening};
pub use self::session::{Document, SessionGrant, StreamUrl, Token};
use self::sign::Override;
pub use self::target::{AgentStatus, FoundInstance, Place};
pub use self::task::FoundTask;
use self::throttle::Throttle;
use crate::config::AccountSpec;
use crate::connector::{Connector, Environment};
use crate::failure::{Failure, Reason, Remedy};

/// The longest a connection of an API call may take to be made, proxy and TLS included: the same as a plain one.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest one attempt of an API call may take. Our calls answer in under a second; a connection that the
/// network forgot is noticed after this time only.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(15);

/// The longest an API call may take: three attempts, their pauses included.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(45);

/// Attempts of one call. More patience is the supervisor's business.
const ATTEMPTS: u32 = 3;

/// All that the daemon has to do with AWS.
pub struct Aws {
    environment: Environment,
    connector: Connector,
    http: Http,
    accounts: Mutex<HashMap<AccountSpec, Arc<Account>>>,
    /// Outlive the accounts, which are made anew with new credentials.
    throttles: Mutex<HashMap<AccountSpec, Arc<Throttle>>>,
    calls: Calls,
}

impl Aws {
    /// Prepares access to AWS. Nothing is asked of anybody yet; an environment that cannot work is a failure.
    pub fn new(environment: Environment) -> Result<Self, Failure> {
        let connector = Connector::new(&environment)?;
        let http = Http::new(connector.clone());
        Ok(Self {
            environment,
            connector,
            http,
            accounts: Mutex::default(),
            throttles: Mutex::default(),
            calls: Calls::default(),
        })
    }

    /// Returns how often AWS was called.
    pub(crate) fn calls(&self) -> &Calls {
        &self.calls
    }

    /// Returns the connector that the API calls use, for the websockets.
    pub(crate) fn connector(&self) -> &Connector {
        &self.connector
    }

    /// Returns the account of a profile and region: the one made before, as long as it is good.
    pub async fn account(&self, spec: &AccountSpec) -> Result<Arc<Account>, Failure> {
        let files = ProfileFiles::read(&self.environment).await?;
        if let Some(account) = self.known().get(spec)
            && account.files == files
            && !account.rejected.load(Ordering::Relaxed)
        {
            return Ok(Arc::clone(account));
        }
        let account = Arc::new(self.load(spec, files).await?);
        self.known().insert(spec.clone(), Arc::clone(&account));
        Ok(account)
    }

    /// Returns the files and folders that change when somebody logs in.
    pub(crate) fn credential_files(&self) -> Vec<PathBuf> {
        credentials::files(&self.environment)
    }

    /// Credentials may be others than before: every account is made anew, from what is in the files then.
    pub(crate) fn forget_accounts(&self) {
        self.known().clear();
    }

    /// The machine woke, or its network is another one: connections that were kept are let go, and calls that are under
    /// way fail soon if nothing comes.
    pub(crate) fn network_changed(&self) {
        self.http.let_go();
        self.connector.network_changed();
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<AccountSpec, Arc<Account>>> {
        self.accounts.lock().expect("nothing panics while it is held")
    }

    fn throttle(&self, spec: &AccountSpec) -> Arc<Throttle> {
        let mut throttles = self.throttles.lock().expect("nothing panics while it is held");
        Arc::clone(throttles.entry(spec.clone()).or_default())
    }

    async fn load(&self, spec: &AccountSpec, files: ProfileFiles) -> Result<Account, Failure> {
        let identity = Identity::choose(&self.environment, &files, spec).await?;
        let region = Region::new(identity.region.clone());
        let retries = RetryConfig::standard().with_max_attempts(ATTEMPTS);
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .operation_attempt_timeout(ATTEMPT_TIMEOUT)
            .operation_timeout(OPERATION_TIMEOUT)
            .build();
        let http = SharedHttpClient::new(self.http.clone());
        let for_credentials = ProviderConfig::without_region()
            .with_region(Some(region.clone()))
            .with_http_client(http.clone())
            .with_retry_config(retries.clone())
            .with_timeout_config(timeouts.clone());
        let credentials = identity.provider(&self.environment, &files, &for_credentials);

        let loaded = aws_config::defaults(BehaviorVersion::latest())
            .http_client(http)
            .profile_files(files.for_sdk())
            .profile_name(&identity.profile)
            .region(region)
            .credentials_provider(credentials.clone())
            .retry_config(retries)
            .timeout_config(timeouts)
            .load()
            .await;
        let endpoints = Endpoints {
            environment: self.environment.clone(),
            loaded: loaded.clone(),
        };
        let preference = Preference::of(&self.environment, &loaded);
        let config = loaded.into_builder().service_config(endpoints).build();
        tracing::debug!(profile = %identity.profile, region = %identity.region, "account loaded");
        Ok(Account {
            ssm: aws_sdk_ssm::Client::from_conf(
                aws_sdk_ssm::config::Builder::from(&config)
                    .interceptor(self.calls.clone())
                    .build(),
            ),
            ec2: aws_sdk_ec2::Client::from_conf(
                aws_sdk_ec2::config::Builder::from(&config)
                    .interceptor(self.calls.clone())
                    .build(),
            ),
            instance_connect: aws_sdk_ec2instanceconnect::Client::from_conf(
                aws_sdk_ec2instanceconnect::config::Builder::from(&config)
                    .interceptor(self.calls.clone())
                    .build(),
            ),
            ecs: aws_sdk_ecs::Client::from_conf(
                aws_sdk_ecs::config::Builder::from(&config)
                    .interceptor(self.calls.clone())
                    .build(),
            ),
            rds: aws_sdk_rds::Client::from_conf(
                aws_sdk_rds::config::Builder::from(&config)
                    .interceptor(self.calls.clone())
                    .build(),
            ),
            streams_at: Override::of(&self.environment, "AWS_ENDPOINT_URL_SSMMESSAGES"),
            endpoints_at: Override::of(&self.environment, "TUNNELD_ENDPOINT_URL_EICE"),
            preference,
            region: identity.region,
            login: identity.login,
            throttle: self.throttle(spec),
            rejected: AtomicBool::new(false),
            credentials,
            files,
        })
    }
}

impl fmt::Debug for Aws {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Aws").finish_non_exhaustive()
    }
}

/// One profile in one region.
pub struct Account {
    ssm: aws_sdk_ssm::Client,
    ec2: aws_sdk_ec2::Client,
    instance_connect: aws_sdk_ec2instanceconnect::Client,
    ecs: aws_sdk_ecs::Client,
    rds: aws_sdk_rds::Client,
    /// Where data channels are instead of where their URLs say.
    streams_at: Option<Override>,
    /// Where Instance Connect Endpoints are instead of where their names say.
    endpoints_at: Option<Override>,
    /// Which of an endpoint's names are wanted.
    preference: Preference,
    region: String,
    login: Login,
    throttle: Arc<Throttle>,
    /// AWS no longer accepts the credentials.
    rejected: AtomicBool,
    credentials: SharedCredentialsProvider,
    /// What it was made from.
    files: ProfileFiles,
}

impl Account {
    /// Makes the request that opens the websocket of a stream, signed unless its URL carries a signature already.
    pub async fn sign_upgrade(&self, stream_url: &StreamUrl) -> Result<Request<()>, Failure> {
        let uri = sign::destination(stream_url.reveal(), self.streams_at.as_ref())?;
        if sign::is_presigned(&uri) {
            return sign::unsigned(uri);
        }
        let credentials = self
            .credentials("cannot sign the websocket of the session")
            .await?;
        sign::signed(uri, &self.region, &credentials, wall_clock())
    }

    /// Finds out whether there are credentials.
    pub async fn check_credentials(&self) -> Result<(), Failure> {
        self.credentials("cannot get credentials").await.map(drop)
    }

    async fn credentials(&self, doing: &str) -> Result<Credentials, Failure> {
        let credentials = timeout(OPERATION_TIMEOUT, self.credentials.provide_credentials())
            .await
            .map_err(|_| {
                let problem = format!("no credentials within {} s", OPERATION_TIMEOUT.as_secs());
                Failure::new(Reason::Unreachable, Remedy::Retry, doing).because(problem)
            })?;
        credentials.map_err(|error| self.watched(classify::no_credentials(doing, &error, &self.login)))
    }

    fn failure<E>(&self, doing: impl Into<String>, error: SdkError<E, HttpResponse>) -> Failure
    where
        E: Error + ProvideErrorMetadata + Send + Sync + 'static,
    {
        self.watched(classify::failure(doing, error, &self.login))
    }

    /// After a failure that a login mends, the account is not handed out again: the next one reads everything anew.
    fn watched(&self, failure: Failure) -> Failure {
        if failure.reason() == Reason::Login {
            self.reject();
        }
        failure
    }

    fn reject(&self) {
        self.rejected.store(true, Ordering::Relaxed);
    }

    /// Returns whether the credentials are in doubt, so that another account may have better ones.
    pub(crate) fn is_rejected(&self) -> bool {
        self.rejected.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { region, login, .. } = self;
        f.debug_struct("Account")
            .field("region", region)
            .field("profile", &login.profile)
            .finish_non_exhaustive()
    }
}

/// Where the services are, if not where the region says: AWS_ENDPOINT_URL_SERVICE, then AWS_ENDPOINT_URL, then what
/// the SDK found in the profile.
#[derive(Debug)]
struct Endpoints {
    environment: Environment,
    loaded: SdkConfig,
}

impl LoadServiceConfig for Endpoints {
    fn load_config(&self, key: ServiceConfigKey<'_>) -> Option<String> {
        let service = key.service_id().to_ascii_uppercase().replace([' ', '-'], "_");
        let names = [format!("{}_{service}", key.env()), key.env().to_owned()];
        let is_ignored = key.env() == "AWS_ENDPOINT_URL"
            && self.environment.is_true("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS");
        let found = names
            .iter()
            .find_map(|name| self.environment.variable(name))
            .filter(|_| !is_ignored);
        match found {
            Some(value) => Some(value.to_owned()),
            None => self.loaded.service_config()?.load_config(key),
        }
    }
}

/// The time that signatures and expiries are made of.
#[expect(clippy::disallowed_methods, reason = "AWS compares it with its own clock")]
fn wall_clock() -> SystemTime {
    SystemTime::now()
}

#[cfg(test)]
mod tests;
