//! How money moves: confirming, the buyer's challenge, capturing, and what
//! follows by itself a moment later.

use serde_json::Value;

use super::cards::{Afterwards, Decline, Issuer};
use super::disputes;
use super::error::{ApiError, Kind};
use super::execute::{Context, Events, choose};
use super::ids;
use super::machine::{Action, Status, Step, Verdict, step};
use super::model::{
    Capture, Charge, ChargeState, Intent, LastError, Method, NextAction, RefundStatus,
};
use super::money;
use super::objects;
use super::params;

/// Long enough that the call which caused it is answered first, short enough
/// for a test to wait.
pub const FOLLOW_UP_MS: i64 = 500;

pub fn confirm(
    intent: &mut Intent,
    confirm: &params::Confirm,
    context: &Context<'_>,
    events: &mut Events,
) -> Result<Value, ApiError> {
    check_client_secret(intent, confirm.client_secret.as_deref())?;
    // Refused by status before anything is looked at; any verdict tells.
    if step(intent.status, Action::Confirm(Verdict::Captured)) == Step::Refused {
        return Err(cannot_confirm(intent));
    }
    let had_method = intent.status != Status::RequiresPaymentMethod;
    choose(intent, confirm.card.as_ref(), context.now())?;
    let method = match (&intent.method, had_method || confirm.card.is_some()) {
        (Some(method), true) => method.clone(),
        (None, _) | (Some(_), false) => {
            return Err(ApiError::unexpected_state(
                "You cannot confirm this PaymentIntent because it's missing a payment method. You \
                 can either update the PaymentIntent with a payment method and then confirm it \
                 again, or confirm it again directly with a payment method or ConfirmationToken.",
                objects::payment_intent(intent),
            ));
        }
    };
    if let Some(email) = &confirm.receipt_email {
        intent
            .echoed
            .insert("receipt_email".into(), email.as_str().into());
    }
    intent.next_action = None;
    if !method.card().challenge {
        return put_to_issuer(intent, method, false, Action::Confirm, context, events);
    }
    if confirm.error_on_requires_action {
        intent.advance(Action::Confirm(Verdict::Declined));
        return Err(declined(
            intent,
            method,
            Decline {
                code: "authentication_required",
                decline_code: Some("authentication_required"),
                message: "Your card was declined. This transaction requires authentication.",
            },
            false,
            context,
            events,
        ));
    }
    intent.advance(Action::Confirm(Verdict::Challenge));
    intent.next_action = Some(NextAction {
        url: format!(
            "{}/3ds/{}?client_secret={}",
            context.base_url, intent.id, intent.client_secret
        ),
        return_url: confirm.return_url.clone(),
    });
    let now = objects::payment_intent(intent);
    events.push(("payment_intent.requires_action", now.clone()));
    Ok(now)
}

/// Where a secret is given it must be this intent's.
pub fn check_client_secret(intent: &Intent, given: Option<&str>) -> Result<(), ApiError> {
    use subtle::ConstantTimeEq as _;
    match given {
        Some(given) if !bool::from(given.as_bytes().ct_eq(intent.client_secret.as_bytes())) => {
            Err(ApiError::invalid(
                "The client_secret provided does not match the client_secret associated with the \
                 PaymentIntent.",
            )
            .code("payment_intent_invalid_parameter")
            .param("client_secret"))
        }
        Some(_) | None => Ok(()),
    }
}

fn cannot_confirm(intent: &Intent) -> ApiError {
    let why = if intent.status == Status::Succeeded {
        "You cannot confirm this PaymentIntent because it has already succeeded after being \
         previously confirmed."
            .to_owned()
    } else {
        format!(
            "You cannot confirm this PaymentIntent because it has a status of {}. Only a \
             PaymentIntent with one of the following statuses may be confirmed: \
             requires_payment_method, requires_confirmation, requires_action.",
            intent.status.as_str()
        )
    };
    ApiError::unexpected_state(why, objects::payment_intent(intent))
}

fn put_to_issuer(
    intent: &mut Intent,
    method: Method,
    authenticated: bool,
    action: fn(Verdict) -> Action,
    context: &Context<'_>,
    events: &mut Events,
) -> Result<Value, ApiError> {
    let verdict = match (method.card().issuer, context.faults.processing) {
        (_, Some(_)) => Verdict::Pending,
        (Issuer::Declines(decline), None) => {
            intent.advance(action(Verdict::Declined));
            return Err(declined(
                intent,
                method,
                decline,
                authenticated,
                context,
                events,
            ));
        }
        (Issuer::Approves, None) => approval(intent.capture),
    };
    intent.advance(action(verdict));
    intent.last_error = None;
    let (state, captured) = match verdict {
        Verdict::Captured => (ChargeState::Captured, intent.amount),
        Verdict::Authorised => (ChargeState::Authorised, 0),
        Verdict::Pending | Verdict::Declined | Verdict::Challenge => (ChargeState::Pending, 0),
    };
    let charge = new_charge(intent, method, state, captured, authenticated, context);
    intent.charges.push(charge);
    if let Some(wait) = context.faults.processing {
        let wait_ms = i64::try_from(wait.as_millis()).unwrap_or(i64::MAX);
        intent.due_at_ms = Some(context.now_ms.saturating_add(wait_ms));
        let now = objects::payment_intent(intent);
        events.push(("payment_intent.processing", now.clone()));
        return Ok(now);
    }
    Ok(approved(intent, context, events))
}

