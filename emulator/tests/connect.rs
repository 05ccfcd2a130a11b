//! What the APIs tell of networks and endpoints, and the public keys that are pushed to instances.

mod common;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use common::{Caller, example, plain};
use tunneld_emulator::{Conditions, Config, ConnectConditions, Emulator};

const BASTION: &str = "i-0123456789abcdef0";
const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f";

#[tokio::test]
async fn instances_have_addresses_zones_and_networks() {
    let emulator = example("").await;
    let caller = Caller::of(&emulator);
    let answer = caller.ec2(&format!("InstanceId.1={BASTION}")).await;
    for (element, text) in [
        ("privateIpAddress", "10.0.1.10"),
        ("ipAddress", "203.0.113.10"),
        ("ipv6Address", "2001:db8::10"),
        ("availabilityZone", "ap-northeast-1a"),
        ("vpcId", "vpc-0123456789abcdef0"),
        ("subnetId", "subnet-0123456789abcdef0"),
        ("groupId", "sg-0123456789abcdef0"),
    ] {
        assert_eq!(answer.texts(element), [text], "{element}");
    }
    for filter in [
        "vpc-id",
        "subnet-id",
        "availability-zone",
        "ip-address",
        "ipv6-address",
    ] {
        let none = caller
            .ec2(&format!("Filter.1.Name={filter}&Filter.1.Value.1=x"))
            .await;
        assert!(none.texts("instanceId").is_empty(), "{filter}");
    }
    let answer = caller.rds("DescribeDBInstances", "").await;
    assert_eq!(answer.texts("VpcId"), ["vpc-0123456789abcdef0"]);
}

#[tokio::test]
async fn endpoints_are_found_by_id_network_and_state_in_pages() {
    let mut account = String::new();
    for (number, state) in [
        "create-in-progress",
        "create-complete",
        "create-failed",
        "delete-in-progress",
        "delete-complete",
        "delete-failed",
        "update-in-progress",
        "update-complete",
        "update-failed",
    ]
    .iter()
    .enumerate()
    {
        account += &format!(
            "[[endpoints]]\nid = \"eice-{number}\"\nstate = \"{state}\"\nvpc = \"vpc-{}\"\nsubnet = \"subnet-{number}\"\n",
            number % 2
        );
    }
    let config = Config::parse(&account).expect("a good configuration");
    let emulator = Emulator::start(config).await.expect("the emulator starts");
    let caller = Caller::of(&emulator);
    let find = async |parameters: &str| {
        caller
            .ec2_call("DescribeInstanceConnectEndpoints", parameters)
            .await
    };
    // As the official client asks.
    let usable = find(
        "Filter.1.Name=state&Filter.1.Value.1=create-complete&Filter.1.Value.2=update-in-progress\
         &Filter.1.Value.3=update-failed&Filter.1.Value.4=update-complete\
         &Filter.2.Name=vpc-id&Filter.2.Value.1=vpc-1",
    )
    .await;
    assert_eq!(usable.texts("instanceConnectEndpointId"), ["eice-1", "eice-7"]);
    let by_id = find("InstanceConnectEndpointId.1=eice-3").await;
    assert_eq!(by_id.texts("state"), ["delete-in-progress"]);
    let by_subnet = find("Filter.1.Name=subnet-id&Filter.1.Value.1=subnet-8").await;
    assert_eq!(by_subnet.texts("instanceConnectEndpointId"), ["eice-8"]);
    let (mut seen, mut token) = (0, String::new());
    loop {
        let page = find(&format!("MaxResults=4{token}")).await;
        seen += page.texts("instanceConnectEndpointId").len();
        match page.texts("nextToken").first() {
            Some(next) => token = format!("&NextToken={next}"),
            None => break,
        }
    }
    assert_eq!(seen, 9);
    for (parameters, code) in [
        (
            "InstanceConnectEndpointId.1=eice-99",
            "InvalidInstanceConnectEndpointId.NotFound",
        ),
        ("MaxResults=51", "InvalidParameterValue"),
        (
            "Filter.1.Name=colour&Filter.1.Value.1=red",
            "InvalidParameterValue",
        ),
    ] {
        assert_eq!(find(parameters).await.error(), (400, code.to_owned()));
    }
}

#[tokio::test]
async fn an_endpoint_tells_all_its_names() {
    let emulator = example("").await;
    let answer = Caller::of(&emulator)
        .ec2_call("DescribeInstanceConnectEndpoints", "")
        .await;
    let (id, rest) = (
        "eice-0123456789abcdef0.b67b86ba",
        "ec2-instance-connect-endpoint.ap-northeast-1",
    );
    let (ipv4, both) = (
        format!("{id}.{rest}.amazonaws.com"),
        format!("{id}.{rest}.api.aws"),
    );
    // The names for IPv4 stand alone too, for older clients.
    assert_eq!(answer.texts("dnsName"), [&ipv4, &ipv4, &both]);
    let (ipv4, both) = (
        format!("{id}.fips.{rest}.amazonaws.com"),
        format!("{id}.fips.{rest}.api.aws"),
    );
    assert_eq!(answer.texts("fipsDnsName"), [&ipv4, &ipv4, &both]);
    assert_eq!(answer.texts("ipAddressType"), ["dualstack"]);
}

