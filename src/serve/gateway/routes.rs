//! Which role answers which path.

/// A role behind the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoleName {
    /// Members.
    Users,
    /// The catalogue.
    Performances,
    /// The waiting room.
    Queue,
    /// Holds, orders, seat maps.
    Reservations,
    /// Payments and webhooks.
    Payments,
}

impl RoleName {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Users,
        Self::Performances,
        Self::Queue,
        Self::Reservations,
        Self::Payments,
    ];

    /// As on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Users => "users",
            Self::Performances => "performances",
            Self::Queue => "queue",
            Self::Reservations => "reservations",
            Self::Payments => "payments",
        }
    }
}

/// The role that answers `path`, or none: then it is not public.
pub fn role_of(path: &str) -> Option<RoleName> {
    if path == "/.well-known/jwks.json" {
        return Some(RoleName::Users);
    }
    let (base, rest) = match path.strip_prefix("/api/v1/") {
        Some(rest) => ("api", rest),
        None => ("admin", path.strip_prefix("/admin/v1/")?),
    };
    let (first, tail) = rest.split_once('/').unwrap_or((rest, ""));
    match (base, first) {
        ("api", "users" | "auth") => Some(RoleName::Users),
        ("api", "schedules") if tail.ends_with("/seats") => Some(RoleName::Reservations),
        ("api", "performances" | "schedules") => Some(RoleName::Performances),
        ("api", "queues") | ("admin", "queues" | "audit") => Some(RoleName::Queue),
        ("api", "orders") | ("admin", "tickets") => Some(RoleName::Reservations),
        ("api", "payments") => Some(RoleName::Payments),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_public_path_has_its_role_and_no_internal_one_has_any() {
        for (path, role) in [
            ("/api/v1/users", RoleName::Users),
            ("/api/v1/users/me", RoleName::Users),
            ("/api/v1/auth/login", RoleName::Users),
            ("/.well-known/jwks.json", RoleName::Users),
            ("/api/v1/performances", RoleName::Performances),
            ("/api/v1/performances/x/schedules", RoleName::Performances),
            ("/api/v1/schedules/x", RoleName::Performances),
            ("/api/v1/schedules/x/seats", RoleName::Reservations),
            ("/api/v1/queues/x/tokens/me", RoleName::Queue),
            ("/api/v1/orders", RoleName::Reservations),
            ("/api/v1/payments/webhook", RoleName::Payments),
            ("/admin/v1/queues/x", RoleName::Queue),
            ("/admin/v1/audit", RoleName::Queue),
            ("/admin/v1/tickets/check", RoleName::Reservations),
        ] {
            assert_eq!(role_of(path), Some(role), "{path}");
        }
        for path in [
            "/",
            "/internal/v1/overview",
            "/api/v1/internal",
            "/api/v2/users",
            "/admin",
            "//internal/v1/x",
        ] {
            assert_eq!(role_of(path), None, "{path}");
        }
    }
}
