//! The sandbox's records as whole Stripe objects: every field that Stripe's
//! OpenAPI lists for a card payment is there, null where it is empty, since
//! clients generated from it insist.

use serde_json::{Value, json};

use super::cards::Issuer;
use super::ids;
use super::machine::Status;
use super::model::{Charge, ChargeState, Dispute, Intent, LastError, Method, Refund, RefundStatus};

/// The version whose shapes these are.
pub const API_VERSION: &str = "2026-09-30.endive";

/// Fields of Stripe's that never hold anything here.
const INTENT_NULLS: &[&str] = &[
    "allowed_payment_method_types",
    "application",
    "application_fee_amount",
    "customer_account",
    "excluded_payment_method_types",
    "managed_payments",
    "on_behalf_of",
    "payment_method_configuration_details",
    "processing",
    "review",
    "source",
    "transfer_data",
];
const CHARGE_NULLS: &[&str] = &[
    "application",
    "application_fee",
    "application_fee_amount",
    "authorization_code",
    "failure_balance_transaction",
    "on_behalf_of",
    "receipt_number",
    "receipt_url",
    "refunds",
    "review",
    "source",
    "source_transfer",
    "transfer_data",
];

fn with_nulls(mut value: Value, names: &[&str]) -> Value {
    for name in names {
        value[*name] = Value::Null;
    }
    value
}

pub fn payment_intent(intent: &Intent) -> Value {
    let echoed = |name: &str| intent.echoed.get(name).cloned().unwrap_or(Value::Null);
    let shown = match intent.status {
        Status::RequiresPaymentMethod => None,
        Status::RequiresConfirmation
        | Status::RequiresAction
        | Status::Processing
        | Status::RequiresCapture
        | Status::Succeeded
        | Status::Canceled => intent.method.as_ref(),
    };
    let value = json!({
        "id": intent.id,
        "object": "payment_intent",
        "amount": intent.amount,
        "amount_capturable": intent.capturable(),
        "amount_details": { "tip": {} },
        "amount_received": intent.captured(),
        "automatic_payment_methods": intent.automatic_payment_methods,
        "canceled_at": intent.canceled_at,
        "cancellation_reason": intent.cancellation_reason,
        "capture_method": intent.capture.as_str(),
        "client_secret": intent.client_secret,
        "confirmation_method": "automatic",
        "created": intent.created,
        "currency": intent.currency,
        "customer": echoed("customer"),
        "description": echoed("description"),
        "last_payment_error": intent.last_error.as_ref().map(last_error),
        "latest_charge": intent.latest_charge().map(|charge| charge.id.as_str()),
        "livemode": false,
        "metadata": intent.metadata,
        "next_action": intent.next_action.as_ref().map(|next| next_action(&next.url, next.return_url.as_deref())),
        "payment_method": shown.map(|method| method.id.as_str()),
        "payment_method_options": payment_method_options(intent),
        "payment_method_types": intent.payment_method_types,
        "receipt_email": echoed("receipt_email"),
        "setup_future_usage": echoed("setup_future_usage"),
        "shipping": echoed("shipping"),
        "statement_descriptor": echoed("statement_descriptor"),
        "statement_descriptor_suffix": echoed("statement_descriptor_suffix"),
        "status": intent.status.as_str(),
        "transfer_group": echoed("transfer_group"),
    });
    with_nulls(value, INTENT_NULLS)
}

fn payment_method_options(intent: &Intent) -> Value {
    if intent.payment_method_types.iter().any(|t| t == "card") {
        json!({ "card": {
            "installments": null,
            "mandate_options": null,
            "network": null,
            "request_three_d_secure": "automatic",
        }})
    } else {
        json!({})
    }
}

/// With a `return_url` the buyer is sent to the page; without one Stripe.js
/// would open it over the shop's own.
fn next_action(url: &str, return_url: Option<&str>) -> Value {
    match return_url {
        Some(return_url) => json!({
            "type": "redirect_to_url",
            "redirect_to_url": { "return_url": return_url, "url": url },
        }),
        None => json!({
            "type": "use_stripe_sdk",
            "use_stripe_sdk": {
                "type": "three_d_secure_redirect",
                "stripe_js": url,
                "source": "src_sandbox",
            },
        }),
    }
}

fn last_error(error: &LastError) -> Value {
    let mut value = json!({
        "code": error.code,
        "doc_url": format!("https://stripe.com/docs/error-codes/{}", error.code.replace('_', "-")),
        "message": error.message,
        "payment_method": payment_method(&error.method),
        "type": match error.code.as_str() {
            "payment_intent_authentication_failure" => "invalid_request_error",
            _ => "card_error",
        },
    });
    if let Some(decline_code) = &error.decline_code {
        value["decline_code"] = decline_code.as_str().into();
    }
    if let Some(charge) = &error.charge {
        value["charge"] = charge.as_str().into();
    }
    value
}

