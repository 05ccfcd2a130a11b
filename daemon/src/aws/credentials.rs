//! Whose credentials an account uses: reading the profile files, choosing the source, keeping what it gave.
//!
//! ```text
//!   the tunnel names a profile ──► that profile, and nothing else
//!   otherwise: keys in the environment, else AWS_PROFILE or `default`, web identity, container, instance role
//! ```
//!
//! A profile that a tunnel names wins over keys in the environment, as with `aws --profile`; the SDK's own chain has
//! it the other way round. Credentials are kept only here, in memory, and lent for one call.

mod location;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::time::{Duration, SystemTime};

use aws_config::ecs::EcsCredentialsProvider;
use aws_config::imds::credentials::ImdsCredentialsProvider;
use aws_config::meta::credentials::CredentialsProviderChain;
use aws_config::profile::{ProfileFileCredentialsProvider, ProfileSet};
use aws_config::provider_config::ProviderConfig;
use aws_config::web_identity_token::WebIdentityTokenCredentialsProvider;
use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{self, ProvideCredentials, SharedCredentialsProvider, future};
use aws_runtime::env_config::file::{EnvConfigFileKind, EnvConfigFiles};
use aws_types::os_shim_internal::{Env, Fs};
use tokio::sync::Mutex;
use tokio::time::Instant;

pub(super) use self::location::files;
use self::location::{CONFIG, CREDENTIALS, Location};
use super::wall_clock;
use crate::config::AccountSpec;
use crate::connector::Environment;
use crate::failure::{Failure, Reason, Remedy};

/// Credentials are renewed this long before they expire, so that a signature made with them outlives the delays of
/// a call and of a clock that is a little off.
const RENEWAL_MARGIN: Duration = Duration::from_secs(5 * 60);

/// How long credentials without an expiry are believed; the SDK's own figure.
const UNDATED_LIFETIME: Duration = Duration::from_secs(15 * 60);

/// The text of `~/.aws/config` and `~/.aws/credentials`, empty where a file is missing. No `Debug`: it holds keys.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct ProfileFiles {
    config: String,
    credentials: String,
}

impl ProfileFiles {
    pub(super) async fn read(environment: &Environment) -> Result<Self, Failure> {
        Ok(Self {
            config: read(environment, CONFIG).await?,
            credentials: read(environment, CREDENTIALS).await?,
        })
    }

    pub(super) fn for_sdk(&self) -> EnvConfigFiles {
        EnvConfigFiles::builder()
            .with_contents(EnvConfigFileKind::Config, &self.config)
            .with_contents(EnvConfigFileKind::Credentials, &self.credentials)
            .build()
    }

    async fn parse(&self) -> Result<ProfileSet, Failure> {
        // The contents are at hand: neither environment nor file system is asked for anything.
        aws_config::profile::load(&Fs::default(), &Env::from(HashMap::new()), &self.for_sdk(), None)
            .await
            .map_err(|error| {
                Failure::new(
                    Reason::Invalid,
                    Remedy::Fix,
                    "cannot read the profiles of the AWS configuration",
                )
                .because(error)
            })
    }
}

async fn read(environment: &Environment, location: Location) -> Result<String, Failure> {
    let Some(path) = location.path(environment) else {
        return Ok(String::new());
    };
    match tokio::fs::read_to_string(&path).await {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(Failure::new(
            Reason::Invalid,
            Remedy::Fix,
            format!("cannot read the AWS profiles in `{}`", path.display()),
        )
        .because(error)),
    }
}

/// What an account is made of, before any client exists.
#[derive(Debug)]
pub(super) struct Identity {
    pub(super) region: String,
    /// The profile whose settings apply.
    pub(super) profile: String,
    pub(super) login: Login,
    source: Source,
}

/// Who has to log in, and how, when credentials are missing or expired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Login {
    /// The profile; `None` where no profile is used.
    pub(super) profile: Option<String>,
    /// What a person does about it.
    pub(super) hint: String,
}

