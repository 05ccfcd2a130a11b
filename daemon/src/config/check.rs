//! From the file as written to the [`Config`]: every value read, every rule that joins two of them applied, every
//! problem on the way collected.

use std::fs;
use std::io::{self, Read};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::file::{File, HALF_CLOSE_GRACE, HOLD, IDLE_AFTER, RECEIVE_BUFFER, Settings, Tunnel};
use super::grammar::{self, WrittenMode};
use super::listen::Claims;
use super::problem::{Findings, Problem, Problems, Refusal, shown};
use super::route::OF_SHARING;
use super::users::Accounts;
use super::{
    AccountSpec, AllowedUsers, Config, Listen, Mode, Route, Target, TunnelName, TunnelSpec, eice, quantity,
    reach, ssh, ssm,
};

/// How long a connection waits for a link unless told otherwise: long enough for a resumed session and for most
/// reconnects, short enough that a person still waits with it.
const DEFAULT_HOLD: Duration = Duration::from_secs(30);

/// The longest hold: nobody waits ten minutes for a connection, and a held one occupies a socket.
const LONGEST_HOLD: Duration = Duration::from_secs(600);

/// How long a client's end of sending is held back after the far end's last byte, unless told otherwise: queries whose
/// first row takes longer are rare among clients that half-close.
const DEFAULT_HALF_CLOSE_GRACE: Duration = Duration::from_secs(30);

/// The shortest such grace: with less, a client that half-closes would lose the answer that is still on its way.
const SHORTEST_HALF_CLOSE_GRACE: Duration = Duration::from_secs(1);

/// The longest such grace: an hour covers a slow report, and ends what nobody comes back for.
const LONGEST_HALF_CLOSE_GRACE: Duration = Duration::from_secs(3600);

/// How long an on-demand tunnel keeps a link without a connection, unless told otherwise: a person who comes back to a
/// query finds the link, and AWS ends sessions that are idle for longer by itself, after 20 minutes unless told otherwise.
const DEFAULT_IDLE_AFTER: Duration = Duration::from_secs(15 * 60);

/// The shortest time without a connection: with less, a link would end between two connections of one program.
const SHORTEST_IDLE_AFTER: Duration = Duration::from_secs(1);

/// The longest such time: what is kept for longer than a day is not on demand.
const LONGEST_IDLE_AFTER: Duration = Duration::from_secs(24 * 3600);

/// What waits in memory for a client that does not read, unless told otherwise: the largest result that anybody pages
/// through, and four of them fill what the daemon has for all.
const DEFAULT_RECEIVE_BUFFER: usize = 256 << 20;

/// What a receive buffer may hold: below it, every result that is read with pauses would be reset; above it, one
/// client could take the memory that all tunnels of the daemon share.
const RECEIVE_BUFFERS: RangeInclusive<usize> = 1 << 20..=1 << 30;

/// The largest file that is read: a thousand tunnels take a tenth of it, and whatever is larger is not a configuration.
const LARGEST_FILE: u64 = 1 << 20;

/// What a first configuration looks like.
const MINIMAL_EXAMPLE: &str = r#"[tunnels.prod-db]
listen = 15432
target = "rds:prod-db"
route  = { ssm = "bastion" }"#;

/// Turns the text of a file into a configuration; `home` stands for `~`.
pub(super) fn check(path: &Path, text: &str, home: Option<&Path>) -> Result<Config, Problems> {
    let mut findings = Findings::new(path, text);
    let file = File::read(text, &mut findings);
    let mut accounts = Accounts::default();
    let defaults = Checked::of(&file.defaults, home, &mut accounts, &mut findings);
    let defaults = Arc::new(Defaults(defaults));
    let mut check = Check {
        home,
        accounts,
        ..Check::against(Arc::clone(&defaults))
    };
    let tunnels = file
        .tunnels
        .iter()
        .filter_map(|tunnel| check.tunnel(tunnel, &mut findings))
        .collect();
    let daemon = file.daemon.check(&check.claims, home, &mut findings);
    findings.finish(Config {
        path: path.to_owned(),
        daemon,
        tunnels,
        defaults,
    })
}

/// What a tunnel has that does not say otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Defaults(Checked);

/// What a tunnel is checked against.
pub(super) struct Check<'h> {
    defaults: Arc<Defaults>,
    claims: Claims,
    accounts: Accounts,
    home: Option<&'h Path>,
}

