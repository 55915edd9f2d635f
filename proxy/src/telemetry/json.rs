//! JSON by hand: the few primitives that record lines are made of. Each appends to a buffer and can't fail.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Text that is JSON already.
#[inline]
pub(super) fn raw(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(text.as_bytes());
}

/// A string with its quotes.
#[inline]
pub(super) fn string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    escaped(out, text);
    out.push(b'"');
}

/// A string of at most `limit` bytes with its quotes; what was cut is marked by an ellipsis.
pub(super) fn bounded_string(out: &mut Vec<u8>, text: &str, limit: usize) {
    out.push(b'"');
    if text.len() <= limit {
        escaped(out, text);
    } else {
        escaped(out, &text[..text.floor_char_boundary(limit)]);
        raw(out, "…");
    }
    out.push(b'"');
}

/// Text whose bytes were all written by this module: UTF-8 by construction, and checked all the same.
pub(super) fn into_text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// An unsigned number.
#[inline]
pub(super) fn number(out: &mut Vec<u8>, number: impl itoa::Integer) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// `true` or `false`.
pub(super) fn boolean(out: &mut Vec<u8>, value: bool) {
    raw(out, if value { "true" } else { "false" });
}

/// `"10.1.0.7:41234"`, `"[2001:db8::1]:443"`. An IPv4 address in IPv6 clothes is shown as IPv4.
pub(super) fn address(out: &mut Vec<u8>, address: SocketAddr) {
    out.push(b'"');
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => {
            let [a, b, c, d] = ip.octets();
            number(out, a);
            for octet in [b, c, d] {
                out.push(b'.');
                number(out, octet);
            }
        }
        IpAddr::V6(ip) => {
            // Rarer, and its shortest form is std's business. Writing to a Vec can't fail.
            let _ = std::io::Write::write_fmt(out, format_args!("[{ip}]"));
        }
    }
    out.push(b':');
    number(out, address.port());
    out.push(b'"');
}

/// A record id as text, ULID, with its quotes.
pub(super) fn ulid(out: &mut Vec<u8>, id: u128) {
    let mut text = [0; ulid::ULID_LEN];
    out.push(b'"');
    raw(out, ulid::Ulid(id).array_to_str(&mut text));
    out.push(b'"');
}

/// Lower-case hex, `digits` of them, with its quotes.
pub(super) fn hex(out: &mut Vec<u8>, value: u128, digits: u32) {
    out.push(b'"');
    for digit in (0..digits).rev() {
        out.push(HEX[(value >> (digit * 4)) as usize & 0xf]);
    }
    out.push(b'"');
}

/// RFC 3339 in UTC with microseconds, with its quotes. Times before 1970 show as 1970.
pub(super) fn time(out: &mut Vec<u8>, time: SystemTime) {
    let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    seconds(out, since_epoch.as_secs());
    let mut micros = since_epoch.subsec_micros();
    let mut text = *b".000000Z\"";
    for digit in text[1..7].iter_mut().rev() {
        *digit += (micros % 10) as u8;
        micros /= 10;
    }
    out.extend_from_slice(&text);
}

/// RFC 3339 in UTC with whole seconds, with its quotes.
pub(super) fn timestamp(out: &mut Vec<u8>, since_epoch: i64) {
    seconds(out, since_epoch.max(0).unsigned_abs());
    raw(out, "Z\"");
}

/// `"2026-11-23T21:00:00`: an opening quote and no zone.
fn seconds(out: &mut Vec<u8>, since_epoch: u64) {
    let (year, month, day) = civil(since_epoch / 86_400);
    let of_day = since_epoch % 86_400;
    let mut text = *b"\"0000-00-00T00:00:00";
    let mut digits = |at: usize, width: usize, mut value: u64| {
        for digit in text[at..at + width].iter_mut().rev() {
            *digit += (value % 10) as u8;
            value /= 10;
        }
    };
    digits(1, 4, year);
    digits(6, 2, month);
    digits(9, 2, day);
    digits(12, 2, of_day / 3600);
    digits(15, 2, of_day / 60 % 60);
    digits(18, 2, of_day % 60);
    out.extend_from_slice(&text);
}

/// Year, month and day of a number of days since 1970-01-01 in the Gregorian calendar (Hinnant, `civil_from_days`).
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

/// Copies runs of plain bytes whole; almost every string is one run.
fn escaped(out: &mut Vec<u8>, text: &str) {
    let bytes = text.as_bytes();
    // Without an early exit this is a few vector instructions.
    if !bytes.iter().fold(false, |found, &byte| found | needs_escape(byte)) {
        out.extend_from_slice(bytes);
        return;
    }
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|&byte| needs_escape(byte)) {
        out.extend_from_slice(&rest[..at]);
        escape(out, rest[at]);
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
}

/// What JSON demands, and DEL, which a terminal may act on.
#[inline]
fn needs_escape(byte: u8) -> bool {
    (byte < 0x20) | (byte == b'"') | (byte == b'\\') | (byte == 0x7f)
}

fn escape(out: &mut Vec<u8>, byte: u8) {
    match byte {
        b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
        b'\n' => raw(out, "\\n"),
        b'\r' => raw(out, "\\r"),
        b'\t' => raw(out, "\\t"),
        _ => {
            raw(out, "\\u00");
            out.extend_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 0xf)]]);
        }
    }
}

const HEX: &[u8; 16] = b"0123456789abcdef";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn addresses_have_their_shortest_form() {
        for (text, expected) in [
            ("10.1.0.7:41234", "10.1.0.7:41234"),
            ("[::ffff:10.1.0.7]:80", "10.1.0.7:80"),
            ("[2001:db8:0:0:0:0:0:1]:443", "[2001:db8::1]:443"),
        ] {
            assert_eq!(written(|out| address(out, text.parse().unwrap())), format!("\"{expected}\""));
        }
    }

    #[test]
    fn ids_are_fixed_in_width() {
        assert_eq!(written(|out| ulid(out, 1)), "\"00000000000000000000000001\"");
        assert_eq!(written(|out| hex(out, 0xab, 16)), "\"00000000000000ab\"");
        assert_eq!(written(|out| hex(out, u128::MAX, 32)), format!("\"{}\"", "f".repeat(32)));
    }

    #[test]
    fn long_text_is_cut_between_characters() {
        assert_eq!(written(|out| bounded_string(out, "abc", 3)), "\"abc\"");
        assert_eq!(written(|out| bounded_string(out, "äöü", 3)), "\"ä…\"");
    }

    proptest! {
        #[test]
        fn any_text_survives(text in any::<String>()) {
            let line = written(|out| string(out, &text));
            prop_assert_eq!(serde_json::from_str::<String>(&line).unwrap(), text);
            prop_assert!(line.bytes().all(|byte| byte >= 0x20 && byte != 0x7f));
        }

        #[test]
        fn times_are_as_a_calendar_library_says(seconds in 0u64..253_402_300_799, micros in 0u32..1_000_000) {
            let at = UNIX_EPOCH + Duration::new(seconds, micros * 1000);
            let expected = format!("\"{:.6}\"", jiff::Timestamp::try_from(at).unwrap());
            prop_assert_eq!(written(|out| time(out, at)), expected);
            let whole = jiff::Timestamp::from_second(seconds as i64).unwrap();
            prop_assert_eq!(written(|out| timestamp(out, seconds as i64)), format!("\"{whole}\""));
        }
    }
}
