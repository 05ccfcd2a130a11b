//! Files as people write them, good and bad, and what they are told.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;

use super::check::check;
use super::{
    AccountSpec, AllowedUsers, Config, DaemonSettings, EcsTask, EiceSettings, HostKeys, Identity, Instance,
    Listen, Mode, PoolSize, Problems, Route, SshRoute, SshSettings, SsmSettings, Target, TunnelName,
    TunnelSpec, default_path,
};

const EXAMPLE: &str = r#"
[defaults]
profile = "dev"
region  = "ap-northeast-1"

[tunnels.prod-db]
listen = "127.0.0.1:15432"         # a bare 15432 listens on 127.0.0.1 and ::1; "unix:PATH" on a Unix socket
target = "rds:prod-db"             # RDS instance or Aurora cluster; host and port come from AWS
route  = { ssm = "bastion" }       # through the SSM agent of the instance named bastion
profile = "prod"

[tunnels.web-rdp]
listen = 13389
target = "ec2:win-1:3389"          # an instance by Name tag, i-…, mi-… or tag:Key=Value
route  = "ssm"                     # straight to that instance

[tunnels.legacy]
listen = 13306
target = "10.1.2.3:3306"
route  = "direct"
"#;

fn parse(text: &str) -> Result<Config, Problems> {
    check(Path::new("config.toml"), text, Some(Path::new("/home/ada")))
}

/// The one tunnel of a file that has only it.
fn tunnel(body: &str) -> TunnelSpec {
    let mut config = parse(&format!("[tunnels.a]\n{body}")).unwrap_or_else(|problems| panic!("{problems}"));
    config.tunnels.remove(0)
}

/// What a person is told of a file, without the file's name.
fn told(text: &str) -> String {
    let problems = parse(text).expect_err("the file has problems");
    problems.to_string().replace("config.toml:", "")
}

fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
    texts
        .iter()
        .map(|text| text.parse().expect("a socket address"))
        .collect()
}

fn spec(name: &str, listen: &[&str], target: Target, route: Route, profile: &str) -> TunnelSpec {
    TunnelSpec {
        name: TunnelName(name.to_owned()),
        listen: Listen::Tcp(addresses(listen)),
        target,
        route,
        account: AccountSpec {
            profile: Some(profile.to_owned()),
            region: Some("ap-northeast-1".to_owned()),
        },
        mode: Mode::Always,
        autostart: true,
        hold: Duration::from_secs(30),
        half_close_grace: Duration::from_secs(30),
        receive_buffer: 256 << 20,
        allow_users: AllowedUsers::default(),
        ssm: SsmSettings::default(),
        ssh: SshSettings::default(),
        eice: EiceSettings::default(),
    }
}

#[test]
fn the_documented_example_says_what_it_means() {
    let win = Instance::Name("win-1".to_owned());
    let bastion = Instance::Name("bastion".to_owned());
    let expected = vec![
        spec(
            "prod-db",
            &["127.0.0.1:15432"],
            Target::Rds {
                id: "prod-db".to_owned(),
            },
            Route::Ssm { via: Some(bastion) },
            "prod",
        ),
        spec(
            "web-rdp",
            &["127.0.0.1:13389", "[::1]:13389"],
            Target::Instance {
                instance: win,
                port: 3389,
            },
            Route::Ssm { via: None },
            "dev",
        ),
        spec(
            "legacy",
            &["127.0.0.1:13306", "[::1]:13306"],
            Target::Host {
                host: "10.1.2.3".to_owned(),
                port: 3306,
            },
            Route::Direct,
            "dev",
        ),
    ];
    let read = parse(EXAMPLE).unwrap();
    assert_eq!(read.path, PathBuf::from("config.toml"));
    assert_eq!(read.tunnels, expected);
}

#[test]
fn a_file_without_tunnels_is_sound() {
    for text in ["", "# nothing yet\n", "[defaults]\n", "[tunnels]\n", "\u{feff}"] {
        assert_eq!(
            parse(text).map(|config| config.tunnels),
            Ok(Vec::new()),
            "{text:?}"
        );
    }
}

#[test]
fn what_the_daemon_does_beside_its_tunnels_is_off_unless_written() {
    let settings = |text: &str| parse(text).unwrap().daemon;
    assert_eq!(settings(""), DaemonSettings::default());
    let text = "[daemon]\nmetrics = \"127.0.0.1:9464\"\ndesktop_notifications = true\n";
    let expected = DaemonSettings {
        metrics: Some(Listen::Tcp(addresses(&["127.0.0.1:9464"]))),
        desktop_notifications: true,
    };
    assert_eq!(settings(text), expected);
    let metrics = |written: &str| settings(&format!("[daemon]\nmetrics = {written}\n")).metrics;
    let both = Listen::Tcp(addresses(&["127.0.0.1:9464", "[::1]:9464"]));
    assert_eq!(metrics("9464"), Some(both));
    let socket = Listen::Unix(PathBuf::from("/home/ada/metrics.sock"));
    assert_eq!(metrics("\"unix:~/metrics.sock\""), Some(socket));
}

