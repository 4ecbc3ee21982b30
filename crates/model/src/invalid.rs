//! What is wrong with a value that came from outside, said so that a person can mend it.

/// A refused value: which field, what is wrong with it, and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Invalid {
    /// Path of the field as the user wrote it (`ports[0].host`), empty when the parser of a bare value speaks.
    pub field: String,
    /// What is wrong, lower case, no full stop.
    pub message: String,
    /// The next step that mends it.
    pub hint: String,
}

impl Invalid {
    /// A refusal of a bare value; the caller that knows the field adds it with [`Invalid::at`].
    pub fn value(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { field: String::new(), message: message.into(), hint: hint.into() }
    }

    /// The same refusal, said of `field`. A path already present is kept below it.
    pub fn at(mut self, field: &str) -> Self {
        self.field = if self.field.is_empty() { field.to_owned() } else { format!("{field}.{}", self.field) };
        self
    }
}
