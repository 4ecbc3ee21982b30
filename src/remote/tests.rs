//! A node that is asked from afar answers as it does at home.

mod fake;

use std::{
    io,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use toft_model::{
    exec::{AttachOrder, ExecInput, ExecOutput, TerminalSize},
    files::FilesWritten,
    log::{LogLine, LogQuery},
    name::Name,
    pull::PullProgress,
};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::Request;

use super::{CALLS, FarNodes, NodeDoor};
use crate::{
    consensus::{
        network::Offered,
        tests::cluster::{Node, voters},
        types::Role,
    },
    control::{
        ControlError, ErrorKind,
        node_access::{
            ArchiveReader, NodeAccess, OtherNodes, PullStep,
            exec::{ExecRefused, ExecSession},
            files::PathInside,
            usage::RunningInstance,
            volumes::{RestoredVolume, VolumeFacts},
        },
    },
    wire::node::{self as wire, End, Up, answer, down, node_client::NodeClient, up},
};
use fake::{ARCHIVE, Fake, archive, image, instance, line, no, order, path, seen, stat, volume, web, whole};

const PATIENCE: Duration = Duration::from_secs(20);

async fn next(session: &mut ExecSession) -> ExecOutput {
    timeout(PATIENCE, session.output.recv()).await.expect("it says something").expect("it goes on")
}

/// What every node does, near or far.
async fn conforms(node: &dyn NodeAccess) {
    let refused = node.exec(instance(1), order("missing")).await.err().unwrap();
    assert_eq!(refused, ExecRefused { error: no(ErrorKind::Invalid), exit_code: Some(127) });
    let mut session = node.exec(instance(1), order("echo")).await.unwrap_or_else(|_| panic!("refused"));
    for (said, told) in [
        (ExecInput::Bytes(b"out\0\xff".to_vec()), ExecOutput::Stdout(b"out\0\xff".to_vec())),
        (ExecInput::Bytes(b"error".to_vec()), ExecOutput::Stderr(b"error".to_vec())),
        (
            ExecInput::Resize(TerminalSize { columns: 80, rows: 24 }),
            ExecOutput::Stdout(b"TerminalSize { columns: 80, rows: 24 }".to_vec()),
        ),
        (ExecInput::Signal(15), ExecOutput::Taken(15)),
        (ExecInput::End, ExecOutput::Exited(130)),
    ] {
        session.input.send(said).await.unwrap();
        assert_eq!(next(&mut session).await, told);
    }
    assert_eq!(timeout(PATIENCE, session.output.recv()).await.unwrap(), None, "the last word was the last");
    let lossless = AttachOrder { lossless: true, ..AttachOrder::default() };
    assert_eq!(node.attach(instance(1), lossless).await.err().unwrap(), no(ErrorKind::Conflict));
    let mut session = node.attach(instance(1), AttachOrder::default()).await.unwrap();
    session.input.send(ExecInput::Detach).await.unwrap();
    assert_eq!(next(&mut session).await, ExecOutput::Lost("detached".into()));

    assert_eq!(node.file_stat(path("/x")).await.unwrap(), stat());
    assert_eq!(node.file_stat(PathInside { follow: true, ..path("/x") }).await.unwrap_err(), no(ErrorKind::NotFound));
    assert_eq!(node.read_files(path("/absent")).await.err().unwrap(), no(ErrorKind::NotFound));
    let (told, bytes) = node.read_files(path("/x")).await.unwrap();
    assert_eq!((told, whole(bytes).await.unwrap()), (stat(), whole(archive()).await.unwrap()));
    let (_, bytes) = node.read_files(path("/broken")).await.unwrap();
    assert_eq!(whole(bytes).await.unwrap_err().to_string(), "the disk is on fire");
    let sent = || -> ArchiveReader { Box::new(io::Cursor::new(vec![1; ARCHIVE])) };
    let written = node.write_files(path("/x"), sent(), true).await.unwrap();
    assert_eq!(written, FilesWritten { entries: 1, bytes: ARCHIVE as u64 });
    assert_eq!(node.write_files(path("/full"), sent(), true).await.unwrap_err(), no(ErrorKind::DiskFull));
    let breaks = || -> ArchiveReader {
        let parts = [Ok(Bytes::from_static(b"half")), Err(io::Error::other("gone"))];
        Box::new(tokio_util::io::StreamReader::new(stream::iter(parts)))
    };
    let broken = node.write_files(path("/x"), breaks(), false).await.unwrap_err();
    assert_eq!(broken.kind, ErrorKind::Invalid, "half an archive is none");
    assert!(node.restore_volume(volume(), breaks(), false).await.is_err());
    assert!(node.import_image(breaks(), None).await.is_err());

    let restored = node.restore_volume(volume(), sent(), true).await.unwrap();
    assert_eq!(restored, RestoredVolume { entries: 1, bytes: ARCHIVE as u64 });
    let mut backup = node.back_up_volume(volume()).await.unwrap();
    assert_eq!(backup.next().await.unwrap().unwrap()[0], 7);
    let name: Name = "data".parse().unwrap();
    let facts = node.volume_facts(vec![name.clone()]).await.unwrap();
    assert_eq!(facts[&name], VolumeFacts { size_bytes: Some(7), path: Some("/v".into()) });

    let lines = node.logs(instance(1), LogQuery::default(), CancellationToken::new()).await.unwrap();
    let lines: Vec<_> = lines.collect().await;
    assert_eq!(lines.len(), 100);
    assert!(lines.into_iter().enumerate().all(|(at, told)| told.unwrap() == line(at as i64, &"ü".repeat(at))));
    let bad = LogQuery { grep: Some("(".into()), ..LogQuery::default() };
    let refused = node.logs(instance(1), bad, CancellationToken::new()).await.err().unwrap();
    assert_eq!(refused, no(ErrorKind::Invalid));
    let lines = node.logs(instance(3), LogQuery::default(), CancellationToken::new()).await.unwrap();
    let lines: Vec<_> = lines.collect().await;
    assert_eq!((lines.len(), lines.last().unwrap()), (101, &Err(no(ErrorKind::Internal))));
    let ended = CancellationToken::new();
    let query = LogQuery { follow: true, ..LogQuery::default() };
    let mut lines = node.logs(instance(1), query, ended.clone()).await.unwrap();
    for _ in 0..100 {
        lines.next().await.unwrap().unwrap();
    }
    assert!(timeout(Duration::from_millis(200), lines.next()).await.is_err(), "it goes on");
    ended.cancel();
    assert_eq!(timeout(PATIENCE, lines.next()).await.unwrap(), Some(Ok(line(1_000, "the last"))));
    assert!(timeout(PATIENCE, lines.next()).await.unwrap().is_none());

    let gone = node.gone_logs(Some(&name)).await.unwrap();
    assert_eq!((gone.len(), &gone[0].workload), (1, &name));
    assert_eq!(node.facts().await.unwrap().load, [0.25, 0.5, 1.0]);
    assert_eq!(node.images().await.unwrap(), [image()]);
    assert_eq!(node.import_image(sent(), Some(web())).await.unwrap()[0].size_bytes, ARCHIVE as u64);
    let steps: Vec<PullStep> = node.pull_image(web()).await.unwrap().collect().await;
    let progress = PullProgress { image: web().as_str().to_owned(), layers: Vec::new(), by_word_of: None };
    let last = PullStep::Failed(no(ErrorKind::NotFound));
    assert_eq!(steps, [PullStep::Progress(progress), PullStep::Done(image()), last]);
    assert_eq!(node.image_pulls().await.unwrap()[0].failure, Some((9, no(ErrorKind::Unavailable))));
    assert!(node.remove_image(web()).await.unwrap());
    assert_eq!(node.image_room().await.unwrap().free_files, 4);
    assert_eq!(node.mesh_seen().await.unwrap(), seen());
    assert_eq!(node.mesh_ping(3).await.unwrap()[0].loss_percent(), 0);
    let running = RunningInstance { id: instance(1), pid: 7 };
    assert_eq!(node.usage(vec![running], false).await.unwrap(), []);
    assert_eq!(node.usage(vec![running], true).await.unwrap_err(), no(ErrorKind::Internal));
    assert_eq!(node.processes(running).await.unwrap_err(), no(ErrorKind::Forbidden));
}

/// Two members, of which the second asks the first.
struct Pair {
    one: Node,
    two: Node,
    fake: Arc<Fake>,
    offered: Offered,
    far: Arc<dyn NodeAccess>,
}

impl Pair {
    async fn start() -> Self {
        let one = Node::found(1).await;
        let two = Node::joining(2, Role::Server, &one).await;
        two.until("both are known", |status| voters(status) >= 1 && status.members.len() == 2).await;
        one.until("both are known", |status| status.members.len() == 2).await;
        let fake = Arc::new(Fake::default());
        let door = NodeDoor::new(fake.clone(), CancellationToken::new());
        let offered = one.handle.offer(move |routes| routes.add_service(door.clone().service()));
        let others = FarNodes::new(two.handle.clone(), CancellationToken::new());
        let far = others.node(one.member.node_id, &one.member.name).unwrap();
        Self { one, two, fake, offered, far }
    }

    async fn until_running(&self, count: usize) {
        let reached = async {
            while self.fake.running.load(Ordering::SeqCst) != count {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, reached).await.unwrap_or_else(|_| panic!("{count} run: {:?}", self.fake.running));
    }

    async fn end(self) {
        let Self { one, two, offered, far, .. } = self;
        drop((offered, far));
        one.stop().await;
        two.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_answers_from_afar_as_it_does_at_home() {
    conforms(&Fake::default()).await;
    let pair = Pair::start().await;
    conforms(&*pair.far).await;
    pair.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_hangs_up_ends_what_it_began_and_who_does_not_read_holds_up_nobody() {
    let pair = Pair::start().await;
    let session = pair.far.exec(instance(1), order("endless")).await.unwrap_or_else(|_| panic!("refused"));
    pair.until_running(1).await;
    drop(session);
    pair.until_running(0).await;
    // One that waits for a process that does not come.
    let waits = pair.far.attach(instance(2), AttachOrder::default());
    assert!(timeout(Duration::from_millis(500), waits).await.is_err());
    pair.until_running(0).await;

    // They read nothing of what comes without an end.
    let mut silent = Vec::new();
    for _ in 0..CALLS / 2 {
        silent.push(pair.far.exec(instance(1), order("endless")).await.unwrap_or_else(|_| panic!("refused")));
    }
    pair.until_running(CALLS / 2).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (_, bytes) = timeout(PATIENCE, pair.far.read_files(path("/x"))).await.unwrap().unwrap();
    assert_eq!(timeout(PATIENCE, whole(bytes)).await.unwrap().unwrap().len(), ARCHIVE);
    // One of them is heard although it does not listen.
    silent[0].input.send(ExecInput::Signal(15)).await.unwrap();
    let heard = async {
        while pair.fake.signals.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, heard).await.expect("the signal comes");

    // So many at once, and no more.
    let mut more = Vec::new();
    let refused = loop {
        match pair.far.exec(instance(1), order("echo")).await {
            Ok(session) => more.push(session),
            Err(refused) => break refused.error,
        }
        assert!(more.len() <= CALLS);
    };
    assert_eq!(refused.kind, ErrorKind::Unavailable);
    assert!(refused.message.contains("`box-1` is busy"), "{refused}");
    assert_eq!(more.len(), CALLS / 2);
    assert!(pair.far.images().await.is_err());
    drop((more, silent));
    pair.until_running(0).await;
    assert_eq!(pair.far.images().await.unwrap().len(), 1);
    pair.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_dies_ends_what_is_read_of_it_with_its_name() {
    let Pair { one, two, offered, far, .. } = Pair::start().await;
    let mut session = far.exec(instance(1), order("echo")).await.unwrap_or_else(|_| panic!("refused"));
    let query = LogQuery { follow: true, ..LogQuery::default() };
    let mut lines = far.logs(instance(1), query, CancellationToken::new()).await.unwrap();
    lines.next().await.unwrap().unwrap();
    drop(offered);
    one.stop().await;
    assert_eq!(next(&mut session).await, ExecOutput::Lost("node `box-1` went away".into()));
    let rest: Vec<_> = timeout(PATIENCE, lines.collect()).await.unwrap();
    let last: &Result<LogLine, ControlError> = rest.last().unwrap();
    let error = last.as_ref().unwrap_err();
    assert_eq!((error.kind, error.message.as_str()), (ErrorKind::Unavailable, "node `box-1` went away"));
    let error = far.images().await.unwrap_err();
    assert_eq!((error.kind, error.message.as_str()), (ErrorKind::Unavailable, "node `box-1` cannot be reached"));
    drop(far);
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_makes_no_sense_is_refused_and_changes_nothing() {
    let pair = Pair::start().await;
    let mut client = NodeClient::new(pair.two.handle.channel_to(&pair.one.member.node_id).unwrap());
    for json in ["", "7", "null", "{\"dance\":{}}", "{\"processes\":{}}", &format!("[{}", "[".repeat(100_000))] {
        let question = wire::Question { json: json.as_bytes().to_vec() };
        let answer = client.ask(Request::new(question)).await.unwrap().into_inner().answer.unwrap();
        assert!(matches!(answer, answer::Answer::Refusal(_)), "{json:.40}");
    }
    let exec = br#"{"exec":{"instance":"00000000-0000-0000-0000-000000000001","order":{"command":[""]}}}"#;
    let question = |json: &[u8]| up::Part::Question(wire::Question { json: json.to_vec() });
    for first in [
        Vec::new(),
        vec![up::Part::End(End {})],
        vec![up::Part::Content(vec![0; 10])],
        vec![question(b"{")],
        vec![question(exec)],
    ] {
        let ups = stream::iter(first.into_iter().map(|part| Up { part: Some(part) }));
        let mut downs = client.talk(Request::new(ups)).await.unwrap().into_inner();
        let down = downs.message().await.unwrap().unwrap().part.unwrap();
        assert!(matches!(down, down::Part::Refusal(_)), "{down:?}");
        assert!(downs.message().await.unwrap().is_none());
    }
    // A process is not told what is no input of it.
    let open = br#"{"exec":{"instance":"00000000-0000-0000-0000-000000000001","order":{"command":["echo"]}}}"#;
    let size = |columns| up::Part::Size(wire::TerminalSize { columns, rows: 1 });
    let parts = [question(open), size(0), size(70_000), up::Part::Signal(-1), question(open), up::Part::End(End {})];
    let ups = stream::iter(parts.map(|part| Up { part: Some(part) })).chain(stream::pending());
    let mut downs = client.talk(Request::new(ups)).await.unwrap().into_inner();
    let begun = downs.message().await.unwrap().unwrap().part.unwrap();
    assert_eq!(begun, down::Part::Json(b"null".to_vec()));
    assert_eq!(downs.message().await.unwrap().unwrap().part.unwrap(), down::Part::Exited(130));
    let large = wire::Question { json: vec![b' '; super::LARGEST + 1] };
    let mut client = client.max_encoding_message_size(usize::MAX);
    assert!(client.ask(Request::new(large)).await.is_err());
    pair.until_running(0).await;
    conforms(&*pair.far).await;
    pair.end().await;
}