#[tokio::test]
async fn networks_are_those_that_something_is_in() {
    let config = Config::parse(
        "[[instances]]\nid = \"i-0123456789abcdef0\"\nvpc = \"vpc-1\"\nsubnet = \"subnet-1\"\n\
         security_groups = [\"sg-1\"]\n\
         [[endpoints]]\nid = \"eice-1\"\nvpc = \"vpc-2\"\nsubnet = \"subnet-2\"\nsecurity_groups = [\"sg-2\"]\n",
    )
    .expect("a good configuration");
    let emulator = Emulator::start(config).await.expect("the emulator starts");
    let caller = Caller::of(&emulator);
    for (operation, element, one, two) in [
        ("DescribeVpcs", "vpcId", "vpc-1", "vpc-2"),
        ("DescribeSubnets", "subnetId", "subnet-1", "subnet-2"),
        ("DescribeSecurityGroups", "groupId", "sg-1", "sg-2"),
    ] {
        assert_eq!(caller.ec2_call(operation, "").await.texts(element), [one, two]);
        let filter = "Filter.1.Name=vpc-id&Filter.1.Value.1=vpc-2";
        assert_eq!(caller.ec2_call(operation, filter).await.texts(element), [two]);
    }
    let unknown = caller.ec2_call("DescribeSubnets", "SubnetId.1=subnet-9").await;
    assert_eq!(unknown.error(), (400, "InvalidSubnetID.NotFound".to_owned()));
}

#[tokio::test]
async fn the_console_holds_the_host_key() {
    let emulator = example("").await;
    let caller = Caller::of(&emulator);
    let parameters = format!("InstanceId={BASTION}&Latest=true");
    let answer = caller.ec2_call("GetConsoleOutput", &parameters).await;
    let output = BASE64_STANDARD.decode(answer.texts("output")[0]).expect("base64");
    let text = String::from_utf8(output).expect("text");
    assert!(
        text.starts_with("cloud-init is done\n-----BEGIN SSH HOST KEY KEYS-----\nssh-ed25519 "),
        "{text}"
    );
    let unknown = caller
        .ec2_call("GetConsoleOutput", "InstanceId=i-0123456789abcdef9")
        .await;
    assert_eq!(unknown.error(), (400, "InvalidInstanceID.NotFound".to_owned()));
}

#[tokio::test]
async fn a_pushed_key_is_there_for_its_user_until_it_expires() {
    let emulator = example("").await;
    let caller = Caller::of(&emulator);
    let answer = caller.push_key(BASTION, "ec2-user", KEY).await;
    assert_eq!(answer.json()["Success"], true, "{answer:?}");
    assert_eq!(emulator.authorized_keys(BASTION, "ec2-user"), [KEY]);
    // Nobody is by that name there, which the service does not know.
    assert_eq!(caller.push_key(BASTION, "root", KEY).await.status, 200);
    assert!(emulator.authorized_keys(BASTION, "root").is_empty());
    let path = format!("/_emulator/keys?instance={BASTION}&user=ec2-user");
    let asked = plain(emulator.address(), "GET", &path, &[], "").await;
    assert_eq!(asked.body, format!("{KEY}\n"));

    emulator.set_conditions(Conditions {
        connect: ConnectConditions {
            key_lifetime: std::time::Duration::from_millis(1),
            ..ConnectConditions::default()
        },
        ..Conditions::default()
    });
    caller.push_key(BASTION, "ubuntu", KEY).await;
    tokio::time::timeout(common::client::PATIENCE, async {
        while !emulator.authorized_keys(BASTION, "ubuntu").is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("it expires");
}

#[tokio::test]
async fn a_key_is_refused_as_the_service_does() {
    let emulator = example("").await;
    let caller = Caller::of(&emulator);
    for (instance, user, key, refusal) in [
        ("i-0", "ec2-user", KEY, (400, "InvalidArgsException")),
        (BASTION, "no user", KEY, (400, "InvalidArgsException")),
        (
            BASTION,
            "ec2-user",
            "ssh-ed25519 AAAA",
            (400, "InvalidArgsException"),
        ),
        (
            "i-0123456789abcdef9",
            "ec2-user",
            KEY,
            (404, "EC2InstanceNotFoundException"),
        ),
    ] {
        let (status, code) = caller.push_key(instance, user, key).await.error();
        assert_eq!((status, code.as_str()), refusal, "{instance} {user}");
    }
    for (fault, refusal) in [
        ("send-key-denied", (403, "AuthException")),
        ("throttle-send-key", (429, "ThrottlingException")),
        ("send-key-unavailable", (503, "EC2InstanceUnavailableException")),
    ] {
        emulator
            .faults()
            .set(&format!("{fault}*1"))
            .expect("a known fault");
        let (status, code) = caller.push_key(BASTION, "ec2-user", KEY).await.error();
        assert_eq!((status, code.as_str()), refusal);
    }
    let config = Config::parse("[[instances]]\nid = \"i-0123456789abcdef0\"\nstate = \"stopped\"\n")
        .expect("a good configuration");
    let emulator = Emulator::start(config).await.expect("the emulator starts");
    let answer = Caller::of(&emulator).push_key(BASTION, "ec2-user", KEY).await;
    assert_eq!(
        answer.error(),
        (400, "EC2InstanceStateInvalidException".to_owned())
    );
    assert_eq!(
        emulator.calls(),
        [("ec2-instance-connect:SendSSHPublicKey".to_owned(), 1)].into()
    );
}
