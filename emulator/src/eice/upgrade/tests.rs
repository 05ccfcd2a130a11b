use std::time::UNIX_EPOCH;

use serde_json::Value;

use super::*;
use crate::config::Config;

/// Upgrade requests of the official AWS CLI, recorded on loopback, and signatures that its signer made.
const RECORDED: &str = include_str!("../../../../wire/tests/golden/eice-upgrade-requests.json");

/// An endpoint by the name that the recorded requests went to, and a neighbour by the ids that they name.
const ENDPOINT: &str =
    "[[endpoints]]\nid = \"eice-0123456789abcdef0\"\nfips = true\naddress_type = \"dualstack\"\n";

fn recorded() -> Value {
    serde_json::from_str(RECORDED).expect("JSON")
}

fn text<'v>(value: &'v Value, name: &str) -> &'v str {
    value[name]
        .as_str()
        .unwrap_or_else(|| panic!("{name} in {value}"))
}

/// An account that knows the key of a recorded request, in a region.
fn world_of(inputs: &Value, region: &str) -> World {
    let token = match inputs["session_token"].as_str() {
        Some(token) => format!("session_token = \"{token}\"\n"),
        None => String::new(),
    };
    let account = format!(
        "regions = [\"{region}\"]\n[credentials]\naccess_key_id = \"{}\"\nsecret_access_key = \"{}\"\n{token}\
         {ENDPOINT}\
         [[instances]]\nid = \"i-1\"\nprivate_address = \"10.0.1.23\"\nports = {{ 22 = \"127.0.0.1:1\" }}\n",
        text(inputs, "access_key_id"),
        text(inputs, "secret_access_key")
    );
    World::new(Config::parse(&account).expect("a good configuration"))
}

/// The moment at which a request was made, which `second` can be added to.
fn clock(recorded: &Value) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(recorded["epoch_seconds"].as_u64().expect("a time"))
}

fn request(url: &str, headers: &[(&str, &str)]) -> Parts {
    let mut request = Request::builder().uri(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).expect("a good request").into_parts().0
}

/// The request of a capture, as it was on the wire.
fn captured(capture: &Value) -> Parts {
    let target = text(capture, "request_line").split(' ').nth(1).expect("a target");
    let headers = capture["headers"].as_array().expect("headers");
    let headers: Vec<(&str, &str)> = headers
        .iter()
        .map(|header| {
            (
                header[0].as_str().expect("a name"),
                header[1].as_str().expect("a value"),
            )
        })
        .collect();
    request(target, &headers)
}

/// The one whose CLI was made to sign for another region than the endpoint's.
const FOREIGN: &str = "other-signing-region";

#[tokio::test]
async fn recorded_requests_of_the_official_cli_are_accepted_at_their_time() {
    let recorded = recorded();
    let captures = recorded["wire_captures"].as_array().expect("captures");
    assert_eq!(captures.len(), 11);
    for capture in captures {
        let inputs = &capture["inputs"];
        let world = world_of(inputs, "eu-west-1");
        let parts = captured(capture);
        Handshake::of(&parts).unwrap_or_else(|refused| panic!("{}: {refused:?}", text(capture, "name")));
        let checked = check(&world, &parts, clock(capture));
        if text(capture, "name") == FOREIGN {
            let denial = checked.err().expect("signed for another region");
            assert!(denial.message.contains("valid region"), "{denial:?}");
            continue;
        }
        let opening = checked.unwrap_or_else(|denial| panic!("{}: {denial:?}", text(capture, "name")));
        let duration = inputs["max_tunnel_duration"].as_u64();
        assert_eq!(opening.duration.map(|duration| duration.as_secs()), duration);
        assert_eq!(
            u64::from(opening.port),
            inputs["remote_port"].as_u64().expect("a port")
        );
        let address: IpAddr = text(inputs, "private_ip_address").parse().expect("an address");
        assert_eq!(opening.address, address);
        let is_there = opening.port == 22 && address.is_ipv4();
        assert_eq!(opening.target.is_some(), is_there);
    }
}

