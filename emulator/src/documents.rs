//! The session documents that the account has, and what their parameters come to.

use std::collections::BTreeMap;

/// What a document forwards to, with the properties that the handshake carries.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Forward {
    /// `None`: the instance itself.
    pub(crate) host: Option<String>,
    pub(crate) port: u16,
    pub(crate) properties: BTreeMap<String, String>,
}

/// Why a document cannot be run.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum DocumentError {
    /// No document has that name.
    Unknown,
    /// A parameter is missing, unknown or wrong.
    Parameters(String),
}

const TO_INSTANCE: &str = "AWS-StartPortForwardingSession";
const TO_REMOTE_HOST: &str = "AWS-StartPortForwardingSessionToRemoteHost";

/// Resolves a port-forwarding document; its defaults are those of the documents that AWS owns.
pub(crate) fn resolve(
    document: &str,
    parameters: &BTreeMap<String, Vec<String>>,
) -> Result<Forward, DocumentError> {
    let names: &[&str] = match document {
        TO_INSTANCE => &["portNumber", "localPortNumber"],
        TO_REMOTE_HOST => &["portNumber", "localPortNumber", "host"],
        _ => return Err(DocumentError::Unknown),
    };
    let mut values = BTreeMap::new();
    for (name, given) in parameters {
        if !names.contains(&name.as_str()) {
            return Err(DocumentError::Parameters(format!(
                "Parameter {name} is not defined in the document."
            )));
        }
        let [value] = given.as_slice() else {
            return Err(DocumentError::Parameters(format!(
                "Parameter {name} takes exactly one value."
            )));
        };
        values.insert(name.as_str(), value.as_str());
    }
    let port = port(&values, "portNumber", "80")?;
    if port == 0 {
        return Err(DocumentError::Parameters(
            "Parameter portNumber must be between 1 and 65535.".to_owned(),
        ));
    }
    let local_port = self::port(&values, "localPortNumber", "0")?;
    let mut properties = BTreeMap::from([
        ("portNumber".to_owned(), port.to_string()),
        ("localPortNumber".to_owned(), local_port.to_string()),
        ("type".to_owned(), "LocalPortForwarding".to_owned()),
    ]);
    let host = match values.get("host") {
        Some(host) if !is_host(host) => {
            return Err(DocumentError::Parameters(format!(
                "Parameter host has a bad value: {host}"
            )));
        }
        None if document == TO_REMOTE_HOST => {
            return Err(DocumentError::Parameters(
                "Parameter host is required.".to_owned(),
            ));
        }
        host => host.map(|host| (*host).to_owned()),
    };
    if let Some(host) = &host {
        properties.insert("host".to_owned(), host.clone());
    }
    Ok(Forward {
        host,
        port,
        properties,
    })
}

fn port(values: &BTreeMap<&str, &str>, name: &str, default: &str) -> Result<u16, DocumentError> {
    let text = values.get(name).copied().unwrap_or(default);
    // `parse` alone would let a sign through.
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits).ok_or_else(|| {
        DocumentError::Parameters(format!(
            "Parameter {name} must be a port number, but is \"{text}\"."
        ))
    })
}

/// Whether the text can name a host: the pattern of the official document, with IPv6 addresses.
fn is_host(text: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:".contains(&byte);
    !text.is_empty() && text.len() <= 255 && text.bytes().all(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(parameters: &[(&str, &str)]) -> BTreeMap<String, Vec<String>> {
        parameters
            .iter()
            .map(|(name, value)| ((*name).to_owned(), vec![(*value).to_owned()]))
            .collect()
    }

    #[test]
    fn defaults_are_those_of_the_documents_of_aws() {
        let forward = resolve(TO_INSTANCE, &BTreeMap::new()).expect("all parameters have defaults");
        assert_eq!((forward.host, forward.port), (None, 80));
        let properties: Vec<(&str, &str)> = forward
            .properties
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        assert_eq!(
            properties,
            [
                ("localPortNumber", "0"),
                ("portNumber", "80"),
                ("type", "LocalPortForwarding")
            ]
        );
    }

    #[test]
    fn a_remote_host_is_carried_in_the_properties() {
        let forward = resolve(
            TO_REMOTE_HOST,
            &given(&[("host", "db.internal"), ("portNumber", "5432")]),
        )
        .expect("good parameters");
        assert_eq!(
            (forward.host.as_deref(), forward.port),
            (Some("db.internal"), 5432)
        );
        assert_eq!(forward.properties["host"], "db.internal");
    }

    #[test]
    fn wrong_parameters_are_refused() {
        for parameters in [
            given(&[("portNumber", "0")]),
            given(&[("portNumber", "65536")]),
            given(&[("portNumber", "+80")]),
            given(&[("portNumber", "")]),
            given(&[("host", "db.internal")]),
            BTreeMap::from([("portNumber".to_owned(), vec!["1".to_owned(), "2".to_owned()])]),
        ] {
            let error = resolve(TO_INSTANCE, &parameters).expect_err("a bad parameter");
            assert!(
                matches!(error, DocumentError::Parameters(_)),
                "{parameters:?}: {error:?}"
            );
        }
        for parameters in [given(&[]), given(&[("host", "")]), given(&[("host", "a b")])] {
            let error = resolve(TO_REMOTE_HOST, &parameters).expect_err("a bad parameter");
            assert!(
                matches!(error, DocumentError::Parameters(_)),
                "{parameters:?}: {error:?}"
            );
        }
    }

    #[test]
    fn a_document_that_the_account_does_not_have_is_unknown() {
        assert_eq!(
            resolve("AWS-StartShellSession", &BTreeMap::new()),
            Err(DocumentError::Unknown)
        );
    }
}
