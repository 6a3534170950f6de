//! Requests that any pod can send to cluster DNS.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::HashSet;
use std::str::FromStr as _;
use std::sync::{Arc, Mutex, RwLock};

use futures::executor::block_on;
use garboard_dns::forward::Forwarder;
use garboard_dns::handler::Handler;
use garboard_dns::index::{Endpoint, Index, NamedPort, Protocol, Service, ServiceKey, Slice};
use garboard_dns::zone::Zone;
use hickory_proto::op::{Message, MessageType};
use hickory_proto::rr::{Name, Record};
use hickory_proto::serialize::binary::BinEncoder;
use hickory_server::net::NetError;
use hickory_server::net::runtime::TokioTime;
use hickory_server::net::xfer::Protocol as Transport;
use hickory_server::server::{Request, RequestHandler as _, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponse;

/// Where the response goes.
#[derive(Clone, Default)]
struct Response(Arc<Mutex<Vec<u8>>>);

#[async_trait::async_trait]
impl ResponseHandler for Response {
    async fn send_response<'a>(
        &mut self,
        response: MessageResponse<
            '_,
            'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
        >,
    ) -> Result<ResponseInfo, NetError> {
        let mut bytes = Vec::new();
        let info = response.destructive_emit(&mut BinEncoder::new(&mut bytes))?;
        *self.0.lock().unwrap() = bytes;
        Ok(info)
    }
}

#[test]
fn queries() {
    let handler = handler();
    let answers = query(&handler, include_bytes!("__fuzz__/queries/corpus/headless-srv.bin"));
    assert_eq!(answers, Some(1));
    garboard_fuzz::fuzz!("queries", |bytes: &[u8]| {
        query(&handler, bytes);
    });
}

/// Each request that can be read has a response: to it, and not much larger. Gives the number of its answers.
fn query(handler: &Handler, bytes: &[u8]) -> Option<usize> {
    let from = "10.244.0.9:5353".parse().unwrap();
    let request = Request::from_bytes(bytes.to_vec(), from, Transport::Udp).ok()?;
    let response = Response::default();
    block_on(handler.handle_request::<_, TokioTime>(&request, response.clone()));
    let response = response.0.lock().unwrap().clone();
    let message = Message::from_vec(&response).expect("a message");
    assert_eq!((message.metadata.id, message.metadata.message_type), (request.metadata.id, MessageType::Response));
    assert!(message.answers.len() + message.authorities.len() + message.additionals.len() <= 8, "{message:?}");
    assert!(response.len() <= bytes.len() + 1024, "{} bytes for {}", response.len(), bytes.len());
    Some(message.answers.len())
}

fn handler() -> Handler {
    let name = |text: &str| Name::from_str(text).unwrap();
    let zone = Zone {
        domain: name("cluster.local."),
        networks: ["10.96.0.0/12", "10.244.0.0/16"].map(|network| network.parse().unwrap()).to_vec(),
        servers: vec![[10, 244, 0, 1].into()],
    };
    let mut index = Index::default();
    index.add_namespace("default");
    let (kubernetes, headless, outside) = ("kubernetes", "headless", "outside");
    let port = || NamedPort { name: "https".into(), protocol: Protocol::Tcp, number: 443 };
    let key = |name: &str| ServiceKey::new("default", name);
    let address = || "10.96.0.1".parse().unwrap();
    index.put_service(key(kubernetes), Service::Cluster { addresses: vec![address()], ports: vec![port()] });
    index.put_service(key(headless), Service::Headless);
    index.put_service(key(outside), Service::External(name("www.example.com.")));
    let endpoint = Endpoint { hostname: Some("pet".into()), addresses: vec!["10.244.0.7".parse().unwrap()] };
    let slice = Slice { ports: vec![port()], endpoints: vec![endpoint] };
    index.put_slice(("default".into(), "headless-a".into()), key(headless), slice);
    // All of it has been listed.
    index.keep_namespaces(&HashSet::from(["default".into()]));
    index.keep_services(&[kubernetes, headless, outside].map(key).into());
    index.keep_slices(&HashSet::from([("default".into(), "headless-a".into())]));
    Handler {
        index: Arc::new(RwLock::new(index)),
        zone: Arc::new(RwLock::new(Arc::new(zone))),
        // Nobody is asked about other names.
        forwarder: Arc::new(RwLock::new(Arc::new(Forwarder::new(&[], &[], &[])))),
    }
}
