//! `token create`, `token list`, `token revoke`.

use toft_model::token::TokenId;

use super::{
    Failure,
    args::ListArgs,
    client::Client,
    member_args::{TokenCommand, TokenCreateArgs},
    output, prompt,
    workloads::all,
};
use crate::api::types::{MadeToken, Token, TokenRequest};

pub(super) async fn token(client: &Client, command: TokenCommand) -> Result<i32, Failure> {
    match command {
        TokenCommand::Create(args) => create(client, args).await,
        TokenCommand::List(args) => list(client, args).await,
        TokenCommand::Revoke { id, yes } => revoke(client, &id, yes).await,
    }
}

async fn create(client: &Client, args: TokenCreateArgs) -> Result<i32, Failure> {
    let request = TokenRequest {
        ttl: (!args.pin).then(|| args.ttl.clone()),
        uses: (!args.pin).then_some(args.uses),
        role: Some(args.role),
        name: args.name,
        labels: args.labels.into_iter().collect(),
        pin: args.pin,
    };
    let made: MadeToken = client.post("/api/v1/tokens", &request).await?;
    if args.json {
        output::json(&made)?;
        return Ok(0);
    }
    if args.quiet {
        println!("{}", made.pin.as_ref().unwrap_or(&made.token));
        return Ok(0);
    }
    if let Some(pin) = &made.pin {
        eprintln!("This PIN lets one machine in this network join, for five minutes. On the new machine run:");
        eprintln!();
        println!("sudo toft join --pin {pin}");
        eprintln!();
        eprintln!("Three tries, then it is void. Where the machine finds nobody: toft join ADDRESS --pin {pin}");
        return Ok(0);
    }
    let machines =
        if made.about.uses == 1 { "one machine".to_owned() } else { format!("{} machines", made.about.uses) };
    let what = if made.about.role == "witness" { " as witness" } else { "" };
    eprintln!("Token {} lets {machines} join{what} for {}. On the new machine run:", made.about.id, args.ttl);
    eprintln!();
    match made.addresses.split_first() {
        Some((address, others)) => {
            println!("sudo toft join {address} --token {}", made.token);
            if !others.is_empty() {
                eprintln!();
                eprintln!("This node has other addresses too: {}", others.join(", "));
            }
        }
        None => println!("sudo toft join ADDRESS --token {}", made.token),
    }
    Ok(0)
}

async fn list(client: &Client, args: ListArgs) -> Result<i32, Failure> {
    let tokens: Vec<Token> = all(client, "/api/v1/tokens").await?;
    if args.json {
        output::json(&tokens)?;
    } else if args.quiet {
        tokens.iter().for_each(|token| println!("{}", token.id));
    } else {
        let rows = tokens.iter().map(|token| {
            let labels: Vec<String> = token.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            let nodes: Vec<&str> = token.used_by.iter().map(|used| used.node.as_str()).collect();
            let valid = match token.state.as_str() {
                "valid" => output::until(&token.expires_at),
                state => state.to_owned(),
            };
            vec![
                token.id.clone(),
                valid,
                format!("{} of {}", token.uses_left, token.uses),
                token.role.clone(),
                token.name.clone().unwrap_or_default(),
                labels.join(","),
                nodes.join(", "),
                output::age(&token.created_at),
            ]
        });
        output::table(&["TOKEN", "VALID", "USES LEFT", "ROLE", "NAME", "LABELS", "JOINED", "AGE"], rows);
    }
    Ok(0)
}

async fn revoke(client: &Client, id: &TokenId, yes: bool) -> Result<i32, Failure> {
    if !yes && prompt::possible() && !prompt::confirm(&format!("Revoke token {id}? Nobody can join with it any more."))?
    {
        return Err(Failure::of(1, "nothing was changed"));
    }
    client.delete(&format!("/api/v1/tokens/{id}")).await?;
    println!("{id}");
    Ok(0)
}
