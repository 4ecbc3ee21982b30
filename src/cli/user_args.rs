//! What can be typed after `toft user`, `toft audit` and `toft ca`.

use clap::{Args, Subcommand, ValueEnum};
use toft_model::{
    identity::{Role, UserName},
    name::Name,
    token::TokenId,
    units::parse_span_ms,
};

use super::args::{ListArgs, parsed, told};

#[derive(Debug, Subcommand)]
pub(super) enum UserCommand {
    /// List users and what they may
    Ls(ListArgs),
    /// Make a user known
    #[command(after_help = CREATE_HELP)]
    Create(UserCreateArgs),
    /// Change what a user may, or keep them out
    Set(UserSetArgs),
    /// Give a user another password; their sessions end
    #[command(after_help = PASSWORD_HELP)]
    Passwd {
        /// User
        #[arg(value_parser = parsed::<UserName>)]
        name: UserName,
        /// Read the password from standard input, also when that is a terminal
        #[arg(long)]
        password_stdin: bool,
    },
    /// Remove users with their sessions and tokens
    Rm {
        /// Users
        #[arg(required = true, value_name = "NAME", value_parser = parsed::<UserName>)]
        names: Vec<UserName>,
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
    },
    /// List who is signed in at the dashboard
    Sessions(ListArgs),
    /// End sessions at the dashboard
    SignOut {
        /// Ids of sessions
        #[arg(required = true, value_name = "ID", value_parser = parsed::<TokenId>)]
        ids: Vec<TokenId>,
    },
    /// Second factors: codes from an authenticator beside the password
    #[command(after_help = FACTOR_HELP)]
    SecondFactor {
        #[command(subcommand)]
        command: FactorCommand,
    },
    /// Passkeys: what a phone, a computer or a security key keeps, in place of password and code
    #[command(after_help = PASSKEY_HELP)]
    Passkey {
        #[command(subcommand)]
        command: PasskeyCommand,
    },
    /// API tokens, which programs show instead of a password
    Token {
        #[command(subcommand)]
        command: ApiTokenCommand,
    },
}

const CREATE_HELP: &str = "The password is asked for on a terminal, else read from standard input:
  toft user create ann --role operator
  pass show toft/ann | toft user create ann --role viewer --grant shop
  toft user create ci --role operator --no-password      a user for tokens alone

A viewer reads. An operator runs and changes workloads and what they use, and is root on the nodes for all that matters. An admin has
users and the cluster too. A grant makes a user an operator of one deployment, or of a workload that belongs to none.";

const PASSWORD_HELP: &str = "The password is asked for on a terminal, else read from standard input. `toft user passwd admin` on a node ends the first password,
and helps whoever forgot theirs.";

