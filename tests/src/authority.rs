//! An authority, and the certificates that it issues, in files of a folder of their own.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// An authority. Its folder goes with it.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    folder: PathBuf,
}

/// A certificate chain and its key.
pub struct Issued {
    /// The chain (PEM).
    pub certificate: PathBuf,
    /// The key (PEM).
    pub key: PathBuf,
}

impl Authority {
    /// A new one, with an ECDSA key.
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Relaxed);
        let name = format!("cubenet-test-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).expect("it can be made");
        let mut params = CertificateParams::new(Vec::new()).expect("it can be made");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let name = format!("authority {number}");
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages.push(KeyUsagePurpose::KeyCertSign);
        params.key_usages.push(KeyUsagePurpose::DigitalSignature);
        let key = KeyPair::generate().expect("it can be made");
        let certificate = params.self_signed(&key).expect("it can be made");
        std::fs::write(folder.join("ca.pem"), certificate.pem()).expect("it can be made");
        Authority {
            issuer: Issuer::new(params, key),
            folder,
        }
    }

    /// Where its files are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The certificate of the authority itself.
    pub fn ca(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// A certificate for this name.
    pub fn issue(&self, name: &str) -> Issued {
        self.issue_with(name, name, &rcgen::PKCS_ECDSA_P256_SHA256, |_| ())
    }

    /// The same in files of this name, with a key of this algorithm and with changes.
    pub fn issue_with(
        &self,
        file: &str,
        name: &str,
        algorithm: &'static rcgen::SignatureAlgorithm,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Issued {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("it can be made");
        params.distinguished_name.push(DnType::CommonName, name);
        params
            .extended_key_usages
            .push(ExtendedKeyUsagePurpose::ServerAuth);
        params
            .extended_key_usages
            .push(ExtendedKeyUsagePurpose::ClientAuth);
        change(&mut params);
        let key = KeyPair::generate_for(algorithm).expect("it can be made");
        self.sign(file, &params, &key)
    }

    /// A certificate for this name and this key (PEM).
    pub fn issue_for(&self, file: &str, name: &str, key: &str) -> Issued {
        let params = CertificateParams::new(vec![name.to_owned()]).expect("it can be made");
        self.sign(
            file,
            &params,
            &KeyPair::from_pem(key).expect("it can be made"),
        )
    }

    fn sign(&self, file: &str, params: &CertificateParams, key: &KeyPair) -> Issued {
        let certificate = params.signed_by(key, &self.issuer).expect("it can be made");
        let issued = Issued {
            certificate: self.folder.join(format!("{file}.pem")),
            key: self.folder.join(format!("{file}.key")),
        };
        std::fs::write(&issued.certificate, certificate.pem()).expect("it can be made");
        std::fs::write(&issued.key, key.serialize_pem()).expect("it can be made");
        issued
    }

    /// A certificate that was good for one year.
    pub fn issue_expired(&self, name: &str) -> Issued {
        self.issue_with("expired", name, &rcgen::PKCS_ECDSA_P256_SHA256, |params| {
            params.not_before = date_time_ymd(2001, 1, 1);
            params.not_after = date_time_ymd(2002, 1, 1);
        })
    }
}

impl Default for Authority {
    fn default() -> Self {
        Authority::new()
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
