//! The file as it is written: its tables and keys, each value with its place. Knows shapes, not meanings.
//!
//! The TOML is walked by hand, because a derived reader stops at its first error, and a person wants all of them:
//! each [`Section`] is emptied key by key, and what is left in it at the end is unknown.

use std::borrow::Cow;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::grammar::{MODE_FORMS, TARGET_FORMS};
use super::listen::LISTEN_FORMS;
use super::problem::{Findings, Refusal, quoted, shown};
use super::route::{self, ROUTE_FORMS};
use super::section::{Key, Section};
use super::syntax::{note_broken_lines, past_dead_ends};
use super::{daemon, eice, ssh, ssm, users};

/// A configuration file. What could not be read is absent here and noted in the findings.
#[derive(Debug, Default)]
pub(super) struct File {
    pub(super) daemon: daemon::Written,
    pub(super) defaults: Settings,
    /// In the order of the file.
    pub(super) tunnels: Vec<Tunnel>,
}

/// The keys that a tunnel takes from `[defaults]` when it has none of its own.
#[derive(Debug, Default)]
pub(super) struct Settings {
    pub(super) profile: Option<Spanned<String>>,
    pub(super) region: Option<Spanned<String>>,
    pub(super) hold: Option<Spanned<String>>,
    pub(super) half_close_grace: Option<Spanned<String>>,
    pub(super) idle_after: Option<Spanned<String>>,
    pub(super) receive_buffer: Option<Spanned<String>>,
    pub(super) allow_users: Option<Spanned<users::Written>>,
    pub(super) ssm: ssm::Written,
    pub(super) ssh: ssh::Written,
    pub(super) eice: eice::Written,
}

/// One `[tunnels.NAME]`.
#[derive(Debug)]
pub(super) struct Tunnel {
    pub(super) name: Spanned<String>,
    pub(super) listen: Option<Spanned<String>>,
    pub(super) target: Option<Spanned<String>>,
    pub(super) route: Option<Spanned<route::Written>>,
    pub(super) mode: Option<Spanned<String>>,
    pub(super) autostart: Option<Spanned<bool>>,
    pub(super) allow_remote: Option<Spanned<bool>>,
    pub(super) settings: Settings,
}

impl File {
    /// Reads the file, noting whatever has not the shape of a configuration.
    pub(super) fn read(text: &str, findings: &mut Findings<'_>) -> Self {
        let text = &*past_dead_ends(text, findings);
        let (table, errors) = DeTable::parse_recoverable(text);
        if !note_broken_lines(text, &errors, findings) {
            return Self::default();
        }

        let mut file = Self::default();
        let mut top = Section::new("at the top of the file", table.into_inner(), 0, findings);
        if let Some(table) = top.table(&DAEMON) {
            let at = table.span().start;
            let mut section = Section::new("in `[daemon]`", table.into_inner(), at, top.findings);
            file.daemon = daemon::Written::read(&mut section);
            section.close();
        }
        if let Some(table) = top.table(&DEFAULTS) {
            let at = table.span().start;
            let mut section = Section::new("in `[defaults]`", table.into_inner(), at, top.findings);
            file.defaults = section.settings();
            section.close();
        }
        if let Some(table) = top.table(&TUNNELS) {
            let mut entries: Vec<_> = table.into_inner().into_iter().collect();
            entries.sort_by_key(|(name, _)| name.span().start);
            file.tunnels = entries
                .into_iter()
                .filter_map(|(name, value)| Tunnel::read(text, owned(name), value, top.findings))
                .collect();
        }
        top.close();
        file
    }
}

impl Tunnel {
    fn read(
        text: &str,
        name: Spanned<String>,
        value: Spanned<DeValue<'_>>,
        findings: &mut Findings<'_>,
    ) -> Option<Self> {
        let (at, header) = (name.span().start, format!("[tunnels.{}]", shown(name.get_ref())));
        let DeValue::Table(table) = value.into_inner() else {
            let refusal =
                Refusal::new(format!("tunnel {} is not a table", quoted(name.get_ref()))).instead(header);
            findings.push(at, refusal);
            return None;
        };
        let mut section = Section::new(&format!("in `{header}`"), table, at, findings);
        section.refuse_dotted_names(text, name.get_ref());
        let tunnel = Self {
            listen: section.required(&LISTEN, Section::text_or_number),
            target: section.required(&TARGET, Section::text),
            route: section.route(),
            mode: section.text(&MODE),
            autostart: section.flag(&AUTOSTART),
            allow_remote: section.flag(&ALLOW_REMOTE),
            settings: section.settings(),
            name,
        };
        section.close();
        Some(tunnel)
    }
}