fn approval(capture: Capture) -> Verdict {
    match capture {
        Capture::Automatic | Capture::AutomaticAsync => Verdict::Captured,
        Capture::Manual => Verdict::Authorised,
    }
}

fn new_charge(
    intent: &Intent,
    method: Method,
    state: ChargeState,
    captured: i64,
    authenticated: bool,
    context: &Context<'_>,
) -> Charge {
    Charge {
        id: ids::charge(),
        created: context.now(),
        amount: intent.amount,
        method,
        state,
        captured,
        released: 0,
        balance_transaction: ids::balance_transaction(),
        authenticated,
        disputes: Vec::new(),
    }
}

/// Tells of the newest charge, which was approved.
fn approved(intent: &mut Intent, context: &Context<'_>, events: &mut Events) -> Value {
    let disputed = intent
        .latest_charge()
        .is_some_and(|charge| matches!(charge.method.card().afterwards, Afterwards::Dispute(_)));
    if disputed {
        intent.due_at_ms = Some(context.now_ms + FOLLOW_UP_MS);
    }
    if let Some(charge) = intent.latest_charge() {
        events.push(("charge.succeeded", objects::charge(intent, charge)));
    }
    let now = objects::payment_intent(intent);
    let kind = if intent.status == Status::RequiresCapture {
        "payment_intent.amount_capturable_updated"
    } else {
        "payment_intent.succeeded"
    };
    events.push((kind, now.clone()));
    now
}

/// The charge failed; the intent, already moved, waits for another card.
fn declined(
    intent: &mut Intent,
    method: Method,
    decline: Decline,
    authenticated: bool,
    context: &Context<'_>,
    events: &mut Events,
) -> ApiError {
    let failed = new_charge(
        intent,
        method.clone(),
        ChargeState::Failed,
        0,
        authenticated,
        context,
    );
    intent.charges.push(failed);
    payment_failed(intent, method, decline, events)
}

fn payment_failed(
    intent: &mut Intent,
    method: Method,
    decline: Decline,
    events: &mut Events,
) -> ApiError {
    let charge = intent.latest_charge().map(|charge| charge.id.clone());
    intent.last_error = Some(LastError {
        code: decline.code.to_owned(),
        decline_code: decline.decline_code.map(str::to_owned),
        message: decline.message.to_owned(),
        charge: charge.clone(),
        method: method.clone(),
    });
    if let Some(charge) = intent.latest_charge() {
        events.push(("charge.failed", objects::charge(intent, charge)));
    }
    let now = objects::payment_intent(intent);
    events.push(("payment_intent.payment_failed", now.clone()));
    let mut error = ApiError::new(
        axum::http::StatusCode::PAYMENT_REQUIRED,
        Kind::Card,
        decline.message,
    )
    .code(decline.code)
    .with("charge", charge.into())
    .with("payment_intent", now)
    .with("payment_method", objects::payment_method(&method));
    if let Some(decline_code) = decline.decline_code {
        error = error.with("decline_code", decline_code.into());
    }
    error
}

/// A page has no use for the error: it shows what became of the intent.
pub fn authenticate(
    intent: &mut Intent,
    client_secret: &str,
    passed: bool,
    context: &Context<'_>,
    events: &mut Events,
) -> Result<Value, ApiError> {
    check_client_secret(intent, Some(client_secret))?;
    let method = match (&intent.method, intent.status) {
        (Some(method), Status::RequiresAction) => method.clone(),
        _ => {
            return Err(ApiError::unexpected_state(
                "This PaymentIntent does not wait for authentication.",
                objects::payment_intent(intent),
            ));
        }
    };
    intent.next_action = None;
    if passed {
        return put_to_issuer(intent, method, true, Action::Authenticate, context, events);
    }
    intent.advance(Action::FailChallenge);
    intent.last_error = Some(LastError {
        code: "payment_intent_authentication_failure".into(),
        decline_code: None,
        message: "The provided PaymentMethod has failed authentication. You can provide \
                  payment_method_data or a new PaymentMethod to attempt to fulfill this \
                  PaymentIntent again."
            .into(),
        charge: None,
        method,
    });
    let now = objects::payment_intent(intent);
    events.push(("payment_intent.payment_failed", now.clone()));
    Ok(now)
}