impl Check<'_> {
    /// A check against these defaults and no other tunnel.
    pub(super) fn against(defaults: Arc<Defaults>) -> Self {
        Self {
            defaults,
            claims: Claims::default(),
            accounts: Accounts::default(),
            home: None,
        }
    }

    pub(super) fn tunnel(&mut self, written: &Tunnel, findings: &mut Findings<'_>) -> Option<TunnelSpec> {
        let name = findings.accept(&written.name, TunnelName::parse(written.name.get_ref()));
        let listen = written.listen.as_ref().and_then(|text| {
            let listen = findings.accept(text, Listen::parse(text.get_ref(), self.home))?;
            let allow_remote = written
                .allow_remote
                .as_ref()
                .is_some_and(|allow| *allow.get_ref());
            if !allow_remote {
                findings.accept(text, refuse_remote(&listen));
            }
            findings.accept(text, self.claims.claim(&shown(written.name.get_ref()), &listen));
            Some(listen)
        });
        let target = written.target.as_ref();
        let target = target.and_then(|text| findings.accept(text, Target::parse(text.get_ref())));
        let route = written.route.as_ref().and_then(|text| {
            let route = findings.accept(text, Route::parse(text.get_ref()))?;
            let Some(target) = &target else {
                return Some(route);
            };
            let route = match target {
                Target::Instance { instance, .. } => reach::straight(route, instance),
                Target::Rds { .. } | Target::Host { .. } => route,
            };
            findings.accept(text, reach::refuse_dead_end(&route, target));
            Some(route)
        });
        let mode = match &written.mode {
            Some(text) => findings.accept(text, grammar::mode(text.get_ref())),
            None => Some(WrittenMode::Always),
        };
        if let (Some(WrittenMode::Always), Some(text)) = (mode, &written.settings.idle_after) {
            let message = "`idle_after` is for on-demand tunnels, and this one is connected while it is up";
            let refusal = Refusal::new(message).instead("no `idle_after`, or `mode = \"on-demand\"` as well");
            findings.push(text.span().start, refusal);
        }
        let own = Checked::of(&written.settings, self.home, &mut self.accounts, findings);
        let Defaults(defaults) = &*self.defaults;
        if let Some(route) = &route {
            refuse_misplaced(&written.settings, route, findings);
        }
        let allow_users = own.allow_users.as_ref().or(defaults.allow_users.as_ref());
        let allow_users = allow_users.cloned().unwrap_or_default();
        if let Some(allow_remote) = written.allow_remote.as_ref().filter(|flag| *flag.get_ref())
            // Of users that were refused already it is not known who they are.
            && own.allow_users.is_some() == written.settings.allow_users.is_some()
        {
            findings.accept(allow_remote, refuse_unknown_users(&allow_users));
        }

        let route = route?;
        // What the defaults say of another route is no change of this tunnel.
        let [by_ssm, by_ssh, by_eice] = ways(&route);
        Some(TunnelSpec {
            name: name?,
            listen: listen?,
            target: target?,
            allow_users,
            receive_buffer: Some(own.receive_buffer.or(defaults.receive_buffer))
                .filter(|_| by_ssm || by_ssh)
                .flatten()
                .unwrap_or(DEFAULT_RECEIVE_BUFFER),
            ssm: Some(own.ssm.over(&defaults.ssm))
                .filter(|_| by_ssm)
                .unwrap_or_default(),
            ssh: Some(own.ssh.over(&defaults.ssh))
                .filter(|_| by_ssh)
                .unwrap_or_default(),
            eice: Some(own.eice.over(&defaults.eice))
                .filter(|_| by_eice)
                .unwrap_or_default(),
            route,
            account: AccountSpec {
                profile: own.profile.or_else(|| defaults.profile.clone()),
                region: own.region.or_else(|| defaults.region.clone()),
            },
            mode: match mode? {
                WrittenMode::Always => Mode::Always,
                WrittenMode::OnDemand => Mode::OnDemand {
                    idle_after: own
                        .idle_after
                        .or(defaults.idle_after)
                        .unwrap_or(DEFAULT_IDLE_AFTER),
                },
            },
            autostart: written
                .autostart
                .as_ref()
                .is_none_or(|autostart| *autostart.get_ref()),
            hold: own.hold.or(defaults.hold).unwrap_or(DEFAULT_HOLD),
            half_close_grace: own
                .half_close_grace
                .or(defaults.half_close_grace)
                .unwrap_or(DEFAULT_HALF_CLOSE_GRACE),
        })
    }
}

/// The settings of a section, read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Checked {
    profile: Option<String>,
    region: Option<String>,
    hold: Option<Duration>,
    half_close_grace: Option<Duration>,
    idle_after: Option<Duration>,
    receive_buffer: Option<usize>,
    allow_users: Option<AllowedUsers>,
    ssm: ssm::Checked,
    ssh: ssh::Checked,
    eice: eice::Checked,
}

