//! The broker loses what it had: offsets are ahead of the log, and what is said from then on is
//! heard all the same.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_said_after_the_broker_lost_its_data_is_heard() {
    let mut kafka = Kafka::start().await;
    let rig = Rig::new(&kafka.bootstrap).await;
    rig.produce();
    rig.consume(&rig.tasks, rig.counting("one"));
    let key = Uuid::now_v7();
    for value in 0..20 {
        rig.say(key, value).await;
    }
    rig.until_effects(20).await;
    kafka.kill();
    kafka.forget();
    let _kafka = kafka.start_again().await;
    for value in 20..25 {
        rig.say(key, value).await;
    }
    rig.until_effects(25).await;
    let effects = rig.effects().await;
    assert_each_once_in_order(&effects, &[key], 25);
}
