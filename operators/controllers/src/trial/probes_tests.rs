use tokio::net::TcpListener;

use super::*;

fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test)
}

fn probe(name: &str, port: u16) -> TrialProbe {
    TrialProbe { name: name.to_owned(), tcp: TcpServer { host: "127.0.0.1".to_owned(), port } }
}

fn probes(services: Vec<ServiceStatus>) -> Probes {
    Probes {
        network: watch::channel(NodeAddresses::default()).1,
        api: watch::channel(None).1,
        specs: watch::channel(Arc::default()).1,
        services: watch::channel(Arc::new(services)).1,
        peers: watch::channel(Arc::default()).1,
        time: watch::channel(TimeView::default()).1,
    }
}

#[test]
fn a_server_is_there_or_the_answer_says_which_is_not() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let there = listener.local_addr().unwrap().port();
        let away = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let declared =
            MachineTrial { probes: vec![probe("there", there), probe("away", away)], ..MachineTrial::default() };
        let seen = probes(Vec::new()).ask(&declared).await;
        assert_eq!(seen["probe there"], Ok(()));
        let problem = seen["probe away"].clone().unwrap_err();
        assert!(problem.starts_with(&format!("127.0.0.1:{away}: ")), "{problem}");
        for absent in ["name server", "API server", "other nodes", TIME_SERVERS] {
            assert!(!seen.contains_key(absent), "there is no {absent} to ask");
        }
    });
}

#[test]
fn a_name_server_answers_or_not() {
    run(async {
        // Port 53 takes a privilege that a test may not have, so the question itself is tried here.
        assert!(question(IpAddr::V4(Ipv4Addr::LOCALHOST)).await.is_err(), "nothing listens on loopback");
        assert_eq!(any(std::iter::empty::<std::future::Ready<_>>()).await, None);
    });
}

#[test]
fn one_other_node_is_enough() {
    run(async {
        // Nobody listens on the first, which is there all the same; the other is no machine's address.
        let (there, nowhere) = (IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V4(Ipv4Addr::BROADCAST));
        assert_eq!(any([nowhere, there].into_iter().map(peer)).await, Some(Ok(())));
        let problem = any([nowhere].into_iter().map(peer)).await.unwrap().unwrap_err();
        assert!(problem.starts_with("255.255.255.255: "), "{problem}");
    });
}
