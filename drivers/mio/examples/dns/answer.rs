//! From a query to its answer.

use super::zone::{Found, StoredName, StoredRecord, Zone};
use cubenet_mio::Transport;
use domain::base::iana::{Class, Opcode, OptRcode, Rcode};
use domain::base::message_builder::{AnswerBuilder, PushError, StaticCompressor};
use domain::base::name::ToName;
use domain::base::{Message, MessageBuilder, Name, Record, Rtype, Ttl};
use domain::rdata::ZoneRecordData;

/// What every client can take over UDP, without EDNS.
const UDP_BYTES: usize = 512;
/// What we send and ask for over UDP at the most: it arrives in one piece nearly everywhere.
const EDNS_BYTES: u16 = 1232;
/// The longest chain of CNAMEs that is followed.
const MAX_ALIASES: usize = 8;

type Builder = AnswerBuilder<StaticCompressor<Vec<u8>>>;

/// What goes into an answer.
struct Reply<'a> {
    rcode: Rcode,
    authoritative: bool,
    answer: Vec<(StoredName, &'a StoredRecord)>,
    authority: Vec<&'a StoredRecord>,
    additional: Vec<&'a StoredRecord>,
    /// Whether the SOA in `authority` says how long to remember that there is nothing.
    negative: bool,
}

impl Reply<'_> {
    fn empty(rcode: Rcode) -> Self {
        Reply {
            rcode,
            authoritative: false,
            answer: Vec::new(),
            authority: Vec::new(),
            additional: Vec::new(),
            negative: false,
        }
    }
}

/// The answer to `query`; `None` if it is no query, and answering would be wrong.
pub fn answer(zone: &Zone, transport: Transport, query: &[u8]) -> Option<Vec<u8>> {
    let query = Message::from_octets(query).ok()?;
    if query.header().qr() {
        return None;
    }
    let edns = query.opt();
    let limit = match (transport, &edns) {
        (Transport::Tcp, _) => usize::from(u16::MAX),
        (_, None) => UDP_BYTES,
        (_, Some(opt)) => usize::from(opt.udp_payload_size().min(EDNS_BYTES)).max(UDP_BYTES),
    };
    let edns_rcode = edns.map(|opt| match opt.version() {
        0 => OptRcode::NOERROR,
        _ => OptRcode::BADVERS,
    });
    let reply = match edns_rcode {
        Some(OptRcode::BADVERS) => Reply::empty(Rcode::NOERROR),
        _ => reply(zone, &query),
    };
    // Over UDP, where the source of a query can be forged, everything there is of a name would be
    // sent to the victim of a flood: such a query has to be asked over TCP (RFC 8482, 4.4).
    let asks_for_all = query
        .sole_question()
        .is_ok_and(|question| question.qtype() == Rtype::ANY);
    let whole = if asks_for_all && transport == Transport::Udp && reply.rcode == Rcode::NOERROR {
        None
    } else {
        compose(&query, &reply, limit, edns_rcode, false).ok()
    };
    whole.or_else(|| {
        let truncated = Reply {
            authoritative: reply.authoritative,
            ..Reply::empty(reply.rcode)
        };
        compose(&query, &truncated, limit, edns_rcode, true).ok()
    })
}

fn reply<'a>(zone: &'a Zone, query: &Message<&[u8]>) -> Reply<'a> {
    if query.header().opcode() != Opcode::QUERY {
        return Reply::empty(Rcode::NOTIMP);
    }
    let Ok(question) = query.sole_question() else {
        return Reply::empty(Rcode::FORMERR);
    };
    if !matches!(question.qclass(), Class::IN | Class::ANY) {
        return Reply::empty(Rcode::REFUSED);
    }
    if matches!(question.qtype(), Rtype::AXFR | Rtype::IXFR) {
        return Reply::empty(Rcode::REFUSED);
    }
    let name: StoredName = question.qname().to_name();
    resolve(zone, name, question.qtype())
}

