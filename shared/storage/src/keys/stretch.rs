//! Making a key of a passphrase: Argon2id, with what it costs kept in the slot.

use argon2::{Algorithm, Argon2, Params, Version};
use zeroize::Zeroizing;

/// What Argon2id costs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cost {
    /// Memory in KiB.
    pub memory_kib: u32,
    /// Passes over the memory.
    pub passes: u32,
    /// Lanes.
    pub lanes: u32,
}

/// For new slots: above what is recommended for passwords at rest (OWASP: 19 MiB and 2 passes), and within the memory that a
/// process archiving or fetching may use.
pub const NEW: Cost = Cost { memory_kib: 32 << 10, passes: 4, lanes: 1 };

/// The bounds of what a slot may ask for: whoever can write to the store must not be able to take a reader's memory or time.
const MAX_MEMORY_KIB: u32 = 64 << 10;
const MAX_LANES: u32 = 4;
/// KiB written in all passes together.
const MAX_WORK_KIB: u64 = 512 << 10;

impl Cost {
    /// Whether it is one that a reader accepts.
    pub fn is_acceptable(self) -> bool {
        let work = u64::from(self.memory_kib) * u64::from(self.passes);
        (1..=MAX_LANES).contains(&self.lanes)
            && (8 * self.lanes..=MAX_MEMORY_KIB).contains(&self.memory_kib)
            && self.passes >= 1
            && work <= MAX_WORK_KIB
    }

    /// The key; `None` for a cost that is not acceptable. Takes the memory it says and about a tenth of a second.
    pub fn stretch(self, passphrase: &[u8], salt: &[u8; 16]) -> Option<Zeroizing<[u8; 32]>> {
        if !self.is_acceptable() {
            return None;
        }
        let params = Params::new(self.memory_kib, self.passes, self.lanes, Some(32)).ok()?;
        let mut key = Zeroizing::new([0; 32]);
        let argon = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        argon.hash_password_into(passphrase, salt, key.as_mut_slice()).ok()?;
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_exhaust_a_reader_is_refused() {
        assert!(NEW.is_acceptable());
        let cost = |memory_kib, passes, lanes| Cost { memory_kib, passes, lanes };
        for bad in [
            cost(u32::MAX, 1, 1),
            cost(MAX_MEMORY_KIB + 1, 1, 1),
            cost(MAX_MEMORY_KIB, 9, 1),
            cost(8, u32::MAX, 1),
            cost(8, 0, 1),
            cost(7, 1, 1),
            cost(16, 1, 3),
            cost(1024, 1, 0),
            cost(1024, 1, u32::MAX),
        ] {
            assert!(!bad.is_acceptable() && bad.stretch(b"x", &[0; 16]).is_none(), "{bad:?}");
        }
    }
}
