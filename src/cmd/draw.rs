//! `ticketping draw`: recompute what the draw of a pre-queue gave, from what is published.

use std::{fmt::Write as _, path::PathBuf, time::Duration};

use serde::Deserialize;
use uuid::Uuid;

use super::loadgen::fetch::Fetch;
use crate::{
    platform::{
        embedded::runtime::RuntimeFile,
        failure::Failure,
        place::{self, PlaceState},
    },
    serve::queue::draw::{Permutation, commitment},
};

/// Longer than any healthy answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// The draw of a pre-queue: anybody can recompute it.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Verify(VerifyArgs),
}

/// Recompute a number of the draw from the published seed, and show how it comes about.
///
/// The draw is read from a server (--url, or the one of --data-dir, and --performance), or from
/// a saved answer of GET /api/v1/queues/{performanceId} (--file). The seed is held against the
/// commitment; a place, told by --registration or --queue-token, against the number that it was told.
/// docs/draw.md has the definition. Ends with 1 when something does not match.
#[derive(Debug, clap::Args)]
struct VerifyArgs {
    /// The server
    #[arg(
        long,
        env = "TICKETPING_URL",
        value_name = "URL",
        conflicts_with = "file"
    )]
    url: Option<String>,
    /// Where a server on this machine left runtime.json
    #[arg(
        long,
        env = "TICKETPING_DATA_DIR",
        value_name = "DIR",
        default_value = "./.ticketping"
    )]
    data_dir: PathBuf,
    /// The performance, for a server
    #[arg(long, value_name = "UUID", required_unless_present = "file")]
    performance: Option<Uuid>,
    /// The published data: a saved answer of GET /api/v1/queues/{performanceId}
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// The place's registration, as told while it was REGISTERED
    #[arg(long, value_name = "N")]
    registration: Option<u64>,
    /// The Queue-Token that was given while the place was REGISTERED; a server is asked for its number
    #[arg(
        long,
        env = "TICKETPING_QUEUE_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN",
        conflicts_with = "registration"
    )]
    queue_token: Option<String>,
    /// The number that the place was told after the draw
    #[arg(long, value_name = "N")]
    number: Option<u64>,
    /// Print the number of every registration, as CSV
    #[arg(long, conflicts_with_all = ["registration", "queue_token", "number"])]
    all: bool,
}

/// What is published of a draw.
#[derive(Debug, Deserialize)]
struct Published {
    commitment: String,
    seed: Option<String>,
    first: Option<u64>,
    count: Option<u64>,
}

#[derive(Deserialize)]
struct Queue {
    draw: Option<Published>,
}

#[derive(Deserialize)]
struct Told {
    number: Option<u64>,
}

/// Prints what it finds; 1 when something does not match.
///
/// # Errors
/// When the draw cannot be read, or is not done.
pub async fn run(args: Args) -> Result<u8, Failure> {
    let Command::Verify(args) = args.command;
    let server = match args.file {
        Some(_) => None,
        None => Some(server(&args)?),
    };
    let mut place = place_of(&args)?;
    let published = match (&server, &args.file) {
        (Some((fetch, id)), _) => asked(fetch, *id).await?,
        (None, Some(file)) => read(file)?,
        (None, None) => return Err(Failure::usage("give --url and --performance, or --file")),
    };
    if let (Some((fetch, id)), Some(token), None) = (&server, &args.queue_token, place.number) {
        place.number = told(fetch, *id, token).await?;
    }
    let checked = Checked::new(published)?;
    if args.all {
        print!("{}", checked.table());
        return Ok(u8::from(!checked.seed_matches));
    }
    let (text, matches) = checked.report(place)?;
    print!("{text}");
    Ok(u8::from(!matches))
}

/// Whose place is asked for.
#[derive(Clone, Copy, Debug, Default)]
struct Asked {
    registration: Option<u64>,
    number: Option<u64>,
}

fn place_of(args: &VerifyArgs) -> Result<Asked, Failure> {
    let mut asked = Asked {
        registration: args.registration,
        number: args.number,
    };
    let Some(token) = &args.queue_token else {
        return Ok(asked);
    };
    let place = place::read_unverified(token.trim())
        .ok_or_else(|| Failure::usage("--queue-token is no Queue-Token"))?;
    if args.performance.is_some_and(|id| id != place.queue) {
        return Err(Failure::usage(
            "--queue-token is of another performance than --performance",
        ));
    }
    match place.state {
        PlaceState::Registered => asked.registration = Some(place.number),
        // Newer than the draw: it has the number, from which the registration follows.
        PlaceState::Waiting | PlaceState::Working => asked.number = Some(place.number),
    }
    Ok(asked)
}

