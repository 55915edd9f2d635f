//! Ready, metrics, configuration and attestation, on a runtime of its own.