#[test]
fn metrics_are_for_this_machine_and_have_an_address_of_their_own() {
    let hint = "  use: metrics = \"127.0.0.1:9464\" or \"unix:/PATH\"\n1 problem";
    for (written, message) in [
        (
            "\"0.0.0.0:9464\"",
            "`0.0.0.0:9464` lets other machines read the metrics",
        ),
        (
            "\"[::]:9464\"",
            "`[::]:9464` lets other machines read the metrics",
        ),
        (
            "true",
            "`metrics` in `[daemon]` is true or false, not a number or text",
        ),
        ("99999", "`99999` is not a port (1 to 65535)"),
        ("\"on\"", "`on` is not an address with a port (1 to 65535)"),
        ("\"unix:x\"", "`unix:x` is not the full path of a socket"),
    ] {
        let text = format!("[daemon]\nmetrics = {written}\n");
        assert_eq!(told(&text), format!("2: {message}\n{hint}"), "{written}");
    }
    let text = "[daemon]\nmetrics = \"127.0.0.1:1\"\n[tunnels.a]\nlisten = 1\ntarget = \"b:1\"\nroute = \"direct\"\n";
    assert_eq!(
        told(text),
        "2: tunnel `a` listens on 127.0.0.1:1 as well\n  use: another address for one of them\n1 problem"
    );
    assert_eq!(
        told("[daemon]\nmetric = 1\n"),
        "2: unknown key `metric` in `[daemon]`: did you mean `metrics`?\n1 problem"
    );
}

#[test]
fn a_tunnel_overrides_what_the_defaults_say() {
    let text = r#"
        [defaults]
        profile = "dev"
        hold = "5s"
        half_close_grace = "2m"
        [tunnels.zebra]
        listen = 1
        target = "a:1"
        route = "direct"
        hold = "0s"
        region = "eu-central-1"
        mode = "always"
        autostart = false
        [tunnels.ant]
        listen = "2"
        target = "a:1"
        route = "direct"
        half_close_grace = "1m 30s"
        profile = "prod admin"
    "#;
    let [zebra, ant] = parse(text).unwrap().tunnels.try_into().unwrap();
    assert_eq!(zebra.name.as_str(), "zebra", "the order is that of the file");
    assert_eq!(
        (zebra.hold, zebra.half_close_grace),
        (Duration::ZERO, Duration::from_secs(120))
    );
    assert_eq!(
        (ant.hold, ant.half_close_grace),
        (Duration::from_secs(5), Duration::from_secs(90))
    );
    assert_eq!(
        (zebra.account.profile.as_deref(), zebra.account.region.as_deref()),
        (Some("dev"), Some("eu-central-1"))
    );
    assert_eq!(
        (ant.account.profile.as_deref(), ant.account.region.as_deref()),
        (Some("prod admin"), None)
    );
    assert_eq!((zebra.autostart, ant.autostart), (false, true));
    assert_eq!(ant.listen, Listen::Tcp(addresses(&["127.0.0.1:2", "[::1]:2"])));
}

#[test]
fn the_settings_of_the_route_ssm_are_the_tunnels_or_the_defaults_or_those_unwritten() {
    let text = r#"
        [defaults]
        sessions = { min = 2, max = 8 }
        keep_alive = "55m"
        message_rate = "unlimited"
        receive_buffer = "1 MiB"
        [tunnels.own]
        listen = 1
        target = "a:1"
        route = { ssm = "bastion" }
        sessions = { max = 16 }
        keep_alive = "off"
        max_session_duration = "8h"
        message_rate = 450
        largest_payload = "1KiB"
        stall_timeout = "1m 30s"
        [tunnels.plain]
        listen = 2
        target = "a:1"
        route = { ssm = "bastion" }
        [tunnels.other]
        listen = 3
        target = "a:1"
        route = "direct"
        [tunnels.table]
        listen = 4
        target = "a:1"
        route = { ssm = "bastion" }
        [tunnels.table.sessions]
        min = 3
    "#;
    let [own, plain, other, table] = parse(text).unwrap().tunnels.try_into().unwrap();
    let unwritten = SsmSettings::default();
    assert_eq!(
        own.ssm,
        SsmSettings {
            sessions: PoolSize { min: 1, max: 16 },
            stall_timeout: Duration::from_secs(90),
            keep_alive: None,
            max_session_duration: Some(Duration::from_secs(8 * 3600)),
            message_rate: NonZeroU32::new(450),
            largest_payload: 1024,
        }
    );
    assert_eq!(
        plain.ssm,
        SsmSettings {
            sessions: PoolSize { min: 2, max: 8 },
            keep_alive: Some(Duration::from_secs(55 * 60)),
            message_rate: None,
            ..unwritten.clone()
        }
    );
    assert_eq!(
        other.ssm, unwritten,
        "the defaults of another route change no tunnel"
    );
    let buffers = [&own, &plain, &other].map(|spec| spec.receive_buffer);
    assert_eq!(buffers, [1 << 20, 1 << 20, 256 << 20]);
    assert_eq!(table.ssm.sessions, PoolSize { min: 3, max: 4 });
}

