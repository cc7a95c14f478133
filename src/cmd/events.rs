//! `ticketping events`: what was said and not yet heard, what could not be handled, and
//! another try at it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use serde_json::json;
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use crate::platform::embedded::runtime::RuntimeFile;
use crate::platform::events::{dead, outbox};
use crate::platform::failure::Failure;
use crate::platform::secret::Secret;

/// How often the outcome of a replay is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Look at events between the roles, and replay those that could not be handled
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
    /// Where the server's data directory is, where no database is named
    #[arg(
        long,
        global = true,
        env = "TICKETPING_DATA_DIR",
        value_name = "DIR",
        default_value = "./.ticketping"
    )]
    data_dir: PathBuf,
    /// PostgreSQL: postgres://user:password@host:port/database
    #[arg(
        long,
        global = true,
        env = "TICKETPING_DATABASE_URL",
        hide_env_values = true,
        value_name = "URL"
    )]
    database_url: Option<Secret>,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Action {
    /// Events not yet delivered, and dead letters with their reasons
    List {
        /// Rows of each kind at most
        #[arg(long, value_name = "N", default_value_t = 50)]
        limit: i64,
        /// As JSON lines
        #[arg(long)]
        json: bool,
    },
    /// Have the running consumers try dead letters again: all, or those named
    Replay {
        /// Ids of events, as `events list` shows them
        events: Vec<Uuid>,
        /// How long to wait for the outcome
        #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = humantime::parse_duration)]
        wait: Duration,
    },
}

/// Lists or replays.
///
/// # Errors
/// When the database cannot be found or read.
pub async fn run(args: Args) -> Result<u8, Failure> {
    let url = database_url(&args)?;
    let mut conn = PgConnection::connect(&url)
        .await
        .map_err(|e| Failure::Failed(format!("cannot connect to PostgreSQL: {e}")))?;
    let outcome = match args.action {
        Action::List { limit, json } => list(&mut conn, limit, json).await,
        Action::Replay { events, wait } => replay(&mut conn, &events, wait).await,
    };
    outcome.map_err(|e| Failure::Failed(format!("cannot read the events: {e}")))
}

fn database_url(args: &Args) -> Result<String, Failure> {
    if let Some(url) = &args.database_url {
        return Ok(url.expose().to_owned());
    }
    let dir = args.data_dir.display();
    match RuntimeFile::of_running(&args.data_dir) {
        Ok(Some(server)) => Ok(server.database_url),
        Ok(None) => Err(Failure::Failed(format!(
            "no server runs on {dir}; start one, or name another --data-dir or a --database-url"
        ))),
        Err(e) => Err(Failure::Failed(format!(
            "cannot read runtime.json in {dir}: {e}"
        ))),
    }
}

/// The schemas that have `table`: each role that says or hears events has its own.
async fn schemas_with(conn: &mut PgConnection, table: &str) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar(
        "select schemaname::text from pg_tables where tablename = $1
           and schemaname not in ('pg_catalog', 'information_schema') order by 1",
    )
    .bind(table)
    .fetch_all(conn)
    .await
}

async fn enter(conn: &mut PgConnection, schema: &str) -> sqlx::Result<()> {
    sqlx::query("select set_config('search_path', quote_ident($1), false)")
        .bind(schema)
        .execute(conn)
        .await?;
    Ok(())
}

async fn list(conn: &mut PgConnection, limit: i64, as_json: bool) -> sqlx::Result<u8> {
    let mut shown = 0;
    for schema in schemas_with(conn, "outbox").await? {
        enter(conn, &schema).await?;
        let backlog = outbox::backlog(conn).await?;
        if !as_json {
            let age_s = backlog.oldest_ms / 1_000;
            println!(
                "{schema}: {} not delivered, the oldest {age_s} s old",
                backlog.pending
            );
        }
        let rows: Vec<(Uuid, String, String, DateTime<Utc>)> = sqlx::query_as(
            "select id, type, key, created_at from outbox where published_at is null
             order by seq limit $1",
        )
        .bind(limit)
        .fetch_all(&mut *conn)
        .await?;
        for (id, kind, key, at) in rows {
            shown += 1;
            if as_json {
                let line = json!({"kind": "undelivered", "producer": schema, "id": id, "type": kind, "key": key, "createdAt": at});
                println!("{line}");
            } else {
                println!("  {id}  {kind}  key {key}  {}", at.to_rfc3339());
            }
        }
    }
    for schema in schemas_with(conn, "dead_letters").await? {
        enter(conn, &schema).await?;
        for letter in dead::open(conn, limit).await? {
            shown += 1;
            print_letter(&letter, as_json);
        }
    }
    if shown == 0 && !as_json {
        println!("no dead letters");
    }
    Ok(0)
}

fn print_letter(letter: &dead::DeadLetter, as_json: bool) {
    if as_json {
        let line = json!({
            "kind": "dead", "consumer": letter.consumer, "id": letter.event_id, "type": letter.kind,
            "key": letter.key, "origin": letter.origin, "error": letter.error,
            "attempts": letter.attempts, "createdAt": letter.created_at, "payload": letter.payload,
        });
        println!("{line}");
    } else {
        println!(
            "dead letter {} ({}) of {}, tried {} times, from {}\n    {}",
            letter.event_id,
            letter.kind,
            letter.consumer,
            letter.attempts,
            letter.origin,
            letter.error
        );
    }
}

async fn replay(conn: &mut PgConnection, events: &[Uuid], wait: Duration) -> sqlx::Result<u8> {
    let schemas = schemas_with(conn, "dead_letters").await?;
    let mut asked = Vec::new();
    for schema in &schemas {
        enter(conn, schema).await?;
        asked.extend(dead::request_replay(conn, events).await?);
    }
    if asked.is_empty() {
        println!("no dead letters to replay");
        return Ok(u8::from(!events.is_empty()));
    }
    println!(
        "{} dead letters asked for again; waiting for their consumers",
        asked.len()
    );
    let deadline = Instant::now() + wait;
    loop {
        let (mut open, mut waiting) = (Vec::new(), 0);
        for schema in &schemas {
            enter(conn, schema).await?;
            waiting += dead::count_requested(conn).await?;
            open.extend(dead::open_among(conn, &asked).await?);
        }
        if waiting == 0 || open.is_empty() {
            println!(
                "{} replayed, {} still cannot be handled",
                asked.len() - open.len(),
                open.len()
            );
            open.iter().for_each(|letter| print_letter(letter, false));
            return Ok(u8::from(!open.is_empty()));
        }
        if Instant::now() >= deadline {
            println!(
                "{waiting} not tried yet: no consumer runs, or a store is away. They will be tried when it is back."
            );
            return Ok(1);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
