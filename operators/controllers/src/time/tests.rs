use tokio::net::UdpSocket;
use tokio::sync::watch;

use super::*;

/// A packet of NTP.
type Packet = [u8; 48];

struct Still(SystemTime);

impl Clock for Still {
    fn now(&self) -> SystemTime {
        self.0
    }

    fn is_synchronized(&self) -> bool {
        false
    }

    fn slew(&self, _: i64, _: Duration) -> Result<(), ClockError> {
        Ok(())
    }

    fn step(&self, _: i64) -> Result<(), ClockError> {
        Ok(())
    }
}

fn still() -> Still {
    Still(SystemTime::UNIX_EPOCH + Duration::from_secs(1_900_000_000))
}

/// The answer of a good server whose clock shows what the question does.
fn good(question: Packet) -> Packet {
    let mut answer = [0; 48];
    answer[0] = 4 << 3 | 4;
    answer[1] = 2;
    for at in [16, 24, 32, 40] {
        answer[at..at + 8].copy_from_slice(&question[40..48]);
    }
    answer
}

/// What becomes of a question that is answered with these packets.
async fn ask(answers: impl Fn(Packet) -> Vec<Vec<u8>> + Send + 'static) -> Answer {
    let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap();
    let serve = async move {
        let mut question = [0; 48];
        let (_, asker) = server.recv_from(&mut question).await.unwrap();
        for answer in answers(question) {
            server.send_to(&answer, asker).await.unwrap();
        }
        std::future::pending::<()>().await;
    };
    let clock = still();
    tokio::select! {
        answer = query(&clock, address) => answer,
        () = serve => unreachable!("it serves without an end"),
    }
}

fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test)
}

#[test]
fn only_a_good_answer_is_a_time() {
    type Spoil = fn(&mut Packet);
    let cases: [(&str, Spoil, Answer); 8] = [
        ("good", |_| {}, Answer::Time { stratum: 2, offset_us: 0, distance_us: 1_000 }),
        ("too often", |answer| kiss(answer, b"RATE"), Answer::TooOften),
        ("denied", |answer| kiss(answer, b"DENY"), Answer::Unwelcome),
        ("restricted", |answer| kiss(answer, b"RSTR"), Answer::Unwelcome),
        ("another kiss", |answer| kiss(answer, b"INIT"), Answer::Unusable("it gives no time")),
        ("unsynchronised", |answer| answer[0] |= 3 << 6, Answer::Unusable("it does not know the time itself")),
        ("stratum 16", |answer| answer[1] = 16, Answer::Unusable("it does not know the time itself")),
        ("far", |answer| answer[9] = 17, Answer::Unusable("it does not know the time well enough")),
    ];
    run(async {
        for (name, spoil, wanted) in cases {
            let answer = ask(move |question| {
                let mut answer = good(question);
                spoil(&mut answer);
                vec![answer.to_vec()]
            });
            let answer = match answer.await {
                // The clock of the test stands still, so the way takes no time.
                Answer::Time { stratum, offset_us, distance_us } => {
                    assert!(distance_us <= 1_001, "{name}: {distance_us}");
                    Answer::Time { stratum, offset_us, distance_us: 1_000 }
                }
                other => other,
            };
            assert_eq!(answer, wanted, "{name}");
        }
    });
}

fn kiss(answer: &mut Packet, code: &[u8; 4]) {
    answer[1] = 0;
    answer[12..16].copy_from_slice(code);
}

#[test]
fn what_answers_another_question_is_passed_over() {
    run(async {
        let answer = ask(|question| {
            let mut forged = good(question);
            forged[24] ^= 1;
            vec![forged.to_vec(), vec![0xff; 3], forged.to_vec(), vec![], good(question).to_vec()]
        });
        assert!(matches!(answer.await, Answer::Time { .. }));
        let answer = ask(|_| vec![vec![7; 2000]; 64]);
        assert!(matches!(answer.await, Answer::Unusable(_)), "a flood ends the question");
    });
}

#[test]
fn a_server_that_is_not_there_is_told() {
    run(async {
        let gone = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        assert!(matches!(query(&still(), gone).await, Answer::Unreachable(_)));
    });
}

#[test]
fn declared_servers_count_before_those_of_dhcp() {
    let network = NodeAddresses { time_servers: vec!["192.0.2.9".parse().unwrap()], ..NodeAddresses::default() };
    let declared = |names: &[&str]| MachineTime { servers: names.iter().map(|&name| name.to_owned()).collect() };
    assert_eq!(servers(&declared(&[]), &network), ["192.0.2.9"]);
    assert_eq!(servers(&declared(&["a.example"]), &network), ["a.example"]);

    let view = TimeView::default();
    assert!(view.has_asked(&declared(&[]), &NodeAddresses::default()), "there is nobody to ask");
    assert!(!view.has_asked(&declared(&["a.example"]), &network));
    let asked = TimeView { servers: vec!["a.example".to_owned()], state: State::Lost(Loss::Contradiction) };
    assert!(asked.has_asked(&declared(&["a.example"]), &network));
    assert!(!asked.has_asked(&declared(&["b.example"]), &network), "others were asked");
}

#[test]
fn a_server_that_does_not_want_to_be_asked_is_left_alone() {
    run(async {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let port = server.local_addr().unwrap().port();
        let watched = Watched {
            config: watch::channel(None).1,
            network: watch::channel(NodeAddresses::default()).1,
            services: watch::channel(Arc::default()).1,
        };
        let (notables, _handed) = mpsc::channel(1);
        let (mut keeper, _view) = Timekeeper::new(watched, still(), SystemTime::UNIX_EPOCH, notables);
        keeper.port = port;
        let servers = ["127.0.0.1".to_owned()];
        let deny = async {
            let mut question = [0; 48];
            let (_, asker) = server.recv_from(&mut question).await.unwrap();
            let mut answer = good(question);
            kiss(&mut answer, b"DENY");
            server.send_to(&answer, asker).await.unwrap();
        };
        let ((samples, silence), ()) = tokio::join!(keeper.ask(&servers), deny);
        assert_eq!((samples, silence.as_str()), (vec![], "127.0.0.1: does not want to be asked"));
        let (samples, silence) = keeper.ask(&servers).await;
        assert_eq!((samples, silence.as_str()), (vec![], "the servers do not want to be asked"));
        let mut nothing = [0; 48];
        assert!(server.try_recv_from(&mut nothing).is_err(), "it was asked again");
    });
}
