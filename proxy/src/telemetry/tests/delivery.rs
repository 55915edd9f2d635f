//! Every record arrives, or is counted as lost.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::LocalSet;

use super::super::options::{DEFAULT_PROGRESS, ProxyFragments, Sample};
use super::super::queue::{Next, Queue};
use super::super::{Options, Record, Shard, Side, Sink, Telemetry, Upload};
use super::{allowed, config, connection, proxy};
use crate::decision::{PolicyRef, Reason, Stage};

const PATIENCE: Duration = Duration::from_secs(60);

fn channel(capacity: usize) -> (Arc<Telemetry>, mpsc::Receiver<String>) {
    let (sender, receiver) = mpsc::channel(capacity);
    (Telemetry::start(Options::new(proxy(), Sink::Channel(sender))).unwrap(), receiver)
}

/// A shard whose queue nobody empties.
fn stalled(places: usize, sample: Sample) -> (Rc<Shard>, Arc<Queue>, Arc<super::super::cells::Cells>) {
    let (queue, cells) = (Arc::new(Queue::new(places)), Arc::default());
    let shard = Shard::new(
        ProxyFragments::new(&proxy()),
        sample,
        Some(Arc::clone(&queue)),
        Arc::clone(&cells),
        DEFAULT_PROGRESS,
    );
    (shard, queue, cells)
}

/// No record lies anywhere.
fn nowhere(_: usize, _: &mut dyn FnMut(&Record)) {}

/// Takes all batches out of a queue that was closed.
fn drained(queue: &Queue) -> String {
    queue.close();
    let mut text = String::new();
    while let Next::Write(batch) = queue.next() {
        text.push_str(std::str::from_utf8(&batch.bytes).unwrap());
    }
    text
}

#[test]
fn a_full_queue_drops_and_counts() {
    let (shard, queue, cells) = stalled(2, Sample::ALL);
    let (config, connection) = (config(1), connection(Side::Inbound));
    for _ in 0..1000 {
        drop(allowed(&shard, &config, &connection));
    }
    shard.flush();
    let written = drained(&queue).lines().count() as u64;
    assert!(written > 0);
    assert_eq!(written + cells.dropped.value(), 1000);
    assert_eq!(cells.records.value(), 1000);
}

#[test]
fn all_is_written_when_the_workers_have_ended() {
    let path = std::env::temp_dir().join(format!("writ-delivery-{}", std::process::id()));
    let telemetry = Telemetry::start(Options::new(proxy(), Sink::File(path.clone()))).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let shard = telemetry.shard();
                let (config, connection) = (config(1), connection(Side::Inbound));
                for _ in 0..501 {
                    drop(allowed(&shard, &config, &connection));
                }
            });
        }
    });
    assert!(telemetry.shutdown(PATIENCE));
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(text.lines().count(), 1002);
    for line in text.lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap();
    }
}

#[test]
fn a_channel_without_place_is_a_loss_that_is_counted() {
    let (telemetry, mut receiver) = channel(3);
    let shard = telemetry.shard();
    for _ in 0..10 {
        drop(allowed(&shard, &config(1), &connection(Side::Inbound)));
    }
    drop(shard);
    assert!(telemetry.shutdown(PATIENCE));
    let mut received = 0;
    while receiver.try_recv().is_ok() {
        received += 1;
    }
    assert_eq!(received, 3);
    let metrics = telemetry.metrics().unwrap();
    assert!(metrics.contains("writ_records_dropped_total{cause=\"write-failed\"} 7\n"), "{metrics}");
}

#[tokio::test]
async fn lines_of_a_quiet_worker_leave_by_themselves() {
    let (telemetry, mut receiver) = channel(10);
    let worker = async {
        let shard = telemetry.shard();
        tokio::task::spawn_local(Rc::clone(&shard).run(nowhere));
        // Twice, so that the second finds the flushing task asleep.
        for _ in 0..2 {
            let record = allowed(&shard, &config(1), &connection(Side::Inbound));
            let id = record.id_text();
            drop(record);
            let line = tokio::time::timeout(PATIENCE, receiver.recv()).await.unwrap().unwrap();
            assert!(line.contains(&id), "{line}");
        }
    };
    LocalSet::new().run_until(worker).await;
}

