//! Several machines on one link that loses, delays and splits.

use std::net::Ipv4Addr;
use std::time::Duration;

use proptest::prelude::*;

use super::*;

/// The simulation looks at everything this often.
const STEP: Duration = Duration::from_millis(5);
/// How long it takes at most until what does not serve, or is dead, is replaced: a second, and the steps of the simulation.
const LIMIT: Duration = Duration::from_millis(1100);

#[derive(Clone, Copy, Debug)]
enum Trouble {
    /// An API server is otherwise than before.
    Standing(usize, Standing),
    /// An agent ends without a word, and the address stays on its link; or it is started again.
    Agent(usize, bool),
    /// A machine loses its power; or has it again.
    Power(usize, bool),
    /// The link is split: each machine is in one of two parts.
    Split(u8),
    /// So many percent of what is sent is lost.
    Loss(u8),
    /// What is sent may be under way for so many milliseconds.
    Delay(u16),
}

struct Machine {
    own: Ipv4Addr,
    standing: Standing,
    agent: Option<Election>,
    powered: bool,
    /// Whether the address is on its link.
    has: bool,
}

struct Group {
    machines: Vec<Machine>,
    now: Duration,
    split: u8,
    loss: u8,
    delay: u16,
    under_way: Vec<(Duration, usize, Advertisement)>,
    random: u64,
    taken: usize,
}

impl Group {
    fn new(count: usize, random: u64) -> Self {
        let machine = |index: usize| Machine {
            own: Ipv4Addr::new(192, 0, 2, 11 + index as u8),
            standing: Standing::Serving,
            agent: None,
            powered: true,
            has: false,
        };
        let machines = (0..count).map(machine).collect();
        let mut group =
            Self { machines, now: Duration::ZERO, split: 0, loss: 0, delay: 0, under_way: vec![], random, taken: 0 };
        (0..count).for_each(|index| group.start(index));
        group
    }

    fn start(&mut self, index: usize) {
        let now = self.now;
        let machine = &mut self.machines[index];
        if machine.powered && machine.agent.is_none() {
            let (election, actions) = Election::new(machine.own, machine.standing, machine.has, now);
            machine.agent = Some(election);
            self.act(index, actions);
        }
    }

    /// A number below a limit (xorshift).
    fn random(&mut self, limit: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % limit
    }

    fn act(&mut self, index: usize, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Send(priority) => self.send(index, priority),
                Action::Take => {
                    self.taken += usize::from(!self.machines[index].has);
                    self.machines[index].has = true;
                }
                Action::Release => self.machines[index].has = false,
                Action::Announce => assert!(self.machines[index].has),
            }
        }
    }

    fn send(&mut self, from: usize, priority: u8) {
        let advertisement = Advertisement { sender: self.machines[from].own, priority, interval: INTERVAL };
        for to in (0..self.machines.len()).filter(|to| *to != from) {
            let apart = (self.split >> from) & 1 != (self.split >> to) & 1;
            let delay = Duration::from_millis(self.random(u64::from(self.delay) + 1));
            if !apart && self.random(100) >= u64::from(self.loss) {
                self.under_way.push((self.now + delay, to, advertisement));
            }
        }
    }

    fn event(&mut self, index: usize, event: Event) {
        let now = self.now;
        if let Some(election) = &mut self.machines[index].agent {
            let actions = election.step(event, now);
            self.act(index, actions);
        }
    }

    fn trouble(&mut self, trouble: Trouble) {
        let count = self.machines.len();
        match trouble {
            Trouble::Standing(index, standing) => {
                self.machines[index % count].standing = standing;
                self.event(index % count, Event::Standing(standing));
            }
            Trouble::Agent(index, false) => self.machines[index % count].agent = None,
            Trouble::Agent(index, true) => self.start(index % count),
            Trouble::Power(index, powered) => {
                let machine = &mut self.machines[index % count];
                if !powered {
                    machine.agent = None;
                    machine.has = false;
                }
                machine.powered = powered;
                self.start(index % count);
            }
            Trouble::Split(split) => self.split = split,
            Trouble::Loss(loss) => self.loss = loss,
            Trouble::Delay(delay) => self.delay = delay,
        }
    }

    /// Lets time pass.
    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += STEP;
            let now = self.now;
            let (due, rest) = std::mem::take(&mut self.under_way).into_iter().partition(|(at, ..)| *at <= now);
            self.under_way = rest;
            let due: Vec<(Duration, usize, Advertisement)> = due;
            due.into_iter().for_each(|(_, to, advertisement)| self.event(to, Event::Heard(advertisement)));
            for index in 0..self.machines.len() {
                let deadline = self.machines[index].agent.as_ref().and_then(Election::deadline);
                if deadline.is_some_and(|deadline| deadline <= now) {
                    self.event(index, Event::Tick);
                }
            }
            for machine in self.machines.iter().filter(|machine| machine.agent.is_some()) {
                assert!(!machine.has || machine.standing != Standing::Away, "it does not serve, and has the address");
            }
        }
    }

    /// Everything works again, but for the API servers.
    fn calm(&mut self) {
        (self.split, self.loss, self.delay) = (0, 0, 20);
        for index in 0..self.machines.len() {
            self.machines[index].powered = true;
            self.start(index);
        }
    }

    fn holders(&self) -> Vec<usize> {
        (0..self.machines.len()).filter(|index| self.machines[*index].has).collect()
    }

    fn best(&self) -> Standing {
        self.machines.iter().map(|machine| machine.standing).max().unwrap()
    }
}

