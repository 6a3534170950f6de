//! From a request to its response: checks, the zone's answer or the upstream servers', and how it is sent.

use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;
use hickory_proto::op::{Edns, HeaderCounts, Message, MessageType, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, Record, RecordType};
use hickory_server::net::runtime::Time;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;
use tracing::debug;

use crate::forward::Forwarder;
use crate::index::Index;
use crate::zone::{Answer, Zone};

/// The largest UDP message that is sent and announced, bytes: no path fragments it (DNS Flag Day 2020).
const UDP_BYTES: u16 = 1232;
/// The smallest that a client can announce (RFC 6891).
const UDP_MIN: u16 = 512;

/// Answers requests. What it holds is replaced as a whole when the configuration changes.
#[derive(Clone, Debug)]
pub struct Handler {
    /// What DNS knows of the cluster.
    pub index: Arc<RwLock<Index>>,
    /// What is answered here.
    pub zone: Arc<RwLock<Arc<Zone>>>,
    /// Who is asked about the rest.
    pub forwarder: Arc<RwLock<Arc<Forwarder>>>,
}

/// What is sent.
#[derive(Debug, Default)]
struct Response {
    code: ResponseCode,
    authoritative: bool,
    answers: Vec<Record>,
    /// The SOA record of a negative answer.
    authority: Vec<Record>,
    additionals: Vec<Record>,
}

impl Response {
    fn failure(code: ResponseCode) -> Self {
        Self { code, ..Self::default() }
    }
}

fn read<T: Clone>(lock: &RwLock<T>) -> T {
    lock.read().unwrap_or_else(PoisonError::into_inner).clone()
}

impl Handler {
    async fn respond(&self, request: &Request) -> Response {
        if request.metadata.message_type != MessageType::Query {
            return Response::failure(ResponseCode::FormErr);
        }
        if request.metadata.op_code != OpCode::Query {
            return Response::failure(ResponseCode::NotImp);
        }
        if request.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
            return Response::failure(ResponseCode::BADVERS);
        }
        let Ok(info) = request.request_info() else { return Response::failure(ResponseCode::FormErr) };
        let (name, kind) = (info.query.original().name(), info.query.query_type());
        if info.query.query_class() != DNSClass::IN {
            return Response::failure(ResponseCode::Refused);
        }
        // Zone transfers and "everything" have no use in a cluster, and serve amplification (RFC 8482).
        if matches!(kind, RecordType::AXFR | RecordType::IXFR | RecordType::ANY) {
            return Response::failure(ResponseCode::NotImp);
        }
        match self.answer(name, kind) {
            Ok((response, None)) => response,
            Ok((response, Some(target))) => {
                let reply = read(&self.forwarder).ask(&target, kind).await;
                let mut answers = response.answers;
                answers.extend(reply.answers);
                Response { answers, ..response }
            }
            Err(NotOurs) => {
                let forwarder = read(&self.forwarder);
                if forwarder.is_upstream(request.src().ip()) {
                    debug!(client = %request.src(), "an upstream server asks us: refused");
                    return Response::failure(ResponseCode::Refused);
                }
                let reply = forwarder.ask(name, kind).await;
                Response { code: reply.code, answers: reply.answers, authority: reply.authority, ..Response::default() }
            }
        }
    }

    /// The zone's answer, and the name outside of the cluster that an alias leads to.
    fn answer(&self, name: &Name, kind: RecordType) -> Result<(Response, Option<Name>), NotOurs> {
        let zone = read(&self.zone);
        if !zone.owns(name) {
            return Err(NotOurs);
        }
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        if !index.is_synced() {
            // What is not known yet must not be said not to exist.
            return Ok((Response::failure(ResponseCode::ServFail), None));
        }
        let positive = Response { authoritative: true, ..Response::default() };
        let negative =
            |code| Response { code, authoritative: true, authority: vec![zone.soa(&index)], ..Response::default() };
        Ok(match zone.answer(&index, name, kind) {
            Answer::Records { answers, additionals } => (Response { answers, additionals, ..positive }, None),
            Answer::Alias { answers, target } => (Response { answers, ..positive }, Some(target)),
            Answer::NoData => (negative(ResponseCode::NoError), None),
            Answer::NoName => (negative(ResponseCode::NXDomain), None),
            Answer::NotOurs => return Err(NotOurs),
        })
    }
}

struct NotOurs;

#[async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut response_handle: R,
    ) -> ResponseInfo {
        let mut response = self.respond(request).await;
        if !response.answers.is_empty() {
            // Clients take the first address: each gets another one first.
            rotate(&mut response.answers, usize::from(request.metadata.id));
        }
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.recursion_available = true;
        metadata.authoritative = response.authoritative;
        metadata.response_code = response.code;
        let edns = request.edns.as_ref().map(|asked| {
            let mut edns = Edns::new();
            edns.set_max_payload(asked.max_payload().clamp(UDP_MIN, UDP_BYTES));
            edns.set_version(0);
            edns
        });
        let mut builder = MessageResponseBuilder::from_message_request(request);
        if let Some(edns) = &edns {
            builder.edns(edns);
        }
        let message = builder.build(metadata, &response.answers, &response.authority, [], &response.additionals);
        match response_handle.send_response(message).await {
            Ok(info) => info,
            Err(error) => {
                debug!(%error, client = %request.src(), "response not sent");
                let mut failed = Message::response(request.metadata.id, OpCode::Query).metadata;
                failed.response_code = ResponseCode::ServFail;
                hickory_proto::op::Header { metadata: failed, counts: HeaderCounts::default() }.into()
            }
        }
    }
}

/// Turns the records behind the aliases, which come first and keep their order.
fn rotate(records: &mut [Record], by: usize) {
    let aliases = records.iter().take_while(|record| record.record_type() == RecordType::CNAME).count();
    let rest = &mut records[aliases..];
    if !rest.is_empty() {
        rest.rotate_left(by % rest.len());
    }
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use hickory_proto::rr::RData;
    use hickory_proto::rr::rdata::{A, CNAME};

    use super::*;

    #[test]
    fn aliases_stay_first_when_addresses_turn() {
        let name = Name::from_str("a.example.").unwrap();
        let address = |last| Record::from_rdata(name.clone(), 1, RData::A(A([10, 0, 0, last].into())));
        let alias = Record::from_rdata(name.clone(), 1, RData::CNAME(CNAME(name.clone())));
        let mut records = vec![alias.clone(), address(1), address(2), address(3)];
        rotate(&mut records, 4);
        assert_eq!(records, [alias, address(2), address(3), address(1)]);
        rotate(&mut [], 7);
    }
}
