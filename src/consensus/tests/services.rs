//! What members offer each other beside consensus: who may ask, and when that ends.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Extension, Router,
    body::{Body, to_bytes},
    http::{Request, StatusCode},
    routing::post,
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::{io::AsyncReadExt, net::TcpStream};
use tonic::{body::Body as TonicBody, service::Routes};
use tower::{Service, ServiceExt};

use super::cluster::{Node, voters};
use crate::consensus::{
    Handle,
    network::{CallError, Caller, Offered},
    types::Role,
};

/// Says who calls, and streams without an end.
fn offer(node: &Node) -> Offered {
    node.handle.offer(|routes| {
        let router = Router::new()
            .route("/who", post(|Extension(caller): Extension<Caller>| async move { caller.node_id.to_string() }))
            .route(
                "/endless",
                post(|| async {
                    Body::from_stream(stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from(vec![7; 1 << 16]))))
                }),
            );
        Routes::from(routes.into_axum_router().merge(router))
    })
}

async fn ask(from: &Handle, to: &Node, path: &str) -> Result<(StatusCode, bool, Body), String> {
    let mut channel = from.channel_to(&to.member.node_id).map_err(|error| error.to_string())?;
    let request = Request::post(format!("http://member{path}")).body(TonicBody::empty()).unwrap();
    let channel = channel.ready().await.map_err(|error| error.to_string())?;
    let answer = tokio::time::timeout(Duration::from_secs(10), channel.call(request)).await.expect("an answer comes");
    let (parts, body) = answer.map_err(|error| error.to_string())?.into_parts();
    // gRPC tells its refusals in a header of an answer that is well.
    Ok((parts.status, parts.headers.contains_key("grpc-status"), Body::new(body)))
}

async fn who(from: &Node, to: &Node) -> Result<String, String> {
    let (status, refused, body) = ask(&from.handle, to, "/who").await?;
    if !status.is_success() || refused {
        return Err(status.to_string());
    }
    let body = to_bytes(body, 1 << 10).await.map_err(|error| error.to_string())?;
    Ok(String::from_utf8(body.to_vec()).unwrap())
}

async fn eventually(from: &Node, to: &Node) -> String {
    for _ in 0..50 {
        if let Ok(answer) = who(from, to).await {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    who(from, to).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_ask_each_other_and_who_is_removed_is_cut_off() {
    let one = Node::found(1).await;
    let two = Node::joining(2, Role::Server, &one).await;
    let three = Node::joining(3, Role::Server, &one).await;
    for node in [&one, &two, &three] {
        node.until("three voters", |status| voters(status) == 3).await;
    }
    assert!(who(&two, &one).await.is_err(), "nothing is offered yet");
    let offered = offer(&one);
    let again = Arc::new(offer(&two));
    // Who was connected before finds what is new.
    assert_eq!(eventually(&two, &one).await, two.member.node_id.to_string());
    assert_eq!(eventually(&three, &one).await, three.member.node_id.to_string());
    assert_eq!(who(&one, &two).await.unwrap(), one.member.node_id.to_string());
    let nobody = toft_model::ids::NodeId(uuid::Uuid::from_u128(9));
    assert!(matches!(one.handle.channel_to(&nobody), Err(CallError::NotConnected(_))));

    // A stream goes on while its reader does, holds nobody up, and ends when the reader's member is removed.
    let (status, _, body) = ask(&three.handle, &one, "/endless").await.unwrap();
    assert!(status.is_success());
    let mut body = body.into_data_stream();
    assert!(body.next().await.unwrap().is_ok());
    one.handle.remove_member(three.member.node_id, false).await.unwrap();
    let ended = async { while let Some(Ok(_)) = body.next().await {} };
    tokio::time::timeout(Duration::from_secs(10), ended).await.expect("the stream of the removed member ends");
    assert!(who(&three, &one).await.is_err(), "a removed member asks nothing any more");
    assert!(who(&one, &two).await.is_ok());

    // The streams of others do not keep a member from ending.
    let (_, _, waiting) = ask(&two.handle, &one, "/endless").await.unwrap();
    drop((offered, again));
    let cancelled = three.stop().await;
    one.stop().await;
    drop((waiting, cancelled));
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_find_no_more_than_some_places_and_take_none_from_members() {
    let one = Node::found(1).await;
    let two = Node::joining(2, Role::Server, &one).await;
    let _offered = offer(&one);
    let address: SocketAddr = one.member.address.parse().unwrap();
    // They say nothing: those beyond what one address may have at a time are let go at once.
    let mut silent = Vec::new();
    for _ in 0..80 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let mut let_go = 0;
    for stream in &mut silent {
        let read = tokio::time::timeout(Duration::from_millis(200), stream.read(&mut [0; 1])).await;
        let_go += usize::from(matches!(read, Ok(Ok(0) | Err(_))));
        if let_go > 40 {
            break;
        }
    }
    assert!(let_go > 40, "{let_go} of 80 were let go");
    drop(silent);
    assert_eq!(eventually(&two, &one).await, two.member.node_id.to_string());
    one.stop().await;
    two.stop().await;
}
