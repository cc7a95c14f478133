//! Disputes: how they open, what evidence makes of them, and how they end.
//!
//! A dispute takes the money back when it opens and returns it when it is won. An inquiry
//! (`warning_*`) moves no money; it may grow into a dispute.

use serde_json::Value;

use super::cards::{Afterwards, Quarrel};
use super::charging::FOLLOW_UP_MS;
use super::error::ApiError;
use super::execute::{Context, Events};
use super::ids;
use super::model::{Charge, ChargeState, Dispute, DisputeStatus, Intent};
use super::objects;

/// Stripe's own texts that decide a test dispute.
const WINS: &str = "winning_evidence";
const LOSES: &str = "losing_evidence";
const ESCALATES: &str = "escalate_inquiry_evidence";

/// A dispute to be opened by hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opening {
    /// Absent: all that was captured.
    pub amount: Option<i64>,
    pub inquiry: bool,
    pub reason: String,
}

/// A change of a dispute, as `POST /v1/disputes/{id}` gives it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    pub text: Option<String>,
    pub submit: bool,
}

/// Opens what the card of this charge asks for, once.
pub fn follow_up(intent: &mut Intent, context: &Context<'_>, events: &mut Events) {
    let Some(at) = captured(intent) else {
        return;
    };
    let Afterwards::Dispute(quarrel) = intent.charges[at].method.card().afterwards else {
        return;
    };
    if !intent.charges[at].disputes.is_empty() {
        return;
    }
    let whole = intent.charges[at].captured;
    let opening = |amount, inquiry, reason: &str| Opening {
        amount: Some(amount),
        inquiry,
        reason: reason.to_owned(),
    };
    match quarrel {
        Quarrel::Fraudulent => {
            open(
                intent,
                at,
                &opening(whole, false, "fraudulent"),
                context,
                events,
            );
        }
        Quarrel::NotReceived => {
            let one = opening(whole, false, "product_not_received");
            open(intent, at, &one, context, events);
        }
        Quarrel::Inquiry => {
            open(
                intent,
                at,
                &opening(whole, true, "fraudulent"),
                context,
                events,
            );
        }
        Quarrel::Several => {
            for part in [whole / 2, whole - whole / 2] {
                open(
                    intent,
                    at,
                    &opening(part, false, "fraudulent"),
                    context,
                    events,
                );
            }
        }
    }
}

fn captured(intent: &Intent) -> Option<usize> {
    let taken = |charge: &Charge| charge.state == ChargeState::Captured;
    intent.charges.iter().position(taken)
}

/// Opens one by hand.
pub fn opened(
    intent: &mut Intent,
    opening: &Opening,
    context: &Context<'_>,
    events: &mut Events,
) -> Result<Value, ApiError> {
    let at = captured(intent).ok_or_else(|| {
        ApiError::invalid("This PaymentIntent has no captured charge to dispute.")
    })?;
    Ok(open(intent, at, opening, context, events))
}

fn open(
    intent: &mut Intent,
    at: usize,
    opening: &Opening,
    context: &Context<'_>,
    events: &mut Events,
) -> Value {
    let dispute = Dispute {
        id: ids::dispute(),
        created: context.now(),
        amount: opening.amount.unwrap_or(intent.charges[at].captured),
        status: if opening.inquiry {
            DisputeStatus::WarningNeedsResponse
        } else {
            DisputeStatus::NeedsResponse
        },
        reason: opening.reason.clone(),
        evidence: None,
    };
    intent.charges[at].disputes.push(dispute.clone());
    let now = objects::dispute(intent, &intent.charges[at], &dispute);
    events.push(("charge.dispute.created", now.clone()));
    if !opening.inquiry {
        events.push(("charge.dispute.funds_withdrawn", now.clone()));
    }
    now
}

fn find(intent: &Intent, id: &str) -> Option<(usize, usize)> {
    intent.charges.iter().enumerate().find_map(|(charge, one)| {
        let at = one.disputes.iter().position(|dispute| dispute.id == id)?;
        Some((charge, at))
    })
}

fn shown(intent: &Intent, (charge, at): (usize, usize)) -> Value {
    let charge = &intent.charges[charge];
    objects::dispute(intent, charge, &charge.disputes[at])
}

fn missing(id: &str) -> ApiError {
    ApiError::missing("dispute", id, "dispute")
}