#[test]
fn a_sample_keeps_refusals() {
    let (shard, queue, cells) = stalled(100, "0".parse().unwrap());
    let (config, connection) = (config(1), connection(Side::Inbound));
    for number in 0..30 {
        let mut record = allowed(&shard, &config, &connection);
        match number % 3 {
            0 => record.decision.deny(Stage::Authorize, Reason::NoAllowMatched, PolicyRef::NONE),
            1 => record.ended = Some((Stage::Connect, Reason::ConnectRefused)),
            _ => {}
        }
    }
    shard.flush();
    assert_eq!(cells.sampled_out.value(), 10);
    let text = drained(&queue);
    assert_eq!(text.matches("no-allow-matched").count(), 10);
    assert_eq!(text.matches("connect-refused").count(), 10);
}

#[test]
fn a_sample_keeps_about_its_share() {
    let (shard, queue, cells) = stalled(1000, "25%".parse().unwrap());
    let (config, connection) = (config(1), connection(Side::Inbound));
    for _ in 0..4000 {
        drop(allowed(&shard, &config, &connection));
    }
    shard.flush();
    let kept = drained(&queue).lines().count() as u64;
    assert_eq!(kept + cells.sampled_out.value(), 4000);
    assert!((700..1300).contains(&kept), "{kept}");
}

#[test]
fn a_long_lived_record_says_that_it_is_still_there() {
    let (shard, queue, _) = stalled(100, Sample::ALL);
    let (config, connection) = (config(1), connection(Side::Inbound));
    let bare = allowed(&shard, &config, &connection);
    let mut begun = allowed(&shard, &config, &connection);
    let upload = Rc::<Upload>::default();
    begun.upload = Some(Rc::clone(&upload));
    begun.begun();
    let kept = RefCell::new(allowed(&shard, &config, &connection));
    kept.borrow().lies_at(7);
    let look = |place: usize, show: &mut dyn FnMut(&Record)| {
        assert_eq!(place, 7);
        show(&kept.borrow());
    };
    let ended = allowed(&shard, &config, &connection);
    let (ended_id, kept_id) = (ended.id_text(), kept.borrow().id_text());
    drop(ended);
    shard.flush();

    let start = Instant::now();
    shard.report_overdue(start + Duration::from_secs(59), &look);
    upload.bytes.set(3);
    shard.report_overdue(start + Duration::from_secs(61), &look);
    shard.report_overdue(start + Duration::from_secs(70), &look);
    upload.bytes.set(4);
    (kept.borrow_mut().request_bytes, kept.borrow_mut().response_bytes) = (5, 6);
    shard.report_overdue(start + Duration::from_secs(122), &look);
    shard.flush();
    let text = drained(&queue);
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 7, "one that ended, three that say so twice: {text}");
    assert_eq!(lines[0]["id"], ended_id.as_str());
    let of = |id: &str| lines[1..].iter().filter(|line| line["id"] == id).collect::<Vec<_>>();
    let (bare_lines, begun_lines, kept_lines) = (of(&bare.id_text()), of(&begun.id_text()), of(&kept_id));
    assert_eq!((bare_lines.len(), begun_lines.len(), kept_lines.len()), (2, 2, 2));
    assert_eq!(bare_lines[0]["source"]["address"], "10.1.0.7:41234");
    assert_eq!(begun_lines[0]["request"]["path"], "/ratings/1");
    assert_eq!(
        (&begun_lines[0]["request"]["bytes"], &begun_lines[1]["request"]["bytes"]),
        (&3.into(), &4.into())
    );
    assert_eq!(
        (&kept_lines[0]["request"]["bytes"], &kept_lines[1]["request"]["bytes"]),
        (&0.into(), &5.into())
    );
    assert_eq!(
        (&kept_lines[0]["response"]["bytes"], &kept_lines[1]["response"]["bytes"]),
        (&48.into(), &6.into())
    );
    assert_eq!(kept_lines[0]["decision"]["policy"]["name"], "ratings-viewer");
    assert!(kept_lines[1]["progress"]["total_us"].as_u64().unwrap() >= 121_000_000);
    assert_eq!(kept_lines[0].get("ended"), None);
}

#[test]
fn ids_are_unique_and_in_order_of_time() {
    let (shard, ..) = stalled(1, Sample::ALL);
    let now = std::time::SystemTime::now();
    let mut ids: Vec<u128> = (0..1000).map(|_| shard.next_id(now)).collect();
    let later = shard.next_id(now + Duration::from_millis(1));
    assert!(ids.iter().all(|&id| id < later));
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 1000);
}
