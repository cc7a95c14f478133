//! Alarms, derived from one overview after another. Nothing is asked of the
//! server: what it says twice in a row is enough to see a queue that stands
//! still, a slot that leaks, a lag that grows.

use std::collections::{HashMap, VecDeque};

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use super::watch::Finding;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    Warning,
    Critical,
}

/// One line of the log.
#[derive(Debug, Clone, PartialEq)]
pub struct Alarm {
    pub code: String,
    /// What it is about: a queue's title, a store, the server.
    pub subject: String,
    pub performance: Option<Uuid>,
    pub severity: Severity,
    pub message: String,
    pub look_at: String,
    pub raised_at: DateTime<Utc>,
    /// `None` while it stands.
    pub cleared_at: Option<DateTime<Utc>>,
}

impl Alarm {
    fn is(&self, finding: &Finding) -> bool {
        self.cleared_at.is_none()
            && self.code == finding.code
            && self.subject == finding.subject
            && self.performance == finding.performance
    }
}

/// Cleared alarms kept; standing ones are bounded by what can be wrong.
const LOG_MAX: usize = 500;
/// An alarm that comes back this soon is the same one: no flapping in the log.
const SAME_WITHIN: TimeDelta = TimeDelta::seconds(5);

/// Queues that say the same this soon after one another have one cause: a restart of Redis, a
/// server that was away.
const ONE_CAUSE_WITHIN: TimeDelta = TimeDelta::seconds(30);

/// Alarms of one cause, a line of the log: one that is not about a queue, or what many queues say
/// together. Never empty; the newest first.
#[derive(Debug, Clone, PartialEq)]
pub struct Group<'a>(Vec<&'a Alarm>);

impl<'a> Group<'a> {
    /// The newest of them.
    pub fn newest(&self) -> &'a Alarm {
        self.0[0]
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// What they are about.
    pub fn subjects(&self) -> impl Iterator<Item = &'a str> {
        self.0.iter().map(|alarm| alarm.subject.as_str())
    }

    fn takes(&self, alarm: &Alarm) -> bool {
        let newest = self.newest();
        alarm.performance.is_some()
            && newest.performance.is_some()
            && alarm.code == newest.code
            && alarm.severity == newest.severity
            && alarm.cleared_at.is_some() == newest.cleared_at.is_some()
            && (newest.raised_at - alarm.raised_at).abs() <= ONE_CAUSE_WITHIN
    }
}

/// `alarms` as lines, in their order; each goes to the first group that it fits.
fn group<'a>(alarms: impl Iterator<Item = &'a Alarm>) -> Vec<Group<'a>> {
    let mut groups: Vec<Group<'a>> = Vec::new();
    for alarm in alarms {
        match groups.iter_mut().find(|group| group.takes(alarm)) {
            Some(group) => group.0.push(alarm),
            None => groups.push(Group(vec![alarm])),
        }
    }
    groups
}

/// Newest first.
#[derive(Debug, Clone, Default)]
pub struct AlarmLog {
    alarms: VecDeque<Alarm>,
    /// When each standing alarm was last confirmed.
    seen: HashMap<(String, String, Option<Uuid>), DateTime<Utc>>,
}

impl AlarmLog {
    /// Takes what is wrong now: raises what is new, clears what is gone.
    pub fn update(&mut self, now: DateTime<Utc>, findings: Vec<Finding>) {
        for finding in findings {
            let key = (
                finding.code.clone(),
                finding.subject.clone(),
                finding.performance,
            );
            self.seen.insert(key, now);
            match self.alarms.iter_mut().find(|alarm| alarm.is(&finding)) {
                // The newest words stand: "for 12 s" goes on counting.
                Some(alarm) => {
                    alarm.message = finding.message;
                    alarm.severity = alarm.severity.max(finding.severity);
                }
                None => self.alarms.push_front(Alarm {
                    code: finding.code,
                    subject: finding.subject,
                    performance: finding.performance,
                    severity: finding.severity,
                    message: finding.message,
                    look_at: finding.look_at,
                    raised_at: now,
                    cleared_at: None,
                }),
            }
        }
        for alarm in self
            .alarms
            .iter_mut()
            .filter(|alarm| alarm.cleared_at.is_none())
        {
            let key = (alarm.code.clone(), alarm.subject.clone(), alarm.performance);
            let last = self.seen.get(&key).copied().unwrap_or(alarm.raised_at);
            if now - last >= SAME_WITHIN {
                alarm.cleared_at = Some(last);
            }
        }
        self.seen.retain(|_, last| now - *last < SAME_WITHIN);
        while self.alarms.len() > LOG_MAX {
            self.alarms.pop_back();
        }
    }

