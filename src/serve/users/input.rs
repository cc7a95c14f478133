//! What members send, checked and normalised. Pure.

use serde::Deserialize;
use utoipa::ToSchema;

use crate::platform::problem::FieldError;

/// RFC 5321's bound on a whole address.
const EMAIL_MAX: usize = 254;
/// RFC 5321's bound on what stands before the `@`.
const LOCAL_MAX: usize = 64;
/// Shorter passwords fall to guessing (NIST SP 800-63B).
const PASSWORD_MIN: usize = 8;
/// Longer than any passphrase; bounds what is hashed.
const PASSWORD_MAX: usize = 128;
const NAME_MAX: usize = 100;

/// Who wants to become a member.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SignUp {
    /// Any case; kept in lower case.
    #[serde(default)]
    #[schema(required, value_type = String, format = "email", max_length = 254)]
    pub email: Option<String>,
    /// 8 to 128 characters.
    #[serde(default)]
    #[schema(required, value_type = String, format = "password", min_length = 8, max_length = 128)]
    pub password: Option<String>,
    /// What to call the member: 1 to 100 characters.
    #[serde(default)]
    #[schema(required, value_type = String, min_length = 1, max_length = 100)]
    pub name: Option<String>,
}

/// A sign-up in which everything is right.
pub struct NewUser {
    /// Normalised.
    pub email: String,
    /// As typed: spaces count in a password.
    pub password: String,
    /// Trimmed.
    pub name: String,
}

impl SignUp {
    /// Checks every field, and tells of all that are wrong at once.
    ///
    /// # Errors
    /// The fields that are wrong.
    pub fn validate(self) -> Result<NewUser, Vec<FieldError>> {
        let mut errors = Vec::new();
        let email = self.email.unwrap_or_default();
        let email = normalise_email(&email).unwrap_or_else(|| {
            errors.push(FieldError::new(
                "email",
                "must be an e-mail address, like you@example.com",
            ));
            String::new()
        });
        let password = self.password.unwrap_or_default();
        if !(PASSWORD_MIN..=PASSWORD_MAX).contains(&password.chars().count()) {
            errors.push(FieldError::new("password", "must have 8 to 128 characters"));
        }
        let name = self.name.unwrap_or_default().trim().to_owned();
        if name.is_empty() || name.chars().count() > NAME_MAX || name.chars().any(char::is_control)
        {
            errors.push(FieldError::new(
                "name",
                "must have 1 to 100 characters, none a control character",
            ));
        }
        if errors.is_empty() {
            Ok(NewUser {
                email,
                password,
                name,
            })
        } else {
            Err(errors)
        }
    }
}

/// Who wants to log in.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Login {
    /// As signed up with; case does not matter.
    pub email: String,
    /// The password.
    pub password: String,
}

/// A refresh token, to trade in or to end.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RefreshToken {
    /// From the last log-in or refresh.
    pub refresh_token: String,
}

/// `text` trimmed and in lower case, when it has the shape of an address. Only
/// a mail to it could prove more.
pub fn normalise_email(text: &str) -> Option<String> {
    let email = text.trim().to_lowercase();
    let (local, domain) = email.rsplit_once('@')?;
    let odd = |c: char| c.is_whitespace() || c.is_control() || "@,;:<>()[]\\\"".contains(c);
    let local_fine = (1..=LOCAL_MAX).contains(&local.len())
        && !local.contains(odd)
        && !local.starts_with('.')
        && !local.ends_with('.')
        && !local.contains("..");
    let label_fine = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| c.is_alphanumeric() || c == '-')
    };
    let domain_fine = domain.contains('.') && domain.split('.').all(label_fine);
    (email.len() <= EMAIL_MAX && local_fine && domain_fine).then_some(email)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_normalised_or_refused() {
        for (text, want) in [
            (
                "  Kim.MinJun+tickets@Example.COM ",
                Some("kim.minjun+tickets@example.com"),
            ),
            ("a@b.co", Some("a@b.co")),
            ("이름@예시.한국", Some("이름@예시.한국")),
            ("o'neill@sub.example.org", Some("o'neill@sub.example.org")),
            ("", None),
            ("plain", None),
            ("@example.com", None),
            ("a@b", None),
            ("a@@example.com", None),
            ("a b@example.com", None),
            ("a\0@example.com", None),
            ("a@example..com", None),
            ("a@-example.com", None),
            (".a@example.com", None),
            ("a..b@example.com", None),
            ("a@exa mple.com", None),
        ] {
            assert_eq!(normalise_email(text).as_deref(), want, "{text:?}");
        }
        let long = format!("{}@example.com", "x".repeat(65));
        assert_eq!(normalise_email(&long), None);
        let longer = format!("x@{}com", "a234567.".repeat(40));
        assert_eq!(normalise_email(&longer), None);
    }

    #[test]
    fn every_wrong_field_is_told_at_once() {
        let nothing = SignUp {
            email: None,
            password: None,
            name: None,
        };
        let fields: Vec<_> = nothing
            .validate()
            .err()
            .unwrap()
            .into_iter()
            .map(|e| e.field)
            .collect();
        assert_eq!(fields, ["email", "password", "name"]);
        let fine = SignUp {
            email: Some("A@Example.com".into()),
            password: Some("비밀번호는여덟자".into()),
            name: Some(" 김민준 ".into()),
        };
        let user = fine.validate().ok().unwrap();
        assert_eq!(
            (user.email.as_str(), user.name.as_str()),
            ("a@example.com", "김민준")
        );
    }
}
