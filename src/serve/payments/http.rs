//! The HTTP surface of payments.

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRef, State};
use axum::response::Response;
use chrono::{DateTime, Utc};
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::cancel::Outcome;
use super::machine::PaymentState;
use super::store::{self, Payment};
use super::{Error, Payments, signature, webhook};
use crate::platform::auth::{Caller, Internal, InternalSecret, Verifier};
use crate::platform::http::{Json, Path};
use crate::platform::idempotency::{self, Answer};
use crate::platform::problem::{Problem, ProblemBody};

/// Stripe's events are a few KiB; those with large objects stay well below.
pub const WEBHOOK_BODY_MAX: usize = 256 * 1024;

impl FromRef<Payments> for Verifier {
    fn from_ref(payments: &Payments) -> Self {
        payments.verifier.clone()
    }
}

impl FromRef<Payments> for InternalSecret {
    fn from_ref(payments: &Payments) -> Self {
        payments.internal.clone()
    }
}

/// The routes of this role.
pub fn router(state: Payments) -> OpenApiRouter {
    routes().with_state(state)
}

/// The paths alone, for the OpenAPI document.
pub fn routes() -> OpenApiRouter<Payments> {
    let webhook = OpenApiRouter::new()
        .routes(routes!(webhook))
        .layer(DefaultBodyLimit::max(WEBHOOK_BODY_MAX));
    OpenApiRouter::new()
        .routes(routes!(create))
        .routes(routes!(read))
        .routes(routes!(cancel))
        .merge(webhook)
        .route(
            "/internal/v1/reconcile/orders",
            axum::routing::post(super::reconcile::compare),
        )
        .route(
            "/internal/v1/restores/{id}",
            axum::routing::post(super::scan::restore),
        )
        .route(
            "/internal/v1/overview",
            axum::routing::get(super::overview::overview),
        )
}

/// Which order to pay.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NewPaymentBody {
    order_id: Uuid,
}

/// Where a payment stands.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum PaymentStatus {
    RequiresPayment,
    Processing,
    Succeeded,
    /// The card was declined; another one may be tried while the hold lasts.
    Failed,
    Refunded,
    Cancelled,
}

/// A payment, with what Stripe's Payment Element needs to take the card.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PaymentBody {
    id: Uuid,
    order_id: Uuid,
    status: PaymentStatus,
    client_secret: Option<String>,
    publishable_key: String,
    /// Where a browser pays, when Stripe's Payment Element cannot be used: the sandbox's page.
    /// Append `&return_url=` to come back.
    pay_url: Option<String>,
    payment_intent_id: Option<String>,
    /// In the currency's minor unit.
    amount: i64,
    currency: String,
    refunded_amount: i64,
    /// Why the last card was declined, in Stripe's words.
    failure_code: Option<String>,
    failure_message: Option<String>,
    created_at: DateTime<Utc>,
    succeeded_at: Option<DateTime<Utc>>,
}

impl Payments {
    fn body(&self, payment: Payment) -> PaymentBody {
        let refunded = payment.amount > 0 && payment.refunded_amount >= payment.amount;
        let status = match payment.state() {
            PaymentState::Creating | PaymentState::RequiresPayment => {
                PaymentStatus::RequiresPayment
            }
            PaymentState::Failed => PaymentStatus::Failed,
            PaymentState::Processing => PaymentStatus::Processing,
            PaymentState::Succeeded if refunded => PaymentStatus::Refunded,
            PaymentState::Succeeded => PaymentStatus::Succeeded,
            PaymentState::Cancelled => PaymentStatus::Cancelled,
        };
        let pay_url = (self.config.pay_page_url.as_ref())
            .zip(payment.intent_id.as_ref())
            .zip(payment.client_secret.as_ref())
            .filter(|_| payment.state.0.is_open())
            .map(|((base, intent), secret)| {
                let base = base.trim_end_matches('/');
                format!("{base}/pay/{intent}?client_secret={secret}")
            });
        PaymentBody {
            pay_url,
            id: payment.id,
            order_id: payment.order_id,
            status,
            // Of no use any more, so it need not travel.
            client_secret: payment.client_secret.filter(|_| payment.state.0.is_open()),
            publishable_key: self.config.publishable_key.clone(),
            payment_intent_id: payment.intent_id,
            amount: payment.amount,
            currency: payment.currency,
            refunded_amount: payment.refunded_amount,
            failure_code: payment.failure_code,
            failure_message: payment.failure_message,
            created_at: payment.created_at,
            succeeded_at: payment.succeeded_at,
        }
    }
}

