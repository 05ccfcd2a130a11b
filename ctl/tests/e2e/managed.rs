//! A machine of one's own with an SSM agent, which EC2 does not know.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use crate::world::{World, free_port};

#[test]
fn a_port_of_a_managed_instance_is_reached_without_asking_ec2() {
    let target = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let (behind, port) = (target.local_addr().unwrap().port(), free_port());
    let account = format!(
        "[[instances]]\nid = \"mi-0123456789abcdef0\"\nname = \"rack7\"\nssm = {{ agent = \"fast\" }}\n\
         ports = {{ 22 = \"127.0.0.1:{behind}\" }}\n"
    );
    let configuration = format!(
        "[tunnels.rack]\nlisten = \"127.0.0.1:{port}\"\ntarget = \"ec2:mi-0123456789abcdef0:22\"\nroute = \"ssm\"\n"
    );
    let world = World::started(&account, &configuration);
    world.ok(&["up", "rack"]);
    let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    client.write_all(b"there").unwrap();
    let (mut server, _) = target.accept().unwrap();
    let mut bytes = [0; 5];
    server.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"there");
    server.write_all(b"back!").unwrap();
    client.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"back!");
    assert_eq!(
        world.tunnel("rack")["link"]["via"],
        "`rack7` (mi-0123456789abcdef0)"
    );
    assert!(!world.emulator.calls().contains_key("ec2:DescribeInstances"));
}