#[tokio::test]
async fn every_signature_of_the_official_signer_is_good() {
    let recorded = recorded();
    for kind in ["signer_vectors", "wire_captures"] {
        for vector in recorded[kind].as_array().expect("vectors") {
            let inputs = &vector["inputs"];
            let region = text(inputs, "region").to_owned();
            let world = world_of(inputs, &region);
            let host = text(inputs, "endpoint_dns_name");
            let url = text(vector, "url").split_once(host).expect("the host").1;
            let parts = request(url, &[("host", host)]);
            let expected = Expected {
                service: "ec2-instance-connect",
                regions: slice::from_ref(&region),
                skew: SKEW,
            };
            let verified = sigv4::verify_presigned(&parts, &world.keys, &expected, clock(vector));
            verified.unwrap_or_else(|rejection| panic!("{}: {rejection:?}", text(vector, "name")));
        }
    }
}

/// The plain capture after a change to its target and host, at some seconds after it was made.
fn changed(change: impl Fn(&str) -> String, host: Option<&str>, seconds: i64) -> Result<Opening, Denial> {
    let recorded = recorded();
    let capture = &recorded["wire_captures"][3];
    assert_eq!(text(capture, "name"), "session-token");
    let world = world_of(&capture["inputs"], "eu-west-1");
    let parts = captured(capture);
    let target = change(parts.uri.path_and_query().expect("a target").as_str());
    let own = text(&capture["inputs"], "endpoint_dns_name");
    let moved = Duration::from_secs(seconds.unsigned_abs());
    let now = match seconds {
        0.. => clock(capture) + moved,
        _ => clock(capture) - moved,
    };
    check(&world, &request(&target, &[("host", host.unwrap_or(own))]), now)
}

#[tokio::test]
async fn a_signature_is_good_for_a_minute_and_for_one_request_alone() {
    let same = |target: &str| target.to_owned();
    for seconds in [-60, 0, 60] {
        assert!(changed(same, None, seconds).is_ok(), "{seconds}");
    }
    for seconds in [-61, 61] {
        let denial = changed(same, None, seconds).err().expect("too far away");
        assert_eq!(denial.status, StatusCode::FORBIDDEN, "{denial:?}");
    }
    type Change = fn(&str) -> String;
    let changes: [(&str, Change); 7] = [
        ("InvalidSignatureException", |target| {
            target.replace("10.0.1.23", "10.0.1.24")
        }),
        ("InvalidSignatureException", |target| {
            format!("{target}&maxTunnelDuration=60")
        }),
        ("InvalidSignatureException", |target| {
            target.replace("X-Amz-Expires=60", "X-Amz-Expires=61")
        }),
        ("IncompleteSignatureException", |target| {
            target.replace("&X-Amz-Expires=60", "")
        }),
        ("IncompleteSignatureException", |target| {
            format!("{target}&X-Amz-Date=20261124T025017Z")
        }),
        ("UnrecognizedClientException", |target| {
            target.replace("X-Amz-Security-Token=", "X-Amz-Security-Token=x")
        }),
        ("MissingAuthenticationTokenException", |target| {
            target.split("&X-Amz").next().expect("a first part").to_owned()
        }),
    ];
    for (code, change) in changes {
        let denial = changed(change, None, 0).err().expect("it is another request");
        assert_eq!((denial.status, denial.code), (StatusCode::FORBIDDEN, code));
    }
    // The endpoint has another name too, for which the signature was not made.
    let fips = "eice-0123456789abcdef0.b67b86ba.fips.ec2-instance-connect-endpoint.eu-west-1.amazonaws.com";
    let denial = changed(same, Some(fips), 0).err().expect("another host");
    assert_eq!(denial.code, "InvalidSignatureException");
    let denial = changed(same, Some("localhost"), 0)
        .err()
        .expect("no such endpoint");
    assert_eq!(denial.status, StatusCode::NOT_FOUND);
}
