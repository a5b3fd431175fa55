//! Who gets which token, and who is in which group: changed all the while, by the services' own file
//! and SIGHUP.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Mutex;
use std::time::Duration;

use toml::{Table, Value};

use super::deployment::Deployment;
use super::history::{Clock, Decided, Decree, Moment, Span};
use super::people::lock;
use crate::support::Settings;
use crate::support::random::Random;

/// How long a token holds that expires.
pub const BRIEF: Duration = Duration::from_secs(10);
/// The users of one group, to begin with.
pub const GROUP: usize = 15;
/// Between two changes.
const PACE: Duration = Duration::from_millis(700);

pub struct Office {
    users: Vec<String>,
    state: Mutex<State>,
}

struct State {
    random: Random,
    /// Of each user the token that holds, and how many there have been.
    tokens: BTreeMap<String, (String, usize)>,
    /// All that the services know: its user, and whether it expires.
    known: BTreeMap<String, (String, bool)>,
    /// Users whose tokens expire.
    brief: BTreeSet<String>,
    /// Who needs another token.
    wanted: BTreeSet<String>,
    groups: BTreeMap<String, BTreeSet<String>>,
    decrees: Vec<Decree>,
    /// As these have it.
    memberships: Memberships,
}

impl Office {
    /// `users`: each with whether its tokens expire.
    pub fn new(users: Vec<(String, bool)>, seed: u64) -> Self {
        let mut state = State {
            random: Random::seeded(!seed),
            tokens: BTreeMap::new(),
            known: BTreeMap::new(),
            brief: users
                .iter()
                .filter(|(_, brief)| *brief)
                .map(|(user, _)| user.clone())
                .collect(),
            wanted: BTreeSet::new(),
            groups: BTreeMap::new(),
            decrees: Vec::new(),
            memberships: Memberships::default(),
        };
        let users: Vec<String> = users.into_iter().map(|(user, _)| user).collect();
        let start = Span::new(Moment::ZERO, Moment::ZERO);
        for (number, user) in users.iter().enumerate() {
            let issued = state.issue(user);
            let group = format!("group{}", number / GROUP);
            let joined = Decided::Joined {
                user: user.clone(),
                group: group.clone(),
            };
            state.groups.entry(group).or_default().insert(user.clone());
            state.decree(start, [issued, joined]);
        }
        Self {
            users,
            state: Mutex::new(state),
        }
    }

    pub fn users(&self) -> &[String] {
        &self.users
    }

    pub fn token(&self, user: &str) -> String {
        lock(&self.state).tokens[user].0.clone()
    }

    /// The user needs another token than this.
    pub fn renew(&self, user: &str, spent: &str) {
        let mut state = lock(&self.state);
        if state.tokens[user].0 == spent {
            state.wanted.insert(user.into());
        }
    }

    pub fn group_of(&self, user: &str) -> String {
        let state = lock(&self.state);
        let mut groups = state.groups.iter();
        let group = groups.find(|(_, members)| members.contains(user));
        group.expect("everybody is in a group").0.clone()
    }

    pub fn members(&self, group: &str) -> BTreeSet<String> {
        lock(&self.state)
            .groups
            .get(group)
            .cloned()
            .unwrap_or_default()
    }

    /// Who has been a member all the time.
    pub fn members_throughout(&self, group: &str, within: Span) -> Vec<String> {
        let state = lock(&self.state);
        let members = state.memberships.throughout(group, within);
        members.map(str::to_owned).collect()
    }

    pub fn decrees(&self) -> Vec<Decree> {
        lock(&self.state).decrees.clone()
    }

    /// Writes what holds into the services' configuration.
    pub fn write_into(&self, settings: &mut Settings) {
        lock(&self.state).write_into(settings);
    }

    /// Changes something every now and then, as long as `goes_on`; where not `at_random`, only what is
    /// asked for.
    pub fn work(
        &self,
        deployment: &Deployment,
        clock: Clock,
        goes_on: impl Fn() -> bool,
        at_random: impl Fn() -> bool,
    ) {
        while goes_on() {
            std::thread::sleep(PACE);
            self.change(deployment, clock, at_random());
        }
    }

    /// Gives everybody whose token expires another one, since those from before have grown old.
    pub fn begin(&self, deployment: &Deployment, clock: Clock) {
        let mut state = lock(&self.state);
        state.wanted = state.brief.clone();
        drop(state);
        self.change(deployment, clock, false);
    }

    fn change(&self, deployment: &Deployment, clock: Clock, at_random: bool) {
        // Whoever is stopped, killed or without a disk hears of no change.
        let Some(services) = deployment.services_if_well() else {
            return;
        };
        let begun = clock.now();
        let (next, decided) = {
            let mut state = lock(&self.state);
            let mut next = state.clone_tables();
            let wanted = std::mem::take(&mut state.wanted);
            let mut decided: Vec<Decided> = wanted.iter().map(|user| next.issue(user)).collect();
            if at_random {
                self.revoke(&mut state.random, &mut next, &mut decided);
                self.move_one(&mut state.random, &mut next, &mut decided);
            }
            (next, decided)
        };
        if decided.is_empty() {
            return;
        }
        let mut settings = deployment.settings.clone();
        next.write_into(&mut settings);
        services.reload(&settings);
        let within = Span::new(begun, clock.now());
        let mut state = lock(&self.state);
        (state.tokens, state.known, state.groups) = (next.tokens, next.known, next.groups);
        state.decree(within, decided);
    }

