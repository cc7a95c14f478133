//! The pre-queue and its draw against the same simple rules: people register, leave and come
//! back in any order, the clock jumps over the opening, and the numbers are written in steps
//! among everything else that happens.
//!
//! Left out, since it would take the Rust side to say what happens: a Redis that comes back with
//! an older state, and an instance that has not heard of the draw yet (the latter is in `draw`).

use proptest::{collection::vec, prelude::*};

use super::{
    draw_rules::Opening,
    replay::{Op, PEOPLE, Plan},
    replay_state::{Mutant, catches, holds},
};

/// Numbers of an epoch: few, since a draw after a loss goes over all of them.
const BLOCK: u64 = 16;

/// Some register, Redis is lost or not, some come back, the clock jumps over the opening, and
/// then everything happens.
fn plans() -> impl Strategy<Value = Plan> {
    let opening = (
        prop_oneof![4 => Just(-10_000), 1 => Just(10_000)],
        any::<u8>(),
    );
    let opening = opening.prop_map(|(registers, seed)| Opening {
        registers,
        books: 50_000,
        seed,
    });
    let lost = (any::<bool>(), vec(back(), 0..6));
    let parts = (opening, vec(early(), 1..8), lost, vec(late(), 1..30));
    parts.prop_map(|(opening, mut ops, (lost, back), late)| {
        if lost {
            ops.push(Op::Lose);
            ops.extend(back);
        }
        ops.push(Op::Jump(3));
        ops.extend(late);
        Plan {
            opening: Some(opening),
            block: BLOCK,
            ops,
        }
    })
}

fn early() -> impl Strategy<Value = Op> {
    let person = 0..PEOPLE;
    prop_oneof![
        6 => vec(person.clone(), 1..8).prop_map(Op::Enter),
        1 => person.clone().prop_map(Op::Leave),
        1 => person.clone().prop_map(|p| Op::Again(p, false)),
        1 => person.prop_map(Op::CheckIn),
        1 => Just(Op::Jump(1)),
        1 => Just(Op::Tick),
        1 => (0..4_u8).prop_map(Op::Limit),
    ]
}

fn back() -> impl Strategy<Value = Op> {
    let person = 0..PEOPLE;
    prop_oneof![
        6 => vec(person.clone(), 1..4).prop_map(Op::Return),
        2 => vec(person.clone(), 1..4).prop_map(Op::Enter),
        1 => person.prop_map(Op::Leave),
        1 => Just(Op::Jump(1)),
        1 => Just(Op::Lose),
    ]
}

fn late() -> impl Strategy<Value = Op> {
    let person = 0..PEOPLE;
    prop_oneof![
        6 => prop_oneof![0..4_u64, Just(4 * BLOCK)].prop_map(Op::Draw),
        3 => vec(person.clone(), 1..4).prop_map(Op::Enter),
        3 => person.clone().prop_map(Op::CheckIn),
        2 => person.clone().prop_map(Op::Leave),
        1 => person.clone().prop_map(Op::Complete),
        2 => (person.clone(), any::<bool>()).prop_map(|(p, done)| Op::Again(p, done)),
        3 => (1..4_u8).prop_map(Op::Jump),
        1 => Just(Op::Tick),
        1 => (0..4_u8).prop_map(Op::Limit),
        1 => any::<bool>().prop_map(Op::Pause),
        1 => (0..4_u8).prop_map(Op::Remaining),
        1 => any::<bool>().prop_map(Op::Inflow),
        1 => Just(Op::Lose),
        4 => vec(person, 1..6).prop_map(Op::Return),
    ]
}

#[tokio::test]
async fn random_draws_follow_the_rules() {
    holds(plans).await;
}

const MUTANTS: &[Mutant] = &[
    (
        "admits beyond what is drawn",
        "local upto = (q.drawNext and q.drawNext <= q.drawHi) and q.drawNext - 1 or '+inf'",
        "local upto = '+inf'",
    ),
    (
        "calls turns whose numbers are not written",
        "served = math.min(served, q.drawNext - 1)",
        "",
    ),
    (
        "newcomers are drawn too",
        "q.opensAt and q.wall >= q.opensAt then",
        "q.opensAt and q.wall >= q.opensAt + 20000 then",
    ),
    (
        "newcomers stand before who was drawn",
        "added[#added + 1] = string.format('%.0f', q.last)",
        "added[#added + 1] = string.format('%.0f', pre_queue and q.last or (q.drawLo or q.last))",
    ),
    (
        "what the draw goes over is not told with the outcomes",
        "untold and q.drawHi or -1",
        "-1",
    ),
    (
        "registering again gets another registration",
        "elseif registered[i] then",
        "elseif false then",
    ),
    (
        "who left before the draw is drawn all the same",
        "redis.call('ZREM', q.reg, user)\n    redis.call('ZADD', q.ended",
        "redis.call('ZADD', q.ended",
    ),
    (
        "who left before the draw leaves no hole",
        "q_mark(q, number) end\n    end\n    number = number + 1\n",
        "q_mark(q, number) end\n    number = number + 1\n    end\n",
    ),
    (
        "a step that comes late is written again",
        "if q.drawNext == number and number <= q.drawHi then",
        "if number <= q.drawHi then",
    ),
    (
        "the draw is the order of registration",
        "redis.call('ZRANGEBYSCORE', q.reg, ARGV[i], ARGV[i], 'LIMIT', 0, 1)[1]",
        "redis.call('ZRANGEBYSCORE', q.reg, number, number, 'LIMIT', 0, 1)[1]",
    ),
    (
        "nobody is admitted by the step that writes them",
        "q_count(q, 'gone', 1)\n  q_promote(q)\nend",
        "q_count(q, 'gone', 1)\nend",
    ),
    (
        "a registration that comes back takes the number that equals its index",
        "  if registered then\n    redis.call('ZADD', q.reg",
        "  if registered then\n    q_mark(q, number)\n    redis.call('ZADD', q.reg",
    ),
    (
        "who comes back by the number is drawn once more",
        "redis.call('ZREM', q.reg, user) -- the draw",
        "-- the draw",
    ),
    (
        "who was drawn and admitted comes back by an older token",
        "if q.epoch > 1 then q_mark(q, number) end",
        "",
    ),
    (
        "an older token is a check-in of another place",
        "if held and held ~= number and deadline > q.now then return 9 end",
        "if held and held ~= number and deadline > q.now then working_check_in(q, user, nil) return 9 end",
    ),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_defect_of_the_draw_is_caught() {
    for mutant in MUTANTS {
        catches(plans, mutant).await;
    }
}
