//! What a seed leaves in the books.

use super::*;

#[tokio::test]
#[allow(clippy::too_many_lines, reason = "a table of queries, not a procedure")]
async fn seats_sold_beforehand_agree_in_every_book() {
    let world = world().await;
    world.seed(&["--users", "0"]).await;
    assert!(
        world
            .count("select count(*) from reservations.orders")
            .await
            > 100
    );
    for (what, sql) in [
        ("a live order seat that is no seat of the catalogue, or described otherwise",
         "select count(*) from reservations.order_seats o
          left join performances.seats s on s.schedule_id = o.schedule_id and s.id = o.seat_id and s.idx = o.seat_index
               and s.row_label = o.row_label and s.number = o.seat_number
          left join performances.schedules sch on sch.id = o.schedule_id
          left join performances.performances p on p.id = sch.performance_id
          left join performances.sections sec on sec.venue_id = p.venue_id and sec.section = s.section and sec.name = o.section
          left join performances.price_grades g on g.performance_id = p.id and g.grade = s.grade and g.name = o.grade and g.price = o.price
          where g.price is null or sec.name is null or not o.live"),
        ("an order whose count or amount is not that of its seats",
         "select count(*) from reservations.orders o join lateral (
              select count(*) as n, sum(price) as amount from reservations.order_seats s where s.order_id = o.id) s on true
          where (o.seat_count, o.amount, o.state, o.channel) is distinct from (s.n::int, s.amount::bigint, 'CONFIRMED', 'BOX_OFFICE')"),
        ("a counter that is not the seats sold",
         "select count(*) from performances.schedules sch
          left join performances.schedule_sales sales on sales.schedule_id = sch.id
          join lateral (select count(*) as n from reservations.order_seats s where s.schedule_id = sch.id and s.live) sold on true
          where coalesce(sales.sold, 0) <> sold.n"),
        ("an order that was not counted as what it is",
         "select count(*) from reservations.orders o left join performances.counted_orders c on c.order_id = o.id
          where (c.seats, c.schedule_id, c.confirmed, c.refunded) is distinct from (o.seat_count, o.schedule_id, true, false)"),
        ("a schedule whose seats have a hole in their order",
         "select count(*) from performances.schedules sch join lateral (
              select count(*) as n, min(idx) as lo, max(idx) as hi from performances.seats s where s.schedule_id = sch.id) s on true
          where (s.n, s.lo, s.hi) is distinct from (sch.total_seats::bigint, 0, sch.total_seats - 1)"),
        ("a house account that somebody could log in to",
         "select count(*) from users.users where password_hash <> '!'"),
    ] {
        assert_eq!(world.count(sql).await, 0, "{what}");
    }
    let left: Vec<i64> = sqlx::query_scalar(
        "select sch.total_seats::bigint - coalesce(sales.sold, 0) as left_over from performances.schedules sch
         left join performances.schedule_sales sales on sales.schedule_id = sch.id order by left_over",
    )
    .fetch_all(&world.pool)
    .await
    .unwrap();
    assert_eq!(left[..4], [0, 1, 3, 120]);
}

#[tokio::test]
async fn settings_given_hold_and_what_an_operator_changed_stays() {
    let world = world().await;
    let numbers = ["--performances", "1", "--seats", "10", "--users", "0"];
    let with = |extra: &[&'static str]| -> Vec<&str> {
        numbers
            .iter()
            .copied()
            .chain(extra.iter().copied())
            .collect()
    };
    world
        .seed(&with(&[
            "--max-working",
            "7",
            "--working-ttl",
            "2m",
            "--queue-factor",
            "0",
        ]))
        .await;
    let read = "select concat_ws(' ', max_working, working_ttl_ms, coalesce(claim_ttl_ms::text, '-'), coalesce(hold_ttl_ms::text, '-'),
                queue_factor) from queue.settings";
    let settings = || async {
        sqlx::query_scalar::<_, String>(read)
            .fetch_one(&world.pool)
            .await
            .unwrap()
    };
    let defaults = settings().await;
    assert_eq!(defaults, "7 120000 - - 0", "the rest follows the flags");
    let version = "select version from queue.settings";
    let before = world.count(version).await;
    world.seed(&with(&["--max-working", "7"])).await;
    assert_eq!(
        (world.count(version).await, settings().await),
        (before, defaults),
        "nothing to change"
    );
    sqlx::query("update queue.settings set claim_ttl_ms = 99000")
        .execute(&world.pool)
        .await
        .unwrap();
    world
        .seed(&with(&[
            "--max-working",
            "8",
            "--hold-ttl",
            "90s",
            "--claim-ttl",
            "45s",
        ]))
        .await;
    assert_eq!(settings().await, "8 120000 45000 90000 0");
    sqlx::query("update queue.settings set claim_ttl_ms = 99000")
        .execute(&world.pool)
        .await
        .unwrap();
    world.seed(&numbers).await;
    assert_eq!(settings().await, "8 120000 99000 90000 0");
}

#[tokio::test]
async fn members_log_in_with_one_password_and_their_tokens_are_good() {
    let world = world().await;
    let copy = world.dir.path().join("copy.jsonl");
    let copy_arg = copy.to_str().unwrap();
    let said = world
        .seed(&[
            "--performances",
            "0",
            "--users",
            "9000",
            "--tokens",
            copy_arg,
            "--token-ttl",
            "2h",
        ])
        .await;
    assert!(
        said.contains("2h") && said.contains(copy_arg) && said.contains(seed::PASSWORD),
        "{said}"
    );
    let own = world.dir.path().join("tokens.jsonl");
    assert_eq!(std::fs::read(&own).unwrap(), std::fs::read(&copy).unwrap());
    let tokens = world.tokens(&own);
    assert_eq!(tokens.len(), 9_000);
    let rows: Vec<(Uuid, String, String)> =
        sqlx::query_as("select id, email, password_hash from users.users order by id")
            .fetch_all(&world.pool)
            .await
            .unwrap();
    for (token, (id, email, _)) in tokens.iter().zip(&rows).step_by(97) {
        assert_eq!(
            (
                token["userId"].as_str().unwrap(),
                token["email"].as_str().unwrap()
            ),
            (id.to_string().as_str(), email.as_str())
        );
        let claims = world
            .verifier
            .verify(token["accessToken"].as_str().unwrap())
            .unwrap();
        assert_eq!(
            (claims.sub, claims.role, claims.exp - claims.iat),
            (*id, Role::User, 7_200)
        );
    }
    let hashes: HashSet<_> = rows.iter().map(|(.., hash)| hash).collect();
    assert_eq!(hashes.len(), 1, "they share one hash");
    for file in [&own, &copy] {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(
            std::fs::metadata(file).unwrap().permissions().mode() & 0o777,
            0o600
        );
    }
}