/// RFC 1034, section 4.3.2, for one zone.
fn resolve(zone: &Zone, mut name: StoredName, rtype: Rtype) -> Reply<'_> {
    let mut reply = Reply::empty(Rcode::NOERROR);
    reply.authoritative = true;
    for _ in 0..=MAX_ALIASES {
        let records = match zone.find(&name) {
            Found::Records(records) | Found::Wildcard(records) => records,
            Found::Delegated(servers) => {
                reply.authoritative = !reply.answer.is_empty();
                reply.additional = glue(zone, &servers);
                reply.authority = servers;
                return reply;
            }
            Found::Nothing => {
                reply.rcode = Rcode::NXDOMAIN;
                break;
            }
            // The end of an alias that leads out of the zone is for others to tell.
            Found::Elsewhere if !reply.answer.is_empty() => return reply,
            Found::Elsewhere => return Reply::empty(Rcode::REFUSED),
        };
        let wanted = |record: &&StoredRecord| rtype == Rtype::ANY || record.rtype() == rtype;
        let found = reply.answer.len();
        let here = records.iter().filter(wanted);
        reply
            .answer
            .extend(here.map(|record| (name.clone(), record)));
        if reply.answer.len() > found {
            return reply;
        }
        let Some((alias, target)) = records.iter().find_map(|record| match record.data() {
            ZoneRecordData::Cname(cname) => Some((record, cname.cname())),
            _ => None,
        }) else {
            break;
        };
        reply.answer.push((name.clone(), alias));
        name = target.clone();
    }
    reply.negative = true;
    reply.authority = vec![&zone.soa];
    reply
}

/// The addresses of name servers that the zone itself knows.
fn glue<'a>(zone: &'a Zone, servers: &[&StoredRecord]) -> Vec<&'a StoredRecord> {
    let names = servers.iter().filter_map(|server| match server.data() {
        ZoneRecordData::Ns(ns) => Some(ns.nsdname()),
        _ => None,
    });
    let records = names.flat_map(|name| zone.at(name));
    records
        .filter(|record| matches!(record.rtype(), Rtype::A | Rtype::AAAA))
        .collect()
}

/// Puts an answer together in at most `limit` bytes; an error, if it does not fit.
fn compose(
    query: &Message<&[u8]>,
    reply: &Reply<'_>,
    limit: usize,
    edns: Option<OptRcode>,
    truncated: bool,
) -> Result<Vec<u8>, PushError> {
    let target = StaticCompressor::new(Vec::with_capacity(UDP_BYTES));
    let mut builder = MessageBuilder::from_target(target)?;
    builder.set_push_limit(limit);
    // A question that cannot be read is not repeated.
    let mut builder: Builder = builder.start_error(query, reply.rcode);
    builder.header_mut().set_rcode(reply.rcode);
    builder.header_mut().set_aa(reply.authoritative);
    builder.header_mut().set_tc(truncated);
    for (name, record) in &reply.answer {
        builder.push((name, record.class(), record.ttl(), record.data()))?;
    }
    let mut builder = builder.authority();
    for record in &reply.authority {
        let ttl = match record.data() {
            ZoneRecordData::Soa(soa) if reply.negative => soa.minimum().min(record.ttl()),
            _ => record.ttl(),
        };
        push_with_ttl(record, ttl, |record| builder.push(record))?;
    }
    let mut builder = builder.additional();
    if let Some(rcode) = edns {
        builder.opt(|opt| {
            opt.set_udp_payload_size(EDNS_BYTES);
            // It would take the place of the answer's own.
            if rcode == OptRcode::BADVERS {
                opt.set_rcode(rcode);
            }
            Ok(())
        })?;
    }
    for record in &reply.additional {
        // Helpful where it fits; its absence is no truncation.
        if builder.push(*record).is_err() {
            break;
        }
    }
    Ok(builder.finish().into_target())
}

fn push_with_ttl(
    record: &StoredRecord,
    ttl: Ttl,
    push: impl FnOnce(
        Record<&StoredName, &ZoneRecordData<bytes::Bytes, Name<bytes::Bytes>>>,
    ) -> Result<(), PushError>,
) -> Result<(), PushError> {
    push(Record::new(
        record.owner(),
        record.class(),
        ttl,
        record.data(),
    ))
}
