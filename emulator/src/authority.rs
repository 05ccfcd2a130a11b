//! The emulator's own certificate authority, made anew at each start and trusted by nobody until told to.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use thiserror::Error;
use tokio_rustls::TlsAcceptor;

use crate::config::DnsNames;

/// Why no certificate could be made.
#[derive(Debug, Error)]
pub enum AuthorityError {
    /// The certificate itself.
    #[error("cannot make a certificate")]
    Certificate(#[from] rcgen::Error),
    /// The TLS stack does not take it.
    #[error("cannot set up TLS")]
    Tls(#[from] rustls::Error),
}

/// A certificate authority and the one certificate it gave.
pub(crate) struct Authority {
    pub(crate) pem: String,
    pub(crate) acceptor: TlsAcceptor,
}

impl Authority {
    /// Makes an authority whose certificate is good for loopback and for the names of AWS in these regions.
    pub(crate) fn new(regions: &[String]) -> Result<Self, AuthorityError> {
        let mut root = CertificateParams::default();
        root.distinguished_name
            .push(DnType::CommonName, "tunneld emulator, trust only for tests");
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        root.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let root = CertifiedIssuer::self_signed(root, KeyPair::generate()?)?;

        let mut names: Vec<String> = ["127.0.0.1", "::1", "localhost", "*.amazonaws.com"]
            .map(String::from)
            .into();
        // A wildcard stands for one label: ssm.REGION.amazonaws.com needs its own.
        names.extend(regions.iter().map(|region| format!("*.{region}.amazonaws.com")));
        names.extend(regions.iter().flat_map(|region| DnsNames::wildcards(region)));
        let key = KeyPair::generate()?;
        let mut leaf = CertificateParams::new(names)?;
        leaf.distinguished_name
            .push(DnType::CommonName, "tunneld emulator");
        leaf.use_authority_key_identifier_extension = true;
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        let leaf = leaf.signed_by(&key, &root)?;

        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(
                vec![leaf.der().clone()],
                PrivateKeyDer::Pkcs8(key.serialize_der().into()),
            )?;
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            pem: root.pem(),
            acceptor: TlsAcceptor::from(Arc::new(tls)),
        })
    }
}
