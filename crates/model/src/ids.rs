//! Typed identifiers. All are UUIDs in their 36-character spelling; new ones are version 7, so that they sort by age.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::Timestamp;

/// A text that is not a UUID where one was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an id: an id is a UUID of 36 characters such as 019ab3c4-5d6e-7f80-9a1b-2c3d4e5f6071")]
pub struct ParseIdError {
    text: String,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// A version 7 id for `now`, made unique by ten random bytes.
            #[must_use]
            pub fn new(now: Timestamp, random: [u8; 10]) -> Self {
                Self(uuid::Builder::from_unix_timestamp_millis(now.as_millis(), &random).into_uuid())
            }

            /// Wraps an existing UUID.
            #[must_use]
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// The UUID itself.
            #[must_use]
            pub const fn uuid(&self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.as_hyphenated().fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            /// Accepts the hyphenated lower-case form only: other spellings of the same UUID would make two names for one object.
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let refused = || ParseIdError { text: text.chars().take(64).collect() };
                if text.len() != 36 || text.bytes().any(|byte| byte.is_ascii_uppercase()) {
                    return Err(refused());
                }
                Uuid::try_parse(text).map(Self).map_err(|_| refused())
            }
        }
    };
}

id!(
    /// One sandbox. Stays the same from provisioning to termination.
    SandboxId
);
id!(
    /// One snapshot of a sandbox.
    SnapshotId
);
id!(
    /// One pool. A pool deleted and made again under the same name has another id.
    PoolId
);
id!(
    /// One version of one template.
    TemplateId
);
id!(
    /// One tenant.
    TenantId
);
id!(
    /// One API key (not its secret).
    ApiKeyId
);
id!(
    /// One claim: tells two leases of the same holder apart.
    AssignmentId
);
id!(
    /// One registry's credentials of one owner.
    RegistryCredentialId
);
id!(
    /// One build of an image.
    BuildId
);

/// Position of an event in the log. Grows by at least one an event; gaps are possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EventSeq(pub u64);
