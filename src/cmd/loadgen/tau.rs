//! Kendall's tau and inversions by merge sort: how far one order is from another.

/// How two orderings of the same people compare.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Order {
    /// Pairs in the opposite order. Ties in either are neither for nor against.
    pub inversions: u64,
    /// tau-b: 1 the same order, 0 none, -1 the opposite. None where one side is all ties.
    pub tau: Option<f64>,
}

/// Compares by pairs (x, y), in n log n.
pub fn compare(pairs: &mut [(u64, u64)]) -> Order {
    pairs.sort_unstable();
    let n = pairs.len() as u64;
    let all = n * n.saturating_sub(1) / 2;
    let ties_x = tied(pairs, |pair| pair.0);
    let ties_both = tied(pairs, |pair| *pair);
    let mut ys: Vec<u64> = pairs.iter().map(|pair| pair.1).collect();
    let mut space = vec![0; ys.len()];
    // Within equal x the ys ascend, so what is out of order is an inversion and no tie.
    let inversions = sort_counting(&mut ys, &mut space);
    let ties_y = tied(&ys, |y| *y);
    let concordant = all + ties_both - ties_x - ties_y - inversions;
    let scale = ((all - ties_x) as f64 * (all - ties_y) as f64).sqrt();
    let tau = (scale > 0.0).then(|| (concordant as f64 - inversions as f64) / scale);
    Order { inversions, tau }
}

/// Pairs that are equal by `key`, in a slice sorted by it.
fn tied<T, K: PartialEq>(sorted: &[T], key: impl Fn(&T) -> K) -> u64 {
    sorted
        .chunk_by(|a, b| key(a) == key(b))
        .map(|run| (run.len() as u64) * (run.len() as u64 - 1) / 2)
        .sum()
}

/// Sorts, and counts the pairs that stood the wrong way round.
fn sort_counting(values: &mut [u64], space: &mut [u64]) -> u64 {
    if values.len() < 2 {
        return 0;
    }
    let middle = values.len() / 2;
    let (left, right) = values.split_at_mut(middle);
    let (left_space, right_space) = space.split_at_mut(middle);
    let mut inversions = sort_counting(left, left_space) + sort_counting(right, right_space);
    let (mut i, mut j) = (0, 0);
    for slot in space.iter_mut() {
        if j >= right.len() || (i < left.len() && left[i] <= right[j]) {
            *slot = left[i];
            i += 1;
        } else {
            // Everything left in `left` stood before this smaller one.
            inversions += (left.len() - i) as u64;
            *slot = right[j];
            j += 1;
        }
    }
    values.copy_from_slice(space);
    inversions
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// By definition, pair by pair.
    fn naive(pairs: &[(u64, u64)]) -> Order {
        let (mut inversions, mut concordant, mut ties_x, mut ties_y, mut all) =
            (0u64, 0u64, 0u64, 0u64, 0u64);
        for (i, a) in pairs.iter().enumerate() {
            for b in &pairs[i + 1..] {
                all += 1;
                ties_x += u64::from(a.0 == b.0);
                ties_y += u64::from(a.1 == b.1);
                if a.0 == b.0 || a.1 == b.1 {
                    continue;
                }
                if (a.0 < b.0) == (a.1 < b.1) {
                    concordant += 1
                } else {
                    inversions += 1
                }
            }
        }
        let scale = ((all - ties_x) as f64 * (all - ties_y) as f64).sqrt();
        Order {
            inversions,
            tau: (scale > 0.0).then(|| (concordant as f64 - inversions as f64) / scale),
        }
    }

    #[test]
    fn known_orders() {
        let same: &mut [_] = &mut [(1, 10), (2, 20), (3, 30)];
        assert_eq!(
            compare(same),
            Order {
                inversions: 0,
                tau: Some(1.0)
            }
        );
        let opposite: &mut [_] = &mut [(1, 30), (2, 20), (3, 10)];
        assert_eq!(
            compare(opposite),
            Order {
                inversions: 3,
                tau: Some(-1.0)
            }
        );
        assert_eq!(
            compare(&mut []),
            Order {
                inversions: 0,
                tau: None
            }
        );
        assert_eq!(
            compare(&mut [(1, 1), (2, 1)]),
            Order {
                inversions: 0,
                tau: None
            }
        );
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(mut pairs in prop::collection::vec((0u64..20, 0u64..20), 0..80)) {
            let expected = naive(&pairs);
            let got = compare(&mut pairs);
            prop_assert_eq!(got.inversions, expected.inversions);
            match (got.tau, expected.tau) {
                (Some(a), Some(b)) => prop_assert!((a - b).abs() < 1e-9),
                (a, b) => prop_assert_eq!(a, b),
            }
        }
    }
}
