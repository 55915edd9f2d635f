//! The only wiring: builds what is shared and lists every background task.
