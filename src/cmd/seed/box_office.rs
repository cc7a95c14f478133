//! Seats that are sold before anybody comes: confirmed orders of a house account over the
//! counter, so that the books agree with the seat map.

use std::collections::HashSet;

use chrono::{DateTime, Duration, Utc};
use rand_chacha::ChaCha8Rng;
use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    hall::Seat,
    ids::{Ids, below, next_id},
    plan::{Performance, Plan, Schedule},
};

/// As many seats as one order may have.
const ORDER_MAX: usize = 4;

/// The house account: the same for every seed; its password is none.
pub fn account() -> Uuid {
    Ids::new(0).id("box office", &[], 0)
}

/// The stream of a schedule's seat ids, in seat order.
pub fn seat_ids(ids: Ids, schedule: &Schedule) -> impl Iterator<Item = Uuid> {
    let (high, low) = schedule.id.as_u64_pair();
    let mut rng = ids.rng("seats", &[high, low]);
    std::iter::repeat_with(move || next_id(&mut rng, 0))
}

/// One order over the counter: seats next to each other.
struct Order {
    id: Uuid,
    confirmed_at: DateTime<Utc>,
    /// Places in the seat order.
    seats: Vec<usize>,
}

/// Sells what the plan says is sold of the schedules just added.
pub async fn sell(
    conn: &mut PgConnection,
    plan: &Plan,
    fresh: &[(&Performance, &Schedule)],
    ids: Ids,
) -> sqlx::Result<()> {
    let sold = fresh
        .iter()
        .filter_map(|(p, s)| s.left.map(|left| (*p, *s, left)));
    let sold: Vec<_> = sold.collect();
    if sold.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "insert into users.users (id, email, name, password_hash)
         values ($1, 'box-office@seed.ticketping.example', 'Box office', '!')
         on conflict do nothing",
    )
    .bind(account())
    .execute(&mut *conn)
    .await?;
    for (performance, schedule, left) in sold {
        let seats: Vec<_> = plan.venues[performance.venue].hall.seats().collect();
        let (high, low) = schedule.id.as_u64_pair();
        let mut rng = ids.rng("orders", &[high, low]);
        let orders = orders(
            &mut rng,
            &seats,
            left as usize,
            performance.booking_opens_at,
        );
        write_orders(conn, performance, schedule, &seats, &orders).await?;
        write_seats(conn, performance, schedule, &seats, &orders, ids).await?;
        count(conn, schedule, &orders).await?;
    }
    Ok(())
}

