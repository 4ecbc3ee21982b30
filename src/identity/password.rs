//! Passwords: Argon2id hashes, and the first password, which is random and needs none.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use argon2::{
    Algorithm, Argon2, Params, Version,
    password_hash::{PasswordHasher, PasswordVerifier, Salt, SaltString},
};
use sha2::{Digest as _, Sha256};
use toft_model::{
    identity::{PasswordHash, UserName},
    token::Digest,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::Instant,
};
use zeroize::Zeroizing;

use super::secret::{NoRandom, random};

/// What a hash costs (OWASP's advice of 2023): memory in KiB, passes, lanes.
const MEMORY_KIB: u32 = 19_456;
const PASSES: u32 = 2;
const LANES: u32 = 1;
/// Hashes at a time.
const AT_A_TIME: usize = 2;
/// How long a right password is remembered, and how many.
const REMEMBERED: Duration = Duration::from_secs(600);
const MOST_REMEMBERED: usize = 256;

/// Why a password cannot be hashed.
#[derive(Debug, thiserror::Error)]
pub enum HashError {
    /// No salt.
    #[error("the password cannot be salted")]
    Salt(#[from] NoRandom),
    /// The hash failed.
    #[error("the password cannot be hashed: {0}")]
    Hash(String),
}

/// The first password of `admin`, as its digest: it is random, so that no work protects it.
#[derive(Clone)]
pub struct FirstPassword(Digest);

impl FirstPassword {
    /// Of this text.
    pub fn new(text: &str) -> Self {
        Self(Digest(Sha256::digest(text.as_bytes()).into()))
    }

    /// Whether this is it; time does not tell how much was right.
    pub fn is(&self, text: &str) -> bool {
        self.0.is(&Digest(Sha256::digest(text.as_bytes()).into()))
    }
}

impl fmt::Debug for FirstPassword {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FirstPassword(..)")
    }
}

/// A turn to hash or compare.
pub struct Turn(OwnedSemaphorePermit);

/// Hashes and compares, few at a time.
#[derive(Clone)]
pub struct Passwords {
    turns: Arc<Semaphore>,
    /// Passwords that were right, as digests keyed with random bytes of this process, and until when they are remembered.
    known: Arc<Mutex<HashMap<[u8; 32], Instant>>>,
    key: Arc<Zeroizing<[u8; 32]>>,
    /// Comparisons under way, by the same digests: whoever shows the same at the same time waits for the one that was first.
    under_way: UnderWay,
}

/// Comparisons under way, and what became of them.
type UnderWay = Arc<Mutex<HashMap<[u8; 32], watch::Receiver<Option<bool>>>>>;

/// What somebody shows, next to whoever shows the same at the same time.
pub enum Company {
    /// Nobody else does.
    First(First),
    /// Somebody else did a moment ago: whether it was right; nothing when they gave up.
    Told(Option<bool>),
}

/// Whoever is first tells the others; who is dropped without a word has given up.
pub struct First {
    mark: [u8; 32],
    told: watch::Sender<Option<bool>>,
    under_way: UnderWay,
}

impl First {
    /// Tells whether it was right.
    pub fn tell(self, right: bool) {
        self.told.send_replace(Some(right));
    }
}

impl Drop for First {
    fn drop(&mut self) {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.mark);
    }
}

fn hasher() -> Argon2<'static> {
    let params = Params::new(MEMORY_KIB, PASSES, LANES, None).expect("these are within Argon2's bounds");
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
}

fn hash_now(password: &[u8]) -> Result<PasswordHash, HashError> {
    let failed = |error: argon2::password_hash::Error| HashError::Hash(error.to_string());
    let salt = SaltString::encode_b64(&random::<{ Salt::RECOMMENDED_LENGTH }>()?).map_err(failed)?;
    let hash = hasher().hash_password(password, &salt).map_err(failed)?.to_string();
    hash.parse().map_err(|_| HashError::Hash("it is too long".into()))
}

