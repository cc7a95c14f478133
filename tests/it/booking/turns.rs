//! Every turn ends: holding, cancelling and holding again keeps nobody else out for ever. The clock
//! of the scripts is moved on by their `skew`, so that minutes pass in no time.

use std::sync::Arc;

use http::StatusCode;
use redis::AsyncCommands;
use serde_json::json;
use ticketping::{
    platform::place::{PlaceState, Turn},
    serve::queue::scripts::{CheckIn, Code, End, May, Return, Room, Scripts, Seen},
};

use super::world::{Answer, Buyer, World, config};

const WORKING_MS: i64 = 420_000;
const HOLD_MS: i64 = 120_000;

/// A queue where two may work, with the real scripts of both roles.
struct Queue {
    world: World,
    room: Room,
    skew: i64,
}

impl Queue {
    async fn new() -> Self {
        let world = World::with(2, 10, config()).await;
        let scripts = Arc::new(Scripts::default());
        let room = Room::new(
            world.redis.clone(),
            scripts,
            &world.prefix,
            world.performance,
        );
        let mut this = Self {
            world,
            room,
            skew: 0,
        };
        this.set("maxWorking", 2).await;
        this.set("holdTtl", HOLD_MS).await;
        this
    }

    async fn set(&mut self, field: &str, value: i64) {
        let key = self.world.key("meta");
        let () = self
            .world
            .redis
            .clone()
            .hset(key, field, value)
            .await
            .unwrap();
    }

    /// So much later.
    async fn later(&mut self, ms: i64) {
        self.skew += ms;
        // It is no outage: nothing was promised for the time in between.
        self.set("due", 9_000_000_000_000).await;
        self.set("skew", self.skew).await;
    }

    async fn enters(&self, buyer: Buyer) -> Buyer {
        let batch = self.room.enter(Seen::default(), &[buyer.id]).await.unwrap();
        let outcome = batch.outcomes[0];
        self.world.with_place(buyer, outcome.epoch, outcome.number)
    }

    async fn newcomer(&self) -> Buyer {
        self.enters(self.world.person(PlaceState::Waiting)).await
    }

    /// The turn of somebody who works.
    async fn turn(&self, buyer: &Buyer) -> Option<Turn> {
        let asked = self
            .room
            .check_in(Seen::default(), buyer.id, buyer.number, self.epoch().await);
        match asked.await.unwrap() {
            CheckIn::Working(turn) => Some(turn),
            CheckIn::Waiting(_) | CheckIn::Ended { .. } => None,
            odd @ (CheckIn::Closed(_) | CheckIn::Shut | CheckIn::Old) => panic!("{odd:?}"),
        }
    }

    async fn epoch(&self) -> u32 {
        let key = self.world.key("meta");
        self.world.redis.clone().hget(key, "epoch").await.unwrap()
    }

    /// In the working set, whether or not somebody has asked since.
    async fn works(&self, buyer: &Buyer) -> bool {
        let key = self.world.key("place");
        let mut redis = self.world.redis.clone();
        redis.hexists(key, buyer.id.as_bytes()).await.unwrap()
    }

    async fn cancel(&self, order: &Answer, buyer: &Buyer) {
        let done = self.world.cancel(order.id(), buyer).await;
        assert_eq!(done.status, StatusCode::OK, "{}", done.body);
    }

    /// The order's hold ends then, as far as PostgreSQL knows, and Redis is told.
    async fn renewed(&self, order: &Answer, ms_from_now: i64) {
        let until = chrono::Utc::now() + chrono::Duration::milliseconds(self.skew + ms_from_now);
        sqlx::query("update orders set expires_at = $2, version = version + 1 where id = $1")
            .bind(order.id())
            .bind(until)
            .execute(&self.world.pool)
            .await
            .unwrap();
        let shown = self.world.state.show(self.world.performance, order.id());
        shown.await.unwrap();
    }

