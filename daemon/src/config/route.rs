//! Routes: how they are written, in the file and in one line for people.
//!
//! ```text
//! ROUTE    = "direct"
//!          | "ssm"  | { ssm = INSTANCE } | { ssm = TASK }
//!          | "eice" | { eice = ENDPOINT }
//!          | { ssh = "USER@INSTANCE", over = ROUTE }         at most 3 within one another
//! ENDPOINT = eice-…
//! USER     = 1 to 32 of a-z A-Z 0-9 . _ -, no hyphen first
//! ```

use std::fmt;
use std::iter::successors;

use toml::Spanned;

use super::problem::{Findings, Refusal, nearest, quoted, shown};
use super::section::{Key, Section, as_text};
use super::{Instance, Route, SshRoute, reach};

/// What a route may look like, for hints.
pub(super) const ROUTE_FORMS: &str =
    r#"route = "ssm", { ssm = "INSTANCE" }, "eice", { ssh = "USER@INSTANCE", over = "eice" } or "direct""#;

/// What a route by SSH looks like, for hints.
const SSH_FORM: &str = r#"route = { ssh = "USER@INSTANCE", over = "eice" }"#;

const SSM: Key = Key::new("ssm", r#"route = { ssm = "INSTANCE" }"#);
const EICE: Key = Key::new("eice", r#"route = "eice", or route = { eice = "eice-…" }"#);
const SSH: Key = Key::new("ssh", SSH_FORM);
const OVER: Key = Key::new(
    "over",
    r#"over = "eice", "ssm", "direct" or a table as `route` has"#,
);

/// A route as written.
#[derive(Debug)]
pub(super) enum Written {
    /// `"…"`
    Word(String),
    /// `{ ssm = "…" }`
    Ssm(String),
    /// `{ eice = "…" }`
    Eice(String),
    /// `{ ssh = "…", over = … }`
    Ssh { host: String, over: Box<Self> },
}

impl Written {
    /// Takes the route of this key out of a section.
    pub(super) fn read(section: &mut Section<'_, '_, '_>, key: &Key) -> Option<Spanned<Self>> {
        let written = section.table.get(key.name);
        if !written.is_some_and(|route| route.get_ref().is_table()) {
            return section.read(key, "text or a table", |value| as_text(value).map(Self::Word));
        }
        let table = section.table(key)?;
        let span = table.span();
        let place = format!("in the `{}` {}", key.name, section.place);
        let mut inner = Section::new(&place, table.into_inner(), span.start, section.findings);
        let route = Self::read_table(&mut inner);
        inner.close();
        route.map(|route| Spanned::new(span, route))
    }

    fn read_table(section: &mut Section<'_, '_, '_>) -> Option<Self> {
        let ways = [&SSM, &EICE, &SSH].map(|key| key.name);
        let taken: Vec<_> = ways
            .into_iter()
            .filter(|way| section.table.contains_key(*way))
            .collect();
        if taken.is_empty() {
            section.lacks("`ssm`, `eice` or `ssh`", ROUTE_FORMS);
        }
        if let [first, second, ..] = taken.as_slice() {
            let message = format!("`{first}` and `{second}` are both {}", section.place);
            section.object(second, Refusal::new(message).instead(ROUTE_FORMS));
        }
        let by_ssh = taken.contains(&SSH.name);
        if by_ssh && !section.table.contains_key(OVER.name) {
            section.missing(&OVER);
        }
        if !by_ssh {
            let message = format!("`over` is there without `ssh` {}", section.place);
            section.object(OVER.name, Refusal::new(message).instead(SSH_FORM));
        }

        let ssm = section.text(&SSM).map(Spanned::into_inner);
        let eice = section.text(&EICE).map(Spanned::into_inner);
        let ssh = section.text(&SSH).map(Spanned::into_inner);
        let over = Self::read(section, &OVER).map(Spanned::into_inner);
        match (ssm, eice, ssh, over) {
            (Some(instance), None, None, None) => Some(Self::Ssm(instance)),
            (None, Some(endpoint), None, None) => Some(Self::Eice(endpoint)),
            (None, None, Some(host), Some(over)) => Some(Self::Ssh {
                host,
                over: Box::new(over),
            }),
            // What is wrong has been noted.
            _ => None,
        }
    }
}

/// Returns a route as the value of a key: words are quoted there, tables are not.
pub(super) fn value(written: &str) -> String {
    if written.starts_with('{') {
        written.to_owned()
    } else {
        toml::Value::from(written).to_string()
    }
}

/// How many routes by SSH may go over one another: each costs a login and wraps every byte once more, and nobody needs
/// more to get anywhere.
const DEEPEST: usize = 3;

impl Route {
    pub(super) fn parse(written: &Written) -> Result<Self, Refusal> {
        Self::parse_within(written, DEEPEST)
    }

    fn parse_within(written: &Written, hops: usize) -> Result<Self, Refusal> {
        match written {
            Written::Ssm(instance) => Ok(Self::Ssm {
                via: Some(Instance::parse(instance)?),
            }),
            Written::Eice(endpoint) => Ok(Self::Eice {
                endpoint: Some(endpoint_id(endpoint)?),
            }),
            Written::Ssh { host, over } => {
                let Some(hops) = hops.checked_sub(1) else {
                    let message = format!("this route goes by `ssh` more than {DEEPEST} times");
                    return Err(Refusal::new(message).instead("fewer hosts in a row"));
                };
                let (user, host) = login(host)?;
                let over = reach::straight(Self::parse_within(over, hops)?, &host);
                reach::refuse_host(&over, &host)?;
                Ok(Self::Ssh(Box::new(SshRoute { user, host, over })))
            }
            Written::Word(word) => match word.as_str() {
                "direct" => Ok(Self::Direct),
                "ssm" => Ok(Self::Ssm { via: None }),
                "eice" => Ok(Self::Eice { endpoint: None }),
                "ssh" => Err(Refusal::new("route `ssh` does not say to which instance").instead(SSH_FORM)),
                _ => Err(unknown(word)),
            },
        }
    }

    /// Returns it as it is written, a word without its quotes.
    pub(crate) fn written(&self) -> String {
        let quoted = |text: &str| toml::Value::from(text).to_string();
        match self {
            Self::Direct | Self::Ssm { via: None } | Self::Eice { endpoint: None } => self.to_string(),
            Self::Ssm { via: Some(instance) } => format!("{{ ssm = {} }}", quoted(&instance.to_string())),
            Self::Eice {
                endpoint: Some(endpoint),
            } => format!("{{ eice = {} }}", quoted(endpoint)),
            Self::Ssh(ssh) => {
                let login = quoted(&format!("{}@{}", ssh.user, ssh.host));
                format!("{{ ssh = {login}, over = {} }}", value(&ssh.over.written()))
            }
        }
    }

    /// Returns the route and the ones it goes over, the outermost first.
    pub(super) fn hops(&self) -> impl Iterator<Item = &Self> {
        successors(Some(self), |route| match route {
            Self::Ssh(ssh) => Some(&ssh.over),
            Self::Direct | Self::Ssm { .. } | Self::Eice { .. } => None,
        })
    }

    /// Refuses a setting of another route, in a tunnel that takes this one.
    pub(super) fn refuse_setting(&self, key: &Key, at: usize, of: &Setting, findings: &mut Findings<'_>) {
        let Setting { routes, example } = of;
        let name = key.name;
        let message = format!("`{name}` is a setting of the {routes}, and this tunnel goes `{self}`");
        let hint = format!("no `{name}`, or {example}");
        findings.push(at, Refusal::new(message).instead(hint));
    }
}

/// To which routes a setting belongs.
pub(super) struct Setting {
    /// ``route `ssm` ``
    pub(super) routes: &'static str,
    /// A line with such a route.
    pub(super) example: &'static str,
}

/// The settings of sessions.
pub(super) const OF_SSM: Setting = Setting {
    routes: "route `ssm`",
    example: SSM.example,
};

/// The settings of SSH connections.
pub(super) const OF_SSH: Setting = Setting {
    routes: "route `ssh`",
    example: SSH_FORM,
};

/// The settings of connections by an endpoint.
pub(super) const OF_EICE: Setting = Setting {
    routes: "route `eice`",
    example: r#"route = "eice""#,
};

/// The settings of routes on which several connections share one.
pub(super) const OF_SHARING: Setting = Setting {
    routes: "routes `ssm` and `ssh`",
    example: SSM.example,
};

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct => f.write_str("direct"),
            Self::Ssm { via: None } => f.write_str("ssm"),
            Self::Ssm { via: Some(instance) } => write!(f, "ssm via {instance}"),
            Self::Eice { endpoint: None } => f.write_str("eice"),
            Self::Eice {
                endpoint: Some(endpoint),
            } => write!(f, "eice {endpoint}"),
            Self::Ssh(ssh) => {
                let SshRoute { user, host, over } = &**ssh;
                write!(f, "ssh {user}@{host} over {over}")
            }
        }
    }
}

