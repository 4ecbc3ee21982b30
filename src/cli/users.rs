//! `user ls`, `create`, `set`, `passwd`, `rm`, `sessions`, `sign-out` and `user token`.

use std::io::{IsTerminal, Read};

use toft_model::{identity::UserName, second_factor::AccessChanges};
use zeroize::Zeroizing;

use super::{
    Failure,
    args::ListArgs,
    client::Client,
    output, prompt,
    user_args::{
        ApiTokenCommand, ApiTokenCreateArgs, FactorCommand, RequiredOf, SignArgs, UserCommand, UserCreateArgs,
        UserSetArgs,
    },
    workloads::all,
};
use crate::api::types::{
    Access, ApiToken, ApiTokenRequest, NewApiToken, Session, SignedToken, SignedTokenRequest, User, UserChange,
    UserRequest,
};

/// Longest password that is read, in bytes.
const LONGEST: u64 = 1_024;

pub(super) async fn user(client: &Client, command: UserCommand) -> Result<i32, Failure> {
    match command {
        UserCommand::Ls(args) => ls(client, args).await,
        UserCommand::Create(args) => create(client, args).await,
        UserCommand::Set(args) => set(client, args).await,
        UserCommand::Passwd { name, password_stdin } => passwd(client, &name, password_stdin).await,
        UserCommand::Rm { names, yes } => rm(client, names, yes).await,
        UserCommand::Sessions(args) => sessions(client, args).await,
        UserCommand::SignOut { ids } => {
            let ids = ids.iter().map(ToString::to_string);
            delete_each(client, "/api/v1/sessions", ids).await
        }
        UserCommand::SecondFactor { command } => second_factor(client, command).await,
        UserCommand::Passkey { command } => super::passkeys::passkey(client, command).await,
        UserCommand::Token { command } => match command {
            ApiTokenCommand::Create(args) => create_token(client, args).await,
            ApiTokenCommand::Sign(args) => sign(client, args).await,
            ApiTokenCommand::RotateKeys => {
                client.post_quietly("/api/v1/signing-keys/rotate").await?;
                Ok(0)
            }
            ApiTokenCommand::List(args) => tokens(client, args).await,
            ApiTokenCommand::Revoke { ids } => {
                let ids = ids.iter().map(ToString::to_string);
                delete_each(client, "/api/v1/api-tokens", ids).await
            }
        },
    }
}

async fn delete_each(client: &Client, path: &str, names: impl Iterator<Item = String>) -> Result<i32, Failure> {
    let mut code = 0;
    for name in names {
        match client.delete(&format!("{path}/{name}")).await {
            Ok(()) => println!("{name}"),
            Err(failure) => {
                failure.print();
                code = failure.exit_code;
            }
        }
    }
    Ok(code)
}

async fn ls(client: &Client, args: ListArgs) -> Result<i32, Failure> {
    let users: Vec<User> = all(client, "/api/v1/users").await?;
    if args.json {
        output::json(&users)?;
    } else if args.quiet {
        users.iter().for_each(|user| println!("{}", user.name));
    } else {
        let rows = users.iter().map(|user| {
            let state = match user {
                User { disabled: true, .. } => "disabled",
                User { created_at: None, .. } => "first password",
                User { has_password: false, .. } => "tokens only",
                User { .. } => "active",
            };
            let age = user.created_at.as_deref().map(output::age).unwrap_or_default();
            let factor = if user.second_factor { "yes" } else { "no" };
            let passkeys = user.passkeys.to_string();
            let (name, role) = (user.name.clone(), user.role.clone());
            vec![name, role, user.grants.join(","), state.to_owned(), factor.to_owned(), passkeys, age]
        });
        output::table(&["USER", "ROLE", "GRANTS", "STATE", "SECOND FACTOR", "PASSKEYS", "AGE"], rows);
    }
    Ok(0)
}

/// Asks for a new password, or reads it from standard input.
fn new_password(user: &UserName, from_stdin: bool) -> Result<Zeroizing<String>, Failure> {
    if std::io::stdin().is_terminal() && !from_stdin {
        if !prompt::possible() {
            return Err(
                Failure::of(1, "there is no password, and nobody can be asked").hint("send it to standard input")
            );
        }
        return Ok(Zeroizing::new(prompt::new_secret(&format!("new password of {user}"))?));
    }
    let failed = |error: std::io::Error| Failure::of(1, format!("standard input cannot be read: {error}"));
    let mut password = Zeroizing::new(String::with_capacity(LONGEST as usize + 3));
    std::io::stdin().lock().take(LONGEST + 2).read_to_string(&mut password).map_err(failed)?;
    let length = password.trim_end_matches(['\r', '\n']).len();
    password.truncate(length);
    Ok(password)
}

fn told(user: &User, json: bool) -> Result<i32, Failure> {
    if json {
        output::json(user)?;
    } else {
        println!("{}", user.name);
    }
    Ok(0)
}

async fn create(client: &Client, args: UserCreateArgs) -> Result<i32, Failure> {
    let password = match args.no_password {
        true => None,
        false => Some(new_password(&args.name, args.password_stdin)?.to_string()),
    };
    let grants = args.grants.into_iter().collect();
    let request = UserRequest { name: args.name, role: args.role, grants, password };
    told(&client.post("/api/v1/users", &request).await?, args.json)
}

