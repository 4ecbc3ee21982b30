//! Operations on users.

use std::{collections::BTreeSet, net::IpAddr};

use toft_model::{
    identity::{NewUser, PasswordHash, Rights, Role, UserChanges, UserName},
    name::Name,
    state::{Command, PasskeyRow, SecondFactorRow, UserRow},
};
use zeroize::Zeroizing;

use super::{Ops, now_ms};
use crate::control::{
    ControlError, ErrorKind,
    actor::{self, Actor, Way},
};

/// Shortest password somebody may choose, in characters, and longest, in bytes.
pub const SHORTEST_PASSWORD: usize = 10;
/// Longest password, in bytes.
pub const LONGEST_PASSWORD: usize = 1_024;

/// What an admin wants of a user; what is absent stays as it is.
#[derive(Default)]
pub struct UserWish {
    /// Their role.
    pub role: Option<Role>,
    /// All their grants.
    pub grants: Option<BTreeSet<Name>>,
    /// Whether they are kept out.
    pub disabled: Option<bool>,
    /// Their password.
    pub password: Option<Zeroizing<String>>,
}

/// A user as others see them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserView {
    /// What they are called.
    pub name: UserName,
    /// What they may.
    pub rights: Rights,
    /// Whether they have a password.
    pub has_password: bool,
    /// Whether they have a second factor.
    pub has_factor: bool,
    /// How many passkeys they have.
    pub passkeys: usize,
    /// Whether they are kept out.
    pub disabled: bool,
    /// When they were made known; `None` for the first user before it has a password of its own.
    pub created_at_ms: Option<i64>,
    /// When something about them changed last.
    pub changed_at_ms: Option<i64>,
}

impl UserView {
    fn of(row: UserRow, has_factor: bool, passkeys: usize) -> Self {
        Self {
            name: row.name,
            rights: row.rights,
            has_password: row.password.is_some(),
            has_factor,
            passkeys,
            disabled: row.disabled,
            created_at_ms: Some(row.created_at_ms),
            changed_at_ms: Some(row.changed_at_ms),
        }
    }
}

fn not_found(name: &UserName) -> ControlError {
    ControlError::new(ErrorKind::NotFound, format!("there is no user `{name}`"))
        .hint("`toft user ls` shows the users there are")
}

fn check(user: &UserName, password: &str) -> Result<(), ControlError> {
    let refuse = |message: &str, hint: String| {
        Err(ControlError::new(ErrorKind::Invalid, message.to_owned()).hint(hint).field("password"))
    };
    if password.chars().count() < SHORTEST_PASSWORD {
        return refuse(
            "the password is too short",
            format!("use at least {SHORTEST_PASSWORD} characters; a few words are easy to remember"),
        );
    }
    if password.len() > LONGEST_PASSWORD {
        return refuse("the password is too long", format!("use at most {LONGEST_PASSWORD} bytes"));
    }
    if password.chars().any(char::is_control) {
        return refuse("the password holds control characters", "use text on one line".to_owned());
    }
    let mut chars = password.chars();
    let first = chars.next();
    let monotonous = chars.all(|c| Some(c) == first);
    if monotonous || password.to_lowercase().contains(user.as_str()) && password.len() < user.as_str().len() + 6 {
        return refuse(
            "the password is easy to guess",
            "use a few words that have nothing to do with the name".to_owned(),
        );
    }
    Ok(())
}

impl Ops {
    async fn hashed(&self, user: &UserName, password: Zeroizing<String>) -> Result<PasswordHash, ControlError> {
        check(user, &password)?;
        let hash = self.gate()?.passwords.hash(password).await;
        hash.map_err(|error| ControlError::new(ErrorKind::Internal, error.to_string()))
    }

    /// Every user, by name, the first one also before it has a password of its own.
    pub async fn users(&self) -> Result<Vec<UserView>, ControlError> {
        let read = |connection: &_| {
            Ok((UserRow::all(connection)?, SecondFactorRow::owners(connection)?, PasskeyRow::owners(connection)?))
        };
        let (rows, owners, with_passkeys) = self.state.read(read).await?;
        let of = |row: UserRow| {
            let has_factor = owners.contains(&row.name);
            let passkeys = with_passkeys.iter().filter(|user| **user == row.name).count();
            UserView::of(row, has_factor, passkeys)
        };
        let mut users: Vec<UserView> = rows.into_iter().map(of).collect();
        if !users.iter().any(|user| user.name.is_first()) {
            users.push(UserView {
                name: UserName::first(),
                rights: Rights::all(),
                has_password: false,
                has_factor: false,
                passkeys: 0,
                disabled: false,
                created_at_ms: None,
                changed_at_ms: None,
            });
            users.sort_by(|one, other| one.name.cmp(&other.name));
        }
        Ok(users)
    }

    /// The user of that name.
    pub async fn user(&self, name: &UserName) -> Result<UserView, ControlError> {
        let found = self.users().await?.into_iter().find(|user| user.name == *name);
        found.ok_or_else(|| not_found(name))
    }

