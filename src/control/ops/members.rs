//! Operations on who belongs to the cluster: tokens, joining, leaving, removing nodes.

use std::{collections::BTreeMap, sync::Arc};

use toft_model::{
    ids::NodeId,
    name::Name,
    state::{AdmissionRow, Command, NodeRow, Reply, TokenRow},
    token::{MemberRole, NewToken, TokenId},
};
use zeroize::Zeroizing;

use super::{Ops, now_ms};
use crate::{
    consensus::RemovalError,
    control::{
        ControlError, ErrorKind,
        belonging::{Belong, JoinWish, Joined},
    },
};

/// What somebody wants of a token.
#[derive(Debug, Clone)]
pub struct TokenWish {
    /// How long it is valid, in milliseconds.
    pub ttl_ms: u64,
    /// How many may join with it.
    pub uses: u32,
    /// What they become.
    pub role: MemberRole,
    /// What the one that joins is called.
    pub name: Option<Name>,
    /// Labels for them.
    pub labels: BTreeMap<String, String>,
    /// Whether a PIN shall stand for it.
    pub pin: bool,
}

/// A token and who was let in with it.
#[derive(Debug, Clone)]
pub struct TokenView {
    /// The token.
    pub row: TokenRow,
    /// Who was let in with it and is a member still.
    pub used_by: Vec<AdmissionRow>,
}

/// A token that was made just now.
pub struct MadeToken {
    /// The token.
    pub view: TokenView,
    /// The whole of it; nobody can read it again.
    pub text: Zeroizing<String>,
    /// Addresses of this node for members, the likeliest first.
    pub addresses: Vec<String>,
    /// The PIN that stands for it.
    pub pin: Option<Zeroizing<String>>,
}

impl From<RemovalError> for ControlError {
    fn from(error: RemovalError) -> Self {
        match error {
            RemovalError::Majority(_) => Self::new(ErrorKind::Conflict, error.to_string())
                .hint("let the members that are silent come back, or remove those first that are gone"),
            RemovalError::NoLeader => {
                Self::new(ErrorKind::NoLeader, error.to_string()).hint("`toft cluster status` shows who answers")
            }
            RemovalError::Failed(_) => Self::new(ErrorKind::Unavailable, error.to_string()).hint("try again"),
        }
    }
}

impl Ops {
    /// The same with the way into clusters and out of them.
    pub fn with_belonging(mut self, belonging: Arc<dyn Belong>) -> Self {
        self.belonging = Some(belonging);
        self
    }

    fn belonging(&self) -> Result<&Arc<dyn Belong>, ControlError> {
        let absent = || ControlError::new(ErrorKind::Unavailable, "this node cannot change its membership now");
        self.belonging.as_ref().ok_or_else(absent)
    }

    /// Makes a token, and opens the door for those who come with it.
    pub async fn create_token(&self, wish: TokenWish) -> Result<MadeToken, ControlError> {
        let belonging = self.belonging()?;
        let fresh = belonging.make_token()?;
        // Who leads says when it expires, and this clock may be another one.
        let at_ms = now_ms().saturating_add(self.leader_ahead_ms().await);
        let token = NewToken {
            id: fresh.id,
            secret: fresh.secret,
            role: wish.role,
            name: wish.name,
            labels: wish.labels,
            uses: wish.uses,
            expires_at_ms: at_ms.saturating_add_unsigned(wish.ttl_ms),
        };
        token.check(at_ms)?;
        let addresses = belonging.listen().await?;
        match self.submit(Command::CreateToken { token: Box::new(token), at_ms }).await? {
            Reply::Token(row) => {
                let pin = if wish.pin { Some(belonging.make_pin(&fresh.text)?) } else { None };
                let view = TokenView { row: *row, used_by: Vec::new() };
                Ok(MadeToken { view, text: fresh.text, addresses, pin })
            }
            _ => Err(ControlError::new(ErrorKind::Internal, "the state answered something else than a token")),
        }
    }

    /// Every token, the newest first.
    pub async fn tokens(&self) -> Result<Vec<TokenView>, ControlError> {
        let read = self.state.read(|connection| Ok((TokenRow::all(connection)?, AdmissionRow::all(connection)?)));
        let (tokens, admissions) = read.await?;
        let used_by = |id: &TokenId| admissions.iter().filter(|row| row.token_id == *id).cloned().collect();
        Ok(tokens.into_iter().map(|row| TokenView { used_by: used_by(&row.token.id), row }).collect())
    }

    /// Takes a token back.
    pub async fn revoke_token(&self, token_id: TokenId) -> Result<(), ControlError> {
        self.submit(Command::RevokeToken { token_id, at_ms: now_ms() }).await?;
        Ok(())
    }

    /// Joins another cluster.
    pub async fn join_cluster(&self, wish: JoinWish) -> Result<Joined, ControlError> {
        if self.state.has_others() {
            let error = ControlError::new(ErrorKind::Conflict, "this node is in a cluster with others already");
            return Err(error.hint("`toft leave` takes it out of that"));
        }
        self.belonging()?.join(wish).await
    }

    /// Takes this node out of its cluster. With `force` it goes though nobody could be told.
    pub async fn leave_cluster(&self, force: bool) -> Result<(), ControlError> {
        let status = self.state.status();
        let me = status.members.iter().find(|seen| seen.id == status.identity.member_id);
        let belonging = self.belonging()?;
        if self.state.was_removed() || me.is_none() {
            return if force {
                belonging.forget_cluster().await
            } else {
                Err(ControlError::new(ErrorKind::Conflict, "this node was removed from its cluster")
                    .hint("`toft leave --force` ends its containers and makes it an appliance of its own"))
            };
        }
        if status.members.len() < 2 {
            return Err(ControlError::new(ErrorKind::Conflict, "this node is in no cluster with others"));
        }
        let gone = match me {
            Some(me) => self.take_out(me.member.node_id, me.member.name.clone(), force).await,
            None => Ok(()),
        };
        match gone {
            Err(error) if !force => return Err(error),
            Err(error) => tracing::warn!(%error, "the cluster could not be told that this node leaves"),
            Ok(()) => {}
        }
        belonging.forget_cluster().await
    }

    /// Removes another node, of which nothing stays.
    pub async fn remove_node(&self, name: &Name, force: bool) -> Result<(), ControlError> {
        self.state.catch_up().await?;
        let status = self.state.status();
        let member = status.members.iter().find(|seen| seen.member.name == *name);
        let row = self.state.read(NodeRow::all).await?.into_iter().find(|row| row.name == *name);
        let Some(node_id) = row.map(|row| row.id).or(member.map(|seen| seen.member.node_id)) else {
            return Err(ControlError::new(ErrorKind::NotFound, format!("there is no node `{name}`"))
                .hint("`toft node ls` and `toft cluster status` list the nodes"));
        };
        let me = status.members.iter().find(|seen| seen.id == status.identity.member_id);
        if me.is_some_and(|me| me.member.node_id == node_id) {
            return Err(ControlError::new(ErrorKind::Conflict, format!("`{name}` is this node"))
                .hint("`toft leave` takes this node out of the cluster"));
        }
        self.take_out(node_id, name.clone(), force).await
    }

    async fn take_out(&self, node_id: NodeId, name: Name, force: bool) -> Result<(), ControlError> {
        let answers = self.state.remove_member(node_id, true).await?;
        let command = Command::RemoveNode { node_id, name, lost: !answers, force, at_ms: now_ms() };
        self.submit(command).await?;
        self.state.remove_member(node_id, false).await?;
        Ok(())
    }
}