pub fn capture(
    intent: &mut Intent,
    amount: Option<i64>,
    events: &mut Events,
) -> Result<Value, ApiError> {
    let before = objects::payment_intent(intent);
    if step(intent.status, Action::Capture) == Step::Refused {
        return Err(ApiError::unexpected_state(
            format!(
                "This PaymentIntent could not be captured because it has a status of {}. Only a \
                 PaymentIntent with one of the following statuses may be captured: \
                 requires_capture.",
                intent.status.as_str()
            ),
            before,
        ));
    }
    let amount = amount.unwrap_or(intent.amount);
    if amount > intent.amount {
        return Err(ApiError::invalid(format!(
            "The amount to capture ({}) cannot be greater than the amount authorized ({}).",
            money::show(amount, &intent.currency),
            money::show(intent.amount, &intent.currency)
        ))
        .code("amount_too_large")
        .param("amount_to_capture"));
    }
    intent.advance(Action::Capture);
    if let Some(charge) = intent.charges.last_mut() {
        charge.state = ChargeState::Captured;
        charge.captured = amount;
        charge.released = charge.amount - amount;
    }
    if let Some(charge) = intent.latest_charge() {
        events.push(("charge.captured", objects::charge(intent, charge)));
    }
    let now = objects::payment_intent(intent);
    events.push(("payment_intent.succeeded", now.clone()));
    Ok(now)
}

/// How a refund of this charge begins, whether it fails after all, and that more may follow.
pub fn refund_begins(
    charge: &Charge,
    intent: &mut Intent,
    context: &Context<'_>,
) -> (RefundStatus, bool) {
    let afterwards = charge.method.card().afterwards;
    let wait_ms = context.faults.refund_pending.map_or(FOLLOW_UP_MS, |wait| {
        i64::try_from(wait.as_millis()).unwrap_or(i64::MAX)
    });
    let pending =
        context.faults.refund_pending.is_some() || afterwards == Afterwards::RefundPending;
    let fails = context.faults.refund_fail || afterwards == Afterwards::RefundFails;
    if pending || fails {
        intent.due_at_ms = Some(context.now_ms.saturating_add(wait_ms));
    }
    match pending {
        true => (RefundStatus::Pending, fails),
        false => (RefundStatus::Succeeded, fails),
    }
}

/// Whatever was to follow follows now. Done twice it changes nothing twice.
pub fn settle(
    intent: &mut Intent,
    context: &Context<'_>,
    events: &mut Events,
) -> Result<Value, ApiError> {
    if intent.due_at_ms.is_none_or(|due| due > context.now_ms) {
        return Ok(objects::payment_intent(intent));
    }
    intent.due_at_ms = None;
    if intent.status == Status::Processing {
        settle_charge(intent, context, events);
        return Ok(objects::payment_intent(intent));
    }
    finish_refunds(intent, events);
    disputes::follow_up(intent, context, events);
    disputes::decide(intent, context, events);
    Ok(objects::payment_intent(intent))
}

fn settle_charge(intent: &mut Intent, context: &Context<'_>, events: &mut Events) {
    let Some(method) = intent.latest_charge().map(|charge| charge.method.clone()) else {
        return;
    };
    let amount = intent.amount;
    let verdict = match method.card().issuer {
        Issuer::Approves => approval(intent.capture),
        Issuer::Declines(_) => Verdict::Declined,
    };
    intent.advance(Action::Settle(verdict));
    if let Some(charge) = intent.charges.last_mut() {
        match verdict {
            Verdict::Captured => {
                charge.state = ChargeState::Captured;
                charge.captured = amount;
            }
            Verdict::Authorised => charge.state = ChargeState::Authorised,
            Verdict::Declined => charge.state = ChargeState::Failed,
            Verdict::Pending | Verdict::Challenge => {}
        }
    }
    match method.card().issuer {
        Issuer::Approves => {
            approved(intent, context, events);
        }
        Issuer::Declines(decline) => {
            payment_failed(intent, method, decline, events);
        }
    }
}

/// Pending refunds end; those that fail after all do so now.
fn finish_refunds(intent: &mut Intent, events: &mut Events) {
    for at in 0..intent.refunds.len() {
        let refund = &mut intent.refunds[at];
        refund.status = match (refund.status, refund.fails) {
            (RefundStatus::Pending, false) => RefundStatus::Succeeded,
            (RefundStatus::Pending | RefundStatus::Succeeded, true) => RefundStatus::Failed,
            (RefundStatus::Succeeded, false) | (RefundStatus::Failed, _) => continue,
        };
        let failed = refund.status == RefundStatus::Failed;
        let refund = objects::refund(intent, &intent.refunds[at]);
        events.push(("refund.updated", refund.clone()));
        events.push(("charge.refund.updated", refund.clone()));
        if failed {
            events.push(("refund.failed", refund));
        }
    }
}