fn server(args: &VerifyArgs) -> Result<(Fetch, Uuid), Failure> {
    let id = args
        .performance
        .ok_or_else(|| Failure::usage("--performance is missing"))?;
    let url = match &args.url {
        Some(url) => url.clone(),
        None => RuntimeFile::read(&args.data_dir)
            .map_err(|e| Failure::Failed(format!("cannot read runtime.json: {e}")))?
            .ok_or_else(|| {
                Failure::Failed(format!(
                    "no server found in {}: name one by --url, or published data by --file",
                    args.data_dir.display()
                ))
            })?
            .reach()
            .to_owned(),
    };
    let url = url
        .parse()
        .map_err(|e| Failure::usage(format!("--url {url}: {e}")))?;
    Ok((Fetch::new(url, ANSWER_MAX), id))
}

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::Failed(format!("{error:#}"))
}

async fn asked(fetch: &Fetch, id: Uuid) -> Result<Published, Failure> {
    let path = format!("/api/v1/queues/{id}");
    let queue: Queue = fetch.json(&path, &[]).await.map_err(failed)?;
    queue
        .draw
        .ok_or_else(|| failed("this performance has no draw, or its pre-queue is not open yet"))
}

/// The number that the server tells for the token; None when its turn is over.
async fn told(fetch: &Fetch, id: Uuid, token: &str) -> Result<Option<u64>, Failure> {
    let path = format!("/api/v1/queues/{id}/tokens/me");
    let answer = fetch
        .get(&path, &[("queue-token", token.trim())])
        .await
        .map_err(failed)?;
    match answer.status {
        200 => {
            let told: Told = serde_json::from_slice(&answer.body).map_err(failed)?;
            Ok(told.number)
        }
        409 | 410 => Ok(None),
        status => Err(failed(format!(
            "the server answers {status} to the Queue-Token"
        ))),
    }
}

