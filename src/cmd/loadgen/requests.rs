//! The requests of the journey. Whatever does not change is built once; the rest
//! is a copy of a token and, for bookings, a small body.

use anyhow::{Context, anyhow};
use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderName, HeaderValue};
use http::{Method, Request, Uri};
use http_body_util::Full;
use url::Url;

use super::args::Scenario;
use super::buyer::Buyer;
use super::stats::Op;
use super::tokens::Tokens;

/// One server: what stands before each path, and its `Host`.
#[derive(Clone, Debug)]
pub struct Endpoint {
    pub base: Uri,
    prefix: String,
    host: HeaderValue,
    absolute: bool,
}

impl Endpoint {
    /// HTTP/1.1 asks by path and `Host`, HTTP/2 by the whole URI.
    pub fn new(url: &Url, http2: bool) -> anyhow::Result<Self> {
        let base: Uri = url
            .as_str()
            .parse()
            .with_context(|| format!("{url} is no address"))?;
        let authority = base
            .authority()
            .ok_or_else(|| anyhow!("{url} names no host"))?
            .as_str()
            .to_owned();
        let path = url.path().trim_end_matches('/');
        let prefix = if http2 {
            format!("{}://{authority}{path}", url.scheme())
        } else {
            path.to_owned()
        };
        Ok(Self {
            base,
            prefix,
            host: HeaderValue::from_str(&authority)?,
            absolute: http2,
        })
    }

    pub fn uri(&self, path: &str) -> Uri {
        Uri::try_from(format!("{}{path}", self.prefix)).unwrap_or_default()
    }

    pub fn request(&self, method: Method, uri: Uri, body: Bytes) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        if self.absolute {
            *request.version_mut() = http::Version::HTTP_2;
        } else {
            request.headers_mut().insert(HOST, self.host.clone());
        }
        request
    }
}

const QUEUE_TOKEN: HeaderName = HeaderName::from_static("queue-token");
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const FORM: HeaderValue = HeaderValue::from_static("application/x-www-form-urlencoded");

pub struct Requests {
    pub api: Endpoint,
    pub stripe: Option<Endpoint>,
    tokens: Tokens,
    enter: Uri,
    mine: Uri,
    orders: Uri,
    payments: Uri,
    scenario: Scenario,
}

impl Requests {
    pub fn new(
        api: Endpoint,
        stripe: Option<Endpoint>,
        tokens: Tokens,
        performance: uuid::Uuid,
        scenario: Scenario,
    ) -> Self {
        Self {
            enter: api.uri(&format!("/api/v1/queues/{performance}/tokens")),
            mine: api.uri(&format!("/api/v1/queues/{performance}/tokens/me")),
            orders: api.uri("/api/v1/orders"),
            payments: api.uri("/api/v1/payments"),
            api,
            stripe,
            tokens,
            scenario,
        }
    }

    fn bearer(&self, buyer: &Buyer) -> anyhow::Result<HeaderValue> {
        let mut value = b"Bearer ".to_vec();
        self.tokens
            .append(u64::from(buyer.member), &mut value)
            .context("cannot read the access tokens")?;
        Ok(HeaderValue::from_maybe_shared(Bytes::from(value))?)
    }

    /// The access token of a buyer, as text: for the audit.
    pub fn access_token(&self, member: u32) -> anyhow::Result<String> {
        let mut value = Vec::new();
        self.tokens.append(u64::from(member), &mut value)?;
        Ok(String::from_utf8(value)?)
    }

    fn place(buyer: &Buyer) -> anyhow::Result<HeaderValue> {
        let place = buyer
            .place
            .as_deref()
            .ok_or_else(|| anyhow!("no place to show"))?;
        Ok(HeaderValue::from_bytes(place)?)
    }

    /// The request for this step of this buyer.
    pub fn build(&self, op: Op, buyer: &Buyer) -> anyhow::Result<Request<Full<Bytes>>> {
        match op {
            Op::Poll | Op::Leave => {
                let method = if op == Op::Poll {
                    Method::GET
                } else {
                    Method::DELETE
                };
                let mut request = self.api.request(method, self.mine.clone(), Bytes::new());
                request
                    .headers_mut()
                    .insert(QUEUE_TOKEN, Self::place(buyer)?);
                Ok(request)
            }
            Op::Confirm => self.confirm(buyer),
            Op::Enter | Op::Seats | Op::Hold | Op::Payment | Op::Order | Op::Cancel => {
                self.member(op, buyer)
            }
        }
    }