/// Evidence: kept, and once submitted the bank decides a moment later.
pub fn update(
    intent: &mut Intent,
    id: &str,
    evidence: &Evidence,
    context: &Context<'_>,
    events: &mut Events,
) -> Result<Value, ApiError> {
    let found = find(intent, id).ok_or_else(|| missing(id))?;
    let dispute = &mut intent.charges[found.0].disputes[found.1];
    let next = match dispute.status {
        DisputeStatus::NeedsResponse | DisputeStatus::UnderReview => DisputeStatus::UnderReview,
        DisputeStatus::WarningNeedsResponse | DisputeStatus::WarningUnderReview => {
            DisputeStatus::WarningUnderReview
        }
        DisputeStatus::WarningClosed | DisputeStatus::Won | DisputeStatus::Lost => {
            return Err(
                ApiError::invalid("This dispute is already closed").code("dispute_already_closed")
            );
        }
    };
    if evidence.text.is_some() {
        dispute.evidence.clone_from(&evidence.text);
    }
    if evidence.submit {
        dispute.status = next;
        intent.due_at_ms = Some(context.now_ms + FOLLOW_UP_MS);
    }
    let now = shown(intent, found);
    events.push(("charge.dispute.updated", now.clone()));
    Ok(now)
}

/// What the bank says to submitted evidence.
pub fn decide(intent: &mut Intent, context: &Context<'_>, events: &mut Events) {
    let under_review: Vec<(String, DisputeStatus, Option<String>)> = intent
        .charges
        .iter()
        .flat_map(|charge| &charge.disputes)
        .map(|dispute| (dispute.id.clone(), dispute.status, dispute.evidence.clone()))
        .collect();
    for (id, status, evidence) in under_review {
        let verdict = match (status, evidence.as_deref()) {
            (DisputeStatus::UnderReview, Some(WINS)) => DisputeStatus::Won,
            (DisputeStatus::UnderReview, Some(LOSES)) => DisputeStatus::Lost,
            (DisputeStatus::WarningUnderReview, Some(WINS)) => DisputeStatus::WarningClosed,
            (DisputeStatus::WarningUnderReview, Some(ESCALATES | LOSES)) => {
                DisputeStatus::NeedsResponse
            }
            // Anything else waits for somebody who decides it by hand.
            (
                DisputeStatus::UnderReview
                | DisputeStatus::WarningUnderReview
                | DisputeStatus::NeedsResponse
                | DisputeStatus::WarningNeedsResponse
                | DisputeStatus::WarningClosed
                | DisputeStatus::Won
                | DisputeStatus::Lost,
                _,
            ) => continue,
        };
        // The dispute was just listed.
        let _ = set(intent, &id, verdict, context, events);
    }
}

/// Gives a dispute this status, with the events that Stripe sends of it.
pub fn set(
    intent: &mut Intent,
    id: &str,
    status: DisputeStatus,
    _context: &Context<'_>,
    events: &mut Events,
) -> Result<Value, ApiError> {
    let found = find(intent, id).ok_or_else(|| missing(id))?;
    let dispute = &mut intent.charges[found.0].disputes[found.1];
    let before = std::mem::replace(&mut dispute.status, status);
    if before != status && before.is_inquiry() {
        // Evidence for an inquiry decides nothing in the dispute that it becomes.
        dispute.evidence = None;
    }
    let now = shown(intent, found);
    if before == status {
        return Ok(now);
    }
    let kinds: &[&'static str] = match status {
        DisputeStatus::Won => &["charge.dispute.closed", "charge.dispute.funds_reinstated"],
        DisputeStatus::Lost | DisputeStatus::WarningClosed => &["charge.dispute.closed"],
        DisputeStatus::NeedsResponse if before.is_inquiry() => {
            &["charge.dispute.updated", "charge.dispute.funds_withdrawn"]
        }
        DisputeStatus::NeedsResponse
        | DisputeStatus::UnderReview
        | DisputeStatus::WarningNeedsResponse
        | DisputeStatus::WarningUnderReview => &["charge.dispute.updated"],
    };
    events.extend(kinds.iter().map(|kind| (*kind, now.clone())));
    Ok(now)
}

/// `POST /v1/disputes/{id}/close`: the seller gives in.
pub fn give_in(
    intent: &mut Intent,
    id: &str,
    context: &Context<'_>,
    events: &mut Events,
) -> Result<Value, ApiError> {
    let found = find(intent, id).ok_or_else(|| missing(id))?;
    if intent.charges[found.0].disputes[found.1].status.is_closed() {
        return Err(
            ApiError::invalid("This dispute is already closed").code("dispute_already_closed")
        );
    }
    set(intent, id, DisputeStatus::Lost, context, events)
}
