//! What is asked, and the answer as bytes (RFC 1035, EDNS of RFC 6891). Whatever arrives is either a question, or gets an
//! answer that says what is wrong with it, or none.

use hickory_proto::{
    op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode},
    rr::{DNSClass, Name, RData, Record, RecordType, rdata::SOA},
    serialize::binary::{BinDecodable, BinEncodable, BinEncoder},
};

use super::zone::DOMAIN;

/// Largest answer over UDP, whatever the asker takes: one that fits into a packet on every way.
const MAX_UDP: u16 = 1_232;
/// Largest answer over UDP to whoever does not say how much it takes.
const PLAIN_UDP: u16 = 512;
/// Length of a message's header.
const HEADER: usize = 12;
/// Seconds for which answers from the zone may be kept.
const TTL: u32 = 1;

/// What arrived.
#[derive(Debug)]
pub(super) enum Arrived {
    /// A question to be answered.
    Question(Box<Question>),
    /// Something that is answered with a complaint.
    Refused(Vec<u8>),
    /// Something that is not answered.
    Noise,
}

/// A question with what its answer repeats.
#[derive(Debug)]
pub(super) struct Question {
    metadata: Metadata,
    query: Query,
    /// How much the asker takes over UDP, when it speaks EDNS.
    payload: Option<u16>,
}

/// An answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) code: ResponseCode,
    pub(super) records: Vec<Record>,
    pub(super) authority: Option<Record>,
    /// Whether the answer is this server's own knowledge.
    pub(super) own: bool,
}

impl Answer {
    /// A failure.
    pub(super) fn failed(code: ResponseCode) -> Self {
        Self { code, records: Vec::new(), authority: None, own: false }
    }

    /// What the zone says.
    pub(super) fn own(code: ResponseCode, records: Vec<Record>) -> Self {
        let authority = records.is_empty().then(|| start_of_authority(domain()));
        Self { code, records, authority, own: true }
    }
}

/// Reads what arrived.
pub(super) fn read(bytes: &[u8]) -> Arrived {
    let Some((header, _)) = bytes.split_at_checked(HEADER) else { return Arrived::Noise };
    let number = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    // An answer to an answer could go on for ever.
    if header[2] & 0x80 != 0 {
        return Arrived::Noise;
    }
    let complain = |code| complaint(number(0), header[2], code);
    if (header[2] >> 3) & 0x0f != 0 {
        return complain(ResponseCode::NotImp);
    }
    // Looked at before anything is read by them: they say how much memory that takes.
    let [questions, answers, authorities, additionals] = [4, 6, 8, 10].map(number);
    if questions != 1 || answers != 0 || authorities != 0 || additionals > 2 {
        return complain(ResponseCode::FormErr);
    }
    let Ok(message) = Message::from_bytes(bytes) else { return complain(ResponseCode::FormErr) };
    let Some(query) = message.queries.first() else { return complain(ResponseCode::FormErr) };
    if query.query_class() != DNSClass::IN || matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR) {
        return complain(ResponseCode::Refused);
    }
    let edns = message.edns.as_ref();
    if edns.is_some_and(|edns| edns.version() > 0) {
        let question = Question { metadata: message.metadata, query: query.clone(), payload: Some(PLAIN_UDP) };
        return match question.answered(&Answer::failed(ResponseCode::BADVERS), None) {
            Some(bytes) => Arrived::Refused(bytes),
            None => Arrived::Noise,
        };
    }
    Arrived::Question(Box::new(Question {
        metadata: message.metadata,
        query: query.clone(),
        payload: edns.map(Edns::max_payload),
    }))
}

/// A header that says what was wrong.
fn complaint(id: u16, flags: u8, code: ResponseCode) -> Arrived {
    let mut bytes = vec![0; HEADER];
    bytes[..2].copy_from_slice(&id.to_be_bytes());
    // An answer, with the operation and the wish for recursion repeated.
    bytes[2] = 0x80 | (flags & 0x79);
    bytes[3] = code.low();
    Arrived::Refused(bytes)
}