fn is_of(hash: &PasswordHash, password: &[u8]) -> bool {
    // The hash names its own costs; it was made by a member of this cluster.
    argon2::PasswordHash::new(hash.as_str()).is_ok_and(|hash| hasher().verify_password(password, &hash).is_ok())
}

/// Stands for the hash of who does not exist or has no password. Nothing is known that it is made of.
const NOBODY: &str = "$argon2id$v=19$m=19456,t=2,p=1$dGhpcyBpcyBub2JvZHk$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

impl Passwords {
    /// None is remembered yet.
    pub fn new() -> Result<Self, NoRandom> {
        Ok(Self {
            turns: Arc::new(Semaphore::new(AT_A_TIME)),
            known: Arc::default(),
            key: Arc::new(Zeroizing::new(random()?)),
            under_way: Arc::default(),
        })
    }

    /// Hashes a password; this takes its time.
    pub async fn hash(&self, password: Zeroizing<String>) -> Result<PasswordHash, HashError> {
        self.work(self.turn().await, move || hash_now(password.as_bytes())).await
    }

    /// Waits for a turn.
    pub async fn turn(&self) -> Turn {
        Turn(Arc::clone(&self.turns).acquire_owned().await.expect("nobody closes it"))
    }

    /// Waits for whoever shows the same name and password at the same time: a program that asks many things at once has tried one
    /// password, not many. `name` as it was shown; names that do not exist are treated alike.
    pub async fn join(&self, name: &str, hash: Option<&PasswordHash>, password: &str) -> Company {
        let mark = self.mark(name, hash.map_or(NOBODY, PasswordHash::as_str), password);
        let mut told = {
            let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
            match under_way.get(&mark) {
                Some(told) => told.clone(),
                None => {
                    let (sender, told) = watch::channel(None);
                    under_way.insert(mark, told);
                    return Company::First(First { mark, told: sender, under_way: Arc::clone(&self.under_way) });
                }
            }
        };
        Company::Told(told.wait_for(Option::is_some).await.ok().and_then(|right| *right))
    }

    /// Whether a password was right a short while ago, and the hash is still the same. Costs nothing.
    pub fn knows(&self, user: &UserName, hash: &PasswordHash, password: &str) -> bool {
        self.remembers(&self.mark(user.as_str(), hash.as_str(), password))
    }

    /// Whether a password is the user's. Without a hash it is not, after the same work.
    pub async fn verify(
        &self,
        turn: Turn,
        user: &UserName,
        hash: Option<&PasswordHash>,
        password: Zeroizing<String>,
    ) -> bool {
        let mark = hash.map(|hash| self.mark(user.as_str(), hash.as_str(), &password));
        let exists = hash.is_some();
        let hash = hash.cloned().or_else(|| NOBODY.parse().ok());
        let right = self.work(turn, move || hash.is_some_and(|hash| is_of(&hash, password.as_bytes()))).await && exists;
        if let Some(mark) = mark.filter(|_| right) {
            self.remember(mark);
        }
        right
    }

