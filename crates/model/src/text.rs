//! Values that are written as text wherever they appear: in JSON, in arguments, in the state.

/// Lets a type with `FromStr` and `Display` be read and written as text by serde (`try_from = "String", into = "String"`).
macro_rules! written_as_text {
    ($name:ident) => {
        impl TryFrom<String> for $name {
            type Error = $crate::invalid::Invalid;

            fn try_from(text: String) -> Result<Self, $crate::invalid::Invalid> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.to_string()
            }
        }
    };
}

pub(crate) use written_as_text;

/// The beginning of a text from outside, short enough for a message.
pub(crate) fn shown(text: &str) -> String {
    text.chars().take(60).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
