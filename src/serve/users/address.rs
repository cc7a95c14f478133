//! Whose request this is, by address: the connection's, or, where the connection
//! comes from a proxy that the configuration trusts, the one that proxy vouches for.

use std::{
    convert::Infallible,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use axum::extract::{ConnectInfo, FromRef, FromRequestParts};
use http::{HeaderMap, request::Parts};

use crate::platform::net::Net;

/// The proxies whose `X-Forwarded-For` is believed; none by default.
#[derive(Clone, Debug, Default)]
pub struct TrustedProxies(pub Arc<[Net]>);

impl TrustedProxies {
    fn trust(&self, address: IpAddr) -> bool {
        self.0.iter().any(|net| net.contains(address))
    }

    /// The client of a connection from `peer`: walks `X-Forwarded-For` from its
    /// end, where our own proxies wrote, to the first address that is not one
    /// of ours. What stands before that is the client's own word and counts for nothing.
    fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut client = peer.to_canonical();
        let lines = headers.get_all("x-forwarded-for").iter().rev();
        for hop in lines
            .filter_map(|line| line.to_str().ok())
            .flat_map(|line| line.rsplit(','))
        {
            if !self.trust(client) {
                break;
            }
            let Ok(address) = hop.trim().parse::<IpAddr>() else {
                break;
            };
            client = address.to_canonical();
        }
        client
    }
}

/// The address a request is limited by.
#[derive(Clone, Copy, Debug)]
pub struct ClientAddress(pub IpAddr);

impl<S> FromRequestParts<S> for ClientAddress
where
    S: Send + Sync,
    TrustedProxies: FromRef<S>,
{
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Infallible> {
        // Without a connection (a call inside the process) all callers are one.
        let peer = parts
            .extensions
            .get::<ConnectInfo<SocketAddr>>()
            .map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |info| info.0.ip());
        Ok(Self(
            TrustedProxies::from_ref(state).client(peer, &parts.headers),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(trusted: &[&str], peer: &str, forwarded: &[&str]) -> String {
        let nets = trusted.iter().map(|net| net.parse().unwrap()).collect();
        let mut headers = HeaderMap::new();
        for line in forwarded {
            headers.append("x-forwarded-for", line.parse().unwrap());
        }
        TrustedProxies(nets)
            .client(peer.parse().unwrap(), &headers)
            .to_string()
    }

    #[test]
    fn a_header_counts_only_from_a_trusted_proxy() {
        assert_eq!(client(&[], "203.0.113.9", &["198.51.100.1"]), "203.0.113.9");
        assert_eq!(
            client(&["10.0.0.0/8"], "203.0.113.9", &["198.51.100.1"]),
            "203.0.113.9"
        );
        assert_eq!(
            client(&["10.0.0.0/8"], "10.1.1.1", &["198.51.100.1"]),
            "198.51.100.1"
        );
        assert_eq!(
            client(&["10.0.0.0/8"], "::ffff:10.1.1.1", &["198.51.100.1"]),
            "198.51.100.1"
        );
    }

    #[test]
    fn what_the_client_claims_before_the_proxies_is_ignored() {
        let chain = ["6.6.6.6, 198.51.100.1", "10.2.2.2"];
        assert_eq!(client(&["10.0.0.0/8"], "10.1.1.1", &chain), "198.51.100.1");
        assert_eq!(
            client(&["10.0.0.0/8"], "10.1.1.1", &["nonsense"]),
            "10.1.1.1"
        );
        assert_eq!(client(&["10.0.0.0/8"], "10.1.1.1", &[]), "10.1.1.1");
        assert_eq!(
            client(&["fd00::/8", "::1"], "::1", &["2001:db8::5, fd00::2"]),
            "2001:db8::5"
        );
    }
}
