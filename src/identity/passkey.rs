//! Passkeys: what a browser is asked for, and what it brings back.
//!
//! `webauthn_rp` reads and proves; here is what was asked, in memory of one node: each question for one browser at one address, five
//! minutes long, answered once. docs/access.md tells the whole.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use data_encoding::BASE64URL_NOPAD;
use toft_model::{
    identity::UserName,
    passkey::{Backup, Domain, NewPasskey, Opaque, PasskeyUse},
    token::TokenId,
};
use tokio::time::Instant;
use webauthn_rp::{
    AuthenticatedCredential, DiscoverableAuthentication64, DiscoverableAuthenticationServerState,
    DiscoverableCredentialRequestOptions, PublicKeyCredentialCreationOptions, Registration, RegistrationServerState,
    bin::{Decode, Encode},
    request::{
        AsciiDomain, ExtensionInfo, PublicKeyCredentialDescriptor, RpId, TimedCeremony,
        auth::AuthenticationVerificationOptions,
        register::{
            CredProtect, Nickname, PublicKeyCredentialUserEntity, RegistrationVerificationOptions, UserHandle64,
            Username,
        },
    },
    response::{
        AuthTransports, AuthenticatorAttachment, Backup as Kept, CredentialId, Origin,
        auth::error::AuthCeremonyErr,
        register::{DynamicState, StaticState},
    },
};

/// How long somebody may take, of which browsers are told too.
const LONGEST: Duration = Duration::from_secs(5 * 60);
/// Most questions at a time, and of one address; the oldest makes room.
const MOST: usize = 1_024;
const MOST_OF_ONE: usize = 16;
/// Longest answer of a browser that is read, in bytes.
const LONGEST_ANSWER: usize = 16 << 10;

/// The page that asks, as its browser names it, and the domain whose passkeys it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// To which the passkeys belong.
    pub domain: Domain,
    /// `https://box.home.lan:7443`.
    pub origin: String,
}

impl Site {
    /// Of a page at `origin`. Passkeys belong to `shared` where that holds the page's host, else to the host; `None` when the host is
    /// no name.
    pub fn of(origin: &str, shared: Option<&Domain>) -> Option<Self> {
        let (_, authority) = origin.split_once("://")?;
        let host = authority.split(':').next().filter(|_| !authority.starts_with('['))?;
        let host: Domain = host.parse().ok()?;
        let domain = shared.filter(|shared| shared.holds(&host)).cloned().unwrap_or(host);
        Some(Self { domain, origin: origin.to_owned() })
    }

    fn rp_id(&self) -> Result<RpId, PasskeyError> {
        let domain = AsciiDomain::try_from(self.domain.as_str().to_owned());
        domain.map(RpId::Domain).map_err(|error| PasskeyError::Unusable(error.to_string()))
    }
}

/// Why a passkey is not taken.
#[derive(Debug, thiserror::Error)]
pub enum PasskeyError {
    /// Nothing was asked that this could answer: too long ago, once already, elsewhere, or by somebody else.
    #[error("nothing was asked that this answers")]
    NotAsked,
    /// It is no answer of a browser.
    #[error("this is no answer of a browser: {0}")]
    Unreadable(String),
    /// It answers, and proves nothing.
    #[error("the passkey proves nothing: {0}")]
    Unproved(String),
    /// The counter of signatures did not grow.
    #[error("the passkey's counter went backwards: there may be a copy of it")]
    Counter,
    /// Nothing can be asked, or what is known of a passkey cannot be read.
    #[error("passkeys cannot be used: {0}")]
    Unusable(String),
}

/// A passkey that is to be made.
pub struct Wish<'a> {
    /// For whom.
    pub user: &'a UserName,
    /// What they call it.
    pub label: String,
    /// What authenticators call its user, if they have a passkey already.
    pub handle: Option<Opaque>,
    /// Those they have: what keeps one of them makes no other.
    pub known: &'a [NewPasskey],
}

