//! Tickets: a signed code that proves an order, and the door that takes it once.
//!
//! The code is `TK1.<order id>.<signature>`, all base64url and short enough for
//! a QR picture that a cheap scanner reads. It says nothing but which order; what
//! the order is worth is asked of the database at the door.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, Utc};
use hmac::{Hmac, KeyInit, Mac};
use http::StatusCode;
use qrcode::{EcLevel, QrCode, render::svg};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    Reservations,
    machine::Status,
    store::{self, OrderView, SeatView},
};
use crate::platform::problem::{FieldError, Problem};

const PREFIX: &str = "TK1";
/// 128 bits of an HMAC: nobody guesses one.
const SIGNATURE: usize = 16;

/// Signs tickets.
#[derive(Clone)]
pub struct TicketKey(Hmac<Sha256>);

impl std::fmt::Debug for TicketKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TicketKey")
    }
}

impl TicketKey {
    /// Reads a key of at least 32 bytes in hexadecimal.
    ///
    /// # Errors
    /// One sentence; it never shows the key.
    pub fn from_hex(text: &str) -> Result<Self, String> {
        let bytes = hex::decode(text.trim()).map_err(|_| "want 32 bytes in hexadecimal")?;
        if bytes.len() < 32 {
            return Err("want 32 bytes in hexadecimal".into());
        }
        let mac = Hmac::new_from_slice(&bytes).map_err(|e| e.to_string())?;
        Ok(Self(mac))
    }

    fn mac(&self, order: Uuid) -> Hmac<Sha256> {
        self.0
            .clone()
            .chain_update(PREFIX)
            .chain_update(order.as_bytes())
    }

    /// The code of an order's ticket.
    pub fn code(&self, order: Uuid) -> String {
        let signature = self.mac(order).finalize().into_bytes();
        format!(
            "{PREFIX}.{}.{}",
            URL_SAFE_NO_PAD.encode(order.as_bytes()),
            URL_SAFE_NO_PAD.encode(&signature[..SIGNATURE])
        )
    }

    /// The order that a code proves.
    pub fn open(&self, code: &str) -> Option<Uuid> {
        let mut parts = code.trim().split('.');
        let (prefix, order, signature) = (parts.next()?, parts.next()?, parts.next()?);
        if prefix != PREFIX || parts.next().is_some() {
            return None;
        }
        let order = Uuid::from_slice(&URL_SAFE_NO_PAD.decode(order).ok()?).ok()?;
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        if signature.len() != SIGNATURE {
            return None;
        }
        self.mac(order).verify_truncated_left(&signature).ok()?;
        Some(order)
    }
}

/// A ticket: show its picture at the door.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TicketView {
    /// The order that it is for.
    pub order_id: Uuid,
    /// The signed code.
    pub code: String,
    /// The code as a QR picture, an SVG document.
    pub qr_svg: String,
    /// The performance's title.
    pub performance_title: String,
    /// When the show starts.
    pub starts_at: DateTime<Utc>,
    /// The seats that it lets into.
    pub seats: Vec<SeatView>,
    /// When it was used at the door.
    pub used_at: Option<DateTime<Utc>>,
}

/// A code read at the door.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TicketCheck {
    /// As the picture holds it.
    pub code: String,
    /// The show that this door lets into; any, where none is named.
    #[serde(default)]
    pub schedule_id: Option<Uuid>,
}

/// What the door is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Verdict {
    /// Let them in; it counts as used from now on.
    Valid,
    /// It was used before.
    AlreadyUsed,
    /// The payment is disputed: the bank has the money until it decides.
    Disputed,
    /// It is for another show than this door's.
    WrongSchedule,
    /// The money went back, or is on its way: used or not, it lets nobody in.
    Refunded,
    /// The order is not confirmed (any more).
    NotConfirmed,
    /// Not a code of ours.
    Invalid,
}

/// The answer at the door.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TicketVerdict {
    /// What the door is to do.
    pub result: Verdict,
    /// The order, where the code is ours.
    pub order_id: Option<Uuid>,
    /// When it was first used.
    pub used_at: Option<DateTime<Utc>>,
    /// The performance's title.
    pub performance_title: Option<String>,
    /// When the show starts.
    pub starts_at: Option<DateTime<Utc>>,
    /// The seats that it lets into.
    pub seats: Vec<SeatView>,
}