#[test]
fn the_settings_of_ssh_and_eice_hold_wherever_the_route_goes_by_them() {
    let text = r#"
        [defaults]
        identity = "~/.ssh/id_ed25519"
        host_keys = "strict"
        connections = { min = 2, max = 3 }
        max_tunnel_duration = "30m"
        receive_buffer = "1MiB"
        sessions = { max = 2 }
        [tunnels.database]
        listen = 1
        target = "rds:prod-db"
        route = { ssh = "ec2-user@bastion", over = "eice" }
        identity = "agent"
        max_tunnel_duration = "59m 59s 900ms"
        [tunnels.nested]
        listen = 2
        target = "a:1"
        route = { ssh = "admin@inner", over = { ssh = "ec2-user@bastion", over = { ssm = "relay" } } }
        identity = "instance-connect"
        host_keys = "first-use"
        [tunnels.desktop]
        listen = 3
        target = "ec2:win-1:3389"
        route = "eice"
        [tunnels.plain]
        listen = 4
        target = "a:1"
        route = "direct"
        [tunnels.table]
        listen = 5
        target = "a:1"
        route = { ssh = "admin@inner", over = "direct" }
        [tunnels.table.connections]
        max = 8
    "#;
    let [database, nested, desktop, plain, table] = parse(text).unwrap().tunnels.try_into().unwrap();
    let strict = SshSettings {
        identity: Identity::File(PathBuf::from("/home/ada/.ssh/id_ed25519")),
        host_keys: HostKeys::Strict,
        connections: PoolSize { min: 2, max: 3 },
    };
    assert_eq!(
        database.ssh,
        SshSettings {
            identity: Identity::Agent,
            ..strict.clone()
        }
    );
    assert_eq!(
        database.eice.max_tunnel_duration,
        Some(Duration::from_secs(3599)),
        "AWS knows whole seconds"
    );
    assert_eq!(
        (database.receive_buffer, nested.receive_buffer),
        (1 << 20, 1 << 20)
    );
    assert_eq!(
        nested.ssh,
        SshSettings {
            identity: Identity::InstanceConnect,
            host_keys: HostKeys::FirstUse,
            ..strict.clone()
        }
    );
    assert_eq!(nested.ssm.sessions, PoolSize { min: 1, max: 2 });
    assert_eq!(
        desktop.eice.max_tunnel_duration,
        Some(Duration::from_secs(30 * 60))
    );
    for other in [&database.ssm, &desktop.ssm, &plain.ssm] {
        assert_eq!(*other, SsmSettings::default());
    }
    for other in [&desktop.ssh, &plain.ssh] {
        assert_eq!(*other, SshSettings::default());
    }
    for other in [&nested.eice, &plain.eice] {
        assert_eq!(*other, EiceSettings::default());
    }
    assert_eq!(
        table.ssh,
        SshSettings {
            connections: PoolSize { min: 1, max: 8 },
            ..strict
        }
    );
}

#[test]
fn an_on_demand_tunnel_keeps_a_link_as_long_as_it_or_the_defaults_say() {
    let mode = |defaults: &str, own: &str| {
        let text = format!(
            "[defaults]\n{defaults}\n[tunnels.a]\nlisten = 1\ntarget = \"a:1\"\nroute = \"direct\"\n{own}\n"
        );
        parse(&text).unwrap().tunnels.remove(0).mode
    };
    let on_demand = |seconds| Mode::OnDemand {
        idle_after: Duration::from_secs(seconds),
    };
    assert_eq!(mode("", "mode = \"on-demand\""), on_demand(900));
    assert_eq!(
        mode("idle_after = \"24h\"", "mode = \"on-demand\""),
        on_demand(86_400)
    );
    assert_eq!(
        mode(
            "idle_after = \"24h\"",
            "mode = \"on-demand\"\nidle_after = \"1s\""
        ),
        on_demand(1)
    );
    for own in ["", "mode = \"always\""] {
        assert_eq!(
            mode("idle_after = \"24h\"", own),
            Mode::Always,
            "the defaults ask nothing of other tunnels"
        );
    }
}

#[test]
fn targets_are_read_with_the_port_after_the_last_colon() {
    let id = |id: &str| Instance::Id(id.to_owned());
    let tag = |key: &str, value: &str| Instance::Tag {
        key: key.to_owned(),
        value: value.to_owned(),
    };
    let task = |service: &str, container: Option<&str>| {
        Instance::Task(EcsTask {
            cluster: "main_2".to_owned(),
            service: service.to_owned(),
            container: container.map(str::to_owned),
        })
    };
    let at = |instance, port| Target::Instance { instance, port };
    let host = |host: &str, port| Target::Host {
        host: host.to_owned(),
        port,
    };
    for (text, expected) in [
        (
            "rds:orders-1",
            Target::Rds {
                id: "orders-1".to_owned(),
            },
        ),
        ("ec2:web:1:3389", at(Instance::Name("web:1".to_owned()), 3389)),
        ("ec2:my server:22", at(Instance::Name("my server".to_owned()), 22)),
        ("ec2:i-0123456789abcdef0:22", at(id("i-0123456789abcdef0"), 22)),
        ("ec2:i-0abc1234:22", at(id("i-0abc1234"), 22)),
        (
            "ec2:mi-0123456789abcdef0:65535",
            at(id("mi-0123456789abcdef0"), 65535),
        ),
        ("ec2:tag:Role=db:main=1:5432", at(tag("Role", "db:main=1"), 5432)),
        ("ec2:tag:Empty=:1", at(tag("Empty", ""), 1)),
        ("ecs:main_2/api-1:80", at(task("api-1", None), 80)),
        ("ecs:main_2/API/app:8080", at(task("API", Some("app")), 8080)),
        ("db.example.com:5432", host("db.example.com", 5432)),
        ("my_db:5432", host("my_db", 5432)),
        ("10.1.2.3:3306", host("10.1.2.3", 3306)),
        ("[2001:db8::1]:5432", host("2001:db8::1", 5432)),
    ] {
        assert_eq!(Target::parse(text), Ok(expected), "{text}");
    }
}

