//! TLS: whom to trust, and the handshake.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::client::WantsClientCert;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ConfigBuilder, RootCertStore, WantsVerifier};
use rustls_platform_verifier::BuilderVerifierExt;
use tokio::sync::OnceCell;
use tokio_rustls::TlsConnector;

use super::{Environment, Socket, unreachable};
use crate::failure::{Cause, Failure, Reason, Remedy};

/// Whose certificates are believed.
pub(super) enum Trust {
    /// Those the operating system believes; loaded when first needed, because who never uses TLS should not be
    /// stopped by a machine without certificates.
    System(OnceCell<TlsConnector>),
    /// Those that the authorities in AWS_CA_BUNDLE vouch for, and no others.
    Bundle(TlsConnector),
}

impl Trust {
    pub(super) fn new(environment: &Environment) -> Result<Self, Failure> {
        match environment.variable("AWS_CA_BUNDLE") {
            None => Ok(Self::System(OnceCell::new())),
            Some(path) => bundle(Path::new(path)).map(Self::Bundle).map_err(|problem| {
                Failure::new(
                    Reason::Invalid,
                    Remedy::Fix,
                    format!("cannot use `{path}` (AWS_CA_BUNDLE)"),
                )
                .because(problem)
                .hint("AWS_CA_BUNDLE must name a PEM file with the certificates of the authorities to trust")
            }),
        }
    }

    /// Makes `socket` an encrypted one to `host`. `doing` heads a failure.
    pub(super) async fn encrypt(&self, socket: Socket, host: &str, doing: &str) -> Result<Socket, Failure> {
        let connector = match self {
            Self::Bundle(connector) => connector,
            Self::System(cell) => cell
                .get_or_try_init(|| async { system() })
                .await
                .map_err(|error| {
                    Failure::new(Reason::Invalid, Remedy::Fix, doing)
                    .because(error)
                    .hint("install the system's certificates (package ca-certificates), or set AWS_CA_BUNDLE")
                })?,
        };
        let name = ServerName::try_from(host.to_owned())
            .map_err(|error| Failure::new(Reason::Invalid, Remedy::Fix, doing).because(error))?;
        match connector.connect(name, socket).await {
            Ok(stream) => Ok(Socket::new(stream)),
            Err(error) if is_distrust(&error) => Err(unreachable(doing, error).hint(
                "if a proxy of your company inspects TLS, set AWS_CA_BUNDLE to a PEM file with its certificate",
            )),
            Err(error) => Err(unreachable(doing, error)),
        }
    }
}

fn is_distrust(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    matches!(inner, Some(rustls::Error::InvalidCertificate(_)))
}

fn system() -> Result<TlsConnector, rustls::Error> {
    Ok(connector(versions()?.with_platform_verifier()?))
}

fn bundle(path: &Path) -> Result<TlsConnector, Cause> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path)? {
        roots.add(certificate?)?;
    }
    if roots.is_empty() {
        return Err("it holds no certificate".into());
    }
    Ok(connector(versions()?.with_root_certificates(roots)))
}

fn versions() -> Result<ConfigBuilder<ClientConfig, WantsVerifier>, rustls::Error> {
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
}

fn connector(config: ConfigBuilder<ClientConfig, WantsClientCert>) -> TlsConnector {
    TlsConnector::from(Arc::new(config.with_no_client_auth()))
}
