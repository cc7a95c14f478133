//! How a command ends when it does not succeed.

/// One clear sentence for stderr, and the exit code that goes with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The command was called wrongly (a malformed URL, a missing flag): 2.
    Usage(String),
    /// Anything else (a port in use, a store away): 1.
    Failed(String),
}

impl Failure {
    /// A wrong call.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::Usage(message.into())
    }

    /// The exit code.
    pub fn code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Failed(_) => 1,
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Self::Usage(message) | Self::Failed(message)) = self;
        f.write_str(message)
    }
}

impl std::error::Error for Failure {}

impl From<String> for Failure {
    fn from(message: String) -> Self {
        Self::Failed(message)
    }
}