impl Login {
    /// Names the credentials in a sentence.
    pub(super) fn credentials(&self) -> String {
        match &self.profile {
            Some(profile) => format!("the credentials of profile `{profile}`"),
            None => "the credentials".to_owned(),
        }
    }

    /// Names who is allowed or denied something.
    pub(super) fn principal(&self) -> String {
        match &self.profile {
            Some(profile) => format!("profile `{profile}`"),
            None => "the credentials in use".to_owned(),
        }
    }
}

#[derive(Debug)]
enum Source {
    /// The profile, and nothing else.
    Profile,
    /// Keys in the environment.
    Environment,
    /// Whatever the machine offers.
    Chain,
}

impl Identity {
    /// Decides on profile, region and source of credentials.
    pub(super) async fn choose(
        environment: &Environment,
        files: &ProfileFiles,
        spec: &AccountSpec,
    ) -> Result<Self, Failure> {
        let profiles = files.parse().await?;
        let wanted = spec.profile.as_deref();
        let has_keys = environment.variable("AWS_ACCESS_KEY_ID").is_some()
            && environment.variable("AWS_SECRET_ACCESS_KEY").is_some();
        let source = match (wanted, has_keys) {
            (Some(_), _) => Source::Profile,
            (None, true) => Source::Environment,
            (None, false) => Source::Chain,
        };
        let named = wanted.or_else(|| {
            environment
                .first_of(&["AWS_PROFILE", "AWS_DEFAULT_PROFILE"])
                .map(|(_, n)| n)
        });
        if let Some(name) = named
            && profiles.get_profile(name).is_none()
            && !matches!(source, Source::Environment)
        {
            return Err(unknown_profile(name, &profiles));
        }
        let profile = named.unwrap_or("default");
        let in_environment = || {
            environment
                .first_of(&["AWS_REGION", "AWS_DEFAULT_REGION"])
                .map(|(_, region)| region)
        };
        let in_profile = || profiles.get_profile(profile)?.get("region");
        let Some(region) = spec.region.as_deref().or_else(in_environment).or_else(in_profile) else {
            return Err(no_region(profile));
        };
        let login = match source {
            Source::Environment => Login {
                profile: None,
                hint: "the keys come from the environment of tunneld: restart it with fresh ones, or give the tunnel a `profile`"
                    .to_owned(),
            },
            Source::Profile | Source::Chain => login_for(profile, named.is_some(), &profiles),
        };
        Ok(Self {
            region: region.to_owned(),
            profile: profile.to_owned(),
            login,
            source,
        })
    }

    /// Returns the provider of the credentials; it asks its source only when it has to.
    pub(super) fn provider(
        &self,
        environment: &Environment,
        files: &ProfileFiles,
        config: &ProviderConfig,
    ) -> SharedCredentialsProvider {
        let profile = || {
            ProfileFileCredentialsProvider::builder()
                .configure(config)
                .profile_files(files.for_sdk())
                .profile_name(&self.profile)
                .build()
        };
        let source = match self.source {
            Source::Profile => SharedCredentialsProvider::new(profile()),
            Source::Environment => SharedCredentialsProvider::new(in_environment(environment)),
            Source::Chain => {
                let mut chain = CredentialsProviderChain::first_try("profile", profile());
                if environment.variable("AWS_WEB_IDENTITY_TOKEN_FILE").is_some() {
                    let provider = WebIdentityTokenCredentialsProvider::builder()
                        .configure(config)
                        .build();
                    chain = chain.or_else("web identity", provider);
                }
                let container = [
                    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
                    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
                ];
                if environment.first_of(&container).is_some() {
                    chain = chain.or_else(
                        "container",
                        EcsCredentialsProvider::builder().configure(config).build(),
                    );
                }
                if !environment.is_true("AWS_EC2_METADATA_DISABLED") {
                    let provider = ImdsCredentialsProvider::builder().configure(config).build();
                    chain = chain.or_else("instance role", provider);
                }
                SharedCredentialsProvider::new(chain)
            }
        };
        SharedCredentialsProvider::new(Kept {
            source,
            kept: Mutex::new(None),
        })
    }
}