    /// What a signed-in member asks of the gateway.
    fn member(&self, op: Op, buyer: &Buyer) -> anyhow::Result<Request<Full<Bytes>>> {
        let booking = buyer.booking.as_deref();
        let known = || booking.ok_or_else(|| anyhow!("no booking under way"));
        let order = |suffix: &str| {
            Ok::<_, anyhow::Error>(
                self.api
                    .uri(&format!("/api/v1/orders/{}{suffix}", known()?.order)),
            )
        };
        let (method, uri, body) = match op {
            Op::Seats => {
                let path = format!("/api/v1/schedules/{}/seats", known()?.schedule);
                let mut request = self
                    .api
                    .request(Method::GET, self.api.uri(&path), Bytes::new());
                request
                    .headers_mut()
                    .insert(ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
                return Ok(request);
            }
            Op::Hold => (Method::POST, self.orders.clone(), self.hold_body(buyer)?),
            Op::Payment => {
                let body = serde_json::json!({"orderId": known()?.order}).to_string();
                (Method::POST, self.payments.clone(), Bytes::from(body))
            }
            Op::Order => (Method::GET, order("")?, Bytes::new()),
            Op::Cancel => (Method::DELETE, order("")?, Bytes::new()),
            Op::Enter | Op::Poll | Op::Leave | Op::Confirm => {
                (Method::POST, self.enter.clone(), Bytes::new())
            }
        };
        let has_body = !body.is_empty();
        let mut request = self.api.request(method, uri, body);
        let headers = request.headers_mut();
        headers.insert(AUTHORIZATION, self.bearer(buyer)?);
        if has_body {
            headers.insert(CONTENT_TYPE, JSON);
        }
        if op == Op::Hold {
            headers.insert(QUEUE_TOKEN, Self::place(buyer)?);
        }
        if op == Op::Payment {
            // A payment asked for again after a lost answer is the same payment.
            headers.insert(
                IDEMPOTENCY_KEY,
                HeaderValue::from_str(&format!("loadgen-{}", known()?.order))?,
            );
        }
        Ok(request)
    }

    fn hold_body(&self, buyer: &Buyer) -> anyhow::Result<Bytes> {
        let booking = buyer
            .booking
            .as_deref()
            .ok_or_else(|| anyhow!("no seats chosen"))?;
        let body = if self.scenario == Scenario::Surge {
            serde_json::json!({"scheduleId": booking.schedule, "seatIds": booking.wanted})
        } else {
            serde_json::json!({"scheduleId": booking.schedule, "bestAvailable": {"count": buyer.fate.seats}})
        };
        Ok(Bytes::from(serde_json::to_vec(&body)?))
    }

    /// As Stripe.js does: publishable key and client secret.
    fn confirm(&self, buyer: &Buyer) -> anyhow::Result<Request<Full<Bytes>>> {
        let booking = buyer
            .booking
            .as_deref()
            .ok_or_else(|| anyhow!("nothing to pay"))?;
        let stripe = self
            .stripe
            .as_ref()
            .ok_or_else(|| anyhow!("no Stripe sandbox is known: name it by --stripe-url"))?;
        let declined = buyer.fate.declined && !booking.card_declined;
        let card = if declined {
            "pm_card_chargeDeclined"
        } else {
            "pm_card_visa"
        };
        let body = serde_urlencoded::to_string([
            ("payment_method", card),
            ("client_secret", &booking.client_secret),
        ])?;
        let uri = stripe.uri(&format!("/v1/payment_intents/{}/confirm", booking.intent));
        let mut request = stripe.request(Method::POST, uri, Bytes::from(body));
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, FORM);
        headers.insert(
            AUTHORIZATION,
            HeaderValue::from_str(&format!("Bearer {}", booking.publishable_key))?,
        );
        Ok(request)
    }
}
