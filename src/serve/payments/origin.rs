//! What an intent's metadata says: enough to build its order again when PostgreSQL has lost it.
//!
//! Stripe takes 50 keys with values of 500 characters. Seats and prices are lists, split over
//! several keys where one does not hold them.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::begin::Payable;

/// Ids of 36 characters and a comma each stay below 500.
const SEATS_A_KEY: usize = 12;
/// A bound for reading: an order has a handful of seats.
const KEYS_MAX: usize = 16;

/// One seat, and what it cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct PaidSeat {
    /// The seat.
    pub id: Uuid,
    /// In the currency's minor unit.
    pub price: i64,
}

/// The order that a payment was made for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Origin {
    pub order_id: Uuid,
    pub payment_id: Uuid,
    pub user_id: Uuid,
    pub performance_id: Uuid,
    pub schedule_id: Uuid,
    pub seats: Vec<PaidSeat>,
    /// Epoch and number of the place in the queue that the order uses up.
    pub place_epoch: Option<i64>,
    pub place_number: Option<i64>,
    pub amount: i64,
    pub currency: String,
}

/// The part of the metadata that is no column of the payment.
pub fn extra(installation: Uuid, order: &Payable) -> BTreeMap<String, String> {
    let mut extra = BTreeMap::from([("installation".to_owned(), installation.to_string())]);
    if let Some(schedule) = order.schedule_id {
        extra.insert("schedule_id".to_owned(), schedule.to_string());
    }
    if let (Some(epoch), Some(number)) = (order.place_epoch, order.place_number) {
        extra.insert("place".to_owned(), format!("{epoch}:{number}"));
    }
    for (at, seats) in order.seats.chunks(SEATS_A_KEY).enumerate() {
        let list =
            |f: &dyn Fn(&PaidSeat) -> String| seats.iter().map(f).collect::<Vec<_>>().join(",");
        extra.insert(key("seat_ids", at), list(&|seat| seat.id.to_string()));
        extra.insert(key("prices", at), list(&|seat| seat.price.to_string()));
    }
    extra
}

fn key(name: &str, at: usize) -> String {
    match at {
        0 => name.to_owned(),
        n => format!("{name}_{}", n + 1),
    }
}

fn list<T: std::str::FromStr>(metadata: &HashMap<String, String>, name: &str) -> Option<Vec<T>> {
    let mut items = Vec::new();
    for at in 0..KEYS_MAX {
        let Some(text) = metadata.get(&key(name, at)) else {
            break;
        };
        for item in text.split(',') {
            items.push(item.parse().ok()?);
        }
    }
    Some(items)
}

impl Origin {
    /// `None` where the metadata does not say enough.
    pub fn read(metadata: &HashMap<String, String>, amount: i64, currency: &str) -> Option<Self> {
        let id = |name: &str| metadata.get(name)?.parse::<Uuid>().ok();
        let ids: Vec<Uuid> = list(metadata, "seat_ids")?;
        let prices: Vec<i64> = list(metadata, "prices")?;
        if ids.is_empty() || ids.len() != prices.len() {
            return None;
        }
        let place = metadata
            .get("place")
            .and_then(|place| place.split_once(':'));
        Some(Self {
            order_id: id("order_id")?,
            payment_id: id("payment_id")?,
            user_id: id("user_id")?,
            performance_id: id("performance_id")?,
            schedule_id: id("schedule_id")?,
            seats: (ids.into_iter().zip(prices))
                .map(|(id, price)| PaidSeat { id, price })
                .collect(),
            place_epoch: place.and_then(|(epoch, _)| epoch.parse().ok()),
            place_number: place.and_then(|(_, number)| number.parse().ok()),
            amount,
            currency: currency.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payable(seats: usize) -> Payable {
        Payable {
            order_id: Uuid::now_v7(),
            amount: 50,
            currency: "krw".into(),
            performance_id: Uuid::now_v7(),
            performance_title: String::new(),
            seat_labels: Vec::new(),
            schedule_id: Some(Uuid::now_v7()),
            seats: (0_i64..)
                .take(seats)
                .map(|price| PaidSeat {
                    id: Uuid::now_v7(),
                    price,
                })
                .collect(),
            place_epoch: Some(2),
            place_number: Some(77),
        }
    }

    #[test]
    fn what_is_written_is_read_again_for_any_number_of_seats() {
        for seats in [1, 4, 12, 13, 40] {
            let order = payable(seats);
            let (installation, user, payment) = (Uuid::now_v7(), Uuid::now_v7(), Uuid::now_v7());
            let mut metadata: HashMap<String, String> =
                extra(installation, &order).into_iter().collect();
            assert!(metadata.len() <= 45 && metadata.values().all(|v| v.len() <= 500));
            for (name, id) in [
                ("order_id", order.order_id),
                ("payment_id", payment),
                ("user_id", user),
                ("performance_id", order.performance_id),
            ] {
                metadata.insert(name.to_owned(), id.to_string());
            }
            let origin = Origin::read(&metadata, 50, "krw").unwrap();
            assert_eq!(origin.seats, order.seats);
            assert_eq!((origin.user_id, origin.payment_id), (user, payment));
            assert_eq!(origin.place_number, Some(77));
            metadata.remove("prices");
            assert_eq!(Origin::read(&metadata, 50, "krw"), None);
        }
    }

    #[test]
    fn what_says_too_little_is_none() {
        assert_eq!(Origin::read(&HashMap::new(), 5, "krw"), None);
    }
}
