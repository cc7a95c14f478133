//! Halls of any size: floors, sections, rows and grades as a theatre or an arena has
//! them. Pure, and depending on nothing but the number of seats.

use serde::Serialize;

/// Above this a hall is an arena of many blocks, not a theatre of a few wide ones.
const THEATRE_MAX: u32 = 5_000;
/// An arena's block: as many rows, of as many seats.
const BLOCK_ROWS: u32 = 20;
const BLOCK_WIDTH: u32 = 25;

/// A row of seats next to each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    pub label: String,
    /// The number on its first seat; the others follow.
    pub first: i16,
    pub seats: i16,
    /// 0 is the dearest.
    pub grade: i16,
}

/// A part of a hall with a name of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Section {
    pub name: String,
    pub rows: Vec<Row>,
}

/// Sections in the order of their seats.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Hall(pub Vec<Section>);

/// One seat of a hall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat<'a> {
    pub section: i16,
    pub section_name: &'a str,
    pub row: &'a str,
    pub number: i16,
    pub grade: i16,
}

impl Hall {
    /// A hall with exactly `seats` seats.
    pub fn with(seats: u32) -> Self {
        if seats > THEATRE_MAX {
            arena(seats)
        } else {
            theatre(seats)
        }
    }

    /// Every seat, in seat order.
    pub fn seats(&self) -> impl Iterator<Item = Seat<'_>> {
        self.0.iter().zip(0_i16..).flat_map(|(section, index)| {
            section.rows.iter().flat_map(move |row| {
                (row.first..row.first + row.seats).map(move |number| Seat {
                    section: index,
                    section_name: &section.name,
                    row: &row.label,
                    number,
                    grade: row.grade,
                })
            })
        })
    }

    pub fn len(&self) -> u32 {
        let rows = self.0.iter().flat_map(|section| &section.rows);
        rows.map(|row| u32::from(row.seats.unsigned_abs())).sum()
    }
}

/// Floors with a left, a middle and a right section each; seats are numbered across the
/// whole width, as the plates on the chairs are.
fn theatre(seats: u32) -> Hall {
    let width = (f64::from(seats).sqrt().round() as u32).clamp(10, 44);
    let shares: &[u32] = match seats {
        0..400 => &[100],
        400..1_500 => &[70, 30],
        _ => &[55, 27, 18],
    };
    let mut sections = Vec::new();
    let mut left = seats;
    for (floor, share) in shares.iter().enumerate() {
        let last = floor + 1 == shares.len();
        // Whole rows, but for what is left over at the very back.
        let here = if last {
            left
        } else {
            (seats * share / 100 / width * width).min(left)
        };
        left -= here;
        let sides = if width < 16 { 0 } else { width * 3 / 10 };
        let blocks = [
            ("A", 0, sides),
            ("B", sides, width - sides),
            ("C", width - sides, width),
        ];
        for (letter, from, to) in blocks {
            let name = match (sides, shares.len()) {
                (0, 1) => "전석".to_owned(),
                (0, _) => format!("{}층", floor + 1),
                _ => format!("{}층 {letter}구역", floor + 1),
            };
            let rows = theatre_rows(here, width, (from, to), |depth| {
                grade(floor, shares.len(), depth, letter == "B")
            });
            if !rows.is_empty() {
                sections.push(Section { name, rows });
            }
        }
    }
    Hall(sections)
}

/// The part of a floor's rows that lies in the columns `from..to`.
fn theatre_rows(
    seats: u32,
    width: u32,
    (from, to): (u32, u32),
    grade: impl Fn(f64) -> i16,
) -> Vec<Row> {
    let count = seats.div_ceil(width);
    (0..count)
        .filter_map(|row| {
            let end = to.min(seats - row * width);
            (end > from).then(|| Row {
                label: format!("{}열", row + 1),
                first: narrow(from + 1),
                seats: narrow(end - from),
                grade: grade(f64::from(row) / f64::from(count)),
            })
        })
        .collect()
}

/// Nearer and more in the middle is dearer.
fn grade(floor: usize, floors: usize, depth: f64, middle: bool) -> i16 {
    let base = match (floor, floors) {
        (0, 1) => (depth * 4.0) as i16,
        (0, _) if depth < 0.5 => 0,
        (0, _) => 1,
        (1, 2) => 2 + i16::from(depth >= 0.5),
        (1, _) => 2,
        _ => 3,
    };
    (base + i16::from(!middle)).min(3)
}

/// A floor before the stage and tiers around it, in blocks.
fn arena(seats: u32) -> Hall {
    let block = BLOCK_ROWS * BLOCK_WIDTH;
    let blocks = seats.div_ceil(block);
    let mut seen = [0_u32; 4];
    let sections = (0..blocks).map(|index| {
        let tier = (index * 10 / blocks)
            .checked_sub(2)
            .map_or(0, |above| above / 3 + 1)
            .min(3) as usize;
        seen[tier] += 1;
        let name = match tier {
            0 => format!("플로어 F{}구역", seen[0]),
            tier => format!("{tier}층 {}구역", tier as u32 * 100 + seen[tier]),
        };
        let here = block.min(seats - index * block);
        let rows = theatre_rows(here, BLOCK_WIDTH, (0, BLOCK_WIDTH), |_| tier as i16);
        Section { name, rows }
    });
    Hall(sections.collect())
}

/// Widths and seat numbers are below a hundred.
fn narrow(n: u32) -> i16 {
    i16::try_from(n).unwrap_or(i16::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_hall_has_exactly_the_seats_asked_for_and_no_two_alike() {
        for seats in [
            0, 1, 7, 40, 101, 300, 399, 400, 999, 1_213, 2_000, 5_000, 5_001, 9_973, 50_000,
        ] {
            let hall = Hall::with(seats);
            assert_eq!(hall.len(), seats);
            let all: Vec<_> = hall.seats().collect();
            assert_eq!(all.len() as u32, seats);
            let plates: HashSet<_> = all.iter().map(|s| (s.section, s.row, s.number)).collect();
            assert_eq!(plates.len() as u32, seats, "{seats}");
            let names: HashSet<_> = hall.0.iter().map(|s| &s.name).collect();
            assert_eq!(names.len(), hall.0.len(), "section names differ");
            assert!(all.iter().all(|s| (0..4).contains(&s.grade)));
        }
    }

    #[test]
    fn a_theatre_looks_like_one() {
        let hall = Hall::with(1_200);
        let names: Vec<_> = hall.0.iter().map(|s| s.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "1층 A구역",
                "1층 B구역",
                "1층 C구역",
                "2층 A구역",
                "2층 B구역",
                "2층 C구역"
            ]
        );
        let front = &hall.0[1].rows[0];
        assert_eq!(
            (front.label.as_str(), front.first, front.grade),
            ("1열", 11, 0)
        );
        let grades: HashSet<_> = hall.seats().map(|s| s.grade).collect();
        assert_eq!(grades.len(), 4);
    }

    #[test]
    fn a_million_seats_fit_their_types() {
        let hall = Hall::with(1_000_000);
        assert_eq!(hall.len(), 1_000_000);
        assert_eq!(hall.0.len(), 2_000);
        assert_eq!(hall.0[0].name, "플로어 F1구역");
        assert_eq!(hall.0[1_999].rows[0].grade, 3);
    }
}