impl Reservations {
    /// The ticket of a buyer's confirmed order.
    pub(super) async fn ticket(&self, order: Uuid, user: Uuid) -> Result<TicketView, Problem> {
        let found = self.order_of(order, user).await?;
        if found.row.status() != Status::Confirmed {
            return Err(Problem::new(
                StatusCode::CONFLICT,
                "ORDER_NOT_CONFIRMED",
                "There is a ticket once the order is CONFIRMED.",
            ));
        }
        let code = self.tickets.code(order);
        let view = OrderView::from(&found);
        Ok(TicketView {
            order_id: order,
            qr_svg: picture(&code)?,
            code,
            performance_title: view.performance_title,
            starts_at: view.starts_at,
            seats: view.seats,
            used_at: found.row.ticket_used_at,
        })
    }

    /// Takes a ticket at the door: the first time it is valid, later it was used.
    pub(super) async fn check_ticket(
        &self,
        check: &TicketCheck,
        by: Uuid,
    ) -> Result<TicketVerdict, Problem> {
        let code = check.code.as_str();
        if code.is_empty() || code.len() > 255 {
            return Err(Problem::validation(vec![FieldError::new(
                "code",
                "must be 1 to 255 characters",
            )]));
        }
        let Some(id) = self.tickets.open(code) else {
            return Ok(verdict(Verdict::Invalid, None));
        };
        // The row decides between two doors, and between a door and a refund.
        let first = sqlx::query(
            "update orders set ticket_used_at = now(), ticket_used_by = $2
             where id = $1 and state = 'CONFIRMED' and ticket_used_at is null
               and dispute_state is distinct from 'OPEN'
               and ($3::uuid is null or schedule_id = $3)",
        )
        .bind(id)
        .bind(by)
        .bind(check.schedule_id)
        .execute(&self.pool)
        .await?
        .rows_affected()
            == 1;
        let Some(order) = store::order(&self.pool, id).await? else {
            return Ok(verdict(Verdict::Invalid, None));
        };
        let result = if first {
            Verdict::Valid
        } else {
            why_not(&order.row, check.schedule_id)
        };
        Ok(verdict(result, Some(&order)))
    }
}

/// Why a ticket of ours does not let in. That it was used comes last: it says that it was good, once.
fn why_not(row: &store::Row, schedule: Option<Uuid>) -> Verdict {
    match row.status() {
        Status::Refunded => Verdict::Refunded,
        Status::Pending
        | Status::Paying
        | Status::Closing(_)
        | Status::Expired
        | Status::Cancelled => Verdict::NotConfirmed,
        Status::Confirmed if schedule.is_some_and(|s| s != row.schedule_id) => {
            Verdict::WrongSchedule
        }
        Status::Confirmed if row.is_disputed() => Verdict::Disputed,
        Status::Confirmed => Verdict::AlreadyUsed,
    }
}

fn verdict(result: Verdict, order: Option<&store::Order>) -> TicketVerdict {
    let view = order.map(OrderView::from);
    TicketVerdict {
        result,
        order_id: order.map(|o| o.row.id),
        used_at: order.and_then(|o| o.row.ticket_used_at),
        performance_title: order.map(|o| o.row.performance_title.clone()),
        starts_at: order.map(|o| o.row.starts_at),
        seats: view.map(|v| v.seats).unwrap_or_default(),
    }
}

fn picture(code: &str) -> Result<String, Problem> {
    // Quartile correction survives a cracked screen.
    let qr = QrCode::with_error_correction_level(code, EcLevel::Q).map_err(Problem::internal)?;
    Ok(qr
        .render::<svg::Color<'_>>()
        .min_dimensions(256, 256)
        .build())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_opens_only_with_its_own_key_and_order() {
        let key = TicketKey::from_hex(&"ab".repeat(32)).unwrap();
        let order = Uuid::now_v7();
        let code = key.code(order);
        assert_eq!(key.open(&code), Some(order));
        assert_eq!(
            TicketKey::from_hex(&"cd".repeat(32)).unwrap().open(&code),
            None
        );
        let other = key.code(Uuid::now_v7());
        let forged = format!(
            "{}.{}",
            code.rsplit_once('.').unwrap().0,
            other.rsplit_once('.').unwrap().1
        );
        for bad in [
            forged.as_str(),
            "",
            "TK1",
            "TK1..",
            &code[..code.len() - 4],
            &format!("{code}.x"),
        ] {
            assert_eq!(key.open(bad), None, "{bad}");
        }
        assert!(TicketKey::from_hex("abcd").is_err());
        assert!(picture(&code).unwrap().contains("<svg"));
    }
}