enum Asked {
    Register { user: UserName, label: String, state: RegistrationServerState<64> },
    SignIn { state: DiscoverableAuthenticationServerState },
}

struct Question {
    asked: Asked,
    site: Site,
    from: Option<IpAddr>,
    until: Instant,
}

/// What was asked and has no answer yet, by its challenge.
#[derive(Default)]
pub struct Passkeys(Mutex<HashMap<u128, Question>>);

/// What a browser answered to the sign-in. It proves nothing before [`Passkeys::prove`].
pub struct Shown(DiscoverableAuthentication64);

impl Shown {
    /// Reads the answer of a browser (`AuthenticationResponseJSON`).
    pub fn read(answer: &str) -> Result<Self, PasskeyError> {
        let text = readable(answer)?;
        DiscoverableAuthentication64::from_json_relaxed(text).map(Self).map_err(unreadable)
    }

    /// What the authenticator calls the credential.
    pub fn credential(&self) -> Vec<u8> {
        self.0.raw_id().into_inner().to_vec()
    }
}

/// A passkey that was asked for, and is answered now: its turn is over whatever comes of it.
pub struct Turn {
    state: DiscoverableAuthenticationServerState,
    site: Site,
}

fn unreadable(error: impl ToString) -> PasskeyError {
    PasskeyError::Unreadable(error.to_string().chars().filter(|c| !c.is_control()).take(200).collect())
}

fn unproved(error: impl ToString) -> PasskeyError {
    PasskeyError::Unproved(error.to_string().chars().filter(|c| !c.is_control()).take(200).collect())
}

fn unusable(error: impl ToString) -> PasskeyError {
    PasskeyError::Unusable(error.to_string())
}

fn readable(answer: &str) -> Result<&[u8], PasskeyError> {
    if answer.len() > LONGEST_ANSWER {
        return Err(PasskeyError::Unreadable(format!("it is longer than {LONGEST_ANSWER} bytes")));
    }
    Ok(answer.as_bytes())
}

fn handle_of(handle: &Opaque) -> Result<UserHandle64, PasskeyError> {
    let bytes: [u8; 64] = handle.as_bytes().try_into().map_err(unusable)?;
    UserHandle64::decode(bytes).map_err(unusable)
}

fn backup_of(kept: Kept) -> Backup {
    match kept {
        Kept::NotEligible => Backup::Never,
        Kept::Eligible => Backup::Possible,
        Kept::Exists => Backup::Done,
    }
}

fn kept_of(backup: Backup) -> Kept {
    match backup {
        Backup::Never => Kept::NotEligible,
        Backup::Possible => Kept::Eligible,
        Backup::Done => Kept::Exists,
    }
}

fn opaque(handle: &UserHandle64) -> Opaque {
    let bytes: &[u8] = handle.as_ref();
    bytes.to_vec().into()
}

