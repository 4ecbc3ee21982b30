//! Backups of a state that is being written to.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_is_one_moment_and_writes_go_on() {
    let node = Node::new().await;
    let done = Arc::new(AtomicBool::new(false));
    let (writer, stop) = (node.state.clone(), Arc::clone(&done));
    let writes = tokio::spawn(async move {
        let mut written = 3;
        while !stop.load(Ordering::Relaxed) {
            let name = format!("w{written}").parse().unwrap();
            let spec = Box::new(WorkloadSpec::new(name, "demo".parse().unwrap()));
            let workload_id = WorkloadId(Uuid::now_v7());
            let command = Command::PutWorkload { workload_id, spec, mode: PutMode::Create, at_ms: 1 };
            writer.propose(command).await.unwrap();
            written += 1;
        }
        written
    });
    let mut newest = 0;
    for round in 0.. {
        let acknowledged = *node.state.watch().borrow();
        if acknowledged > 30 {
            break;
        }
        let copy = node.path(&format!("copy-{round}"));
        node.state.copy_to(&copy, |done, all| assert!(done <= all)).await.unwrap();
        let facts = super::super::digest::examine(&copy).unwrap().unwrap();
        // Every command adds one workload: a copy of two moments would not add up.
        assert_eq!(facts.tables["workloads"], facts.applied_index);
        assert!(facts.applied_index >= acknowledged);
        assert!(!node.path(&format!("copy-{round}-wal")).exists());
        newest = facts.applied_index;
    }
    done.store(true, Ordering::Relaxed);
    let written = writes.await.unwrap();
    assert!(newest > 3 && newest <= written, "{written}");
}

#[tokio::test]
async fn a_copy_that_cannot_be_written_is_told() {
    let node = Node::new().await;
    let error = node.state.copy_to(&node.path("absent/copy"), |_, _| ()).await.unwrap_err();
    assert!(matches!(error, consensus::CopyError::Write { .. }), "{error:?}");
    node.put("later").await;
}
