//! What machines say to each other. The code is made from the `.proto` files beside this one when toft is built.

/// What members of a cluster say to each other.
pub mod peer {
    #![expect(missing_docs, reason = "the comments stand in peer.proto")]
    #![allow(clippy::all)]

    tonic::include_proto!("toft.peer.v1");
}

/// What nodes give each other of their images.
pub mod blobs {
    #![expect(missing_docs, reason = "the comments stand in blobs.proto")]
    #![allow(clippy::all)]

    tonic::include_proto!("toft.blobs.v1");
}

/// What two nodes say to each other while a volume moves.
pub mod volume_moves {
    #![expect(missing_docs, reason = "the comments stand in volume_moves.proto")]
    #![allow(clippy::all)]

    tonic::include_proto!("toft.volume_moves.v1");
}

/// What passes between a member and one that relays for it.
pub mod relay {
    #![expect(missing_docs, reason = "the comments stand in relay.proto")]
    #![allow(clippy::all)]

    tonic::include_proto!("toft.relay.v1");
}

/// What a node asks another of what lies there.
pub mod node {
    #![expect(missing_docs, reason = "the comments stand in node.proto")]
    #![allow(clippy::all)]

    tonic::include_proto!("toft.node.v1");
}