impl Passkeys {
    fn lock(&self) -> MutexGuard<'_, HashMap<u128, Question>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&self, challenge: u128, asked: Asked, site: Site, from: Option<IpAddr>) {
        let now = Instant::now();
        let mut questions = self.lock();
        questions.retain(|_, one| now < one.until);
        let of_one = questions.values().filter(|one| one.from == from).count() >= MOST_OF_ONE;
        if of_one || questions.len() >= MOST {
            let mine = questions.iter().filter(|(_, one)| !of_one || one.from == from);
            if let Some(oldest) = mine.min_by_key(|(_, one)| one.until).map(|(challenge, _)| *challenge) {
                questions.remove(&oldest);
            }
        }
        questions.insert(challenge, Question { asked, site, from, until: now + LONGEST });
    }

    /// What was asked with this challenge, which is over with that. It was asked at this very page of whoever is at that address.
    fn take(&self, challenge: u128, site: &Site, from: Option<IpAddr>) -> Result<Question, PasskeyError> {
        let question = self.lock().remove(&challenge).ok_or(PasskeyError::NotAsked)?;
        let same = Instant::now() < question.until && question.site == *site && question.from == from;
        if same { Ok(question) } else { Err(PasskeyError::NotAsked) }
    }

    /// Asks for a new passkey: what the page's script hands to the browser (`PublicKeyCredentialCreationOptionsJSON`).
    pub fn ask_new(&self, wish: Wish<'_>, site: Site, from: Option<IpAddr>) -> Result<String, PasskeyError> {
        let rp_id = site.rp_id()?;
        let handle = match &wish.handle {
            Some(handle) => handle_of(handle)?,
            None => UserHandle64::new(),
        };
        let descriptor = |passkey: &NewPasskey| {
            let id = CredentialId::<Vec<u8>>::decode(passkey.credential.as_bytes().to_vec()).map_err(unusable)?;
            let transports = AuthTransports::decode(passkey.transports).map_err(unusable)?;
            Ok(PublicKeyCredentialDescriptor { id, transports })
        };
        let known = wish.known.iter().map(descriptor).collect::<Result<Vec<_>, PasskeyError>>()?;
        let name = Username::try_from(wish.user.as_str()).map_err(unusable)?;
        let display_name = Nickname::try_from(wish.user.as_str()).ok();
        let user = PublicKeyCredentialUserEntity { name, id: &handle, display_name };
        let mut options = PublicKeyCredentialCreationOptions::passkey(&rp_id, user, known);
        // What cannot promise it is welcome too: whoever signs in is verified anyway.
        options.extensions.cred_protect = CredProtect::UserVerificationRequired(ExtensionInfo::AllowDontEnforceValue);
        let (state, client) = options.start_ceremony().map_err(unusable)?;
        let text = serde_json::to_string(&client).map_err(unusable)?;
        let challenge = state.sent_challenge().0;
        self.ask(challenge, Asked::Register { user: wish.user.clone(), label: wish.label, state }, site, from);
        Ok(text)
    }

    /// The passkey that a browser brings for that user (`RegistrationResponseJSON`), as `id`.
    pub fn new_passkey(
        &self,
        (user, id): (&UserName, TokenId),
        answer: &str,
        site: &Site,
        from: Option<IpAddr>,
    ) -> Result<NewPasskey, PasskeyError> {
        let answer = Registration::from_json_relaxed(readable(answer)?).map_err(unreadable)?;
        let challenge = answer.challenge_relaxed().map_err(unreadable)?;
        let question = self.take(challenge.0, site, from)?;
        let Asked::Register { user: asked, label, state } = question.asked else { return Err(PasskeyError::NotAsked) };
        if asked != *user {
            return Err(PasskeyError::NotAsked);
        }
        let origins = [Origin(site.origin.as_str().into())];
        let options = RegistrationVerificationOptions::<Origin<'_>, Origin<'_>> {
            allowed_origins: &origins,
            // Browsers and what extends them add what nobody asked for.
            error_on_unsolicited_extensions: false,
            ..Default::default()
        };
        let made = state.verify(&site.rp_id()?, &answer, &options).map_err(unproved)?;
        let dynamic = made.dynamic_state();
        let key = made.static_state().encode().map_err(unusable)?;
        Ok(NewPasskey {
            id,
            user: asked,
            label,
            domain: site.domain.clone(),
            credential: made.id().into_inner().to_vec().into(),
            handle: opaque(made.user_id()),
            key: key.into(),
            transports: made.transports().encode().map_err(unusable)?,
            counter: dynamic.sign_count,
            backup: backup_of(dynamic.backup),
        })
    }

    /// Asks whoever is there for a passkey of theirs (`PublicKeyCredentialRequestOptionsJSON`).
    pub fn ask_known(&self, site: Site, from: Option<IpAddr>) -> Result<String, PasskeyError> {
        let rp_id = site.rp_id()?;
        let asked = DiscoverableCredentialRequestOptions::passkey(&rp_id).start_ceremony();
        let (state, client) = asked.map_err(unusable)?;
        let text = serde_json::to_string(&client).map_err(unusable)?;
        self.ask(state.sent_challenge().0, Asked::SignIn { state }, site, from);
        Ok(text)
    }

    /// The question that this answers. It can be answered once, whatever the answer is.
    pub fn turn(&self, shown: &Shown, site: &Site, from: Option<IpAddr>) -> Result<Turn, PasskeyError> {
        let challenge = shown.0.challenge_relaxed().map_err(unreadable)?;
        let question = self.take(challenge.0, site, from)?;
        match question.asked {
            Asked::SignIn { state } => Ok(Turn { state, site: question.site }),
            Asked::Register { .. } => Err(PasskeyError::NotAsked),
        }
    }

    /// What there is to note of a passkey that has signed.
    pub fn prove(turn: Turn, shown: &Shown, known: &NewPasskey) -> Result<PasskeyUse, PasskeyError> {
        let Turn { state, site } = turn;
        if known.domain != site.domain {
            return Err(PasskeyError::Unproved("it belongs to another domain".into()));
        }
        let handle = handle_of(&known.handle)?;
        let id = CredentialId::<&[u8]>::decode(known.credential.as_bytes()).map_err(unusable)?;
        let key = StaticState::decode(known.key.as_bytes()).map_err(unusable)?;
        let before = DynamicState {
            user_verified: true,
            backup: kept_of(known.backup),
            sign_count: known.counter,
            authenticator_attachment: AuthenticatorAttachment::None,
        };
        let mut credential = AuthenticatedCredential::new(id, &handle, key, before).map_err(unusable)?;
        let origins = [Origin(site.origin.as_str().into())];
        let options = AuthenticationVerificationOptions::<Origin<'_>, Origin<'_>> {
            allowed_origins: &origins,
            error_on_unsolicited_extensions: false,
            ..Default::default()
        };
        match state.verify(&site.rp_id()?, &shown.0, &mut credential, &options) {
            Ok(_) => {}
            Err(AuthCeremonyErr::SignatureCounter) => return Err(PasskeyError::Counter),
            Err(error) => return Err(unproved(error)),
        }
        let after = credential.dynamic_state();
        Ok(PasskeyUse { passkey_id: known.id.clone(), counter: after.sign_count, backup: backup_of(after.backup) })
    }
}

