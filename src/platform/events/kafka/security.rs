//! How the brokers are spoken to: TLS and SASL.

use std::path::PathBuf;

use rdkafka::ClientConfig;

use crate::platform::secret::Secret;

/// What a connection to a broker is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Protocol {
    /// In the clear, without a login
    #[default]
    #[value(name = "plaintext")]
    Plaintext,
    /// TLS, without a login
    #[value(name = "ssl")]
    Ssl,
    /// A login in the clear
    #[value(name = "sasl_plaintext")]
    SaslPlaintext,
    /// TLS and a login
    #[value(name = "sasl_ssl")]
    SaslSsl,
}

impl Protocol {
    fn as_str(self) -> &'static str {
        match self {
            Self::Plaintext => "plaintext",
            Self::Ssl => "ssl",
            Self::SaslPlaintext => "sasl_plaintext",
            Self::SaslSsl => "sasl_ssl",
        }
    }

    fn is_sasl(self) -> bool {
        matches!(self, Self::SaslPlaintext | Self::SaslSsl)
    }

    fn is_tls(self) -> bool {
        matches!(self, Self::Ssl | Self::SaslSsl)
    }
}

/// How this process proves itself to the brokers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Mechanism {
    /// The password itself; only sensible over TLS
    #[value(name = "plain")]
    Plain,
    /// Salted challenge and response
    #[value(name = "scram-sha-256")]
    ScramSha256,
    /// The same with SHA-512
    #[value(name = "scram-sha-512")]
    ScramSha512,
}

impl Mechanism {
    fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

/// TLS and SASL towards the brokers.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct KafkaSecurity {
    /// How the Kafka brokers are spoken to
    #[arg(
        long = "kafka-security-protocol",
        env = "TICKETPING_KAFKA_SECURITY_PROTOCOL",
        value_enum,
        ignore_case = true,
        default_value = "plaintext"
    )]
    pub protocol: Protocol,
    /// PEM file with the authorities that sign the brokers' certificates
    /// [default: those of the system]
    #[arg(long = "kafka-ca", env = "TICKETPING_KAFKA_CA", value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// How this process logs in, with a protocol of SASL
    #[arg(
        long = "kafka-sasl-mechanism",
        env = "TICKETPING_KAFKA_SASL_MECHANISM",
        value_enum,
        ignore_case = true
    )]
    pub mechanism: Option<Mechanism>,
    /// The name that it logs in by
    #[arg(
        long = "kafka-username",
        env = "TICKETPING_KAFKA_USERNAME",
        value_name = "NAME"
    )]
    pub username: Option<String>,
    /// Its password (prefer the environment or a file to the flag)
    #[arg(
        long = "kafka-password",
        env = "TICKETPING_KAFKA_PASSWORD",
        hide_env_values = true,
        value_name = "PASSWORD"
    )]
    pub password: Option<Secret>,
    /// A file with its password
    #[arg(
        long = "kafka-password-file",
        env = "TICKETPING_KAFKA_PASSWORD_FILE",
        value_name = "FILE",
        conflicts_with = "password"
    )]
    pub password_file: Option<PathBuf>,
}

impl KafkaSecurity {
    /// Reads the password's file, and refuses what cannot work together.
    ///
    /// # Errors
    /// Names the flag and what is wrong.
    pub fn complete(mut self) -> Result<Self, String> {
        if let Some(file) = self.password_file.take() {
            let text = std::fs::read_to_string(&file)
                .map_err(|e| format!("--kafka-password-file {}: {e}", file.display()))?;
            self.password = Some(Secret::new(text.trim_end_matches(['\r', '\n'])));
        }
        let protocol = self.protocol.as_str();
        for (given, flag) in [
            (self.mechanism.is_some(), "--kafka-sasl-mechanism"),
            (self.username.is_some(), "--kafka-username"),
            (self.password.is_some(), "--kafka-password (or its file)"),
        ] {
            match (self.protocol.is_sasl(), given) {
                (true, false) => {
                    return Err(format!(
                        "{flag} is missing: --kafka-security-protocol {protocol} needs it"
                    ));
                }
                (false, true) => {
                    return Err(format!(
                        "{flag} goes with --kafka-security-protocol sasl_ssl or sasl_plaintext, not with {protocol}"
                    ));
                }
                (true, true) | (false, false) => {}
            }
        }
        if let Some(ca) = &self.ca {
            if !self.protocol.is_tls() {
                return Err(format!(
                    "--kafka-ca goes with --kafka-security-protocol ssl or sasl_ssl, not with {protocol}"
                ));
            }
            std::fs::File::open(ca).map_err(|e| format!("--kafka-ca {}: {e}", ca.display()))?;
        }
        Ok(self)
    }

    pub(super) fn apply(&self, client: &mut ClientConfig) {
        client.set("security.protocol", self.protocol.as_str());
        if let Some(ca) = &self.ca {
            client.set("ssl.ca.location", ca.display().to_string());
        }
        if let (Some(mechanism), Some(name), Some(password)) =
            (self.mechanism, &self.username, &self.password)
        {
            client
                .set("sasl.mechanism", mechanism.as_str())
                .set("sasl.username", name)
                .set("sasl.password", password.expose());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_work_together_is_refused_by_its_flag() {
        let sasl = KafkaSecurity {
            protocol: Protocol::SaslSsl,
            ..KafkaSecurity::default()
        };
        let error = sasl.clone().complete().unwrap_err();
        assert!(
            error.contains("--kafka-sasl-mechanism is missing"),
            "{error}"
        );
        let whole = KafkaSecurity {
            mechanism: Some(Mechanism::Plain),
            username: Some("ada".to_owned()),
            password: Some(Secret::new("secret")),
            ..sasl
        };
        assert!(whole.clone().complete().is_ok());
        let plaintext = KafkaSecurity {
            protocol: Protocol::Plaintext,
            ..whole
        };
        assert!(plaintext.complete().is_err());
        let ca = KafkaSecurity {
            protocol: Protocol::Ssl,
            ca: Some("/nowhere/ca.pem".into()),
            ..KafkaSecurity::default()
        };
        let error = ca.complete().unwrap_err();
        assert!(error.contains("--kafka-ca /nowhere/ca.pem"), "{error}");
    }
}