impl Checked {
    fn of(
        written: &Settings,
        home: Option<&Path>,
        accounts: &mut Accounts,
        findings: &mut Findings<'_>,
    ) -> Self {
        let hold = |text: &str| quantity::duration(&HOLD, text, &(Duration::ZERO..=LONGEST_HOLD));
        let half_close_grace = |text: &str| {
            let range = SHORTEST_HALF_CLOSE_GRACE..=LONGEST_HALF_CLOSE_GRACE;
            quantity::duration(&HALF_CLOSE_GRACE, text, &range)
        };
        let idle_after = |text: &str| {
            let range = SHORTEST_IDLE_AFTER..=LONGEST_IDLE_AFTER;
            quantity::duration(&IDLE_AFTER, text, &range)
        };
        let receive_buffer = |text: &str| quantity::size(&RECEIVE_BUFFER, text, &RECEIVE_BUFFERS);
        Self {
            profile: findings.read(written.profile.as_ref(), grammar::profile),
            region: findings.read(written.region.as_ref(), grammar::region),
            hold: findings.read(written.hold.as_ref(), hold),
            half_close_grace: findings.read(written.half_close_grace.as_ref(), half_close_grace),
            idle_after: findings.read(written.idle_after.as_ref(), idle_after),
            receive_buffer: findings.read(written.receive_buffer.as_ref(), receive_buffer),
            allow_users: AllowedUsers::of(written.allow_users.as_ref(), accounts, findings),
            ssm: ssm::Checked::of(&written.ssm, findings),
            ssh: ssh::Checked::of(&written.ssh, home, findings),
            eice: eice::Checked::of(&written.eice, findings),
        }
    }
}

/// Whether a route goes, somewhere, by `ssm`, by `ssh` and by `eice`.
fn ways(route: &Route) -> [bool; 3] {
    let mut ways = [false; 3];
    for hop in route.hops() {
        match hop {
            Route::Direct => {}
            Route::Ssm { .. } => ways[0] = true,
            Route::Ssh(_) => ways[1] = true,
            Route::Eice { .. } => ways[2] = true,
        }
    }
    ways
}

/// Refuses the settings of routes that a tunnel does not take.
fn refuse_misplaced(written: &Settings, route: &Route, findings: &mut Findings<'_>) {
    let [by_ssm, by_ssh, by_eice] = ways(route);
    if let Some(text) = &written.receive_buffer
        && !(by_ssm || by_ssh)
    {
        route.refuse_setting(&RECEIVE_BUFFER, text.span().start, &OF_SHARING, findings);
    }
    if !by_ssm {
        written.ssm.refuse(route, findings);
    }
    if !by_ssh {
        written.ssh.refuse(route, findings);
    }
    if !by_eice {
        written.eice.refuse(route, findings);
    }
}

fn refuse_remote(listen: &Listen) -> Result<(), Refusal> {
    let Some(address) = listen.remote() else {
        return Ok(());
    };
    let message = format!("`{address}` lets other machines use the tunnel");
    let hint = format!(
        "listen = {}, or `allow_remote = true` and `allow_users = \"any\"` as well",
        address.port()
    );
    Err(Refusal::new(message).instead(hint))
}

/// Refuses to tell users apart where other machines connect.
fn refuse_unknown_users(allowed: &AllowedUsers) -> Result<(), Refusal> {
    match allowed {
        AllowedUsers::Any => Ok(()),
        AllowedUsers::OwnerAnd(_) => {
            let message = "`allow_remote = true` lets other machines in, whose users nobody can tell";
            Err(Refusal::new(message).instead("`allow_users = \"any\"` as well"))
        }
    }
}

/// Reads the text of a file.
pub(super) fn read(path: &Path) -> Result<String, Problem> {
    let mut bytes = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(LARGEST_FILE + 1).read_to_end(&mut bytes))
        .map_err(|error| unreadable(&error).at(path, None))?;
    if bytes.len() as u64 > LARGEST_FILE {
        return Err(Refusal::new("this is larger than 1 MiB, too large for a configuration").at(path, None));
    }
    String::from_utf8(bytes).map_err(|error| {
        let sound = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = sound.iter().filter(|byte| **byte == b'\n').count() + 1;
        Refusal::new("this line is not UTF-8 text").at(path, u32::try_from(line).ok())
    })
}

fn unreadable(error: &io::Error) -> Refusal {
    let kind = error.kind();
    if kind == io::ErrorKind::NotFound {
        return Refusal::new("there is no such file").instead(MINIMAL_EXAMPLE);
    }
    if kind == io::ErrorKind::PermissionDenied {
        return Refusal::new("this user may not read it");
    }
    if kind == io::ErrorKind::IsADirectory {
        return Refusal::new("this is a folder, not a file");
    }
    Refusal::new(format!("it cannot be read: {error}"))
}

/// Returns the user's home folder, if there is one.
pub(super) fn home() -> Option<PathBuf> {
    directories::BaseDirs::new().map(|directories| directories.home_dir().to_owned())
}