impl Question {
    /// The name.
    pub(super) fn name(&self) -> &Name {
        self.query.name()
    }

    /// The type of records.
    pub(super) fn kind(&self) -> RecordType {
        self.query.query_type()
    }

    /// The largest answer that may go over UDP.
    pub(super) fn udp_limit(&self) -> u16 {
        self.payload.map_or(PLAIN_UDP, |payload| payload.clamp(PLAIN_UDP, MAX_UDP))
    }

    /// The answer as bytes, cut to `limit` and marked so when it is longer; `None` when it cannot be written.
    pub(super) fn answered(&self, answer: &Answer, limit: Option<u16>) -> Option<Vec<u8>> {
        let mut message = Message::response(self.metadata.id, OpCode::Query);
        message.metadata = Metadata::response_from_request(&self.metadata);
        message.metadata.message_type = MessageType::Response;
        message.metadata.recursion_available = true;
        message.metadata.authoritative = answer.own;
        message.metadata.response_code = answer.code;
        message.add_query(self.query.clone());
        message.answers.clone_from(&answer.records);
        message.authorities.extend(answer.authority.clone());
        if self.payload.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(MAX_UDP);
            message.edns = Some(edns);
        }
        let limit = limit.unwrap_or(u16::MAX);
        let (bytes, whole) = written(&message, limit)?;
        if whole || message.edns.is_none() {
            return Some(bytes);
        }
        // Whoever speaks EDNS comes back over TCP, and is told so in a message that is complete in itself.
        message.answers.clear();
        message.authorities.clear();
        message.metadata.truncation = true;
        written(&message, limit).map(|(bytes, _)| bytes)
    }
}

/// A message as bytes, and whether all of it found room.
fn written(message: &Message, limit: u16) -> Option<(Vec<u8>, bool)> {
    let mut bytes = Vec::with_capacity(PLAIN_UDP.into());
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_max_size(limit);
    message.emit(&mut encoder).ok()?;
    let cut = bytes.get(2).is_some_and(|flags| flags & 0x02 != 0);
    Some((bytes, !cut))
}

/// A record of the zone.
pub(super) fn record(name: &Name, data: RData) -> Record {
    Record::from_rdata(name.clone(), TTL, data)
}

/// The domain of the zone.
pub(super) fn domain() -> Name {
    Name::from_ascii(format!("{DOMAIN}.")).unwrap_or_else(|_| Name::root())
}

