//! `user passkey ls`, `rm` and `domain`.

use toft_model::{identity::UserName, second_factor::AccessChanges};

use super::{Failure, client::Client, output, user_args::PasskeyCommand, workloads::all};
use crate::api::types::{Access, Passkey};

pub(super) async fn passkey(client: &Client, command: PasskeyCommand) -> Result<i32, Failure> {
    match command {
        PasskeyCommand::Ls { name, list } => {
            let passkeys = of(client, &name).await?;
            if list.json {
                output::json(&passkeys)?;
            } else if list.quiet {
                passkeys.iter().for_each(|passkey| println!("{}", passkey.id));
            } else {
                let rows = passkeys.iter().map(|passkey| {
                    let used = passkey.used_at.as_deref();
                    vec![
                        passkey.id.clone(),
                        output::harmless(&passkey.label),
                        passkey.domain.clone(),
                        output::age(&passkey.created_at),
                        used.map_or_else(|| "never".to_owned(), |at| format!("{} ago", output::age(at))),
                        passkey.backup.clone(),
                    ]
                });
                output::table(&["PASSKEY", "LABEL", "DOMAIN", "AGE", "USED", "BACKUP"], rows);
            }
            Ok(0)
        }
        PasskeyCommand::Rm { name, passkeys } => remove(client, &name, &passkeys).await,
        PasskeyCommand::Domain { domain, none, json } => {
            let passkey_domain = if none { Some(String::new()) } else { domain };
            if passkey_domain.is_some() {
                let changes = AccessChanges { passkey_domain, ..AccessChanges::default() };
                client.patch("/api/v1/access", &changes).await?;
            }
            let access: Access = client.get("/api/v1/access").await?;
            if json {
                output::json(&access)?;
            } else {
                println!("{}", access.passkey_domain.as_deref().unwrap_or("none: each name has its own passkeys"));
            }
            Ok(0)
        }
    }
}

async fn of(client: &Client, name: &UserName) -> Result<Vec<Passkey>, Failure> {
    all(client, &format!("/api/v1/users/{name}/passkeys")).await
}

/// Removes passkeys by their ids, or by what their owner calls them.
async fn remove(client: &Client, name: &UserName, wanted: &[String]) -> Result<i32, Failure> {
    let known = of(client, name).await?;
    let mut code = 0;
    for text in wanted {
        let found = known.iter().find(|passkey| passkey.id == *text || passkey.label == *text);
        let removed = match found {
            Some(passkey) => client.delete(&format!("/api/v1/users/{name}/passkeys/{}", passkey.id)).await,
            None => Err(Failure::of(1, format!("`{name}` has no passkey `{}`", output::harmless(text)))
                .hint(format!("`toft user passkey ls {name}` shows those there are"))),
        };
        match removed {
            Ok(()) => println!("{}", output::harmless(text)),
            Err(failure) => {
                failure.print();
                code = failure.exit_code;
            }
        }
    }
    Ok(code)
}