fn read(file: &std::path::Path) -> Result<Published, Failure> {
    let at = |e: &dyn std::fmt::Display| failed(format!("{}: {e}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|e| at(&e))?;
    let value: serde_json::Value = serde_json::from_str(&text).map_err(|e| at(&e))?;
    let draw = value.get("draw").unwrap_or(&value).clone();
    serde_json::from_value(draw).map_err(|e| at(&format!("no published draw in it: {e}")))
}

/// A draw whose seed is out.
#[derive(Debug)]
struct Checked {
    commitment: String,
    seed: String,
    seed_matches: bool,
    permutation: Permutation,
    first: u64,
}

impl Checked {
    fn new(published: Published) -> Result<Self, Failure> {
        let (Some(seed), Some(first), Some(count)) =
            (published.seed, published.first, published.count)
        else {
            return Err(failed(
                "the draw is not done yet: the seed is published with the opening",
            ));
        };
        let bytes =
            hex::decode(&seed).map_err(|e| failed(format!("the seed is not hexadecimal: {e}")))?;
        Ok(Self {
            seed_matches: commitment(&bytes) == published.commitment.to_ascii_lowercase(),
            commitment: published.commitment,
            permutation: Permutation::new(&bytes, count),
            seed,
            first,
        })
    }

    fn number_of(&self, registration: u64) -> Option<u64> {
        let offset = registration.checked_sub(self.first)?;
        (offset < self.permutation.count()).then(|| self.first + self.permutation.permute(offset))
    }

    fn registration_of(&self, number: u64) -> Option<u64> {
        let offset = number.checked_sub(self.first)?;
        (offset < self.permutation.count()).then(|| self.first + self.permutation.invert(offset))
    }

    fn table(&self) -> String {
        let mut text = String::from("registration,number\n");
        for registration in self.first..self.first + self.permutation.count() {
            if let Some(number) = self.number_of(registration) {
                // Writing to a String cannot fail.
                let _ = writeln!(text, "{registration},{number}");
            }
        }
        text
    }

    /// What is to be said, and whether everything matches.
    fn report(&self, place: Asked) -> Result<(String, bool), Failure> {
        let last = self.first + self.permutation.count().saturating_sub(1);
        let is = match self.seed_matches {
            true => "is",
            false => "IS NOT",
        };
        let mut text = format!(
            "commitment    {}\nseed          {}\n              its SHA-256 {is} the commitment\n\
             draw          {} registrations, {} to {last}, for the numbers {} to {last}\n",
            self.commitment,
            self.seed,
            self.permutation.count(),
            self.first,
            self.first,
        );
        let registration = match place {
            Asked {
                registration: None,
                number: None,
            } => return Ok((text, self.seed_matches)),
            Asked {
                registration: Some(registration),
                ..
            } => registration,
            Asked {
                number: Some(number),
                ..
            } => self.registration_of(number).ok_or_else(|| {
                failed(format!(
                    "number {number} was not drawn: those are {} to {last}",
                    self.first
                ))
            })?,
        };
        let number = self.number_of(registration).ok_or_else(|| {
            failed(format!(
                "registration {registration} was not in the draw: those are {} to {last}",
                self.first
            ))
        })?;
        self.explain(&mut text, registration, number);
        let matches = place.number.is_none_or(|told| told == number);
        let verdict = match place.number {
            Some(told) if told == number => format!("told          {told}: it matches\n"),
            Some(told) => format!("told          {told}: IT DOES NOT MATCH\n"),
            None => "told          no number was given to hold it against\n".to_owned(),
        };
        text.push_str(&verdict);
        Ok((text, matches && self.seed_matches))
    }

    fn explain(&self, text: &mut String, registration: u64, number: u64) {
        let (first, count) = (self.first, self.permutation.count());
        let offset = registration - first;
        let mut add = |line: String| {
            text.push_str(&line);
            text.push('\n');
        };
        add(format!(
            "registration  {registration}, so offset {offset} of 0 to {}",
            count - 1
        ));
        add(format!(
            "network       {} bits, halves (left, right) after each round:",
            self.permutation.bits()
        ));
        for walk in self.permutation.walks(offset) {
            let halves: Vec<String> = walk.iter().map(|(l, r)| format!("({l},{r})")).collect();
            let value = walk
                .last()
                .map_or(offset, |last| self.permutation.joined(*last));
            let again = match value < count {
                true => "",
                false => ", which is outside: once more",
            };
            add(format!(
                "              {} = {value}{again}",
                halves.join(" ")
            ));
        }
        add(format!(
            "number        {number} = {first} + {}",
            number - first
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published() -> Published {
        let seed = [7; 32];
        Published {
            commitment: commitment(&seed),
            seed: Some(hex::encode(seed)),
            first: Some(101),
            count: Some(10),
        }
    }

    fn asked(registration: Option<u64>, number: Option<u64>) -> Asked {
        Asked {
            registration,
            number,
        }
    }

    /// `[0, 3, 6, 8, 5, 7, 4, 1, 9, 2]`, as another program computed it.
    #[test]
    fn a_number_is_recomputed_and_explained() {
        let checked = Checked::new(published()).unwrap();
        let (text, matches) = checked.report(asked(Some(104), Some(109))).unwrap();
        assert!(matches, "{text}");
        for line in [
            "its SHA-256 is the commitment",
            "10 registrations, 101 to 110",
            "104, so offset 3 of 0 to 9",
            "4 bits",
            "109 = 101 + 8",
            "109: it matches",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        let (text, matches) = checked.report(asked(None, Some(109))).unwrap();
        assert!(matches && text.contains("104, so offset 3"), "{text}");
        assert!(checked.table().contains("\n104,109\n"));
    }

    #[test]
    fn what_does_not_match_is_said_and_fails() {
        let checked = Checked::new(published()).unwrap();
        let (text, matches) = checked.report(asked(Some(104), Some(101))).unwrap();
        assert!(!matches && text.contains("IT DOES NOT MATCH"), "{text}");
        assert!(checked.report(asked(Some(111), None)).is_err());
        assert!(checked.report(asked(None, Some(100))).is_err());
        let forged = Published {
            commitment: commitment(b"another seed"),
            ..published()
        };
        let (text, matches) = Checked::new(forged)
            .unwrap()
            .report(asked(Some(104), Some(109)))
            .unwrap();
        assert!(!matches && text.contains("IS NOT the commitment"), "{text}");
        let secret = Published {
            seed: None,
            ..published()
        };
        assert!(
            Checked::new(secret)
                .unwrap_err()
                .to_string()
                .contains("not done yet")
        );
    }
}