fn billing_details() -> Value {
    json!({
        "address": {
            "city": null, "country": null, "line1": null, "line2": null,
            "postal_code": null, "state": null,
        },
        "email": null, "name": null, "phone": null, "tax_id": null,
    })
}

pub fn payment_method(method: &Method) -> Value {
    let card = method.card();
    json!({
        "id": method.id,
        "object": "payment_method",
        "allow_redisplay": "unspecified",
        "billing_details": billing_details(),
        "card": {
            "brand": card.brand,
            "checks": { "address_line1_check": null, "address_postal_code_check": null, "cvc_check": "pass" },
            "country": "US",
            "display_brand": card.brand,
            "exp_month": 12,
            "exp_year": 2034,
            "fingerprint": fingerprint(card.number),
            "funding": card.funding,
            "generated_from": null,
            "last4": card.last4(),
            "networks": { "available": [card.brand], "preferred": null },
            "regulated_status": "unregulated",
            "three_d_secure_usage": { "supported": true },
            "wallet": null,
        },
        "created": method.created,
        "customer": null,
        "customer_account": null,
        "livemode": false,
        "metadata": {},
        "type": "card",
    })
}

fn fingerprint(number: &str) -> String {
    use sha2::Digest as _;
    hex::encode(&sha2::Sha256::digest(number.as_bytes())[..8])
}

pub fn charge(intent: &Intent, charge: &Charge) -> Value {
    let card = charge.method.card();
    let refunded = intent.refunded_of(&charge.id);
    let failed = match card.issuer {
        Issuer::Declines(decline) if charge.state == ChargeState::Failed => Some(decline),
        Issuer::Declines(_) | Issuer::Approves => None,
    };
    let paid = matches!(
        charge.state,
        ChargeState::Authorised | ChargeState::Captured | ChargeState::Released
    );
    let value = json!({
        "id": charge.id,
        "object": "charge",
        "amount": charge.amount,
        "amount_captured": charge.captured,
        "amount_refunded": refunded + charge.released,
        "balance_transaction": (charge.state == ChargeState::Captured).then_some(&charge.balance_transaction),
        "billing_details": billing_details(),
        "calculated_statement_descriptor": "TICKETS",
        "captured": charge.state == ChargeState::Captured,
        "created": charge.created,
        "currency": intent.currency,
        "customer": intent.echoed.get("customer"),
        "description": intent.echoed.get("description"),
        "disputed": !charge.disputes.is_empty(),
        "failure_code": failed.map(|decline| decline.code),
        "failure_message": failed.map(|decline| decline.message),
        "fraud_details": {},
        "livemode": false,
        "metadata": intent.metadata,
        "outcome": outcome(charge, failed.and_then(|decline| decline.decline_code)),
        "paid": paid,
        "payment_intent": intent.id,
        "payment_method": charge.method.id,
        "payment_method_details": { "card": card_details(intent, charge), "type": "card" },
        "radar_options": {},
        "receipt_email": intent.echoed.get("receipt_email"),
        "refunded": paid && refunded + charge.released >= charge.amount,
        "shipping": intent.echoed.get("shipping"),
        "statement_descriptor": intent.echoed.get("statement_descriptor"),
        "statement_descriptor_suffix": intent.echoed.get("statement_descriptor_suffix"),
        "status": match charge.state {
            ChargeState::Pending => "pending",
            ChargeState::Failed => "failed",
            ChargeState::Authorised | ChargeState::Captured | ChargeState::Released => "succeeded",
        },
        "transfer_group": intent.echoed.get("transfer_group"),
    });
    with_nulls(value, CHARGE_NULLS)
}

fn outcome(charge: &Charge, decline_code: Option<&str>) -> Value {
    match charge.state {
        ChargeState::Pending => Value::Null,
        ChargeState::Failed => json!({
            "advice_code": null,
            "network_advice_code": null,
            "network_decline_code": null,
            "network_status": "declined_by_network",
            "reason": decline_code.unwrap_or("generic_decline"),
            "risk_level": "normal",
            "seller_message": "The bank did not return any further details with this decline.",
            "type": "issuer_declined",
        }),
        ChargeState::Authorised | ChargeState::Captured | ChargeState::Released => json!({
            "advice_code": null,
            "network_advice_code": null,
            "network_decline_code": null,
            "network_status": "approved_by_network",
            "reason": null,
            "risk_level": "normal",
            "seller_message": "Payment complete.",
            "type": "authorized",
        }),
    }
}

