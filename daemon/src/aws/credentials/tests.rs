use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

const CONFIG: &str = "
[default]
region = eu-west-1
[profile keys]
region = eu-central-1
[profile corp]
sso_session = corp
region = us-east-1
[profile prod]
role_arn = arn:aws:iam::1:role/prod
source_profile = corp
[profile loop-a]
source_profile = loop-b
[profile loop-b]
source_profile = loop-a
[sso-session corp]
sso_region = us-east-1
sso_start_url = https://corp.awsapps.example/start
";
const CREDENTIALS: &str = "
[keys]
aws_access_key_id = AKIDPROFILE
aws_secret_access_key = secret
";
const KEYS: [(&str, &str); 3] = [
    ("AWS_ACCESS_KEY_ID", "AKIDENV"),
    ("AWS_SECRET_ACCESS_KEY", "hunter2"),
    ("AWS_REGION", "sa-east-1"),
];

fn profiles() -> ProfileFiles {
    ProfileFiles {
        config: CONFIG.to_owned(),
        credentials: CREDENTIALS.to_owned(),
    }
}

fn spec(profile: Option<&str>, region: Option<&str>) -> AccountSpec {
    AccountSpec {
        profile: profile.map(str::to_owned),
        region: region.map(str::to_owned),
    }
}

async fn choose(variables: &[(&str, &str)], spec: &AccountSpec) -> Result<Identity, Failure> {
    Identity::choose(&variables.iter().copied().collect(), &profiles(), spec).await
}

async fn key_id(variables: &[(&str, &str)], spec: &AccountSpec) -> String {
    let environment = variables.iter().copied().collect();
    let identity = choose(variables, spec).await.unwrap();
    let provider = identity.provider(&environment, &profiles(), &ProviderConfig::empty());
    provider
        .provide_credentials()
        .await
        .unwrap()
        .access_key_id()
        .to_owned()
}

#[tokio::test]
async fn a_named_profile_wins_over_keys_in_the_environment() {
    assert_eq!(key_id(&KEYS, &spec(Some("keys"), None)).await, "AKIDPROFILE");
    assert_eq!(key_id(&KEYS, &spec(None, None)).await, "AKIDENV");
}

#[tokio::test]
async fn without_keys_in_the_environment_its_profile_counts() {
    assert_eq!(
        key_id(&[("AWS_PROFILE", "keys")], &spec(None, None)).await,
        "AKIDPROFILE"
    );
}

#[tokio::test]
async fn the_region_is_the_tunnels_then_the_environments_then_the_profiles() {
    let region = async |variables: &[(&str, &str)], spec| choose(variables, &spec).await.unwrap().region;
    assert_eq!(
        region(&KEYS, spec(Some("keys"), Some("af-south-1"))).await,
        "af-south-1"
    );
    assert_eq!(region(&KEYS, spec(Some("keys"), None)).await, "sa-east-1");
    assert_eq!(region(&[], spec(Some("keys"), None)).await, "eu-central-1");
    assert_eq!(region(&[], spec(None, None)).await, "eu-west-1");
}

#[tokio::test]
async fn without_a_region_a_person_is_told_to_set_one() {
    let failure = choose(&[], &spec(Some("prod"), None)).await.unwrap_err();
    assert_eq!(
        (failure.reason(), failure.remedy()),
        (Reason::Invalid, &Remedy::Fix)
    );
    assert!(
        failure.hints().iter().any(|hint| hint.contains("--profile prod")),
        "{:?}",
        failure.hints()
    );
}

#[tokio::test]
async fn a_profile_that_does_not_exist_is_answered_with_a_near_one() {
    let failure = choose(&KEYS, &spec(Some("prdo"), None)).await.unwrap_err();
    assert_eq!(failure.to_string(), "there is no AWS profile `prdo`");
    assert_eq!(failure.hints(), ["did you mean `prod`?"]);
    let failure = choose(&[("AWS_PROFILE", "elsewhere")], &spec(None, None))
        .await
        .unwrap_err();
    assert_eq!(failure.hints(), ["aws configure sso --profile elsewhere"]);
}

#[tokio::test]
async fn the_login_hint_is_for_the_profile_that_a_role_starts_from() {
    let login = async |profile| choose(&KEYS, &spec(Some(profile), None)).await.unwrap().login;
    let prod = login("prod").await;
    assert_eq!(prod.profile.as_deref(), Some("prod"));
    assert_eq!(prod.hint, "aws sso login --profile corp");
    assert_eq!(login("keys").await.hint, "aws configure --profile keys");
    assert!(
        login("loop-a")
            .await
            .hint
            .starts_with("aws configure --profile loop-")
    );
    let environment = choose(&KEYS, &spec(None, None)).await.unwrap().login;
    assert_eq!(environment.profile, None);
    assert!(
        environment.hint.contains("environment of tunneld"),
        "{}",
        environment.hint
    );
}

