//! Where a report goes: files opened before the run and written after it, each whatever became of the others.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::args::OutputArgs;
use super::report::Report;
use super::{html, table};

/// A line for people on standard error. One that was closed (`2>&1 | head`) ends nothing.
pub fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// The files of a report.
pub struct Outputs {
    json: Option<Output>,
    html: Option<Output>,
    json_to_stdout: bool,
}

impl Outputs {
    /// Opens them all: a path that cannot be written must not cost a run.
    pub fn open(args: &OutputArgs) -> anyhow::Result<Self> {
        let json_to_stdout = args.json.as_deref() == Some(Path::new("-"));
        let file = |path: &Option<PathBuf>| path.as_deref().map(Output::open).transpose();
        Ok(Self {
            json: if json_to_stdout {
                None
            } else {
                file(&args.json)?
            },
            html: file(&args.html)?,
            json_to_stdout,
        })
    }

    /// The files, then the table. Each is tried, and what cannot be written where it was asked for goes to the
    /// directory for temporary files.
    ///
    /// # Errors
    /// What could not be written as asked.
    pub fn write(self, report: &Report) -> anyhow::Result<()> {
        let mut failed = Vec::new();
        let mut keep = |outcome: anyhow::Result<()>| {
            if let Err(error) = outcome {
                failed.push(format!("{error:#}"));
            }
        };
        if let Some(json) = self.json {
            keep(
                serde_json::to_vec(report)
                    .context("cannot write the report")
                    .and_then(|text| json.write(&text)),
            );
        }
        if let Some(html) = self.html {
            keep(html::page(report).and_then(|page| html.write(page.as_bytes())));
        }
        let text = table::render(report, table::width());
        if self.json_to_stdout {
            say(text.trim_end());
            keep(
                serde_json::to_string(report)
                    .context("cannot write the report")
                    .and_then(|json| to_stdout(&(json + "\n"))),
            );
        } else {
            keep(to_stdout(&text));
        }
        if failed.is_empty() {
            Ok(())
        } else {
            bail!("{}", failed.join("; "))
        }
    }
}

/// Who closes standard output early (`| head`) has read enough.
fn to_stdout(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to standard output")
        }
        _ => Ok(()),
    }
}

/// One file. A plain one is written beside its place and takes it whole, so that an earlier report is never lost to a
/// full disk; anything else (a pipe, a device) is written to as it is.
struct Output {
    path: PathBuf,
    file: File,
    /// Where it is written until it is whole.
    beside: Option<PathBuf>,
}

impl Output {
    fn open(path: &Path) -> anyhow::Result<Self> {
        let cannot = || format!("cannot write {}", path.display());
        let plain = match fs::metadata(path) {
            Ok(there) if there.is_dir() => {
                bail!("cannot write {}: it is a directory", path.display())
            }
            Ok(there) => there.is_file(),
            Err(_) => true,
        };
        if !plain {
            let file = OpenOptions::new()
                .write(true)
                .open(path)
                .with_context(cannot)?;
            return Ok(Self {
                path: path.to_owned(),
                file,
                beside: None,
            });
        }
        // Through links to the file itself, and only where it may be written.
        let path = match fs::canonicalize(path) {
            Ok(there) => {
                OpenOptions::new()
                    .write(true)
                    .open(&there)
                    .with_context(cannot)?;
                there
            }
            Err(_) => path.to_owned(),
        };
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".new.{}", std::process::id()));
        let beside = path.with_file_name(name);
        let file = File::create(&beside).with_context(cannot)?;
        Ok(Self {
            path,
            file,
            beside: Some(beside),
        })
    }

    fn write(mut self, bytes: &[u8]) -> anyhow::Result<()> {
        let Err(error) = self.put(bytes) else {
            return Ok(());
        };
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        let spare = std::env::temp_dir().join(format!("ticketping-{}-{name}", std::process::id()));
        let path = self.path.display();
        match fs::write(&spare, bytes) {
            Ok(()) => bail!(
                "cannot write {path}: {error}; what belongs there is in {}",
                spare.display()
            ),
            Err(also) => {
                // Half a file helps nobody, and the disk is full.
                let _ = fs::remove_file(&spare);
                bail!(
                    "cannot write {path}: {error}; nor {}: {also}",
                    spare.display()
                )
            }
        }
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.file.flush()?;
        if let Some(beside) = self.beside.take() {
            let moved = fs::rename(&beside, &self.path);
            if moved.is_err() {
                self.beside = Some(beside);
            }
            return moved;
        }
        Ok(())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Some(beside) = &self.beside {
            // Nobody asked for a file of this name.
            let _ = fs::remove_file(beside);
        }
    }
}