fn in_environment(environment: &Environment) -> Credentials {
    let variable = |name| environment.variable(name).unwrap_or_default();
    let token = environment.variable("AWS_SESSION_TOKEN").map(str::to_owned);
    let (id, secret) = (variable("AWS_ACCESS_KEY_ID"), variable("AWS_SECRET_ACCESS_KEY"));
    Credentials::new(id, secret, token, None, "Environment")
}

fn unknown_profile(name: &str, profiles: &ProfileSet) -> Failure {
    let failure = Failure::new(
        Reason::Invalid,
        Remedy::Fix,
        format!("there is no AWS profile `{name}`"),
    );
    let near = profiles
        .profiles()
        .map(|known| (strsim::damerau_levenshtein(known, name), known))
        .filter(|(distance, _)| *distance <= 2)
        .min();
    match near {
        Some((_, known)) => failure.hint(format!("did you mean `{known}`?")),
        None => failure.hint(format!("aws configure sso --profile {name}")),
    }
}

fn no_region(profile: &str) -> Failure {
    Failure::new(Reason::Invalid, Remedy::Fix, "no AWS region is set")
        .hint("give the tunnel, or [defaults], a `region`")
        .hint(format!("aws configure set region REGION --profile {profile}"))
}

/// A role that is assumed needs the login of the profile it starts from.
fn login_for(profile: &str, is_named: bool, profiles: &ProfileSet) -> Login {
    // More hops than anybody chains; a cycle in the file must not be one here.
    const LONGEST_CHAIN: usize = 8;
    let mut root = profile;
    for _ in 0..LONGEST_CHAIN {
        match profiles
            .get_profile(root)
            .and_then(|found| found.get("source_profile"))
        {
            Some(next) if next != root => root = next,
            Some(_) | None => break,
        }
    }
    let has = |key| profiles.get_profile(root).and_then(|found| found.get(key));
    let hint = if has("sso_session").or(has("sso_start_url")).is_some() {
        format!("aws sso login --profile {root}")
    } else if let Some(command) = has("credential_process") {
        // The command may carry a secret in its arguments; its first word names it well enough.
        format!(
            "check `credential_process` of profile {root}: `{}`",
            command.split(' ').next().unwrap_or(command)
        )
    } else {
        format!("aws configure --profile {root}")
    };
    Login {
        profile: is_named.then(|| profile.to_owned()),
        hint,
    }
}

/// Keeps what a source gave until shortly before it expires. One caller asks the source, the others wait for it.
struct Kept {
    source: SharedCredentialsProvider,
    kept: Mutex<Option<(Credentials, Instant)>>,
}

impl Kept {
    async fn credentials(&self) -> Result<Credentials, CredentialsError> {
        let mut kept = self.kept.lock().await;
        if let Some((credentials, loaded)) = &*kept {
            let is_fresh = match credentials.expiry() {
                Some(expiry) => wall_clock() + RENEWAL_MARGIN < expiry,
                None => loaded.elapsed() < UNDATED_LIFETIME,
            };
            if is_fresh {
                return Ok(credentials.clone());
            }
        }
        match (self.source.provide_credentials().await, &*kept) {
            (Ok(credentials), _) => {
                *kept = Some((credentials.clone(), Instant::now()));
                Ok(credentials)
            }
            // Renewal is early: while the old ones are good, a source that is down for a moment hurts nobody.
            (Err(_), Some((credentials, _))) if credentials.expiry().is_some_and(|at| wall_clock() < at) => {
                Ok(credentials.clone())
            }
            (Err(error), _) => Err(error),
        }
    }
}

impl ProvideCredentials for Kept {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async { self.credentials().await as provider::Result })
    }

    fn fallback_on_interrupt(&self) -> Option<Credentials> {
        let kept = self.kept.try_lock().ok()?;
        kept.as_ref()
            .map(|(credentials, _)| credentials.clone())
            .filter(|found| is_unexpired(found, wall_clock()))
    }
}

fn is_unexpired(credentials: &Credentials, now: SystemTime) -> bool {
    credentials.expiry().is_none_or(|expiry| now < expiry)
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kept").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
