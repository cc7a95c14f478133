//! What Linux tells of a process.

use anyhow::{Context, Result};

/// Resident memory, bytes.
pub fn resident_bytes(pid: u32) -> Result<u64> {
    field_kib(pid, "VmRSS:").map(|kib| kib * 1024)
}

fn field_kib(pid: u32, name: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|l| l.strip_prefix(name));
    let text = line.with_context(|| format!("no {name} of {pid}"))?;
    Ok(text.trim().trim_end_matches(" kB").parse()?)
}

/// Processor time used so far, seconds, by all threads.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    /// USER_HZ: 100 on every Linux that is not exotic.
    const TICKS_A_SECOND: f64 = 100.0;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in parentheses, may hold anything.
    let (_, rest) = stat.rsplit_once(") ").context("/proc/<pid>/stat")?;
    let ticks: f64 = rest
        .split(' ')
        .skip(11)
        .take(2)
        .map(|t| t.parse::<f64>().unwrap_or(0.0))
        .sum();
    Ok(ticks / TICKS_A_SECOND)
}