/// The record that stands for the whole zone.
pub(super) fn start_of_authority(zone: Name) -> Record {
    let hostmaster = zone.prepend_label("hostmaster").unwrap_or_else(|_| zone.clone());
    record(&zone, RData::SOA(SOA::new(zone.clone(), hostmaster, 1, 60, 60, 60, TTL)))
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::rdata::A;

    use super::*;

    fn asked(name: &str, edns: Option<u16>) -> Vec<u8> {
        let mut message = Message::query();
        message.metadata.id = 0x1234;
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
        if let Some(payload) = edns {
            let mut edns = Edns::new();
            edns.set_max_payload(payload);
            message.edns = Some(edns);
        }
        message.to_vec().unwrap()
    }

    fn question(bytes: &[u8]) -> Question {
        match read(bytes) {
            Arrived::Question(question) => *question,
            other => panic!("{other:?}"),
        }
    }

    fn code(arrived: Arrived) -> ResponseCode {
        match arrived {
            Arrived::Refused(bytes) => Message::from_vec(&bytes).unwrap().metadata.response_code,
            other => panic!("{other:?}"),
        }
    }

    fn addresses(count: u8) -> Answer {
        let name = Name::from_ascii("web.toft.internal.").unwrap();
        let records = (0..count).map(|i| record(&name, RData::A(A::new(10, 210, 0, i)))).collect();
        Answer::own(ResponseCode::NoError, records)
    }

    #[test]
    fn a_question_is_answered_as_it_was_asked() {
        let question = question(&asked("WeB.toft.internal.", None));
        let bytes = question.answered(&addresses(2), Some(question.udp_limit())).unwrap();
        let answer = Message::from_vec(&bytes).unwrap();
        assert_eq!((answer.metadata.id, answer.answers.len()), (0x1234, 2));
        assert!(answer.metadata.recursion_desired && answer.metadata.authoritative && !answer.metadata.truncation);
        assert_eq!(answer.queries[0].name().to_ascii(), "WeB.toft.internal.", "letters as they were asked");
        assert!(answer.edns.is_none());
    }

    #[test]
    fn what_is_too_long_is_cut_and_says_so() {
        for (edns, limit, kept) in [(None, 512, 1..60), (Some(400), 512, 0..1), (Some(4_096), 1_232, 0..1)] {
            let question = question(&asked("web.toft.internal.", edns));
            let bytes = question.answered(&addresses(200), Some(question.udp_limit())).unwrap();
            assert!(bytes.len() <= limit, "{} bytes for {edns:?}", bytes.len());
            let answer = Message::from_vec(&bytes).unwrap();
            assert!(answer.metadata.truncation && kept.contains(&answer.answers.len()), "{edns:?}: {answer:?}");
            assert_eq!(answer.edns.is_some(), edns.is_some());
            let whole = Message::from_vec(&question.answered(&addresses(200), None).unwrap()).unwrap();
            assert!(!whole.metadata.truncation && whole.answers.len() == 200);
        }
    }

    #[test]
    fn nothing_says_for_how_long_in_its_authority() {
        let question = question(&asked("nobody.toft.internal.", None));
        let answer = Answer::own(ResponseCode::NXDomain, Vec::new());
        let answer = Message::from_vec(&question.answered(&answer, Some(512)).unwrap()).unwrap();
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
        assert!(matches!(&answer.authorities[0].data, RData::SOA(soa) if soa.minimum == TTL));
    }

    #[test]
    fn what_is_no_question_is_refused_or_passed_over() {
        let good = asked("web.toft.internal.", Some(1_232));
        let changed = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            read(&bytes)
        };
        assert!(matches!(read(&[]), Arrived::Noise) && matches!(read(&good[..11]), Arrived::Noise));
        assert!(matches!(changed(2, 0x81), Arrived::Noise), "an answer");
        assert_eq!(code(changed(2, 0x29)), ResponseCode::NotImp, "an update");
        assert_eq!(code(changed(4, 0xff)), ResponseCode::FormErr, "65281 questions");
        assert_eq!(code(changed(7, 1)), ResponseCode::FormErr, "an answer beside the question");
        assert_eq!(code(changed(11, 200)), ResponseCode::FormErr);
        assert_eq!(code(changed(12, 0xc0)), ResponseCode::FormErr, "a name that points into itself");
        let class = good.len() - 11 - 1;
        assert_eq!(code(changed(class, 3)), ResponseCode::Refused, "another class");
        assert_eq!(code(changed(class - 2, 252)), ResponseCode::Refused, "the whole zone");
        // The same number as of BADSIG, which it reads back as.
        assert_eq!(u16::from(code(changed(good.len() - 5, 1))), u16::from(ResponseCode::BADVERS));
    }

    #[test]
    fn nothing_that_arrives_can_do_harm() {
        use proptest::prelude::*;
        let good = asked("some.very.long.name.toft.internal.", Some(1_232));
        proptest!(ProptestConfig::with_cases(2_000), |(changes in prop::collection::vec((0..good.len(), any::<u8>()), 0..8), cut in 0..=good.len(), noise in prop::collection::vec(any::<u8>(), 0..80))| {
            let mut bytes = good.clone();
            for (at, byte) in changes {
                bytes[at] = byte;
            }
            bytes.truncate(cut);
            for bytes in [bytes, noise] {
                match read(&bytes) {
                    Arrived::Question(question) => {
                        let written = question.answered(&addresses(3), Some(question.udp_limit())).unwrap();
                        prop_assert!(written.len() <= question.udp_limit().into());
                    }
                    Arrived::Refused(written) => prop_assert!(written.len() <= 300),
                    Arrived::Noise => {}
                }
            }
        });
    }
}