const DAEMON: Key = Key::new("daemon", "[daemon]");
const DEFAULTS: Key = Key::new("defaults", "[defaults]");
const TUNNELS: Key = Key::new("tunnels", "[tunnels.NAME]");
const LISTEN: Key = Key::new("listen", LISTEN_FORMS);
const TARGET: Key = Key::new("target", TARGET_FORMS);
const ROUTE: Key = Key::new("route", ROUTE_FORMS);
const ROUTES: &str = "routes";
const PROFILE: Key = Key::new("profile", r#"profile = "prod""#);
const REGION: Key = Key::new("region", r#"region = "eu-central-1""#);
const MODE: Key = Key::new("mode", MODE_FORMS);
const AUTOSTART: Key = Key::new("autostart", "autostart = true or false");
const ALLOW_REMOTE: Key = Key::new("allow_remote", "allow_remote = true or false");
pub(super) const HOLD: Key = Key::new("hold", r#"hold = "30s""#);
pub(super) const HALF_CLOSE_GRACE: Key = Key::new("half_close_grace", r#"half_close_grace = "30s""#);
pub(super) const IDLE_AFTER: Key = Key::new("idle_after", r#"idle_after = "15m""#);
pub(super) const RECEIVE_BUFFER: Key = Key::new("receive_buffer", r#"receive_buffer = "256MiB""#);

/// What the sections of this file hold.
impl Section<'_, '_, '_> {
    /// Refuses the tables that come from a header such as `[tunnels.prod.db]`, whose name was meant to have a dot.
    fn refuse_dotted_names(&mut self, text: &str, name: &str) {
        let by_header = |value: &Spanned<DeValue<'_>>| {
            matches!(value.get_ref(), DeValue::Table(_)) && text[value.span().start..].starts_with('[')
        };
        let inner: Vec<_> = self
            .table
            .iter()
            .filter(|(_, value)| by_header(value))
            .map(|(key, _)| key.clone())
            .collect();
        let is_setting = |key: &str| [ROUTE.name, ssm::SESSIONS.name, ssh::CONNECTIONS.name].contains(&key);
        for key in inner.into_iter().filter(|key| !is_setting(key.get_ref())) {
            self.table.remove(&key);
            self.complete = false;
            let (outer, inner) = (shown(name), shown(key.get_ref()));
            let message =
                format!("`[tunnels.{outer}.{inner}]` is a table inside tunnel `{outer}`, not a tunnel");
            let hint = format!(r#"[tunnels."{outer}.{inner}"] for a name with a dot"#);
            self.findings
                .push(key.span().start, Refusal::new(message).instead(hint));
        }
    }

    fn settings(&mut self) -> Settings {
        Settings {
            profile: self.text(&PROFILE),
            region: self.text(&REGION),
            hold: self.text(&HOLD),
            half_close_grace: self.text(&HALF_CLOSE_GRACE),
            idle_after: self.text(&IDLE_AFTER),
            receive_buffer: self.text(&RECEIVE_BUFFER),
            allow_users: users::Written::read(self),
            ssm: ssm::Written::read(self),
            ssh: ssh::Written::read(self),
            eice: eice::Written::read(self),
        }
    }

    fn route(&mut self) -> Option<Spanned<route::Written>> {
        let present = self.table.contains_key(ROUTE.name);
        if let Some(routes) = self.table.remove(ROUTES) {
            let message = if present {
                format!(
                    "`route` and `routes` are both {}: a tunnel has one of them",
                    self.place
                )
            } else {
                "this version cannot choose among `routes`, only follow one `route`".to_owned()
            };
            self.findings
                .push(routes.span().start, Refusal::new(message).instead(ROUTE_FORMS));
        } else if !present {
            self.missing(&ROUTE);
        }
        route::Written::read(self, &ROUTE)
    }
}

fn owned(text: Spanned<Cow<'_, str>>) -> Spanned<String> {
    let span = text.span();
    Spanned::new(span, text.into_inner().into_owned())
}
