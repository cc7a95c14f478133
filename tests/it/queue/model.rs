//! The scripts against a simple model of the rules: random operations with clock
//! jumps, retries and lost wake-ups. Known defects must be caught by the same test.
//! The pre-queue and its draw have histories of their own: see `draw_model`.

use proptest::prelude::*;

use super::{
    replay::{Op, PEOPLE, Plan},
    replay_state::{Mutant, catches, holds},
};

fn plans() -> impl Strategy<Value = Plan> {
    let person = 0..PEOPLE;
    let op = prop_oneof![
        4 => proptest::collection::vec(person.clone(), 1..4).prop_map(Op::Enter),
        4 => person.clone().prop_map(Op::CheckIn),
        2 => person.clone().prop_map(Op::Leave),
        2 => person.clone().prop_map(Op::Complete),
        2 => (person.clone(), any::<bool>()).prop_map(|(p, done)| Op::Again(p, done)),
        2 => (1..4_u8).prop_map(Op::Jump),
        1 => Just(Op::Jump(31)),
        1 => (1..3_u8).prop_map(Op::StepBack),
        1 => (1..5_u8).prop_map(Op::Stall),
        1 => person.clone().prop_map(Op::Refused),
        2 => Just(Op::Tick),
        1 => (0..4_u8).prop_map(Op::Limit),
        1 => any::<bool>().prop_map(Op::Pause),
        1 => (0..4_u8).prop_map(Op::Remaining),
        1 => any::<bool>().prop_map(Op::Inflow),
        1 => Just(Op::Lose),
        4 => proptest::collection::vec(person, 1..6).prop_map(Op::Return),
    ];
    proptest::collection::vec(op, 1..40).prop_map(|ops| Plan {
        opening: None,
        block: 10_000,
        ops,
    })
}

#[tokio::test]
async fn random_histories_follow_the_rules() {
    holds(plans).await;
}

const MUTANTS: &[Mutant] = &[
    (
        "promotes without looking at the limit",
        "local room = q.maxWorking - redis.call('ZCARD', q.work)",
        "local room = Q_BATCH",
    ),
    (
        "counts one too many",
        "q.maxWorking - redis.call('ZCARD', q.work)",
        "q.maxWorking + 1 - redis.call('ZCARD', q.work)",
    ),
    (
        "entering again goes to the back",
        "elseif waits[i] then",
        "elseif false then",
    ),
    (
        "never sweeps",
        "redis.call('ZRANGEBYSCORE', q.work, '-inf', q.now,",
        "redis.call('ZRANGEBYSCORE', q.work, '-inf', 0,",
    ),
    (
        "an order gives up a later place of the same person",
        "if q_working(q, user) == number then",
        "if q_working(q, user) then",
    ),
    (
        "every check-in renews the turn",
        "if state == 'C' then\n      deadline",
        "if true then\n      deadline",
    ),
    (
        "a freed slot waits for the sweep",
        "if not lost then q_promote(q) end\nreturn { 'ok', ended }",
        "return { 'ok', ended }",
    ),
    (
        "a turn ends while nobody can be served",
        "if lost > 0 then q_give_back(q, lost) end",
        "",
    ),
    (
        "gives lost time back to claims and not to turns",
        "deadline = math.max(tonumber(due[2 * i]), q_turn_end(turn))",
        "deadline = tonumber(due[2 * i])",
    ),
    (
        "gives lost time back to everybody but the last",
        "q.giveBy, q.giveTo = lost, tonumber(latest)",
        "q.giveBy, q.giveTo = lost, tonumber(latest) - 1",
    ),
    (
        "stands still while the clock is behind",
        "local passed = math.max(0, q.wall - (q.clockAt or q.wall))",
        "local passed = math.max(0, q.wall - (q.clock or q.wall))",
    ),
    (
        "follows the clock back",
        "q.now = math.max(now, q.wall)",
        "q.now = q.wall",
    ),
    (
        "a check-in counts though its caller has given up",
        "return by > 0 and q.wall > by",
        "return false",
    ),
    (
        "readings have no order",
        "q.seq = redis.call('HINCRBY', q.meta, 'seq', 1)",
        "q.seq = 1",
    ),
    (
        "SOLD_OUT ends places at once",
        "if q.now < q.suspendedAt + Q_SUSPENDED_MS or",
        "if",
    ),
    (
        "a suspension never ends",
        "if q.now < q.suspendedAt + Q_SUSPENDED_MS or",
        "if true or",
    ),
    ("admits while paused", "return q.paused ~= 1 and", "return"),
    (
        "admits while a lower number waits",
        "local number = tonumber(next_up[i + 1])\n",
        "local number = tonumber(next_up[#next_up])\n",
    ),
    (
        "admits while people are put back",
        "and not q_shut(q) and not q_recovering(q)\n",
        "and not q_shut(q)\n",
    ),
    (
        "saves up admissions",
        "q.credit = math.min(q.credit + earned,",
        "q.credit = math.max(q.credit + earned,",
    ),
    (
        "comes back at the end",
        "redis.call('ZADD', q.wait, string.format('%.0f', number), user)\n  return 1, 0",
        "redis.call('ZADD', q.wait, string.format('%.0f', number + 5000), user)\n  return 1, 0",
    ),
    (
        "comes back to work where there is no room",
        "if deadline > q.now and redis.call('ZCARD', q.work) < q.maxWorking then\n    redis.call('ZREM'",
        "if deadline > q.now then\n    redis.call('ZREM'",
    ),
    (
        "comes back twice in an epoch",
        "if q_mark(q, number) == 1 and code ~= 1 then",
        "if false then",
    ),
    (
        "begins a turn anew that waited for a slot after a loss",
        "if turn then\n          q_set_working",
        "if false then\n          q_set_working",
    ),
    (
        "forgets the turn of a person who returns to the head of the line",
        "local function keep_turn(user, number, turn)\n",
        "local function keep_turn(user, number, turn)\n  if true then return end\n",
    ),
    (
        "keeps places that have ended",
        "redis.call('UNLINK', q.wait)",
        "",
    ),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_known_defect_is_caught() {
    for mutant in MUTANTS {
        catches(plans, mutant).await;
    }
}
