//! The user that a client certificate names.

use rustls_pki_types::CertificateDer;

use super::User;

/// Longest name and most groups that are taken from a certificate.
const MAX_NAME: usize = 1024;
const MAX_GROUPS: usize = 100;

/// The common name is the user, organisations are the groups. The certificate was verified before. `None`: it names
/// nobody.
pub fn user_of(certificate: &CertificateDer<'_>) -> Option<User> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let name = parsed.subject().iter_common_name().next()?.as_str().ok()?;
    if name.is_empty() || name.len() > MAX_NAME {
        return None;
    }
    let organizations = parsed.subject().iter_organization().filter_map(|it| it.as_str().ok());
    let groups = organizations.filter(|it| !it.is_empty() && it.len() <= MAX_NAME).take(MAX_GROUPS);
    let mut user = User { name: name.to_owned(), groups: groups.map(str::to_owned).collect(), ..User::default() };
    user.groups.push("system:authenticated".to_owned());
    Some(user)
}