    /// One user's token, which gets another one: the person logs in again.
    fn revoke(&self, random: &mut Random, next: &mut State, decided: &mut Vec<Decided>) {
        let user = random.pick(&self.users);
        if random.below(3) > 0 || next.brief.contains(user) {
            return;
        }
        let token = next.tokens[user].0.clone();
        next.known.remove(&token);
        decided.push(Decided::Revoked {
            user: user.clone(),
            token,
        });
        decided.push(next.issue(user));
    }

    /// One user, from one group to another.
    fn move_one(&self, random: &mut Random, next: &mut State, decided: &mut Vec<Decided>) {
        let user = random.pick(&self.users).clone();
        let groups: Vec<String> = next.groups.keys().cloned().collect();
        let to = random.pick(&groups).clone();
        if random.below(2) > 0 || next.groups[&to].contains(&user) {
            return;
        }
        for (group, members) in &mut next.groups {
            if members.remove(&user) {
                decided.push(Decided::Left {
                    user: user.clone(),
                    group: group.clone(),
                });
            }
        }
        next.groups
            .get_mut(&to)
            .expect("it is there")
            .insert(user.clone());
        decided.push(Decided::Joined { user, group: to });
    }
}

impl State {
    fn clone_tables(&self) -> Self {
        Self {
            random: Random::seeded(0),
            tokens: self.tokens.clone(),
            known: self.known.clone(),
            brief: self.brief.clone(),
            wanted: BTreeSet::new(),
            groups: self.groups.clone(),
            decrees: Vec::new(),
            memberships: Memberships::default(),
        }
    }

    fn decree(&mut self, within: Span, decided: impl IntoIterator<Item = Decided>) {
        for what in decided {
            let decree = Decree { within, what };
            self.memberships.take_in(&decree);
            self.decrees.push(decree);
        }
    }

    fn issue(&mut self, user: &str) -> Decided {
        let count = self.tokens.get(user).map_or(0, |(_, count)| count + 1);
        let token = format!("{user}-token-{count}");
        let brief = self.brief.contains(user);
        self.known.insert(token.clone(), (user.into(), brief));
        self.tokens.insert(user.into(), (token.clone(), count));
        Decided::Issued {
            token,
            expires_in: brief.then_some(BRIEF),
        }
    }

    fn write_into(&self, settings: &mut Settings) {
        for (token, (user, brief)) in &self.known {
            if *brief {
                let mut table = Table::new();
                table.insert("user".into(), user.clone().into());
                table.insert("expires_in".into(), format!("{}s", BRIEF.as_secs()).into());
                settings.put_token(token, Value::from(table));
            } else {
                settings.put_token(token, user.clone());
            }
        }
        for (group, members) in &self.groups {
            settings.put_group(group, members.iter().map(String::as_str));
        }
    }
}

/// When who is in which group: of each group, its members at any time.
#[derive(Default)]
pub struct Memberships(HashMap<String, HashMap<String, Membership>>);

impl Memberships {
    pub fn take_in(&mut self, Decree { within, what }: &Decree) {
        let (Decided::Joined { user, group } | Decided::Left { user, group }) = what else {
            return;
        };
        let members = self.0.entry(group.clone()).or_default();
        let membership = members.entry(user.clone()).or_default();
        if let Decided::Joined { .. } = what {
            let span = [within.until, Duration::MAX, Duration::MAX];
            membership.earliest.push(within.from);
            membership.spans.push(span);
        } else {
            let span = membership.spans.last_mut();
            let span = span.expect("whoever leaves was there");
            (span[1], span[2]) = (within.from, within.until);
        }
    }

    pub fn of(&self, user: &str, group: &str) -> Option<&Membership> {
        self.0.get(group)?.get(user)
    }

    /// Who is a member all the time.
    pub fn throughout(&self, group: &str, within: Span) -> impl Iterator<Item = &str> {
        let members = self.0.get(group).into_iter().flatten();
        let all_the_time = members.filter(move |(_, membership)| membership.throughout(within));
        all_the_time.map(|(user, _)| user.as_str())
    }
}

/// When somebody is in a group: spans of which the first and last moments may be off by as long as the
/// change took.
#[derive(Default)]
pub struct Membership {
    /// (in for sure from, out at the earliest from, out for sure from).
    spans: Vec<[Duration; 3]>,
    /// When each began at the earliest.
    earliest: Vec<Duration>,
}

impl Membership {
    /// Whether it is so for sure at each moment.
    pub fn throughout(&self, within: Span) -> bool {
        let mut spans = self.spans.iter();
        spans.any(|[from, until, _]| *from <= within.from && within.until <= *until)
    }

    /// Whether it may be so at some moment, or was so no longer than `slack` before.
    pub fn at_all(&self, within: Span, slack: Duration) -> bool {
        let mut spans = self.earliest.iter().zip(&self.spans);
        spans.any(|(from, [_, _, out])| {
            *from <= within.until && within.from <= out.saturating_add(slack)
        })
    }
}
