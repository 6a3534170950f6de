//! Machines (network namespaces, each with a thread of its own) on a bridge, and somebody who uses the address from outside of them.

use std::fs::File;
use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc as std_mpsc;
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use garboard_controllers::problems::Problems;
use garboard_controllers::virtual_address::VirtualAddress;
use garboard_plan::events::Notable;
use garboard_plan::virtual_address::{Declared, Holding, Standing};
use nix::sched::{CloneFlags, setns};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio::runtime;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// The virtual address.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 5);
pub const DECLARED: Declared = Declared { address: ADDRESS, router_id: 5 };
/// The address is elsewhere at most so long after a failure.
pub const MOVED: Duration = Duration::from_secs(2);
/// Longest wait for what has no limit of its own.
const LIMIT: Duration = Duration::from_secs(20);
/// Longest time for one try to reach the address.
const TRY: Duration = Duration::from_millis(100);
/// Time between two looks.
const LOOK: Duration = Duration::from_millis(10);
const PORT: u16 = 6443;

static SCENES: AtomicU32 = AtomicU32::new(0);

/// The stage of one test.
pub struct Scene {
    outside: String,
    pub machines: Vec<Machine>,
}

/// A machine.
pub struct Machine {
    number: u8,
    namespace: String,
    runtime: runtime::Handle,
    ended: CancellationToken,
    thread: Option<JoinHandle<()>>,
    pub declared: watch::Sender<Option<Declared>>,
    standing: watch::Sender<Option<Standing>>,
    serves: watch::Sender<bool>,
    agent: Option<Agent>,
}

struct Agent {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
    holding: watch::Receiver<Holding>,
    notables: mpsc::Receiver<Notable>,
}

impl Scene {
    /// Runs a test, outside of the machines, of which there are so many.
    pub fn run(machines: u8, test: impl FnOnce(Scene) + Send + 'static) {
        let thread = std::thread::spawn(move || {
            let number = SCENES.fetch_add(1, Ordering::Relaxed);
            let outside = format!("garboard-v{}-{number}", std::process::id());
            command(&format!("ip netns add {outside}"));
            for line in ["link add switch type bridge", "addr add 192.0.2.1/24 dev switch", "link set dev switch up"] {
                command(&format!("ip -netns {outside} {line}"));
            }
            enter(&outside);
            let mut scene = Scene { outside, machines: Vec::new() };
            for number in 1..=machines {
                let machine = scene.machine(number);
                scene.machines.push(machine);
            }
            test(scene);
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    }

    fn machine(&self, number: u8) -> Machine {
        let namespace = format!("{}-{number}", self.outside);
        command(&format!("ip netns add {namespace}"));
        let port = format!("link add port{number} type veth peer name eth0 netns {namespace}");
        for line in [&port, &format!("link set dev port{number} master switch up")] {
            command(&format!("ip -netns {} {line}", self.outside));
        }
        for line in
            ["link set dev lo up", &format!("addr add 192.0.2.{}/24 dev eth0", 10 + number), "link set dev eth0 up"]
        {
            command(&format!("ip -netns {namespace} {line}"));
        }
        let (ended, (sender, receiver)) = (CancellationToken::new(), std_mpsc::channel());
        let (until, inside) = (ended.clone(), namespace.clone());
        let thread = std::thread::spawn(move || {
            enter(&inside);
            let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
            sender.send(runtime.handle().clone()).unwrap();
            runtime.block_on(until.cancelled());
        });
        let machine = Machine {
            number,
            namespace,
            runtime: receiver.recv().unwrap(),
            ended,
            thread: Some(thread),
            declared: watch::Sender::new(Some(DECLARED)),
            standing: watch::Sender::new(Some(Standing::Serving)),
            serves: watch::Sender::new(true),
            agent: None,
        };
        machine.runtime.spawn(serve(number, machine.serves.subscribe()));
        machine
    }

    /// Starts every agent, and waits until one machine has the address; returns its position.
    pub fn start(&mut self) -> usize {
        self.machines.iter_mut().for_each(Machine::start);
        self.until("one holder", LIMIT, |scene| {
            scene.holders().len() == 1 && scene.answer() == Some(scene.holders()[0])
        });
        self.holders()[0]
    }

    /// Positions of the machines that have the address on their link.
    pub fn holders(&self) -> Vec<usize> {
        (0..self.machines.len()).filter(|index| self.machines[*index].has_address()).collect()
    }

    /// The position of the machine that answers at the address.
    pub fn answer(&self) -> Option<usize> {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from((ADDRESS, PORT)), TRY).ok()?;
        stream.set_read_timeout(Some(TRY)).unwrap();
        let mut number = [0];
        stream.read_exact(&mut number).ok()?;
        Some(usize::from(number[0]) - 1)
    }

    /// Waits until another machine than the one at that position answers, as soon as it has to; returns its position.
    pub fn moved_from(&self, former: usize) -> usize {
        let mut found = None;
        self.until("another holder", MOVED, |scene| {
            found = scene.answer().filter(|index| *index != former);
            found.is_some()
        });
        found.unwrap()
    }

    /// Waits until a look at the scene finds what is looked for.
    pub fn until(&self, what: &str, limit: Duration, mut found: impl FnMut(&Self) -> bool) {
        let begun = Instant::now();
        while !found(self) {
            assert!(
                begun.elapsed() < limit,
                "not so: {what}; on {:?}, answered by {:?}",
                self.holders(),
                self.answer()
            );
            sleep(LOOK);
        }
    }

    /// The same, with time enough.
    pub fn soon(&self, what: &str, found: impl FnMut(&Self) -> bool) {
        self.until(what, LIMIT, found);
    }

    /// Looks for a while whether the machine at that position, and no other, has the address.
    pub fn stays(&self, index: usize) {
        let begun = Instant::now();
        while begun.elapsed() < MOVED {
            assert_eq!((self.holders(), self.answer()), (vec![index], Some(index)));
            sleep(LOOK);
        }
    }

    /// Takes a machine's end of the cable out of the switch, or puts it back.
    pub fn plug(&self, index: usize, state: &str) {
        command(&format!("ip -netns {} link set dev port{} {state}", self.outside, index + 1));
    }
}

impl Machine {
    /// Starts its agent.
    pub fn start(&mut self) {
        let (stop, (sender, receiver)) = (CancellationToken::new(), std_mpsc::channel());
        let (declared, standing, stopped) = (self.declared.subscribe(), self.standing.subscribe(), stop.clone());
        let (notable, notables) = mpsc::channel(16);
        let task = self.runtime.spawn(async move {
            let (task, holding) = VirtualAddress::new(declared, standing, notable, Problems::new().0);
            sender.send(holding).unwrap();
            task.run(stopped).await;
        });
        self.agent = Some(Agent { stop, task, holding: receiver.recv().unwrap(), notables });
    }