/// Every seat but `left` of them, in orders of one to four neighbours.
fn orders(
    rng: &mut ChaCha8Rng,
    seats: &[Seat<'_>],
    left: usize,
    opened: DateTime<Utc>,
) -> Vec<Order> {
    let mut free = HashSet::new();
    while free.len() < left.min(seats.len()) {
        free.insert(below(rng, seats.len()));
    }
    let mut orders: Vec<Order> = Vec::new();
    let mut room = 0;
    for (index, seat) in seats.iter().enumerate() {
        if free.contains(&index) {
            room = 0;
            continue;
        }
        let before = index.checked_sub(1).map(|before| seats[before]);
        let same_row = before.is_some_and(|b| (b.section, b.row) == (seat.section, seat.row));
        match orders.last_mut() {
            Some(order) if same_row && room > 0 => order.seats.push(index),
            _ => {
                room = below(rng, ORDER_MAX) + 1;
                orders.push(Order {
                    id: next_id(rng, orders.len() as u64),
                    confirmed_at: opened + Duration::seconds(below(rng, 7_200) as i64),
                    seats: vec![index],
                });
            }
        }
        room -= 1;
    }
    orders
}

async fn write_orders(
    conn: &mut PgConnection,
    performance: &Performance,
    schedule: &Schedule,
    seats: &[Seat<'_>],
    orders: &[Order],
) -> sqlx::Result<()> {
    let prices = performance.genre.grades();
    let amount = |order: &Order| -> i64 {
        order
            .seats
            .iter()
            .map(|seat| prices[seats[*seat].grade as usize].1)
            .sum()
    };
    sqlx::query(
        "insert into reservations.orders
             (id, user_id, performance_id, schedule_id, channel, state, performance_title, starts_at,
              seat_count, amount, currency, expires_at, created_at, confirmed_at)
         select id, $1, $2, $3, 'BOX_OFFICE', 'CONFIRMED', $4, $5, seats, amount, 'krw',
                confirmed_at, confirmed_at, confirmed_at
         from unnest($6::uuid[], $7::int[], $8::bigint[], $9::timestamptz[]) as o (id, seats, amount, confirmed_at)",
    )
    .bind(account())
    .bind(performance.id)
    .bind(schedule.id)
    .bind(&performance.title)
    .bind(schedule.starts_at)
    .bind(orders.iter().map(|o| o.id).collect::<Vec<_>>())
    .bind(orders.iter().map(|o| o.seats.len() as i32).collect::<Vec<_>>())
    .bind(orders.iter().map(amount).collect::<Vec<_>>())
    .bind(orders.iter().map(|o| o.confirmed_at).collect::<Vec<_>>())
    .execute(conn)
    .await?;
    Ok(())
}

async fn write_seats(
    conn: &mut PgConnection,
    performance: &Performance,
    schedule: &Schedule,
    seats: &[Seat<'_>],
    orders: &[Order],
    ids: Ids,
) -> sqlx::Result<()> {
    let seat_ids: Vec<_> = seat_ids(ids, schedule).take(seats.len()).collect();
    let grades = performance.genre.grades();
    let sold: Vec<_> = orders
        .iter()
        .flat_map(|o| o.seats.iter().map(|seat| (o.id, *seat, seats[*seat])))
        .collect();
    sqlx::query(
        "insert into reservations.order_seats
             (order_id, schedule_id, seat_id, seat_index, section, row_label, seat_number, grade, price)
         select order_id, $1, seat_id, seat_index, section, row_label, seat_number, grade, price
         from unnest($2::uuid[], $3::uuid[], $4::int[], $5::text[], $6::text[], $7::int[], $8::text[], $9::bigint[])
              as s (order_id, seat_id, seat_index, section, row_label, seat_number, grade, price)",
    )
    .bind(schedule.id)
    .bind(sold.iter().map(|(order, ..)| *order).collect::<Vec<_>>())
    .bind(sold.iter().map(|(_, index, _)| seat_ids[*index]).collect::<Vec<_>>())
    .bind(sold.iter().map(|(_, index, _)| *index as i32).collect::<Vec<_>>())
    .bind(sold.iter().map(|(.., seat)| seat.section_name).collect::<Vec<_>>())
    .bind(sold.iter().map(|(.., seat)| seat.row).collect::<Vec<_>>())
    .bind(sold.iter().map(|(.., seat)| i32::from(seat.number)).collect::<Vec<_>>())
    .bind(sold.iter().map(|(.., seat)| grades[seat.grade as usize].0).collect::<Vec<_>>())
    .bind(sold.iter().map(|(.., seat)| grades[seat.grade as usize].1).collect::<Vec<_>>())
    .execute(conn)
    .await?;
    Ok(())
}

/// What the performances role would have counted, had it been told of each order.
async fn count(conn: &mut PgConnection, schedule: &Schedule, orders: &[Order]) -> sqlx::Result<()> {
    sqlx::query(
        "with counted as (
             insert into performances.counted_orders (order_id, schedule_id, seats, confirmed, refunded)
             select id, $1, seats, true, false from unnest($2::uuid[], $3::int[]) as o (id, seats)
             returning seats)
         insert into performances.schedule_sales (schedule_id, sold)
         select $1, coalesce(sum(seats), 0) from counted",
    )
    .bind(schedule.id)
    .bind(orders.iter().map(|o| o.id).collect::<Vec<_>>())
    .bind(orders.iter().map(|o| o.seats.len() as i32).collect::<Vec<_>>())
    .execute(conn)
    .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd::seed::hall::Hall;

    #[test]
    fn orders_are_neighbours_and_leave_exactly_what_is_left() {
        let hall = Hall::with(240);
        let seats: Vec<_> = hall.seats().collect();
        for left in [0, 1, 3, 239, 240, 999] {
            let made = orders(&mut Ids::new(1).rng("test", &[]), &seats, left, Utc::now());
            let sold: Vec<_> = made.iter().flat_map(|o| o.seats.clone()).collect();
            let distinct: HashSet<_> = sold.iter().collect();
            assert_eq!(sold.len(), 240 - left.min(240));
            assert_eq!(distinct.len(), sold.len());
            for order in &made {
                assert!((1..=ORDER_MAX).contains(&order.seats.len()));
                for pair in order.seats.windows(2) {
                    let (a, b) = (seats[pair[0]], seats[pair[1]]);
                    assert_eq!(
                        (a.section, a.row, a.number + 1),
                        (b.section, b.row, b.number)
                    );
                }
            }
        }
    }
}