#[tokio::test]
async fn profile_files_are_found_by_variable_or_in_the_home_folder_and_may_be_missing() {
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir(home.path().join(".aws")).unwrap();
    std::fs::write(home.path().join(".aws/config"), CONFIG).unwrap();
    std::fs::write(home.path().join("keys"), CREDENTIALS).unwrap();
    let home_folder = home.path().to_str().unwrap();
    let environment =
        Environment::from_iter([("HOME", home_folder), ("AWS_SHARED_CREDENTIALS_FILE", "~/keys")]);
    assert!(ProfileFiles::read(&environment).await.unwrap() == profiles());

    let nothing = ProfileFiles::read(&Environment::from_iter([("HOME", "/nowhere")]))
        .await
        .unwrap();
    assert!(
        nothing
            == ProfileFiles {
                config: String::new(),
                credentials: String::new()
            }
    );
    // An empty configuration is a configuration.
    let identity = Identity::choose(&KEYS.into_iter().collect(), &nothing, &spec(None, None))
        .await
        .unwrap();
    assert_eq!(identity.region, "sa-east-1");
}

/// Gives credentials that live as long as asked, and counts; fails from the second time on.
#[derive(Debug)]
struct Once {
    lifetime: Duration,
    asked: std::sync::Arc<AtomicU32>,
}

impl ProvideCredentials for Once {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::ready(match self.asked.fetch_add(1, Ordering::Relaxed) {
            0 => Ok(Credentials::new(
                "AKID",
                "secret",
                None,
                Some(wall_clock() + self.lifetime),
                "test",
            )),
            _ => Err(CredentialsError::provider_error("down")),
        })
    }
}

async fn asked_twice(lifetime: Duration) -> (u32, Result<Credentials, CredentialsError>) {
    let asked = std::sync::Arc::default();
    let source = SharedCredentialsProvider::new(Once {
        lifetime,
        asked: std::sync::Arc::clone(&asked),
    });
    let kept = Kept {
        source,
        kept: Mutex::new(None),
    };
    kept.provide_credentials().await.unwrap();
    let second = kept.provide_credentials().await;
    (asked.load(Ordering::Relaxed), second)
}

#[tokio::test]
async fn credentials_are_kept_until_shortly_before_they_expire() {
    let (asked, second) = asked_twice(RENEWAL_MARGIN * 2).await;
    assert_eq!(asked, 1);
    second.unwrap();
}

#[tokio::test]
async fn credentials_about_to_expire_are_used_on_when_their_source_is_down() {
    let (asked, second) = asked_twice(RENEWAL_MARGIN / 2).await;
    assert_eq!(asked, 2);
    second.unwrap();
}

#[tokio::test]
async fn expired_credentials_are_never_handed_out() {
    let (asked, second) = asked_twice(Duration::ZERO).await;
    assert_eq!(asked, 2);
    second.unwrap_err();
}

#[test]
fn what_is_secret_stays_out_of_debug() {
    let kept = Credentials::new("AKID", "hunter2", None, None, "test");
    let source = SharedCredentialsProvider::new(kept.clone());
    let kept = Kept {
        source,
        kept: Mutex::new(Some((kept, Instant::now()))),
    };
    assert!(!format!("{kept:?}").contains("hunter2"));
}

#[test]
fn what_changes_with_a_login_is_where_the_environment_says() {
    let places = |variables: &[(&str, &str)]| {
        let paths = files(&Environment::from_iter(variables.iter().copied()));
        let paths: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
        paths.join(" ")
    };
    assert_eq!(
        places(&[("HOME", "/home/me")]),
        "/home/me/.aws/config /home/me/.aws/credentials /home/me/.aws/sso/cache /home/me/.aws/login/cache"
    );
    assert_eq!(
        places(&[
            ("HOME", "/home/me"),
            ("AWS_CONFIG_FILE", "~/aws.ini"),
            ("AWS_SHARED_CREDENTIALS_FILE", "/run/keys"),
        ]),
        "/home/me/aws.ini /run/keys /home/me/.aws/sso/cache /home/me/.aws/login/cache"
    );
    assert_eq!(places(&[("AWS_CONFIG_FILE", "/etc/aws")]), "/etc/aws");
}