    /// Makes a user known.
    pub async fn create_user(&self, name: UserName, wish: UserWish) -> Result<UserView, ControlError> {
        let rights = Rights { role: wish.role.unwrap_or_default(), grants: wish.grants.unwrap_or_default() };
        rights.check()?;
        let password = match wish.password {
            Some(password) => Some(self.hashed(&name, password).await?),
            None => None,
        };
        let user = Box::new(NewUser { name: name.clone(), rights, password });
        self.submit(Command::CreateUser { user, at_ms: now_ms() }).await?;
        self.user(&name).await
    }

    /// Changes a user. The first user is made when it gets a password.
    pub async fn change_user(&self, name: &UserName, wish: UserWish) -> Result<UserView, ControlError> {
        let asked = name.clone();
        let known = self.state.read(move |connection| UserRow::named(connection, &asked)).await?;
        if known.is_none() && name.is_first() {
            let Some(password) = wish.password else {
                return Err(ControlError::new(ErrorKind::Conflict, "`admin` has no password of its own yet")
                    .hint("choose it first: sign in with the first password, or `toft user passwd admin` on a node"));
            };
            let (role, password) = (Some(Role::Admin), Some(password));
            return self.create_user(name.clone(), UserWish { role, password, ..UserWish::default() }).await;
        }
        let password = match wish.password {
            Some(password) => Some(self.hashed(name, password).await?),
            None => None,
        };
        let changes = UserChanges { role: wish.role, grants: wish.grants, disabled: wish.disabled, password };
        // Whoever changes their own password goes on.
        let keep = actor::current().and_then(|actor| match (&actor.user, &actor.way) {
            (Some(user), Way::Session(id)) if user == name => Some(id.clone()),
            _ => None,
        });
        let command = Command::ChangeUser { name: name.clone(), changes: Box::new(changes), keep, at_ms: now_ms() };
        self.submit(command).await?;
        self.user(name).await
    }

    /// Gives whoever asks another password. They tell the present one again, unless it is the first.
    pub async fn change_own_password(
        &self,
        present: Zeroizing<String>,
        new: Zeroizing<String>,
    ) -> Result<(), ControlError> {
        let asks = self.who_signed_in()?;
        let Some(user) = &asks.user else { return Err(no_user()) };
        if !asks.is_first {
            self.prove_present_password(user, present, asks.from).await.map_err(|error| match error.kind {
                ErrorKind::Invalid => error.field("present"),
                _ => error,
            })?;
        }
        self.change_user(user, UserWish { password: Some(new), ..UserWish::default() }).await?;
        Ok(())
    }

    /// Makes sure that who asks still knows their password, with the same count of attempts.
    pub(super) async fn prove_present_password(
        &self,
        user: &UserName,
        present: Zeroizing<String>,
        from: Option<IpAddr>,
    ) -> Result<(), ControlError> {
        match self.prove_password(user.as_str(), present, from).await {
            Ok(_) => Ok(()),
            Err(error) if error.kind == ErrorKind::Unauthenticated => {
                Err(ControlError::new(ErrorKind::Invalid, "the present password is another").field("password"))
            }
            Err(error) => Err(error),
        }
    }

    /// Who asks, when it is a user with a password or a session of theirs, and no program with a token.
    pub(super) fn who_signed_in(&self) -> Result<std::sync::Arc<Actor>, ControlError> {
        let asks = actor::current().ok_or_else(no_user)?;
        match asks.way {
            Way::Token(_) | Way::Signed { .. } => {
                Err(ControlError::new(ErrorKind::Forbidden, "a token cannot change how its owner signs in")
                    .hint("sign in, or ask an admin"))
            }
            Way::Socket | Way::Session(_) | Way::Provider | Way::Passkey | Way::Password => Ok(asks),
        }
    }

    /// Removes a user with all sessions and tokens.
    pub async fn remove_user(&self, name: UserName) -> Result<(), ControlError> {
        self.submit(Command::RemoveUser { name, at_ms: now_ms() }).await?;
        Ok(())
    }
}

pub(super) fn no_user() -> ControlError {
    ControlError::new(ErrorKind::Conflict, "whoever uses the socket is root, and no user")
        .hint("name the user that is meant: `toft user passwd NAME`, `--user NAME`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_that_are_easy_to_guess_are_refused() {
        let ann: UserName = "annemarie".parse().unwrap();
        let said = |password: &str| check(&ann, password).map_err(|error| (error.message, error.field));
        assert!(said("correct horse battery").is_ok() && said("annemarie loves her garden").is_ok());
        for (bad, words) in [
            ("", "short"),
            ("123456789", "short"),
            (&"x".repeat(1_025), "long"),
            ("tab\tand more", "control"),
            ("aaaaaaaaaaaaaaa", "guess"),
            ("Annemarie1!", "guess"),
        ] {
            let (message, field) = said(bad).unwrap_err();
            assert!(message.contains(words) && field.as_deref() == Some("password"), "{bad}: {message}");
        }
    }
}
