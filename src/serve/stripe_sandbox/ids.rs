//! Identifiers in Stripe's shapes. They are random, so the order of creation is
//! the store's sequence, never the id.

use rand::RngExt as _;

const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";

fn random(len: usize) -> String {
    let mut rng = rand::rng();
    (0..len)
        .map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())]))
        .collect()
}

/// Stripe's ids are a prefix and 24 characters, the first of them a shard digit.
fn object(prefix: &str) -> String {
    format!("{prefix}_3{}", random(23))
}

pub fn intent() -> String {
    object("pi")
}

pub fn charge() -> String {
    object("ch")
}

pub fn refund() -> String {
    object("re")
}

pub fn event() -> String {
    object("evt")
}

pub fn payment_method() -> String {
    format!("pm_1{}", random(23))
}

pub fn dispute() -> String {
    object("du")
}

pub fn balance_transaction() -> String {
    object("txn")
}

pub fn request() -> String {
    format!("req_{}", random(14))
}

pub fn client_secret(intent: &str) -> String {
    format!("{intent}_secret_{}", random(25))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_stripes_shape_and_differ() {
        let (a, b) = (intent(), intent());
        assert_ne!(a, b);
        assert_eq!(a.len(), "pi_".len() + 24);
        assert!(client_secret(&a).starts_with(&format!("{a}_secret_")));
    }
}
