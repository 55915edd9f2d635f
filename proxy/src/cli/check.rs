//! `writ check`.