#[test]
fn values_print_as_status_shows_them() {
    let body = "listen = 15432\ntarget = \"ec2:tag:Role=web:80\"\nroute = { ssm = \"tag:Role=bastion\" }\n";
    let spec = tunnel(body);
    assert_eq!(spec.listen.addresses(), ["127.0.0.1:15432", "[::1]:15432"]);
    assert_eq!(spec.listen.to_string(), "127.0.0.1:15432, [::1]:15432");
    assert_eq!(spec.target.to_string(), "ec2:tag:Role=web:80");
    assert_eq!(spec.route.to_string(), "ssm via tag:Role=bastion");
    assert_eq!(Route::Ssm { via: None }.to_string(), "ssm");
    assert_eq!(Route::Direct.to_string(), "direct");
}

#[test]
fn routes_by_endpoint_and_ssh_are_read_and_shown_in_one_line() {
    let by_ssh = |user: &str, host: &str, over| {
        let (user, host) = (user.to_owned(), Instance::parse(host).unwrap());
        Route::Ssh(Box::new(SshRoute { user, host, over }))
    };
    let by_ssm = |via: &str| Route::Ssm {
        via: Some(Instance::parse(via).unwrap()),
    };
    let eice = |endpoint: Option<&str>| Route::Eice {
        endpoint: endpoint.map(str::to_owned),
    };
    for (written, expected, shown) in [
        (r#""eice""#, eice(None), "eice"),
        (
            r#"{ eice = "eice-0123456789abcdef0" }"#,
            eice(Some("eice-0123456789abcdef0")),
            "eice eice-0123456789abcdef0",
        ),
        (
            r#"{ ssh = "ec2-user@bastion", over = "eice" }"#,
            by_ssh("ec2-user", "bastion", eice(None)),
            "ssh ec2-user@bastion over eice",
        ),
        (
            r#"{ ssh = "ec2-user@web@home", over = { eice = "eice-0abc" } }"#,
            by_ssh("ec2-user", "web@home", eice(Some("eice-0abc"))),
            "ssh ec2-user@web@home over eice eice-0abc",
        ),
        (
            r#"{ ssh = "ubuntu@i-0123456789abcdef0", over = "direct" }"#,
            by_ssh("ubuntu", "i-0123456789abcdef0", Route::Direct),
            "ssh ubuntu@i-0123456789abcdef0 over direct",
        ),
        (
            r#"{ ssh = "root@mi-0123456789abcdef0", over = "ssm" }"#,
            by_ssh("root", "mi-0123456789abcdef0", Route::Ssm { via: None }),
            "ssh root@mi-0123456789abcdef0 over ssm",
        ),
        (
            r#"{ ssh = "a@b", over = { ssm = "b" } }"#,
            by_ssh("a", "b", Route::Ssm { via: None }),
            "ssh a@b over ssm",
        ),
        (
            r#"{ ssh = "a@b", over = { ssh = "c@tag:Role=d", over = { ssh = "e@f", over = { ssm = "ecs:g/h" } } } }"#,
            by_ssh(
                "a",
                "b",
                by_ssh("c", "tag:Role=d", by_ssh("e", "f", by_ssm("ecs:g/h"))),
            ),
            "ssh a@b over ssh c@tag:Role=d over ssh e@f over ssm via ecs:g/h",
        ),
    ] {
        let spec = tunnel(&format!("listen = 1\ntarget = \"ec2:x:22\"\nroute = {written}\n"));
        assert_eq!(spec.route, expected, "{written}");
        assert_eq!(spec.route.to_string(), shown);
    }
}

#[test]
fn a_plain_endpoint_takes_the_ports_of_ssh_and_rdp_and_addresses_with_its_id() {
    for (target, route) in [
        ("ec2:web:22", r#""eice""#),
        ("ec2:win:3389", r#""eice""#),
        ("ec2:web:22", r#"{ eice = "eice-0abc" }"#),
        ("10.0.1.10:22", r#"{ eice = "eice-0abc" }"#),
        ("[fd00::1]:3389", r#"{ eice = "eice-0abc" }"#),
    ] {
        tunnel(&format!("listen = 1\ntarget = \"{target}\"\nroute = {route}\n"));
    }
}

#[test]
fn a_route_through_the_target_itself_is_the_route_straight_to_it() {
    for (target, via, expected) in [
        ("ecs:main/api:80", "ecs:main/api", "ssm"),
        ("ec2:web:80", "web", "ssm"),
        ("ec2:web:80", "bastion", "ssm via bastion"),
        ("ec2:web:80", "ecs:main/api", "ssm via ecs:main/api"),
        ("rds:prod-db", "ecs:main/api/app", "ssm via ecs:main/api/app"),
    ] {
        let body = format!("listen = 1\ntarget = \"{target}\"\nroute = {{ ssm = \"{via}\" }}\n");
        assert_eq!(tunnel(&body).route.to_string(), expected, "{target} {via}");
    }
}

#[test]
fn an_ecs_name_may_have_255_characters_and_no_more() {
    let parse = |length| Instance::parse(&format!("ecs:main/{}", "s".repeat(length)));
    assert!(parse(255).is_ok());
    assert!(parse(256).is_err());
}

#[test]
fn a_tilde_in_a_socket_path_is_the_home_folder() {
    let spec = tunnel("listen = \"unix:~/run/db.sock\"\ntarget = \"a:1\"\nroute = \"direct\"\n");
    assert_eq!(spec.listen, Listen::Unix(PathBuf::from("/home/ada/run/db.sock")));
    assert_eq!(spec.listen.addresses(), ["unix:/home/ada/run/db.sock"]);
    let homeless = check(
        Path::new("config.toml"),
        "[tunnels.a]\nlisten = \"unix:~/db.sock\"\ntarget = \"a:1\"\nroute = \"direct\"\n",
        None,
    );
    assert_eq!(
        homeless.unwrap_err().to_string(),
        "config.toml:2: `unix:~/db.sock` needs a home folder, and this user has none\n  use: listen = \"unix:/PATH\"\n1 problem"
    );
}

#[test]
fn a_socket_path_may_have_107_bytes_and_no_more() {
    let body = |length: usize| {
        let path = format!("/{}", "s".repeat(length - 1));
        format!("[tunnels.a]\nlisten = \"unix:{path}\"\ntarget = \"a:1\"\nroute = \"direct\"\n")
    };
    assert!(parse(&body(107)).is_ok());
    assert!(
        told(&body(108))
            .contains("is 108 bytes long, and the path of a socket can have 107\n  use: a shorter path")
    );
}

#[test]
fn an_address_open_to_others_needs_allow_remote() {
    for address in ["0.0.0.0:15432", "[::]:15432", "192.168.1.2:15432"] {
        let body = format!("listen = \"{address}\"\ntarget = \"a:1\"\nroute = \"direct\"\n");
        let shut = format!("[tunnels.a]\n{body}");
        let expected = format!(
            "2: `{address}` lets other machines use the tunnel\n  use: listen = 15432, or `allow_remote = true` and `allow_users = \"any\"` as well\n1 problem"
        );
        assert_eq!(told(&shut), expected);
        assert_eq!(told(&format!("{shut}allow_remote = false\n")), expected);
        assert_eq!(
            tunnel(&format!("{body}allow_remote = true\nallow_users = \"any\"\n"))
                .listen
                .addresses(),
            [address]
        );
    }
    for address in ["127.8.9.1:15432", "[::1]:15432"] {
        tunnel(&format!(
            "listen = \"{address}\"\ntarget = \"a:1\"\nroute = \"direct\"\n"
        ));
    }
    let mapped = tunnel("listen = \"[::ffff:127.0.0.1]:15432\"\ntarget = \"a:1\"\nroute = \"direct\"\n");
    assert_eq!(mapped.listen.addresses(), ["127.0.0.1:15432"]);
}

/// The tunnel of a file, and below it these lines.
fn with(lines: &str) -> String {
    format!("[tunnels.a]\nlisten = 1\ntarget = \"a:1\"\nroute = \"direct\"\n{lines}\n")
}

/// Who may use the one tunnel of a file.
fn allowed(text: &str) -> AllowedUsers {
    let mut config = parse(text).unwrap_or_else(|problems| panic!("{problems}"));
    config.tunnels.remove(0).allow_users
}

#[test]
fn a_tunnel_is_for_its_owner_and_the_users_that_are_allowed() {
    let owner_and = |uids: &[u32]| AllowedUsers::OwnerAnd(uids.iter().copied().collect());
    assert_eq!(allowed(&with("")), owner_and(&[]));
    assert_eq!(allowed(&with("allow_users = []")), owner_and(&[]));
    let listed = "allow_users = [\"root\", 1001, \"1002\"]";
    assert_eq!(allowed(&with(listed)), owner_and(&[0, 1001, 1002]));
    assert_eq!(allowed(&with("allow_users = \"any\"")), AllowedUsers::Any);
    let default = |lines: &str| format!("[defaults]\nallow_users = [7]\n{}", with(lines));
    assert_eq!(allowed(&default("")), owner_and(&[7]));
    assert_eq!(allowed(&default("allow_users = []")), owner_and(&[]));
}

#[test]
fn users_that_there_are_not_are_all_told_of() {
    assert_eq!(
        told(&with("allow_users = [\"no-such-user\", 0, \"\", \"--help\", -1]")),
        "5: there is no user `no-such-user` on this machine\n  use: the name of a user, or a uid such as 1001\n\
         5: there is no user `\"\"` on this machine\n  use: the name of a user, or a uid such as 1001\n\
         5: there is no user `--help` on this machine\n  use: the name of a user, or a uid such as 1001\n\
         5: there is no user `-1` on this machine\n  use: the name of a user, or a uid such as 1001\n\
         4 problems"
    );
}

#[test]
fn no_more_names_are_looked_up_than_a_file_can_mean() {
    let names: Vec<_> = (0..70)
        .map(|number| format!("\"no-such-user-{number}\""))
        .collect();
    let told = told(&with(&format!("allow_users = [{}]", names.join(", "))));
    assert!(
        told.contains("`no-such-user-64` is one name too many: 64 are looked up"),
        "{told}"
    );
    assert!(told.ends_with("70 problems"), "{told}");
}

#[test]
fn other_machines_are_let_in_with_whatever_users_they_have() {
    let remote = "allow_remote = true\n";
    let expected = "5: `allow_remote = true` lets other machines in, whose users nobody can tell\n  \
                    use: `allow_users = \"any\"` as well\n1 problem";
    assert_eq!(told(&with(remote)), expected);
    assert_eq!(told(&with(&format!("{remote}allow_users = [0]"))), expected);
    let unknown = told(&with(&format!("{remote}allow_users = \"all\"")));
    assert!(unknown.ends_with("1 problem"), "{unknown}");
    let any = format!("[defaults]\nallow_users = \"any\"\n{}", with(remote));
    assert_eq!(allowed(&any), AllowedUsers::Any);
}

#[test]
fn two_tunnels_cannot_have_one_local_address() {
    for (first, second, meet) in [
        ("15432", "15432", Some("127.0.0.1:15432")),
        ("15432", "\"127.0.0.1:15432\"", Some("127.0.0.1:15432")),
        ("15432", "\"[::1]:15432\"", Some("[::1]:15432")),
        ("15432", "\"0.0.0.0:15432\"", Some("127.0.0.1:15432")),
        (
            "\"0.0.0.0:15432\"",
            "\"127.0.0.1:15432\"",
            Some("127.0.0.1:15432"),
        ),
        ("\"[::]:15432\"", "\"127.0.0.1:15432\"", Some("127.0.0.1:15432")),
        ("\"[::1]:15432\"", "\"[::]:15432\"", Some("[::1]:15432")),
        (
            "\"127.0.0.1:15432\"",
            "\"[::ffff:127.0.0.1]:15432\"",
            Some("127.0.0.1:15432"),
        ),
        (
            "\"unix:/run/a.sock\"",
            "\"unix:/run//a.sock\"",
            Some("unix:/run//a.sock"),
        ),
        ("15432", "15433", None),
        ("\"127.0.0.1:15432\"", "\"127.0.0.2:15432\"", None),
        ("\"127.0.0.1:15432\"", "\"[::1]:15432\"", None),
        ("\"0.0.0.0:15432\"", "\"[::1]:15432\"", None),
        ("\"unix:/run/a.sock\"", "\"unix:/run/b.sock\"", None),
    ] {
        let mut text = String::new();
        for (name, listen) in [("b", first), ("a", second)] {
            write!(text, "[tunnels.{name}]\nlisten = {listen}\nallow_remote = true\nallow_users = \"any\"\ntarget = \"a:1\"\nroute = \"direct\"\n")
                .unwrap();
        }
        let expected = meet.map(|meet| {
            format!("config.toml:8: tunnels `b` and `a` both listen on {meet}\n  use: another `listen` for one of them\n1 problem")
        });
        assert_eq!(
            parse(&text).err().map(|problems| problems.to_string()),
            expected,
            "{first} {second}"
        );
    }
}

#[test]
fn a_bad_value_is_answered_with_a_good_one() {
    const SOUND: [(&str, &str); 3] = [
        ("listen", "15432"),
        ("target", "\"db:5432\""),
        ("route", "{ ssm = \"bastion\" }"),
    ];
    for block in include_str!("bad_values.txt").split("\n\n") {
        let (line, expected) = block
            .trim_end()
            .split_once('\n')
            .expect("a line, and what is said of it");
        let key = line.split([' ', '.']).next();
        let mut text = format!("[tunnels.a]\n{line}\n");
        for (other, sound) in SOUND.iter().filter(|(other, _)| Some(*other) != key) {
            writeln!(text, "{other} = {sound}").unwrap();
        }
        assert_eq!(told(&text), format!("2: {expected}\n1 problem"), "{line}");
    }
}

#[test]
fn a_file_that_is_hardly_toml_is_answered_line_by_line() {
    for block in include_str!("bad_files.txt").split("\n---\n") {
        let (text, expected) = block
            .split_once("\n>>>\n")
            .expect("a file, and what is said of it");
        assert_eq!(told(text), expected.trim_end(), "{text}");
    }
}

#[test]
fn everything_wrong_is_told_at_once_in_the_order_of_the_lines() {
    let text = r#"
[defaults]
proflie = "dev"
hold = "1h"

[tunnels."bad name"]
listen = 15433
target = "rds:prod-db"
route = "ssm"

[tunnels.b]
listen = 15433
port = 5432
target = "db:0"
hold = 3o

[tunnels.c]
listen = 15433
route = "ecie"
mode = "ondemand"

[tunnel.d]
listen = 1
"#;
    let expected = r#"3: unknown key `proflie` in `[defaults]`: did you mean `profile`?
4: `hold = "1h"` is too long
  use: hold = "10m" or less
6: `bad name` cannot be the name of a tunnel
  use: 1 to 63 of a-z A-Z 0-9 . _ - with a letter or digit first
9: `route = "ssm"` ends at an instance, and `rds:prod-db` is none
  use: route = { ssm = "INSTANCE" }, an instance that can reach it
12: tunnels `bad name` and `b` both listen on 127.0.0.1:15433
  use: another `listen` for one of them
13: unknown key `port` in `[tunnels.b]`
  use: one of `listen`, `target`, `route`, `mode`, `autostart`, `allow_remote`, `profile`, `region`, `hold`, `half_close_grace`, `idle_after`, `receive_buffer`, `allow_users`, `sessions`, `stall_timeout`, `keep_alive`, `max_session_duration`, `message_rate`, `largest_payload`, `identity`, `host_keys`, `connections`, `max_tunnel_duration`
14: `db:0` does not end in a port (1 to 65535)
  use: target = "rds:ID", "ec2:INSTANCE:PORT", "ecs:CLUSTER/SERVICE:PORT" or "HOST:PORT"
15: `hold = 3o` lacks the quotes around text
  use: hold = "3o"
18: tunnels `bad name` and `c` both listen on 127.0.0.1:15433
  use: another `listen` for one of them
19: unknown route `ecie`: did you mean `eice`?
  use: route = "ssm", { ssm = "INSTANCE" }, "eice", { ssh = "USER@INSTANCE", over = "eice" } or "direct"
20: unknown mode `ondemand`: did you mean `on-demand`?
  use: mode = "always" or mode = "on-demand"
22: unknown key `tunnel` at the top of the file: did you mean `tunnels`?
12 problems"#;
    assert_eq!(told(text), expected);
}

#[test]
fn a_missing_file_is_answered_with_an_example_that_works() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.toml");
    let problems = Config::load(&path).unwrap_err();
    let [problem] = problems.as_slice() else {
        panic!("{problems}")
    };
    assert_eq!((problem.path.as_path(), problem.line), (path.as_path(), None));
    assert_eq!(problem.message, "there is no such file");
    let example = problem.hint.as_deref().unwrap();
    assert!(
        problems
            .to_string()
            .contains("\n  use: [tunnels.prod-db]\n       listen = 15432\n"),
        "{problems}"
    );

    std::fs::write(&path, example).unwrap();
    let config = Config::load(&path).unwrap();
    assert_eq!(config.tunnels[0].name.as_str(), "prod-db");
    assert_eq!(config.path, path);
}

#[test]
fn a_file_that_is_no_configuration_is_refused_in_words() {
    let folder = tempfile::tempdir().unwrap();
    let told = |path: &Path| {
        let problems = Config::load(path).unwrap_err();
        let [problem] = problems.as_slice() else {
            panic!("{problems}")
        };
        (problem.line, problem.message.clone())
    };
    assert_eq!(
        told(folder.path()),
        (None, "this is a folder, not a file".to_owned())
    );

    let path = folder.path().join("config.toml");
    std::fs::write(&path, b"# one\n# two \xff\n").unwrap();
    assert_eq!(told(&path), (Some(2), "this line is not UTF-8 text".to_owned()));

    std::fs::write(&path, "#\n".repeat(1 << 19)).unwrap();
    assert_eq!(
        Config::load(&path).map(|config| config.tunnels),
        Ok(Vec::new()),
        "1 MiB is allowed"
    );
    std::fs::write(&path, "#\n".repeat(1 << 19) + "\n").unwrap();
    assert_eq!(
        told(&path),
        (
            None,
            "this is larger than 1 MiB, too large for a configuration".to_owned()
        )
    );
}

#[test]
fn the_default_file_is_tunnelds_own() {
    let path = default_path().expect("the user of a test has a home");
    assert!(path.ends_with("tunneld/config.toml"), "{}", path.display());
}

/// Each of these takes minutes if reading it is quadratic in the length of a line or in the number of problems.
#[test]
fn a_large_file_of_nothing_but_problems_is_read_to_its_end() {
    let count = |text: &str| parse(text).unwrap_err().as_slice().len();
    assert_eq!(count(&format!("a = [{}]", "x,".repeat(500_000))), 1);
    assert_eq!(count(&"[tunnels.a]\n".repeat(50_000)), 49_999);
    assert_eq!(count(&"a=1\n".repeat(200_000)), 200_000);
    let doubled = format!("[tunnels.a]\nx=1\n[tunnels.a]\n{}", "x=1\n".repeat(200_000));
    assert_eq!(count(&doubled), 2);
}

fn instances() -> impl Strategy<Value = Instance> {
    let word = "[a-zA-Z0-9_.:/@+-]([a-zA-Z0-9 _.:/@+-]{0,20}[a-zA-Z0-9])?";
    let name = "[a-zA-Z0-9_-]{1,20}";
    let is_name = |name: &String| {
        !["i-", "mi-", "tag:", "ecs:"]
            .iter()
            .any(|start| name.starts_with(start))
    };
    prop_oneof![
        "i-([0-9a-f]{8}|[0-9a-f]{17})".prop_map(Instance::Id),
        "mi-[0-9a-f]{17}".prop_map(Instance::Id),
        (word, word).prop_map(|(key, value)| Instance::Tag { key, value }),
        word.prop_filter("reads as an id, a tag or a task", is_name)
            .prop_map(Instance::Name),
        (name, name, prop::option::of(name)).prop_map(|(cluster, service, container)| {
            Instance::Task(EcsTask {
                cluster,
                service,
                container,
            })
        }),
    ]
}

fn targets() -> impl Strategy<Value = Target> {
    let host = prop_oneof![
        "[a-z][a-z0-9_-]{0,10}(\\.[a-z0-9-]{1,10}){0,3}\\.?",
        any::<std::net::Ipv4Addr>().prop_map(|address| address.to_string()),
        any::<std::net::Ipv6Addr>().prop_map(|address| address.to_string()),
    ];
    prop_oneof![
        "[a-zA-Z][a-zA-Z0-9-]{0,62}".prop_map(|id| Target::Rds { id }),
        (instances(), 1..=u16::MAX).prop_map(|(instance, port)| Target::Instance { instance, port }),
        (host, 1..=u16::MAX).prop_map(|(host, port)| Target::Host { host, port }),
    ]
}

/// Text that comes close to a configuration: pieces of one in any order, with some noise between them.
fn nearly_toml() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        prop::sample::select(vec![
            "[tunnels.a]\n",
            "[tunnels",
            ".b.c]\n",
            "[defaults]\n",
            "[daemon]\n",
            "metrics = ",
            "[[tunnels]]\n",
            "listen = ",
            "target = ",
            "route = ",
            "routes = ",
            "hold = ",
            "mode = ",
            "sessions = ",
            "{ min = ",
            ", max = ",
            "largest_payload = ",
            "\"16KiB\"",
            "99999999999999999999GiB",
            "message_rate = ",
            "{ ssm = ",
            "{ ssh = ",
            "{ eice = ",
            ", over = ",
            "\"a@b\"",
            "\"eice-0abc\"",
            "connections = ",
            "identity = ",
            " }\n",
            "\"",
            "'''",
            "\n",
            "15432\n",
            "\"unix:~/x\"\n",
            "\"[::]:1\"\n",
            "\"rds:a#b\"\n",
            "\"ec2:i-1:\"\n",
            "\"ecs:a/b/:1\"\n",
            "\"tag:=\"\n",
            "99999999999999999999s",
            "0x1F\n",
            "-1\n",
            "[1, 2",
            "é",
            "\u{0}",
            "=",
            "eice",
            ".",
        ])
        .prop_map(str::to_owned),
        "\\PC{0,4}",
    ];
    prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn any_text_is_read_without_panic(text in any::<String>()) {
        let _ = parse(&text);
    }

    #[test]
    fn any_near_configuration_is_read_without_panic(text in nearly_toml()) {
        if let Err(problems) = parse(&text) {
            let lines = u32::try_from(text.split('\n').count()).unwrap();
            prop_assert!(!problems.as_slice().is_empty());
            prop_assert!(problems.as_slice().is_sorted_by_key(|problem| problem.line));
            prop_assert!(problems.as_slice().iter().all(|problem| problem.line.is_some_and(|line| (1..=lines).contains(&line))));
            prop_assert!(problems.as_slice().iter().all(|problem| !problem.message.contains(char::is_control)));
        }
    }

    #[test]
    fn an_instance_reads_as_it_is_shown(instance in instances()) {
        prop_assert_eq!(Instance::parse(&instance.to_string()), Ok(instance));
    }

    #[test]
    fn a_target_reads_as_it_is_shown(target in targets()) {
        prop_assert_eq!(Target::parse(&target.to_string()), Ok(target));
    }

    #[test]
    fn a_route_reads_as_it_is_shown(instance in instances()) {
        let route = Route::Ssm { via: Some(instance.clone()) };
        let shown = route.to_string();
        let text = format!(
            "[tunnels.a]\nlisten = 1\ntarget = \"a:1\"\nroute = {{ ssm = \"{}\" }}\n",
            shown.strip_prefix("ssm via ").unwrap()
        );
        prop_assert_eq!(&parse(&text).unwrap().tunnels[0].route, &route);
    }

    #[test]
    fn a_local_address_reads_as_it_is_shown(address in any::<SocketAddr>()) {
        prop_assume!(address.port() != 0);
        let listen = Listen::parse(&address.to_string(), None).unwrap();
        let [shown] = listen.addresses().try_into().unwrap();
        prop_assert_eq!(Listen::parse(&shown, None), Ok(listen));
    }
}