#[derive(Debug, Args)]
pub(super) struct UserCreateArgs {
    /// What they are called
    #[arg(value_parser = parsed::<UserName>)]
    pub(super) name: UserName,
    /// What they may: viewer, operator or admin
    #[arg(long, value_name = "ROLE", default_value = "viewer", value_parser = parsed::<Role>)]
    pub(super) role: Role,
    /// Deployment, or workload that belongs to none, whose operator they are; repeatable
    #[arg(long = "grant", value_name = "NAME", value_parser = parsed::<Name>)]
    pub(super) grants: Vec<Name>,
    /// Give them no password: they have tokens only
    #[arg(long, conflicts_with = "password_stdin")]
    pub(super) no_password: bool,
    /// Read the password from standard input, also when that is a terminal
    #[arg(long)]
    pub(super) password_stdin: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct UserSetArgs {
    /// User
    #[arg(value_parser = parsed::<UserName>)]
    pub(super) name: UserName,
    /// What they may: viewer, operator or admin
    #[arg(long, value_name = "ROLE", value_parser = parsed::<Role>)]
    pub(super) role: Option<Role>,
    /// Deployment, or workload that belongs to none, whose operator they are, in place of all there were; repeatable
    #[arg(long = "grant", value_name = "NAME", value_parser = parsed::<Name>)]
    pub(super) grants: Vec<Name>,
    /// Take all grants away
    #[arg(long, conflicts_with = "grants")]
    pub(super) no_grants: bool,
    /// Keep them out: their sessions end, and their tokens open nothing
    #[arg(long, conflicts_with = "enable")]
    pub(super) disable: bool,
    /// Let them in again
    #[arg(long)]
    pub(super) enable: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

const FACTOR_HELP: &str = "Everybody turns their own on at the dashboard, on the account page. Whoever has one signs in with a code beside the password; requests
with the password alone are refused then, while API tokens and the unix socket go on as they are.";

#[derive(Debug, Subcommand)]
pub(super) enum FactorCommand {
    /// Take the second factor of users away who have lost it
    Reset {
        /// Users
        #[arg(required = true, value_name = "NAME", value_parser = parsed::<UserName>)]
        names: Vec<UserName>,
    },
    /// Say of whom the cluster asks for one: who lacks it only looks until they have it
    Require {
        /// Of whom
        #[arg(value_enum)]
        of: Option<RequiredOf>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

const PASSKEY_HELP: &str = "Everybody adds their own at the dashboard, on the account page, opened by a name of a node. Browsers show a passkey at that name alone, or, with a
domain, at all names in it. Without a domain, those made at a.home.lan are not asked for at b.home.lan:
  toft user passkey domain home.lan";

#[derive(Debug, Subcommand)]
pub(super) enum PasskeyCommand {
    /// List the passkeys of a user: at which names they work, when they were used, whether they are backed up
    Ls {
        /// User
        #[arg(value_parser = parsed::<UserName>)]
        name: UserName,
        #[command(flatten)]
        list: ListArgs,
    },
    /// Remove passkeys of a user who has lost them; the sessions that they opened end
    Rm {
        /// User
        #[arg(value_parser = parsed::<UserName>)]
        name: UserName,
        /// Ids, or what the user calls them
        #[arg(required = true, value_name = "PASSKEY")]
        passkeys: Vec<String>,
    },
    /// Say to which domain new passkeys belong, or show it
    Domain {
        /// Domain in which the nodes have their names
        domain: Option<String>,
        /// Of no domain: each name of a node has its own
        #[arg(long, conflicts_with = "domain")]
        none: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum RequiredOf {
    /// Of everybody with the role `admin` and a password
    Admins,
    /// Of nobody
    Nobody,
}

#[derive(Debug, Subcommand)]
pub(super) enum ApiTokenCommand {
    /// Make an API token, and print it once
    #[command(after_help = TOKEN_HELP)]
    Create(ApiTokenCreateArgs),
    /// Sign a short-lived token (JWT) for a service, and print it
    #[command(after_help = SIGN_HELP)]
    Sign(SignArgs),
    /// Change the keys that sign short-lived tokens: those that were signed before end at once
    RotateKeys,
    /// List API tokens: whose they are, what they may, when they were used last
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Take API tokens back
    Revoke {
        /// Ids of tokens
        #[arg(required = true, value_name = "ID", value_parser = parsed::<TokenId>)]
        ids: Vec<TokenId>,
    },
}

const SIGN_HELP: &str = "Nobody keeps it: whoever knows the public keys, at /.well-known/jwks.json of every node, can tell that it is one. For this cluster's own API leave
--audience out, and send it as `Authorization: Bearer`. It ends by time, when its user is disabled, and with `toft user token rotate-keys`.";

#[derive(Debug, Args)]
pub(super) struct SignArgs {
    /// Whom it speaks of; needed at the unix socket, where root asks
    #[arg(long, value_name = "NAME", value_parser = parsed::<UserName>)]
    pub(super) user: Option<UserName>,
    /// Whom it is for [default: toft, this cluster's own API]
    #[arg(long, value_name = "TEXT")]
    pub(super) audience: Option<String>,
    /// What it may: viewer, operator or admin
    #[arg(long, value_name = "ROLE", default_value = "viewer", value_parser = parsed::<Role>)]
    pub(super) role: Role,
    /// Deployment, or workload that belongs to none, whose operator it is; repeatable
    #[arg(long = "grant", value_name = "NAME", value_parser = parsed::<Name>)]
    pub(super) grants: Vec<Name>,
    /// How long it is valid: 15m; an hour at most
    #[arg(long, value_name = "SPAN", default_value = "15m", value_parser = span)]
    pub(super) ttl: String,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

const TOKEN_HELP: &str = "It may at most what its owner may, also when they may less later. Programs send it as `Authorization: Bearer`, toft itself with
--api-token-file. `toft token` is about the other kind, which lets machines join.";

#[derive(Debug, Args)]
pub(super) struct ApiTokenCreateArgs {
    /// Whose it is; needed at the unix socket, where root asks
    #[arg(long, value_name = "NAME", value_parser = parsed::<UserName>)]
    pub(super) user: Option<UserName>,
    /// What it is for
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(super) label: String,
    /// What it may: viewer, operator or admin
    #[arg(long, value_name = "ROLE", default_value = "viewer", value_parser = parsed::<Role>)]
    pub(super) role: Role,
    /// Deployment, or workload that belongs to none, whose operator it is; repeatable
    #[arg(long = "grant", value_name = "NAME", value_parser = parsed::<Name>)]
    pub(super) grants: Vec<Name>,
    /// How long it is valid: 12h, 90d; a year at most
    #[arg(long, value_name = "SPAN", default_value = "90d", value_parser = span)]
    pub(super) ttl: String,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum CaCommand {
    /// Print its certificate, which devices and --ca-file take, and its SHA-256
    Show {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
pub(super) struct AuditArgs {
    /// Only what this user did; `root` is whoever uses the unix socket
    #[arg(long, value_name = "NAME")]
    pub(super) user: Option<String>,
    /// Only what is not older: 30m, 3h, 2d, or a time
    #[arg(long, value_name = "TIME")]
    pub(super) since: Option<String>,
    /// Only entries with this text in what was done to what, before or afterwards
    #[arg(long, value_name = "TEXT")]
    pub(super) grep: Option<String>,
    /// How many, the newest; 0 for all
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 100, conflicts_with = "json")]
    pub(super) tail: u32,
    /// Print all as JSON, an entry a line
    #[arg(long)]
    pub(super) json: bool,
}

fn span(text: &str) -> Result<String, String> {
    parse_span_ms(text).map(|_| text.to_owned()).map_err(told)
}
