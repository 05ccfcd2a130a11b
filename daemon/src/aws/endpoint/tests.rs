//! Endpoints of the emulated EC2.

use std::sync::Arc;

use tunneld_emulator::{Config, Emulator, EndpointState};

use super::*;
use crate::aws::Aws;
use crate::config::AccountSpec;

const V4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 1, 10));
const V6: IpAddr = IpAddr::V6(std::net::Ipv6Addr::LOCALHOST);
const IN_VPC: EndpointOf<'_> = EndpointOf::Vpc {
    vpc: "vpc-1",
    subnet: "subnet-1",
};

fn endpoint(digit: u8, subnet: &str, more: &str) -> String {
    format!("[[endpoints]]\nid = \"eice-{digit}\"\nvpc = \"vpc-1\"\nsubnet = \"{subnet}\"\n{more}\n")
}

async fn account(text: &str, variables: &[(&'static str, &str)]) -> (Emulator, Arc<Account>) {
    let emulator = Emulator::start(Config::parse(text).unwrap()).await.unwrap();
    let mut environment = emulator.environment();
    environment.extend(variables.iter().map(|(name, value)| (*name, (*value).to_owned())));
    let aws = Aws::new(Environment::from_iter(environment)).unwrap();
    let account = aws.account(&AccountSpec::default()).await.unwrap();
    (emulator, account)
}

#[tokio::test]
async fn the_endpoint_of_the_targets_subnet_is_chosen_over_all_pages() {
    let text = "page_size = 1\n".to_owned()
        + &endpoint(1, "subnet-2", "")
        + &endpoint(2, "subnet-1", "state = \"delete-in-progress\"")
        + &endpoint(3, "subnet-1", "state = \"update-failed\"")
        + "[[endpoints]]\nid = \"eice-9\"\nvpc = \"vpc-2\"\nsubnet = \"subnet-1\"\n";
    let (_emulator, account) = account(&text, &[]).await;
    let id = async |vpc, subnet| {
        let found = account.find_endpoint(EndpointOf::Vpc { vpc, subnet }).await;
        found.unwrap().id
    };
    assert_eq!(id("vpc-1", "subnet-1").await, "eice-3");
    assert_eq!(id("vpc-1", "subnet-7").await, "eice-1");
    assert_eq!(id("vpc-2", "subnet-7").await, "eice-9");
    let named = account.find_endpoint(EndpointOf::Id("eice-1")).await.unwrap();
    assert_eq!(named.id, "eice-1");
}

#[tokio::test]
async fn what_is_not_there_or_takes_no_connections_is_told_in_words() {
    let (emulator, account) = account(&endpoint(1, "subnet-1", ""), &[]).await;
    let failure = account.find_endpoint(EndpointOf::Id("eice-2")).await.unwrap_err();
    assert_eq!(failure.reason(), Reason::NotFound);
    assert_eq!(
        failure.to_string(),
        "cannot look up Instance Connect Endpoint `eice-2`"
    );

    let elsewhere = EndpointOf::Vpc {
        vpc: "vpc-2",
        subnet: "subnet-2",
    };
    let failure = account.find_endpoint(elsewhere).await.unwrap_err();
    assert_eq!(
        failure.to_string(),
        "there is no Instance Connect Endpoint in `vpc-2`"
    );
    assert!(failure.hints().iter().any(|hint| hint
        == "create one: aws ec2 create-instance-connect-endpoint --subnet-id subnet-2 --region ap-northeast-1"));

    for (state, reason, remedy) in [
        (
            EndpointState::CreateInProgress,
            Reason::Unreachable,
            Remedy::Retry,
        ),
        (EndpointState::DeleteInProgress, Reason::NotFound, Remedy::Fix),
        (EndpointState::CreateFailed, Reason::NotFound, Remedy::Fix),
    ] {
        assert!(emulator.set_endpoint_state("eice-1", state));
        for wanted in [IN_VPC, EndpointOf::Id("eice-1")] {
            let failure = account.find_endpoint(wanted).await.unwrap_err();
            assert_eq!((failure.reason(), failure.remedy()), (reason, &remedy));
            let text = failure.to_string();
            assert!(
                text.starts_with("the endpoint `eice-1` takes no connections: its state is "),
                "{text}"
            );
        }
    }
}

#[tokio::test]
async fn the_name_follows_fips_and_dual_stack_and_is_never_another_than_was_asked_for() {
    const IPV4: &str = "eice-1.b67b86ba.ec2-instance-connect-endpoint.ap-northeast-1.amazonaws.com";
    const BOTH: &str = "eice-1.b67b86ba.ec2-instance-connect-endpoint.ap-northeast-1.api.aws";
    let fips = ("AWS_USE_FIPS_ENDPOINT", "true");
    let dualstack = ("AWS_USE_DUALSTACK_ENDPOINT", "true");
    let with_fips = |name: &str| name.replace(".b67b86ba.", ".b67b86ba.fips.");
    for (endpoint_has, asked, address, expected) in [
        ("", &[][..], V4, Some(IPV4.to_owned())),
        ("", &[], V6, Some(IPV4.to_owned())),
        ("address_type = \"dualstack\"", &[], V4, Some(IPV4.to_owned())),
        ("address_type = \"dualstack\"", &[], V6, Some(BOTH.to_owned())),
        (
            "address_type = \"dualstack\"",
            &[dualstack],
            V4,
            Some(BOTH.to_owned()),
        ),
        ("fips = true", &[fips], V4, Some(with_fips(IPV4))),
        (
            "address_type = \"dualstack\"\nfips = true",
            &[fips, dualstack],
            V4,
            Some(with_fips(BOTH)),
        ),
        ("", &[fips], V4, None),
        ("", &[dualstack], V4, None),
        ("fips = true", &[fips, dualstack], V4, None),
    ] {
        let (_emulator, account) = account(&endpoint(1, "subnet-1", endpoint_has), asked).await;
        let found = account.find_endpoint(IN_VPC).await.unwrap();
        let host = account.host_of(&found, address);
        assert_eq!(host.as_ref().ok(), expected.as_ref(), "{endpoint_has} {asked:?}");
        if let Err(failure) = host {
            assert_eq!(
                (failure.reason(), failure.remedy()),
                (Reason::Invalid, &Remedy::Fix)
            );
            assert_eq!(failure.hints().len(), 1, "{failure}");
        }
    }
}

#[tokio::test]
async fn an_instance_tells_where_it_stands() {
    let text = "[[instances]]\nid = \"i-0123456789abcdef0\"\nprivate_address = \"10.0.1.10\"\n\
                public_address = \"203.0.113.10\"\nipv6_address = \"2001:db8::10\"\nvpc = \"vpc-1\"\n\
                subnet = \"subnet-1\"\navailability_zone = \"ap-northeast-1c\"\n";
    let (_emulator, account) = account(text, &[]).await;
    let instance = crate::config::Instance::Id("i-0123456789abcdef0".to_owned());
    let found = account.find_instance(&instance).await.unwrap();
    let own = |text: &str| Some(text.to_owned());
    let expected = crate::aws::Place {
        public_address: own("203.0.113.10"),
        ipv6_address: own("2001:db8::10"),
        vpc: own("vpc-1"),
        subnet: own("subnet-1"),
        availability_zone: own("ap-northeast-1c"),
        platform: None,
    };
    assert_eq!(found.place(), Some(&expected));
}
