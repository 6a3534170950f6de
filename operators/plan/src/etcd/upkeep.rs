//! When a member of etcd gives back what its database does not use, so that no two do at once, and when its alarm is taken back.
//!
//! A member does nothing else meanwhile: so one goes after the other, the leader last, and only while all are healthy.

use std::time::Duration;

/// How much must be free before it is worth the pause, bytes.
const WASTED: i64 = 100_000_000;
/// Longest time that a member is waited for, which may have gone away.
pub const PATIENCE: Duration = Duration::from_secs(900);
/// How long the turn of a member lasts while nobody can lead: far longer than clocks differ.
const TURN: Duration = Duration::from_secs(300);

/// A member as its machine tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Its name.
    pub name: String,
    /// Whether it answers, and has no alarm.
    pub healthy: bool,
    /// Whether it leads the others.
    pub leader: bool,
    /// Size of its database, bytes.
    pub database_bytes: i64,
    /// What of that is in use, bytes.
    pub used_bytes: i64,
    /// When it was told to, seconds since 1970.
    pub due: Option<i64>,
    /// What it was told that it has done last.
    pub done: Option<i64>,
}

/// Whether a database of that size is worth the pause: less than half of it is in use, and more than 100 MB are free.
pub fn is_due(database_bytes: i64, used_bytes: i64) -> bool {
    let free = database_bytes.saturating_sub(used_bytes);
    used_bytes < database_bytes / 2 && free > WASTED
}

/// The member whose turn it is, given all that are declared and the time in seconds since 1970.
pub fn next(members: &[Observed], now: i64) -> Option<&str> {
    let patience = i64::try_from(PATIENCE.as_secs()).unwrap_or(i64::MAX);
    let busy = |member: &Observed| {
        member.due > member.done && member.due.is_some_and(|due| now.saturating_sub(due) < patience)
    };
    if members.iter().any(|member| !member.healthy || busy(member)) {
        return None;
    }
    let due = members.iter().filter(|member| is_due(member.database_bytes, member.used_bytes));
    due.min_by_key(|member| (member.leader, &member.name)).map(|member| member.name.as_str())
}

/// Whether the alarm that a member is out of space can be taken back: only when it has space again.
pub fn may_disarm(database_bytes: i64, quota_bytes: i64) -> bool {
    quota_bytes > 0 && database_bytes < quota_bytes
}

/// Whether it is the turn of the member `own` while the store takes no changes, and so nobody can lead: each of the `members` has its
/// turns by the clock.
pub fn has_turn(members: &[u64], own: u64, now: i64) -> bool {
    let mut sorted = members.to_vec();
    sorted.sort_unstable();
    let (Some(place), Ok(count)) = (sorted.iter().position(|id| *id == own), i64::try_from(sorted.len())) else {
        return false;
    };
    let turn = i64::try_from(TURN.as_secs()).unwrap_or(i64::MAX);
    // One that begins late in its turn would reach into the next.
    let begins = count == 1 || now.rem_euclid(turn) < turn / 2;
    begins && i64::try_from(place) == Ok(now.div_euclid(turn).rem_euclid(count))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MB: i64 = 1_000_000;

    fn member(name: &str, database: i64, used: i64) -> Observed {
        let (database_bytes, used_bytes) = (database * MB, used * MB);
        Observed { name: name.to_owned(), healthy: true, database_bytes, used_bytes, ..Observed::default() }
    }

    #[test]
    fn it_is_worth_it_when_half_and_a_hundred_megabytes_are_free() {
        for (database, used, due) in [
            (0, 0, false),
            (100, 0, false),
            (101, 0, true),
            (202, 100, true),
            (200, 99, true),
            (199, 99, false),
            (8000, 4000, false),
            (8000, 3999, true),
            (10, 20, false),
        ] {
            assert_eq!(is_due(database * MB, used * MB), due, "{used} of {database} MB");
        }
    }

    #[test]
    fn one_goes_after_the_other_and_the_leader_last() {
        let wasteful = |name: &str| member(name, 500, 100);
        let leads = Observed { leader: true, ..wasteful("a") };
        let told = Observed { due: Some(1000), ..member("b", 500, 100) };
        let done = Observed { done: Some(1000), ..told.clone() };
        let sick = Observed { healthy: false, ..member("c", 10, 9) };
        let cases = [
            ("nobody has to", vec![member("a", 10, 9)], 1000, None),
            ("a lone one", vec![leads.clone()], 1000, Some("a")),
            ("another before the leader", vec![leads.clone(), wasteful("b"), wasteful("c")], 1000, Some("b")),
            ("the leader last", vec![leads.clone(), member("b", 100, 90)], 1000, Some("a")),
            ("not while another does", vec![leads.clone(), told.clone(), wasteful("c")], 1001, None),
            ("after it", vec![leads.clone(), Observed { database_bytes: 1, ..done }, wasteful("c")], 1001, Some("c")),
            ("one that is away is not waited for", vec![leads.clone(), told], 1900, Some("b")),
            ("not while one is sick", vec![leads, sick], 1000, None),
        ];
        for (name, members, now, expected) in cases {
            assert_eq!(next(&members, now), expected, "{name}");
        }
    }

    #[test]
    fn an_alarm_stays_until_there_is_space() {
        assert!(may_disarm(7, 8) && !may_disarm(8, 8) && !may_disarm(9, 8) && !may_disarm(1, 0));
    }

    proptest! {
        #[test]
        fn never_two_have_their_turn_at_once(ids in proptest::collection::btree_set(any::<u64>(), 1..6), now in 0i64..1 << 40) {
            let ids: Vec<_> = ids.into_iter().collect();
            prop_assert!(ids.iter().filter(|id| has_turn(&ids, **id, now)).count() <= 1);
            let round = 0..ids.len() as i64;
            for id in &ids {
                prop_assert!(round.clone().any(|turn| has_turn(&ids, *id, turn * 300)), "everybody has one");
            }
        }

        #[test]
        fn whoever_is_told_is_healthy_and_nobody_else_is_busy(
            states in proptest::collection::vec((any::<bool>(), 0i64..1000, 0i64..1000, proptest::option::of(0i64..2000), proptest::option::of(0i64..2000)), 1..5),
        ) {
            let members: Vec<_> = states.into_iter().enumerate().map(|(index, (leader, database, used, due, done))| {
                Observed { leader, due, done, ..member(&format!("m{index}"), database, used) }
            }).collect();
            if let Some(name) = next(&members, 2000) {
                let told = members.iter().find(|member| member.name == name).unwrap();
                prop_assert!(is_due(told.database_bytes, told.used_bytes));
                let quiet = |member: &Observed| member.due <= member.done || member.due.is_none_or(|due| due <= 1100);
                prop_assert!(members.iter().all(quiet));
            }
        }
    }
}
