//! Ranges of addresses, as flags name them.

use std::{net::IpAddr, str::FromStr};

/// A range of addresses, `10.0.0.0/8` or a single one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Net {
    base: IpAddr,
    prefix: u8,
}

impl FromStr for Net {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no address or range; want 10.1.2.3 or 10.0.0.0/8");
        let (base, prefix) = match text.split_once('/') {
            Some((base, prefix)) => (base, Some(prefix.parse::<u8>().map_err(|_| wrong())?)),
            None => (text, None),
        };
        let base = base.parse::<IpAddr>().map_err(|_| wrong())?;
        let bits = if base.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.unwrap_or(bits);
        if prefix > bits {
            Err(wrong())
        } else {
            Ok(Self { base, prefix })
        }
    }
}

impl Net {
    /// Whether `address` lies in the range.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.base, address) {
            (IpAddr::V4(base), IpAddr::V4(address)) => {
                let shift = 32 - u32::from(self.prefix);
                let mask = u32::MAX.checked_shl(shift).unwrap_or(0);
                u32::from(base) & mask == u32::from(address) & mask
            }
            (IpAddr::V6(base), IpAddr::V6(address)) => {
                let shift = 128 - u32::from(self.prefix);
                let mask = u128::MAX.checked_shl(shift).unwrap_or(0);
                u128::from(base) & mask == u128::from(address) & mask
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_parsed_strictly() {
        assert!("10.0.0.0/33".parse::<Net>().is_err());
        assert!("ten".parse::<Net>().is_err());
        let all = "0.0.0.0/0".parse::<Net>().unwrap();
        assert!(all.contains("8.8.8.8".parse().unwrap()));
        let one = "10.0.0.1".parse::<Net>().unwrap();
        assert!(!one.contains("10.0.0.2".parse().unwrap()));
    }
}