fn standings() -> impl Strategy<Value = Standing> {
    prop_oneof![Just(Standing::Away), Just(Standing::Silent), Just(Standing::Serving)]
}

fn troubles() -> impl Strategy<Value = Trouble> {
    prop_oneof![
        (0..5_usize, standings()).prop_map(|(index, standing)| Trouble::Standing(index, standing)),
        (0..5_usize, any::<bool>()).prop_map(|(index, on)| Trouble::Agent(index, on)),
        (0..5_usize, any::<bool>()).prop_map(|(index, on)| Trouble::Power(index, on)),
        (0..32_u8).prop_map(Trouble::Split),
        (0..100_u8).prop_map(Trouble::Loss),
        (0..400_u16).prop_map(Trouble::Delay),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn when_things_calm_down_one_machine_has_the_address_and_keeps_it(
        count in 1..=5_usize,
        random in 1..u64::MAX,
        troubles in proptest::collection::vec((troubles(), 0..900_u64), 0..24),
    ) {
        let mut group = Group::new(count, random);
        for (trouble, pause) in troubles {
            group.trouble(trouble);
            group.run(Duration::from_millis(pause));
        }
        group.calm();
        // The last of what was under way, one that is silent takes it, and gives it to one that serves.
        group.run(Duration::from_millis(400) + LIMIT + LIMIT);
        let holders = group.holders();
        match group.best() {
            Standing::Away => prop_assert!(holders.is_empty(), "{:?}", holders),
            best => {
                prop_assert_eq!(holders.len(), 1, "{:?}", holders);
                prop_assert_eq!(group.machines[holders[0]].standing, best);
                let (before, taken) = (holders, group.taken);
                group.run(Duration::from_secs(5));
                prop_assert_eq!(group.holders(), before);
                prop_assert_eq!(group.taken, taken, "nobody took it from the holder meanwhile");
                let known: Vec<_> = group.machines.iter().filter_map(|machine| machine.agent.as_ref()?.holder()).collect();
                prop_assert_eq!(known, vec![group.machines[group.holders()[0]].own; count], "everybody knows");
            }
        }
    }

    #[test]
    fn what_fails_is_replaced_in_time_and_what_recovers_does_not_take_it_back(
        count in 2..=5_usize,
        random in 1..u64::MAX,
        failure in 0..4_u8,
        when in 0..300_u64,
    ) {
        let mut group = Group::new(count, random);
        group.calm();
        group.run(LIMIT + Duration::from_millis(when));
        let holder = group.holders()[0];
        let (failed, recovered) = match failure {
            0 => (Trouble::Power(holder, false), Trouble::Power(holder, true)),
            1 => (Trouble::Agent(holder, false), Trouble::Agent(holder, true)),
            2 => (Trouble::Standing(holder, Standing::Away), Trouble::Standing(holder, Standing::Serving)),
            _ => (Trouble::Standing(holder, Standing::Silent), Trouble::Standing(holder, Standing::Serving)),
        };
        group.trouble(failed);
        group.run(LIMIT);
        // The agent that has ended leaves the address where it was.
        let others: Vec<_> = group.holders().into_iter().filter(|index| *index != holder).collect();
        prop_assert_eq!(others.len(), 1, "another has it: {:?}", others);
        let taken = group.taken;
        group.trouble(recovered);
        group.run(LIMIT + LIMIT);
        prop_assert_eq!((group.holders(), group.taken), (others, taken));
    }

    #[test]
    fn each_part_of_a_split_link_has_a_holder(random in 1..u64::MAX, when in 0..300_u64) {
        let mut group = Group::new(4, random);
        group.calm();
        group.run(LIMIT + Duration::from_millis(when));
        group.trouble(Trouble::Split(0b0011));
        group.run(LIMIT);
        let parts: Vec<_> = group.holders().iter().map(|index| index / 2).collect();
        prop_assert_eq!(parts, vec![0, 1]);
        group.trouble(Trouble::Split(0));
        group.run(LIMIT);
        prop_assert_eq!(group.holders().len(), 1);
    }
}