async fn set(client: &Client, args: UserSetArgs) -> Result<i32, Failure> {
    let grants = (args.no_grants || !args.grants.is_empty()).then(|| args.grants.into_iter().collect());
    let disabled = match (args.disable, args.enable) {
        (true, _) => Some(true),
        (_, true) => Some(false),
        (false, false) => None,
    };
    if args.role.is_none() && grants.is_none() && disabled.is_none() {
        return Err(Failure::of(2, "nothing is to be changed").hint("see `toft user set --help`"));
    }
    let change = UserChange { role: args.role, grants, disabled, password: None };
    client.patch(&format!("/api/v1/users/{}", args.name), &change).await?;
    let user: User = client.get(&format!("/api/v1/users/{}", args.name)).await?;
    told(&user, args.json)
}

async fn passwd(client: &Client, name: &UserName, from_stdin: bool) -> Result<i32, Failure> {
    let password = Some(new_password(name, from_stdin)?.to_string());
    client.patch(&format!("/api/v1/users/{name}"), &UserChange { password, ..UserChange::default() }).await?;
    println!("{name}");
    Ok(0)
}

async fn rm(client: &Client, names: Vec<UserName>, yes: bool) -> Result<i32, Failure> {
    let listed: Vec<&str> = names.iter().map(UserName::as_str).collect();
    let question = format!("Remove {}? They are signed out, and their tokens are revoked.", listed.join(", "));
    if !yes && prompt::possible() && !prompt::confirm(&question)? {
        return Err(Failure::of(1, "nothing was changed"));
    }
    delete_each(client, "/api/v1/users", names.iter().map(ToString::to_string)).await
}

async fn second_factor(client: &Client, command: FactorCommand) -> Result<i32, Failure> {
    let (of, json) = match command {
        FactorCommand::Reset { names } => {
            let mut code = 0;
            for name in names {
                match client.delete(&format!("/api/v1/users/{name}/second-factor")).await {
                    Ok(()) => println!("{name}"),
                    Err(failure) => {
                        failure.print();
                        code = failure.exit_code;
                    }
                }
            }
            return Ok(code);
        }
        FactorCommand::Require { of, json } => (of, json),
    };
    if let Some(of) = of {
        let changes =
            AccessChanges { second_factor_for_admins: Some(of == RequiredOf::Admins), ..AccessChanges::default() };
        client.patch("/api/v1/access", &changes).await?;
    }
    let access: Access = client.get("/api/v1/access").await?;
    if json {
        output::json(&access)?;
    } else {
        println!("{}", if access.second_factor_for_admins { "admins" } else { "nobody" });
    }
    Ok(0)
}

async fn sessions(client: &Client, args: ListArgs) -> Result<i32, Failure> {
    let sessions: Vec<Session> = all(client, "/api/v1/sessions").await?;
    if args.json {
        output::json(&sessions)?;
    } else if args.quiet {
        sessions.iter().for_each(|session| println!("{}", session.id));
    } else {
        let rows = sessions.iter().map(|session| {
            vec![
                session.id.clone(),
                session.user.clone(),
                session.from.clone().unwrap_or_default(),
                output::harmless(&session.agent),
                output::age(&session.opened_at),
                output::age(&session.seen_at),
            ]
        });
        output::table(&["SESSION", "USER", "FROM", "BROWSER", "AGE", "UNUSED"], rows);
    }
    Ok(0)
}

async fn create_token(client: &Client, args: ApiTokenCreateArgs) -> Result<i32, Failure> {
    let request = ApiTokenRequest {
        user: args.user,
        label: args.label,
        role: args.role,
        grants: args.grants.into_iter().collect(),
        ttl: Some(args.ttl.clone()),
    };
    let made: NewApiToken = client.post("/api/v1/api-tokens", &request).await?;
    if args.json {
        output::json(&made)?;
    } else {
        eprintln!("Token {} of {} is valid for {}. It is shown this once:", made.about.id, made.about.user, args.ttl);
        println!("{}", made.token);
    }
    Ok(0)
}

async fn sign(client: &Client, args: SignArgs) -> Result<i32, Failure> {
    let request = SignedTokenRequest {
        user: args.user,
        audience: args.audience,
        role: args.role,
        grants: args.grants.into_iter().collect(),
        ttl: Some(args.ttl),
    };
    let signed: SignedToken = client.post("/api/v1/signed-tokens", &request).await?;
    if args.json {
        output::json(&signed)?;
    } else {
        println!("{}", signed.token);
    }
    Ok(0)
}

async fn tokens(client: &Client, args: ListArgs) -> Result<i32, Failure> {
    let tokens: Vec<ApiToken> = all(client, "/api/v1/api-tokens").await?;
    if args.json {
        output::json(&tokens)?;
    } else if args.quiet {
        tokens.iter().for_each(|token| println!("{}", token.id));
    } else {
        let rows = tokens.iter().map(|token| {
            vec![
                token.id.clone(),
                token.user.clone(),
                output::harmless(&token.label),
                token.role.clone(),
                token.grants.join(","),
                if token.expired { "expired".to_owned() } else { output::until(&token.expires_at) },
                token.used_at.as_deref().map_or_else(|| "never".to_owned(), |at| format!("{} ago", output::age(at))),
            ]
        });
        output::table(&["TOKEN", "USER", "LABEL", "ROLE", "GRANTS", "VALID", "USED"], rows);
    }
    Ok(0)
}