    /// The lines of the log, newest first.
    pub fn groups(&self) -> Vec<Group<'_>> {
        group(self.alarms.iter())
    }

    /// What stands, a line for each cause, the worst first.
    pub fn standing_groups(&self) -> Vec<Group<'_>> {
        group(self.standing().into_iter())
    }

    /// Everything, newest first.
    pub fn all(&self) -> &VecDeque<Alarm> {
        &self.alarms
    }

    /// Standing alarms, the worst first, then the newest.
    pub fn standing(&self) -> Vec<&Alarm> {
        let mut standing: Vec<&Alarm> = self
            .alarms
            .iter()
            .filter(|alarm| alarm.cleared_at.is_none())
            .collect();
        standing.sort_by_key(|alarm| {
            (
                std::cmp::Reverse(alarm.severity),
                std::cmp::Reverse(alarm.raised_at),
            )
        });
        standing
    }

    /// The worst that stands about one queue.
    pub fn of(&self, performance: Uuid) -> Option<&Alarm> {
        self.standing()
            .into_iter()
            .find(|alarm| alarm.performance == Some(performance))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(message: &str) -> Finding {
        Finding {
            code: "STORE_DOWN".into(),
            subject: "redis".into(),
            performance: None,
            severity: Severity::Critical,
            message: message.into(),
            look_at: "the Redis log".into(),
        }
    }

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::seconds(second)
    }

    #[test]
    fn an_alarm_stands_until_it_has_been_quiet_for_a_while() {
        let mut log = AlarmLog::default();
        log.update(at(0), vec![finding("gone for 0 s")]);
        log.update(at(1), vec![finding("gone for 1 s")]);
        assert_eq!(log.standing().len(), 1);
        assert_eq!(log.standing()[0].message, "gone for 1 s");
        log.update(at(3), vec![]);
        assert_eq!(log.standing().len(), 1, "cleared too soon");
        log.update(at(6), vec![]);
        assert!(log.standing().is_empty());
        assert_eq!(
            (log.all()[0].raised_at, log.all()[0].cleared_at),
            (at(0), Some(at(1)))
        );
    }

    #[test]
    fn flapping_is_one_line() {
        let mut log = AlarmLog::default();
        for second in 0..20 {
            log.update(
                at(second),
                if second % 3 == 0 {
                    vec![finding("gone")]
                } else {
                    vec![]
                },
            );
        }
        assert_eq!(log.all().len(), 1);
    }

    #[test]
    fn what_many_queues_say_together_is_one_line() {
        let mut log = AlarmLog::default();
        let of_queue = |n: u128, code: &str| Finding {
            code: code.into(),
            subject: format!("show {n}"),
            performance: Some(Uuid::from_u128(n)),
            ..finding("is put together again")
        };
        let many = |second: i64| {
            let first = u128::try_from(second).unwrap() * 20;
            (first..first + 20).map(|n| of_queue(n, "RECOVERING"))
        };
        log.update(at(0), many(0).collect());
        log.update(
            at(1),
            (many(0).chain(many(1)))
                .chain([finding("gone"), of_queue(3, "LATE")])
                .collect(),
        );
        let groups = log.standing_groups();
        let counts: Vec<usize> = groups.iter().map(Group::count).collect();
        assert_eq!(
            groups.len(),
            3,
            "the store, the late queue, and forty at once: {counts:?}"
        );
        assert_eq!(counts.iter().max(), Some(&40));
        // Later, the same is another cause.
        log.update(at(100), many(2).collect());
        assert_eq!(log.standing_groups().len(), 1);
        assert_eq!(
            log.groups().iter().map(Group::count).sum::<usize>(),
            log.all().len()
        );
        assert_eq!(log.groups().len(), 4);
    }

    #[test]
    fn the_log_is_bounded() {
        let mut log = AlarmLog::default();
        for n in 0..2000 {
            log.update(at(n * 10), vec![finding("gone")]);
            log.update(at(n * 10 + 6), vec![]);
        }
        assert_eq!(log.all().len(), LOG_MAX);
    }
}
