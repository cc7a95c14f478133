//! Addresses and ranges of them, as flags name them.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs},
    str::FromStr,
};

/// Where to listen: `127.0.0.1:8080`, `[::1]:8080`, `localhost:8080` or another name of this
/// machine, `8080` (this machine only), `:8080` (every IPv4 address of it).
///
/// # Errors
/// Anything else; the sentence says what would be right.
pub fn listen_address(text: &str) -> Result<SocketAddr, String> {
    let wrong = |why: &str| {
        format!(
            "{why}: write such as 127.0.0.1:8080, localhost:8080 or 8080 (this machine only), or :8080 (every address of it)"
        )
    };
    let port = |port: &str| {
        port.parse::<u16>()
            .map_err(|_| wrong("no port from 0 to 65535"))
    };
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    if text.parse::<IpAddr>().is_ok() {
        return Err(wrong("the port is missing"));
    }
    let Some((host, number)) = text.rsplit_once(':') else {
        return match text.bytes().all(|byte| byte.is_ascii_digit()) {
            true => Ok((Ipv4Addr::LOCALHOST, port(text)?).into()),
            false => Err(wrong("the port is missing")),
        };
    };
    let number = port(number)?;
    if host.is_empty() {
        return Ok((Ipv4Addr::UNSPECIFIED, number).into());
    }
    let found = (host, number).to_socket_addrs();
    let mut found = found.map_err(|error| wrong(&format!("{host:?} has no address ({error})")))?;
    // IPv4 first: what a person tries next, curl to 127.0.0.1, then works.
    let all: Vec<SocketAddr> = found.by_ref().collect();
    (all.iter().find(|address| address.is_ipv4()).or(all.first()))
        .copied()
        .ok_or_else(|| wrong(&format!("{host:?} has no address")))
}

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
    fn places_to_listen_are_written_as_people_do() {
        for (text, want) in [
            ("127.0.0.1:8080", "127.0.0.1:8080"),
            ("[::1]:80", "[::1]:80"),
            ("8080", "127.0.0.1:8080"),
            (":8080", "0.0.0.0:8080"),
            ("localhost:0", "127.0.0.1:0"),
        ] {
            assert_eq!(listen_address(text).unwrap().to_string(), want, "{text}");
        }
        for (text, why) in [
            ("127.0.0.1", "port is missing"),
            ("::1", "port is missing"),
            ("localhost", "port is missing"),
            ("localhost:http", "no port"),
            (":65536", "no port"),
            ("80800", "no port"),
            ("", "no port"),
            ("no such host:80", "has no address"),
        ] {
            let error = listen_address(text).unwrap_err();
            assert!(
                error.contains(why) && error.contains(":8080"),
                "{text}: {error}"
            );
        }
    }

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