/// Begin to pay an order. Asking again gives the same payment. An order with nothing to pay has SUCCEEDED at once, without a
/// `clientSecret`.
#[utoipa::path(post, path = "/api/v1/payments", tag = "Payment", request_body = NewPaymentBody,
    params(("Idempotency-Key" = Option<String>, Header, description = "1..255 visible ASCII characters")),
    security(("bearer" = [])),
    responses(
        (status = 201, body = PaymentBody),
        (status = 401, description = "UNAUTHENTICATED, TOKEN_EXPIRED", body = ProblemBody),
        (status = 404, description = "ORDER_NOT_FOUND", body = ProblemBody),
        (status = 409, description = "HOLD_EXPIRED, ORDER_NOT_PAYABLE, PAYMENT_PROVIDER_REFUSED, IDEMPOTENCY_IN_PROGRESS", body = ProblemBody),
        (status = 422, description = "VALIDATION_FAILED, IDEMPOTENCY_KEY_REUSED", body = ProblemBody),
        (status = 503, description = "UNAVAILABLE: Stripe or a store is away; nothing is lost", body = ProblemBody)))]
async fn create(
    State(payments): State<Payments>,
    caller: Caller,
    headers: HeaderMap,
    Json(body): Json<NewPaymentBody>,
) -> Result<Response, Problem> {
    let (order_id, user) = (body.order_id, caller.user_id);
    let fingerprint = serde_json::json!({"orderId": order_id});
    let pool = payments.pool.clone();
    idempotency::run(
        &pool,
        user,
        &headers,
        &fingerprint,
        move |id, _claim| async move {
            let payment = payments.begin(id, order_id, user).await?;
            let body = serde_json::to_vec(&payments.body(payment)).map_err(Problem::internal)?;
            Ok(Answer {
                status: StatusCode::CREATED,
                body: body.into(),
                kept: false,
            })
        },
    )
    .await
}

/// One of the caller's payments, as it is known. While it is open, asking makes sure that news of
/// Stripe that no webhook brought are taken up within seconds.
#[utoipa::path(get, path = "/api/v1/payments/{id}", tag = "Payment",
    params(("id" = Uuid, Path)), security(("bearer" = [])),
    responses(
        (status = 200, body = PaymentBody),
        (status = 401, description = "UNAUTHENTICATED, TOKEN_EXPIRED", body = ProblemBody),
        (status = 404, description = "PAYMENT_NOT_FOUND", body = ProblemBody)))]
async fn read(
    State(payments): State<Payments>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<Json<PaymentBody>, Error> {
    let found = store::by_id(&mut *payments.pool.acquire().await?, id).await?;
    let payment = found
        .filter(|payment| payment.user_id == Some(caller.user_id))
        .ok_or(Error::PaymentNotFound)?;
    // One read of Stripe's list for all who ask: a buyer's poll spends nothing of the rate limits.
    if payment.state().is_open() && payment.intent_id.is_some() {
        payments.news.notify_one();
    }
    Ok(Json(payments.body(payment)))
}

/// Stripe's webhook.
#[utoipa::path(post, path = "/api/v1/payments/webhook", tag = "Payment",
    request_body(content = String, content_type = "application/json"),
    params(("Stripe-Signature" = String, Header)),
    responses(
        (status = 200, description = "Kept; duplicates too"),
        (status = 400, description = "INVALID_SIGNATURE, INVALID_WEBHOOK", body = ProblemBody),
        (status = 503, description = "UNAVAILABLE: not kept, send it again", body = ProblemBody)))]
async fn webhook(
    State(payments): State<Payments>,
    headers: HeaderMap,
    body: Result<Bytes, axum::extract::rejection::BytesRejection>,
) -> Result<StatusCode, Problem> {
    let body = body.map_err(|rejection| crate::platform::http::body_problem(&rejection))?;
    let header = headers
        .get("stripe-signature")
        .and_then(|value| value.to_str().ok());
    let now_s = Utc::now().timestamp();
    let verified = signature::verify(
        &body,
        header.unwrap_or_default(),
        &payments.config.webhook_secrets,
        now_s,
    );
    if let Err(refused) = verified {
        payments.note_refused(&body, refused).await;
        return Err(Error::BadSignature(refused).into());
    }
    if webhook::keep(&payments.pool, &body).await? {
        payments.worker.notify_one();
    }
    Ok(StatusCode::OK)
}

/// The answer to a cancellation.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
pub struct CancelBody {
    #[serde(skip_deserializing, default = "none")]
    outcome: Outcome,
}

fn none() -> Outcome {
    Outcome::None
}

/// Ends an order's payment, or makes sure that there will be none.
#[utoipa::path(post, path = "/internal/v1/orders/{id}/cancel-payment", tag = "Internal",
    params(("id" = Uuid, Path)),
    responses((status = 200, body = CancelBody), (status = 503, body = ProblemBody)))]
async fn cancel(
    State(payments): State<Payments>,
    _internal: Internal,
    Path(order_id): Path<Uuid>,
) -> Result<Json<CancelBody>, Error> {
    let outcome = payments.cancel_now(order_id).await?;
    Ok(Json(CancelBody { outcome }))
}
