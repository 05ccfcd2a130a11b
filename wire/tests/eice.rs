//! Requests of the official AWS CLI for connections through an endpoint, recorded on loopback and made by its signer.

use std::time::Duration;

use serde_json::Value;
use tunneld_wire::eice::Opening;

const RECORDED: &str = include_str!("golden/eice-upgrade-requests.json");

#[test]
fn the_query_is_that_of_the_official_client_byte_for_byte() {
    let recorded: Value = serde_json::from_str(RECORDED).unwrap();
    let mut seen = 0;
    for kind in ["signer_vectors", "wire_captures"] {
        for vector in recorded[kind].as_array().unwrap() {
            let inputs = &vector["inputs"];
            let text = |name: &str| inputs[name].as_str().unwrap();
            let opening = Opening {
                endpoint: text("instance_connect_endpoint_id"),
                port: inputs["remote_port"].as_u64().unwrap().try_into().unwrap(),
                address: text("private_ip_address"),
                duration: inputs["max_tunnel_duration"].as_u64().map(Duration::from_secs),
            };
            let url = vector["url"].as_str().unwrap();
            let (before_signature, _) = url.split_once("&X-Amz-Algorithm=").unwrap();
            let ours = format!("wss://{}{}", text("endpoint_dns_name"), opening.target());
            assert_eq!(before_signature, ours, "{}", vector["name"]);
            seen += 1;
        }
    }
    assert_eq!(seen, 15 + 11);
}
