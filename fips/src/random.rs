//! Random bytes by the module.

use aws_lc_rs::rand;

/// The module could not give random bytes. It is unusable: there is nothing to fall back on.
#[derive(Debug, thiserror::Error)]
#[error("the crypto module could not give random bytes; see `writ attest` for its state")]
pub struct RandomFailed;

/// Fills `bytes` with random ones.
pub fn random(bytes: &mut [u8]) -> Result<(), RandomFailed> {
    rand::fill(bytes).map_err(|_| RandomFailed)
}

/// Seeds this thread's generator, which is the slow part of a thread's first handshake. Called by each worker at start.
pub fn warm() -> Result<(), RandomFailed> {
    random(&mut [0; 32])
}

#[cfg(test)]
mod tests {
    #[test]
    fn two_fillings_differ() {
        let (mut a, mut b) = ([0; 32], [0; 32]);
        super::random(&mut a).unwrap();
        super::random(&mut b).unwrap();
        assert_ne!(a, b);
    }
}
