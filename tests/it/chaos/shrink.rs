//! Finds out which faults a failure needs.

use super::series::Fault;

/// A series that still fails, of which none, or at least no more in the time there is, can be left out:
/// Zeller's and Hildebrandt's ddmin (2002), which leaves out ever smaller parts. `fails` answers `None`
/// when time is up.
pub fn shortest(all: &[Fault], mut fails: impl FnMut(&[Fault]) -> Option<bool>) -> Vec<Fault> {
    let mut shortest = all.to_vec();
    let mut parts = 2;
    while shortest.len() > 1 {
        let length = shortest.len().div_ceil(parts);
        let mut begins = (0..shortest.len()).step_by(length);
        let without = begins.find_map(|begin| {
            let end = (begin + length).min(shortest.len());
            let fewer = [&shortest[..begin], &shortest[end..]].concat();
            match fails(&fewer) {
                None => Some(None),
                Some(true) => Some(Some(fewer)),
                Some(false) => None,
            }
        });
        match without {
            Some(None) => break,
            Some(Some(fewer)) => {
                shortest = fewer;
                parts = (parts - 1).max(2);
            }
            None if length == 1 => break,
            None => parts = (2 * parts).min(shortest.len()),
        }
    }
    shortest
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::series::series;
    use super::*;

    #[test]
    fn what_a_failure_needs_is_found_and_the_rest_left_out() {
        let all = series(3, Duration::from_secs(120), 3);
        let needed = [all[2].clone(), all[all.len() - 2].clone()];
        let mut runs = 0;
        let shortest = shortest(&all, |fewer| {
            runs += 1;
            Some(needed.iter().all(|fault| fewer.contains(fault)))
        });
        assert_eq!(shortest, needed);
        assert!(runs < 2 * all.len(), "{runs} of {}", all.len());
    }

    #[test]
    fn what_time_does_not_suffice_for_is_left_as_it_is() {
        let all = series(3, Duration::from_secs(60), 3);
        assert_eq!(shortest(&all, |_| None), all);
    }
}