/// What the brake counts attempts with a credential as that nobody knows. It is longer than any name somebody can type.
pub fn unknown_name(credential: &[u8]) -> String {
    let begins: String = BASE64URL_NOPAD.encode(credential).chars().take(80).collect();
    format!("{begins}\0{:64}", "passkey")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Option<IpAddr> = Some(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)));

    fn site() -> Site {
        Site::of("https://box.home.lan:7443", None).unwrap()
    }

    fn challenge(options: &str) -> u128 {
        let options: serde_json::Value = serde_json::from_str(options).unwrap();
        let bytes = BASE64URL_NOPAD.decode(options["challenge"].as_str().unwrap().as_bytes()).unwrap();
        u128::from_le_bytes(bytes.try_into().unwrap())
    }

    #[test]
    fn passkeys_belong_to_the_shared_domain_or_to_the_name_that_was_opened() {
        let home: Domain = "home.lan".parse().unwrap();
        let domain = |origin: &str| Site::of(origin, Some(&home)).map(|site| site.domain.to_string());
        for (origin, want) in [
            ("https://a.home.lan:7443", Some("home.lan")),
            ("https://home.lan", Some("home.lan")),
            ("http://localhost:7443", Some("localhost")),
            ("https://box.local:7443", Some("box.local")),
            ("https://nothome.lan", Some("nothome.lan")),
            ("https://192.0.2.1:7443", None),
            ("https://[fd00::1]:7443", None),
            ("null", None),
            ("https://", None),
            ("https://a b", None),
        ] {
            assert_eq!(domain(origin).as_deref(), want, "{origin}");
        }
        assert_eq!(site().domain.as_str(), "box.home.lan");
    }

    #[test]
    fn what_is_asked_names_the_domain_and_wants_the_user_verified() {
        let passkeys = Passkeys::default();
        let ann: UserName = "ann@home.lan".parse().unwrap();
        let known = NewPasskey {
            id: TokenId::of([1; 10]),
            user: ann.clone(),
            label: "phone".into(),
            domain: site().domain,
            credential: vec![5; 20].into(),
            handle: vec![7; 64].into(),
            key: vec![1].into(),
            transports: 0,
            counter: 0,
            backup: Backup::Never,
        };
        let wish = Wish {
            user: &ann,
            label: "key".into(),
            handle: Some(known.handle.clone()),
            known: std::slice::from_ref(&known),
        };
        let new: serde_json::Value = serde_json::from_str(&passkeys.ask_new(wish, site(), HERE).unwrap()).unwrap();
        assert_eq!((&new["rp"]["id"], &new["user"]["name"]), (&"box.home.lan".into(), &"ann@home.lan".into()));
        assert_eq!(new["user"]["id"], BASE64URL_NOPAD.encode(&[7; 64]), "the same user keeps the same handle");
        assert_eq!(new["excludeCredentials"][0]["id"], BASE64URL_NOPAD.encode(&[5; 20]));
        assert_eq!(new["authenticatorSelection"]["userVerification"], "required");
        assert_eq!(new["authenticatorSelection"]["residentKey"], "required");
        assert_eq!(new["extensions"]["enforceCredentialProtectionPolicy"], false, "{new}");
        let known: serde_json::Value = serde_json::from_str(&passkeys.ask_known(site(), HERE).unwrap()).unwrap();
        assert_eq!((&known["rpId"], &known["userVerification"]), (&"box.home.lan".into(), &"required".into()));
        assert_ne!(new["challenge"], known["challenge"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_question_is_answered_once_in_time_and_where_it_was_asked() {
        let passkeys = Passkeys::default();
        let ask = || challenge(&passkeys.ask_known(site(), HERE).unwrap());
        let elsewhere = Site::of("https://box.home.lan:7444", None).unwrap();
        let other = Some("192.0.2.2".parse().unwrap());
        for (site, from) in [(&elsewhere, HERE), (&site(), other), (&site(), None)] {
            let asked = ask();
            assert!(passkeys.take(asked, site, from).is_err());
            assert!(passkeys.take(asked, &self::site(), HERE).is_err(), "one answer, whatever it is");
        }
        assert!(passkeys.take(ask(), &site(), HERE).is_ok());
        let late = ask();
        tokio::time::advance(LONGEST).await;
        assert!(passkeys.take(late, &site(), HERE).is_err());
        for _ in 0..3 * MOST_OF_ONE {
            ask();
        }
        assert_eq!(passkeys.lock().len(), MOST_OF_ONE, "one address holds few, and what is too old is swept");
        for i in 0..2 * MOST as u32 {
            passkeys.ask_known(site(), Some(IpAddr::from(i.to_be_bytes()))).unwrap();
        }
        assert_eq!(passkeys.lock().len(), MOST);
    }

    #[test]
    fn what_is_no_answer_is_told_in_few_words() {
        let passkeys = Passkeys::default();
        let deep = "[".repeat(10_000);
        let long = format!("{{\"id\":\"{}\"}}", "A".repeat(LONGEST_ANSWER));
        let wrong_id = format!(r#"{{"id":"{}","response":{{}}}}"#, "A".repeat(8_000));
        for bad in ["", "null", "{}", "[]", "\u{0}", r#"{"id":"AA","response":7}"#, &deep, &long, &wrong_id] {
            let ann = "ann".parse().unwrap();
            let new = passkeys.new_passkey((&ann, TokenId::of([1; 10])), bad, &site(), HERE);
            let errors = [new.err().unwrap(), Shown::read(bad).err().unwrap()];
            for error in errors {
                assert!(matches!(&error, PasskeyError::Unreadable(why) if why.chars().count() <= 200), "{error}");
            }
        }
        assert!(unknown_name(&[1; 1_023]).len() > UserName::MAX_BYTES);
    }
}