    async fn holds(&self, buyer: &Buyer, seat: usize) -> Answer {
        let order = self.world.order_seats(buyer, &[seat]).await;
        assert_eq!(order.status, StatusCode::CREATED, "{}", order.body);
        order
    }
}

/// How far `to` is from `from`, in ms; what the test itself takes counts for nothing.
fn about(to: u64, from: u64) -> i64 {
    let apart = i64::try_from(to).unwrap() - i64::try_from(from).unwrap();
    (apart + 5_000).div_euclid(10_000) * 10_000
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holding_and_cancelling_for_ever_starves_nobody() {
    let mut queue = Queue::new().await;
    let greedy = [queue.newcomer().await, queue.newcomer().await];
    let third = queue.newcomer().await;
    assert!(!queue.works(&third).await);
    let mut orders = [
        queue.holds(&greedy[0], 0).await,
        queue.holds(&greedy[1], 4).await,
    ];
    for minute in 1..=7 {
        queue.later(55_000).await;
        for (at, buyer) in greedy.iter().enumerate() {
            queue.cancel(&orders[at], buyer).await;
            orders[at] = queue.holds(buyer, 4 * at + minute % 4).await;
        }
        assert!(!queue.works(&third).await, "minute {minute}: two work");
    }
    // 385 s: the last holds, made in time, end at 505 s. No new one from 420 s on.
    queue.later(36_000).await;
    for (at, buyer) in greedy.iter().enumerate() {
        let late = queue.world.order_seats(buyer, &[4 * at + 1]).await;
        assert_eq!(
            (late.status, late.code()),
            (StatusCode::GONE, "QUEUE_TOKEN_EXPIRED")
        );
        assert!(
            queue.works(buyer).await,
            "what is held can be paid within the turn"
        );
    }
    queue.cancel(&orders[0], &greedy[0]).await;
    assert!(
        !queue.works(&greedy[0]).await,
        "nothing keeps this turn any more"
    );
    assert!(
        queue.works(&third).await,
        "and its slot is the next person's at once"
    );
    let gone = queue.world.order_seats(&greedy[0], &[9]).await;
    assert_eq!(gone.code(), "QUEUE_TOKEN_EXPIRED");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unpaid_order_keeps_the_turn_and_never_beyond_its_bound() {
    let mut queue = Queue::new().await;
    let buyer = queue.newcomer().await;
    let turn = queue.turn(&buyer).await.unwrap();
    let (holding, last) = (turn.holding_ms, turn.last_ms);
    assert_eq!(about(last, holding), 2 * HOLD_MS);
    queue.later(WORKING_MS - 10_000).await;
    let (first, second) = (queue.holds(&buyer, 0).await, queue.holds(&buyer, 1).await);
    let turn = queue.turn(&buyer).await.unwrap();
    assert_eq!(about(turn.deadline_ms, holding), HOLD_MS - 10_000);
    assert_eq!(
        (turn.holding_ms, turn.last_ms),
        (holding, last),
        "fixed at the check-in"
    );
    // Renewed: by the second order alone, which then ends.
    queue.renewed(&second, HOLD_MS + 30_000).await;
    let turn = queue.turn(&buyer).await.unwrap();
    assert_eq!(about(turn.deadline_ms, holding), HOLD_MS + 20_000);
    queue.cancel(&second, &buyer).await;
    let turn = queue.turn(&buyer).await.unwrap();
    assert_eq!(
        about(turn.deadline_ms, holding),
        HOLD_MS - 10_000,
        "the first keeps it"
    );
    // Whatever the deadlines of orders are, and however often they are repaired.
    queue.renewed(&first, 86_400_000).await;
    assert_eq!(queue.turn(&buyer).await.unwrap().deadline_ms, last);
    queue
        .world
        .state
        .repair(queue.world.performance)
        .await
        .unwrap();
    assert_eq!(queue.turn(&buyer).await.unwrap().deadline_ms, last);
    // An order whose deadline is over waits for its payment without the turn.
    queue.renewed(&first, 5_000).await;
    let turn = queue.turn(&buyer).await.unwrap();
    assert_eq!(turn.deadline_ms, holding, "back to its own time");
    queue.later(15_000).await;
    assert_eq!(queue.turn(&buyer).await, None);
    queue.renewed(&first, HOLD_MS).await;
    assert_eq!(
        queue.turn(&buyer).await,
        None,
        "what has ended is not begun again"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_of_an_earlier_turn_does_not_extend_a_later_one() {
    let queue = Queue::new().await;
    let buyer = queue.newcomer().await;
    let order = queue.holds(&buyer, 0).await;
    let name = i64::try_from(buyer.number).unwrap();
    let places = [(buyer.id, name)];
    let left = queue.room.end(Seen::default(), End::Left, &places);
    left.await.unwrap();
    let again = queue.enters(buyer).await;
    let turn = queue.turn(&again).await.unwrap();
    queue.renewed(&order, WORKING_MS + HOLD_MS).await;
    assert_eq!(queue.turn(&again).await, Some(turn));
    queue.cancel(&order, &again).await;
    assert_eq!(queue.turn(&again).await, Some(turn));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_holds_ten_times() {
    let queue = Queue::new().await;
    let (buyer, other) = (queue.newcomer().await, queue.newcomer().await);
    queue.holds(&other, 19).await;
    for at in 0..10 {
        let taken = queue.world.order_seats(&buyer, &[19]).await;
        assert_eq!(taken.code(), "SEATS_TAKEN", "no hold, so it does not count");
        let body = json!({ "scheduleId": queue.world.schedule, "bestAvailable": { "count": 2 } });
        let key = format!("hold-{at}");
        let order = queue.world.order(&buyer, body.clone(), Some(&key)).await;
        assert_eq!(order.status, StatusCode::CREATED, "{at}: {}", order.body);
        let replay = queue.world.order(&buyer, body, Some(&key)).await;
        assert_eq!(replay.id(), order.id());
        queue.cancel(&order, &buyer).await;
    }
    let body = json!({ "scheduleId": queue.world.schedule, "bestAvailable": { "count": 1 } });
    let eleventh = queue.world.order(&buyer, body, None).await;
    assert_eq!(
        (eleventh.status, eleventh.code()),
        (StatusCode::CONFLICT, "HOLDS_EXHAUSTED")
    );
    let named = queue.world.order_seats(&buyer, &[3]).await;
    assert_eq!(named.code(), "HOLDS_EXHAUSTED");
    assert!(
        queue.turn(&buyer).await.is_some(),
        "the turn itself goes on"
    );
    queue.holds(&other, 18).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changed_settings_extend_no_turn() {
    let mut queue = Queue::new().await;
    let buyer = queue.newcomer().await;
    let before = queue.turn(&buyer).await.unwrap();
    queue.set("workingTtl", 10 * WORKING_MS).await;
    queue.set("holdTtl", 10 * HOLD_MS).await;
    assert_eq!(queue.turn(&buyer).await, Some(before));
    let order = queue.holds(&buyer, 0).await;
    let turn = queue.turn(&buyer).await.unwrap();
    assert_eq!(
        turn,
        Turn {
            deadline_ms: before.last_ms,
            ..before
        }
    );
    queue.later(WORKING_MS + 1_000).await;
    let late = queue.world.order_seats(&buyer, &[1]).await;
    assert_eq!(late.code(), "QUEUE_TOKEN_EXPIRED");
    queue.later(2 * HOLD_MS).await;
    assert_eq!(queue.turn(&buyer).await, None);
    let begun = queue.world.begin_payment(order.id(), &buyer).await;
    assert_eq!(
        begun.status,
        StatusCode::OK,
        "the order lives on without the turn: {}",
        begun.body
    );
}

/// After a loss a turn goes on: with its bounds, its holds and its orders, whether there is room or not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loss_begins_no_turn_anew() {
    let mut queue = Queue::new().await;
    let buyers = [queue.newcomer().await, queue.newcomer().await];
    let mut orders = Vec::new();
    for at in 0..4 {
        orders.push(queue.holds(&buyers[0], at).await);
    }
    for order in &orders[1..] {
        queue.cancel(order, &buyers[0]).await;
    }
    queue.later(60_000).await;
    let before = [
        queue.turn(&buyers[0]).await.unwrap(),
        queue.turn(&buyers[1]).await.unwrap(),
    ];

    queue.world.flush_redis().await;
    queue.world.reopen_queue().await;
    queue.set("holdTtl", HOLD_MS).await;
    queue.set("maxWorking", 1).await;
    queue.later(60_000).await;
    queue.world.begin_epoch(20).await;
    queue.set("recoverUntil", 0).await;
    queue.set("recoverFrom", 0).await;
    let place = |at: usize| Return {
        user: buyers[at].id,
        number: buyers[at].number,
        turn: before[at],
        may: May::Yes,
        registered: false,
    };
    let back = queue
        .room
        .restore(Seen::default(), &[place(0), place(1)])
        .await
        .unwrap();
    let codes: Vec<Code> = back.outcomes.iter().map(|o| o.code).collect();
    assert_eq!(
        codes,
        [Code::Working, Code::Waiting],
        "there is room for one"
    );
    assert_eq!(back.outcomes[0].turn, before[0]);
    // The holds are counted in PostgreSQL: six more.
    for at in 0..6 {
        let order = queue.holds(&buyers[0], 10 + at).await;
        queue.cancel(&order, &buyers[0]).await;
    }
    let eleventh = queue.world.order_seats(&buyers[0], &[5]).await;
    assert_eq!(eleventh.code(), "HOLDS_EXHAUSTED");
    assert_eq!(queue.turn(&buyers[0]).await, Some(before[0]));
    queue.set("maxWorking", 2).await;
    queue.room.tick(Seen::default(), -1, 1_000).await.unwrap();
    assert_eq!(
        queue.turn(&buyers[1]).await,
        Some(before[1]),
        "no fresh turn from the head of the line"
    );
    queue.later(WORKING_MS).await;
    assert_eq!(queue.turn(&buyers[1]).await, None);
}

/// The orders that keep a turn are those that stand, not those that its token has met.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_comes_back_only_for_as_long_as_its_orders_keep_it() {
    let mut queue = Queue::new().await;
    let buyer = queue.newcomer().await;
    queue.later(WORKING_MS - 10_000).await;
    let orders = [queue.holds(&buyer, 0).await, queue.holds(&buyer, 1).await];
    queue.renewed(&orders[1], HOLD_MS + 60_000).await;
    let before = queue.turn(&buyer).await.unwrap();
    queue.cancel(&orders[1], &buyer).await;
    // The queue's keys alone are lost; seats and holds stand.
    let lost = ["wait", "work", "place", "ended", "reg", "back"].map(|name| queue.world.key(name));
    let () = queue.world.redis.clone().del(&lost[..]).await.unwrap();
    queue.world.begin_epoch(20).await;
    let place = Return {
        user: buyer.id,
        number: buyer.number,
        turn: before,
        may: May::Yes,
        registered: false,
    };
    let back = queue.room.restore(Seen::default(), &[place]).await.unwrap();
    let turn = back.outcomes[0].turn;
    assert_eq!(back.outcomes[0].code, Code::Working);
    assert_eq!(about(turn.deadline_ms, turn.holding_ms), HOLD_MS - 10_000);
    queue.later(20_000).await;
    queue.cancel(&orders[0], &buyer).await;
    assert_eq!(queue.turn(&buyer).await, None);
}