    async fn work<T: Send + 'static>(&self, turn: Turn, work: impl FnOnce() -> T + Send + 'static) -> T {
        let done = tokio::task::spawn_blocking(move || {
            let done = work();
            drop(turn.0);
            done
        });
        done.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }

    /// Changes with the user's hash: a new password makes the old one unknown at once.
    fn mark(&self, user: &str, hash: &str, password: &str) -> [u8; 32] {
        let mut digest = Sha256::new().chain_update(**self.key);
        for text in [user, hash, password] {
            digest = digest.chain_update((text.len() as u64).to_le_bytes()).chain_update(text.as_bytes());
        }
        digest.finalize().into()
    }

    fn remembers(&self, mark: &[u8; 32]) -> bool {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(mark).is_some_and(|until| Instant::now() < *until)
    }

    fn remember(&self, mark: [u8; 32]) {
        let now = Instant::now();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, until| now < *until);
        if known.len() < MOST_REMEMBERED {
            known.insert(mark, now + REMEMBERED);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Zeroizing<String> {
        Zeroizing::new(text.to_owned())
    }

    #[tokio::test]
    async fn a_password_is_known_by_its_hash_alone() {
        let passwords = Passwords::new().unwrap();
        let ann: UserName = "ann".parse().unwrap();
        let hash = passwords.hash(text("correct horse")).await.unwrap();
        assert!(hash.as_str().starts_with("$argon2id$v=19$m=19456,t=2,p=1$"));
        assert_ne!(passwords.hash(text("correct horse")).await.unwrap(), hash, "each has a salt of its own");
        for _ in 0..2 {
            assert!(passwords.verify(passwords.turn().await, &ann, Some(&hash), text("correct horse")).await);
            assert!(!passwords.verify(passwords.turn().await, &ann, Some(&hash), text("correct horsf")).await);
            assert!(!passwords.verify(passwords.turn().await, &ann, Some(&hash), text("")).await);
            assert!(!passwords.verify(passwords.turn().await, &ann, None, text("correct horse")).await);
        }
        let damaged: PasswordHash = "$argon2id$v=19$m=1,t=1,p=1$x$y".parse().unwrap();
        assert!(!passwords.verify(passwords.turn().await, &ann, Some(&damaged), text("x")).await);
        let first = FirstPassword::new("s3cret");
        assert!(first.is("s3cret") && !first.is("s3cre") && !first.is("") && !format!("{first:?}").contains("s3"));
    }

    #[tokio::test]
    async fn what_is_remembered_belongs_to_the_user_and_the_hash() {
        let passwords = Passwords::new().unwrap();
        let [ann, bob]: [UserName; 2] = ["ann", "bob"].map(|name| name.parse().unwrap());
        let hash = passwords.hash(text("one")).await.unwrap();
        assert!(passwords.verify(passwords.turn().await, &ann, Some(&hash), text("one")).await);
        assert!(passwords.knows(&ann, &hash, "one"));
        assert!(!passwords.knows(&bob, &hash, "one"));
        assert!(!passwords.knows(&ann, &hash, "two"));
        let other = passwords.hash(text("two")).await.unwrap();
        assert!(
            !passwords.verify(passwords.turn().await, &ann, Some(&other), text("one")).await,
            "the old one is forgotten at once"
        );
    }

    #[tokio::test]
    async fn who_shows_the_same_at_the_same_time_is_told_by_the_first() {
        let passwords = Passwords::new().unwrap();
        let join = |name, password| passwords.join(name, None, password);
        let Company::First(first) = join("ann", "one").await else { panic!("nobody was there") };
        assert!(
            matches!(join("bob", "one").await, Company::First(_))
                && matches!(join("ann", "two").await, Company::First(_))
        );
        let (told, ()) = tokio::join!(join("ann", "one"), async { first.tell(true) });
        assert!(matches!(told, Company::Told(Some(true))));
        let Company::First(first) = join("ann", "one").await else { panic!("it is over") };
        let (told, ()) = tokio::join!(join("ann", "one"), async { drop(first) });
        assert!(matches!(told, Company::Told(None)), "who gives up says nothing");
        assert!(passwords.under_way.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn who_does_not_exist_costs_the_same_work() {
        let passwords = Passwords::new().unwrap();
        let nobody: UserName = "nobody".parse().unwrap();
        let hash = passwords.hash(text("right")).await.unwrap();
        let mut spent = [Duration::ZERO; 2];
        for _ in 0..5 {
            for (spent, hash) in spent.iter_mut().zip([Some(&hash), None]) {
                let begun = std::time::Instant::now();
                assert!(!passwords.verify(passwords.turn().await, &nobody, hash, text("wrong")).await);
                *spent += begun.elapsed();
            }
        }
        let (known, unknown) = (spent[0].as_secs_f64(), spent[1].as_secs_f64());
        assert!((0.33..3.0).contains(&(unknown / known)), "{spent:?}");
    }
}