/// The longest id of an endpoint that is believed. AWS makes ids of 17 digits, and once made them of 8.
const LONGEST_ENDPOINT_DIGITS: usize = 32;

fn endpoint_id(text: &str) -> Result<String, Refusal> {
    let digits = text.strip_prefix("eice-").unwrap_or_default();
    let sound = (1..=LONGEST_ENDPOINT_DIGITS).contains(&digits.len())
        && digits.chars().all(|digit| digit.is_ascii_hexdigit());
    if !sound {
        let message = format!("{} is not the id of an Instance Connect Endpoint", quoted(text));
        return Err(Refusal::new(message).instead(EICE.example));
    }
    Ok(text.to_owned())
}

/// The longest name of a user on an instance (EC2 Instance Connect API, SendSSHPublicKey).
const LONGEST_USER: usize = 32;

/// Reads `USER@INSTANCE`. The name of a user has no `@`, that of an instance may have some.
fn login(text: &str) -> Result<(String, Instance), Refusal> {
    let Some((user, host)) = text.split_once('@') else {
        let message = format!("{} does not say which user logs in", quoted(text));
        let hint = format!(r#"ssh = "ec2-user@{}""#, shown(text));
        return Err(Refusal::new(message).instead(hint));
    };
    let sound = (1..=LONGEST_USER).contains(&user.len())
        && !user.starts_with('-')
        && user
            .chars()
            .all(|letter| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '_' | '-'));
    if !sound {
        let message = format!("{} cannot be the name of a user", quoted(user));
        return Err(Refusal::new(message).instead(r#"ssh = "ec2-user@INSTANCE""#));
    }
    Ok((user.to_owned(), Instance::parse(host)?))
}

fn unknown(word: &str) -> Refusal {
    // As status shows them: `ssm via bastion`, `eice eice-0abc`, `ssh ec2-user@bastion over eice`.
    let one_text = |table: String| {
        Refusal::new(format!("route {} is not written as one text", quoted(word)))
            .instead(format!("route = {{ {table} }}"))
    };
    if let Some(rest) = word.strip_prefix("ssm ") {
        let instance = rest.trim_start().strip_prefix("via ").unwrap_or(rest).trim();
        return one_text(format!(r#"ssm = "{}""#, shown(instance)));
    }
    if let Some(endpoint) = word.strip_prefix("eice ") {
        return one_text(format!(r#"eice = "{}""#, shown(endpoint.trim())));
    }
    if let Some((login, over)) = word
        .strip_prefix("ssh ")
        .and_then(|rest| rest.split_once(" over "))
    {
        let (login, over) = (shown(login.trim()), shown(over.trim()));
        return one_text(format!(r#"ssh = "{login}", over = "{over}""#));
    }
    let message = match nearest(word, &["direct", "ssm", "eice"]) {
        Some(near) => format!("unknown route {}: did you mean `{near}`?", quoted(word)),
        None => format!("unknown route {}", quoted(word)),
    };
    Refusal::new(message).instead(ROUTE_FORMS)
}
