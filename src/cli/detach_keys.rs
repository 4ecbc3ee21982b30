//! The keys that leave a container as it is.

use std::str::FromStr;

/// Most keys of a sequence.
const MOST_KEYS: usize = 16;

/// Keys to be pressed one after the other, as Docker writes them: `ctrl-p,ctrl-q`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DetachKeys(Vec<u8>);

impl FromStr for DetachKeys {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let key = |key: &str| match (key.strip_prefix("ctrl-").map(str::as_bytes), key.as_bytes()) {
            // A letter, or one of @ [ \ ] ^ _: the control key takes their upper bits away.
            (Some([byte @ (b'a'..=b'z' | b'@' | b'['..=b'_')]), _) => Some(byte & 0x1f),
            (None, [byte @ 0x21..=0x7e]) => Some(*byte),
            _ => None,
        };
        let keys: Option<Vec<u8>> = text.split(',').map(key).collect();
        match keys {
            Some(keys) if keys.len() <= MOST_KEYS => Ok(Self(keys)),
            _ => Err("write the keys like `ctrl-p,ctrl-q` or `ctrl-],q`".to_owned()),
        }
    }
}

/// Watches what is typed for the keys.
pub(super) struct Detaching {
    keys: Vec<u8>,
    pressed: usize,
}

impl Detaching {
    pub(super) fn new(keys: DetachKeys) -> Self {
        Self { keys: keys.0, pressed: 0 }
    }

    /// What of it is to be passed on, and whether the keys were pressed. The first of them are held back until it is clear.
    pub(super) fn pass(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(typed.len());
        for byte in typed {
            if *byte != self.keys[self.pressed] {
                passed.extend_from_slice(&self.keys[..self.pressed]);
                self.pressed = 0;
                if *byte != self.keys[0] {
                    passed.push(*byte);
                    continue;
                }
            }
            self.pressed += 1;
            if self.pressed == self.keys.len() {
                return (passed, true);
            }
        }
        (passed, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_docker_reads_them() {
        for (text, keys) in [
            ("ctrl-p,ctrl-q", &[0x10, 0x11][..]),
            ("a", b"a"),
            ("ctrl-@,ctrl-[", &[0, 0x1b]),
            ("ctrl-_,~", &[0x1f, b'~']),
        ] {
            assert_eq!(text.parse::<DetachKeys>().unwrap().0, keys);
        }
        for bad in
            ["", ",", "ctrl-", "ctrl-P", "ctrl-1", "ctrl-pp", "aa", "a, b", "ctrl-p,", "é", "\n", &"a,".repeat(20)]
        {
            assert!(bad.parse::<DetachKeys>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_only_looked_like_the_keys_is_passed_on() {
        let passes = |parts: &[&str]| {
            let mut detaching = Detaching::new("p,q".parse().unwrap());
            let mut passed = Vec::new();
            for part in parts {
                let (part, detached) = detaching.pass(part.as_bytes());
                passed.extend(part);
                if detached {
                    return (String::from_utf8(passed).unwrap(), true);
                }
            }
            (String::from_utf8(passed).unwrap(), false)
        };
        assert_eq!(passes(&["abc"]), ("abc".into(), false));
        assert_eq!(passes(&["ap", "qx"]), ("a".into(), true));
        assert_eq!(passes(&["p", "xq"]), ("pxq".into(), false));
        assert_eq!(passes(&["pp", "q"]), ("p".into(), true));
        assert_eq!(passes(&["p"]), (String::new(), false), "held back");
        let mut one = Detaching::new("q".parse().unwrap());
        assert_eq!(one.pass(b"aq"), (b"a".to_vec(), true));
    }
}