fn card_details(intent: &Intent, charge: &Charge) -> Value {
    let card = charge.method.card();
    let authenticated = charge.authenticated.then(|| {
        json!({
            "authentication_flow": "challenge",
            "electronic_commerce_indicator": "05",
            "exemption_indicator": null,
            "result": "authenticated",
            "result_reason": null,
            "transaction_id": null,
            "version": "2.2.0",
        })
    });
    json!({
        "amount_authorized": match charge.state {
            ChargeState::Pending | ChargeState::Failed => None,
            ChargeState::Authorised | ChargeState::Captured | ChargeState::Released => Some(charge.amount),
        },
        "authorization_code": null,
        "brand": card.brand,
        "checks": { "address_line1_check": null, "address_postal_code_check": null, "cvc_check": "pass" },
        "country": "US",
        "exp_month": 12,
        "exp_year": 2034,
        "extended_authorization": { "status": "disabled" },
        "fingerprint": fingerprint(card.number),
        "funding": card.funding,
        "incremental_authorization": { "status": "unavailable" },
        "installments": null,
        "last4": card.last4(),
        "mandate": null,
        "multicapture": { "status": "unavailable" },
        "network": card.brand,
        "network_token": { "used": false },
        "network_transaction_id": null,
        "overcapture": { "maximum_amount_capturable": intent.amount, "status": "unavailable" },
        "regulated_status": "unregulated",
        "three_d_secure": authenticated,
        "transaction_link_id": null,
        "wallet": null,
    })
}

pub fn refund(intent: &Intent, refund: &Refund) -> Value {
    let mut value = json!({
        "id": refund.id,
        "object": "refund",
        "amount": refund.amount,
        "balance_transaction": refund.balance_transaction,
        "charge": refund.charge,
        "created": refund.created,
        "currency": intent.currency,
        "customer": intent.echoed.get("customer"),
        "customer_account": null,
        "destination_details": {
            "card": {
                "reference_status": "pending",
                "reference_type": "acquirer_reference_number",
                "type": "refund",
            },
            "type": "card",
        },
        "metadata": refund.metadata,
        "payment_intent": intent.id,
        "payment_method": intent
            .charges
            .iter()
            .find(|charge| charge.id == refund.charge)
            .map(|charge| &charge.method.id),
        "reason": refund.reason,
        "receipt_number": null,
        "source_transfer_reversal": null,
        "status": refund.status.as_str(),
        "transfer_reversal": null,
    });
    match refund.status {
        RefundStatus::Pending => value["pending_reason"] = "processing".into(),
        RefundStatus::Succeeded => {}
        RefundStatus::Failed => {
            value["failure_reason"] = "expired_or_canceled_card".into();
            value["failure_balance_transaction"] = ids::balance_transaction().into();
        }
    }
    value
}

pub fn dispute(intent: &Intent, charge: &Charge, dispute: &Dispute) -> Value {
    json!({
        "id": dispute.id,
        "object": "dispute",
        "amount": dispute.amount,
        "balance_transactions": [],
        "charge": charge.id,
        "created": dispute.created,
        "currency": intent.currency,
        "enhanced_eligibility_types": [],
        "evidence": { "enhanced_evidence": {}, "uncategorized_text": dispute.evidence },
        "evidence_details": {
            "due_by": dispute.created + 7 * 86_400,
            "enhanced_eligibility": {},
            "has_evidence": dispute.evidence.is_some(),
            "past_due": false,
            "submission_count": 0,
        },
        "is_charge_refundable": !dispute.status.forbids_refunds(),
        "livemode": false,
        "metadata": {},
        "payment_intent": intent.id,
        "payment_method_details": {
            "card": { "brand": charge.method.card().brand, "case_type": if dispute.status.is_inquiry() { "inquiry" } else { "chargeback" }, "network_reason_code": "10.4" },
            "type": "card",
        },
        "reason": dispute.reason,
        "status": dispute.status.as_str(),
    })
}

/// Who asked for the change that an event tells of.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    pub request: Option<String>,
    pub idempotency_key: Option<String>,
}

pub fn event(id: &str, kind: &str, created: i64, object: &Value, origin: &Origin) -> Value {
    json!({
        "id": id,
        "object": "event",
        "api_version": API_VERSION,
        "created": created,
        "data": { "object": object },
        "livemode": false,
        "pending_webhooks": 0,
        "request": { "id": origin.request, "idempotency_key": origin.idempotency_key },
        "type": kind,
    })
}

pub fn list(url: &str, data: &[Value], has_more: bool) -> Value {
    json!({ "object": "list", "data": data, "has_more": has_more, "url": url })
}

/// What a later version of Stripe might send: fields and a version that nobody
/// here has heard of. Nothing that is documented is taken away.
pub fn skew(value: &mut Value) {
    let Value::Object(map) = value else {
        return;
    };
    if map.contains_key("api_version") {
        map.insert("api_version".into(), "2031-01-01.quillwort".into());
    }
    if map.contains_key("object") {
        map.insert(
            "sandbox_unknown_field".into(),
            json!({ "nested": [1, "two", null], "object": "unheard_of" }),
        );
    }
    for key in [
        "data",
        "object",
        "error",
        "payment_intent",
        "payment_method",
    ] {
        match map.get_mut(key) {
            Some(Value::Array(items)) => items.iter_mut().for_each(skew),
            Some(inner) => skew(inner),
            None => {}
        }
    }
}