    /// Ends its agent as a signal does that cannot be caught.
    pub fn kill(&mut self) {
        let agent = self.agent.take().unwrap();
        agent.task.abort();
        while !agent.task.is_finished() {
            sleep(LOOK);
        }
    }

    /// Has its agent end in order.
    pub fn stop(&mut self) {
        let agent = self.agent.take().unwrap();
        agent.stop.cancel();
        while !agent.task.is_finished() {
            sleep(LOOK);
        }
    }

    /// Its API server is otherwise from now on: as the agent sees it, and whether it accepts connections.
    pub fn server(&self, standing: Standing, accepts: bool) {
        self.serves.send_replace(accepts);
        self.standing.send_replace(Some(standing));
    }

    /// Nothing is known of its API server.
    pub fn unknown(&self) {
        self.standing.send_replace(None);
    }

    /// What its agent published last.
    pub fn holding(&self) -> Holding {
        self.agent.as_ref().unwrap().holding.borrow().clone()
    }

    /// Reasons of the events that its agent handed over since the last time.
    pub fn events(&mut self) -> Vec<&'static str> {
        let notables = &mut self.agent.as_mut().unwrap().notables;
        std::iter::from_fn(|| notables.try_recv().ok()).map(|notable| notable.reason).collect()
    }

    /// Its own address.
    pub fn own(&self) -> Ipv4Addr {
        Ipv4Addr::new(192, 0, 2, 10 + self.number)
    }

    pub fn has_address(&self) -> bool {
        self.ip("-4 addr show dev eth0").contains(&format!("inet {ADDRESS}/32"))
    }

    /// Runs `ip` on it.
    pub fn ip(&self, arguments: &str) -> String {
        command(&format!("ip -netns {} {arguments}", self.namespace))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.ended.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        command(&format!("ip netns del {}", self.namespace));
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        command(&format!("ip netns del {}", self.outside));
    }
}

/// Tells everybody who connects the machine's number, while it serves.
async fn serve(number: u8, mut serves: watch::Receiver<bool>) {
    loop {
        if serves.wait_for(|serves| *serves).await.is_err() {
            return;
        }
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).await.unwrap();
        while *serves.borrow_and_update() {
            tokio::select! {
                Ok((mut stream, _)) = listener.accept() => { let _ = stream.write_all(&[number]).await; }
                changed = serves.changed() => if changed.is_err() { return },
            }
        }
    }
}

fn enter(namespace: &str) {
    let file = File::open(format!("/run/netns/{namespace}")).unwrap();
    setns(file, CloneFlags::CLONE_NEWNET).unwrap();
}

fn command(line: &str) -> String {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
