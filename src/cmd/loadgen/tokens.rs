//! The members that the buyers play. Access tokens stay in their file: a million
//! of them are 400 MB, and each is read once or twice, through the page cache.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, bail};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    #[serde(borrow)]
    access_token: &'a str,
}

/// Where each access token stands in the file.
#[derive(Debug)]
pub struct Tokens {
    file: Option<File>,
    /// Offset in the upper 48 bits, length in the lower 16.
    spans: Vec<u64>,
}

impl Tokens {
    /// Indexes the first `need` tokens, or all that there are when fewer.
    pub fn open(path: &Path, need: u64) -> anyhow::Result<Self> {
        let hint = "`ticketping seed --users N` writes it";
        let file = File::open(path)
            .with_context(|| format!("cannot read the access tokens {}; {hint}", path.display()))?;
        let mut reader = BufReader::with_capacity(1 << 18, file);
        let (mut spans, mut line, mut offset) = (Vec::new(), Vec::new(), 0u64);
        let mut number = 0u64;
        while (spans.len() as u64) < need {
            line.clear();
            let read = reader.read_until(b'\n', &mut line)?;
            if read == 0 {
                break;
            }
            number += 1;
            if !line.trim_ascii().is_empty() {
                let parsed: Line<'_> = serde_json::from_slice(&line).with_context(|| {
                    format!(
                        "{} line {number} is no {{userId, email, accessToken}}; {hint}",
                        path.display()
                    )
                })?;
                let token = parsed.access_token;
                if spans.is_empty() {
                    still_valid(token, path)?;
                }
                // The text is borrowed from the line, so its place in the line is known.
                let at = offset + (token.as_ptr() as usize - line.as_ptr() as usize) as u64;
                let length = u16::try_from(token.len()).ok().filter(|n| *n > 0);
                let length = length.with_context(|| {
                    format!(
                        "{} line {number}: a token of {} bytes",
                        path.display(),
                        token.len()
                    )
                })?;
                spans.push(at << 16 | u64::from(length));
            }
            offset += read as u64;
        }
        Ok(Self {
            file: Some(reader.into_inner()),
            spans,
        })
    }

    pub fn len(&self) -> u64 {
        self.spans.len() as u64
    }

    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Appends the `index`-th token to `out`.
    pub fn append(&self, index: u64, out: &mut Vec<u8>) -> std::io::Result<()> {
        let span = self.spans.get(index as usize).copied();
        let (Some(span), Some(file)) = (span, &self.file) else {
            return Err(std::io::Error::other("no such access token"));
        };
        let start = out.len();
        out.resize(start + (span & 0xffff) as usize, 0);
        file.read_exact_at(&mut out[start..], span >> 16)
    }
}

/// A file left from yesterday would make every request fail; say so at once.
fn still_valid(token: &str, path: &Path) -> anyhow::Result<()> {
    #[derive(Deserialize)]
    struct Claims {
        exp: i64,
    }
    let claims = token
        .split('.')
        .nth(1)
        .and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
    let claims = claims.and_then(|bytes| serde_json::from_slice::<Claims>(&bytes).ok());
    // A token that is no JWT is for the server to judge.
    if let Some(Claims { exp }) = claims
        && exp < chrono::Utc::now().timestamp()
    {
        bail!(
            "the access tokens in {} have expired; `ticketping seed --users N` writes fresh ones",
            path.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn write(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    #[test]
    fn finds_each_token_in_its_line() {
        let file = write(
            "{\"userId\":\"1\",\"email\":\"a@b\",\"accessToken\":\"first\"}\n\n{\"accessToken\": \"second.one\", \"userId\":\"2\"}\n",
        );
        let tokens = Tokens::open(file.path(), 10).unwrap();
        assert_eq!(tokens.len(), 2);
        let mut out = b"Bearer ".to_vec();
        tokens.append(1, &mut out).unwrap();
        assert_eq!(out, b"Bearer second.one");
        assert!(tokens.append(2, &mut out).is_err());
        assert_eq!(Tokens::open(file.path(), 1).unwrap().len(), 1);
    }

    #[test]
    fn says_what_is_wrong() {
        let missing = Tokens::open(Path::new("/nonexistent/tokens.jsonl"), 1).unwrap_err();
        assert!(missing.to_string().contains("seed --users"), "{missing}");
        let torn = write("{\"accessToken\":\"ok\"}\n{\"accessTok");
        assert!(
            Tokens::open(torn.path(), 5)
                .unwrap_err()
                .to_string()
                .contains("line 2")
        );
        let claims = URL_SAFE_NO_PAD.encode(br#"{"exp":1000}"#);
        let old = write(&format!("{{\"accessToken\":\"a.{claims}.c\"}}\n"));
        assert!(
            Tokens::open(old.path(), 1)
                .unwrap_err()
                .to_string()
                .contains("expired")
        );
    }
}
