//! Certificates and roots that are replaced under load: no request notices, and records tell the new ones.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fips::ca::{Authority, Profile};
use tests::{App, Mesh, Server, World, soon};

const HOUR: Duration = Duration::from_secs(3600);
const CLIENTS: usize = 8;
/// How long it goes on, and how often certificates are replaced, in seconds: `60,5` takes a minute.
const VARIABLE: &str = "WRIT_ROTATION";

/// Leaves are replaced, and then the root as it must be: first both roots everywhere, then leaves of the new one, and only
/// then the old one goes.
#[tokio::test]
async fn leaves_and_roots_are_replaced_under_load() {
    let (lasts, period) = times();
    let app = App::echo().await;
    let serials = Arc::new(std::sync::Mutex::new(BTreeSet::new()));
    let (seen, failed) = (Arc::clone(&serials), Arc::new(AtomicU64::new(0)));
    let refused = Arc::clone(&failed);
    let mesh = World::new()
        .server(Server::new("ratings", &app))
        .with_files()
        .tap(move |record| {
            let checks = record.json().pointer("/decision/checks/1/evidence/serial");
            if let Some(serial) = checks.and_then(|serial| serial.as_str()) {
                seen.lock().unwrap().insert(serial.to_owned());
            }
            refused.fetch_add(u64::from(record.status() != 200), Ordering::Relaxed);
        })
        .start()
        .await;
    let over = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> =
        (0..CLIENTS).map(|number| tokio::spawn(load(mesh.entrance, number, Arc::clone(&over)))).collect();

    let began = Instant::now();
    let mut renewals: u64 = 0;
    let again = Authority::from_pem(
        "cluster.local",
        mesh.pki.authority().certificate_pem(),
        &mesh.pki.authority().key_pem(),
    );
    let mut roots = vec![again.unwrap()];
    while began.elapsed() < lasts {
        renew(&mesh, &roots[0], &roots).await;
        tokio::time::sleep(period).await;
        roots.push(Authority::generate("cluster.local", HOUR).unwrap());
        renew(&mesh, &roots[0], &roots).await;
        renew(&mesh, &roots[1], &roots).await;
        tokio::time::sleep(period).await;
        roots.remove(0);
        renew(&mesh, &roots[0], &roots).await;
        tokio::time::sleep(period).await;
        renewals += 4;
    }
    over.store(true, Ordering::Relaxed);
    let mut requests = 0;
    for client in clients {
        requests += soon("the end of a client", client).await.unwrap();
    }
    soon("the stop", mesh.stop()).await;
    let serials = serials.lock().unwrap().len();
    println!("{requests} requests over {renewals} renewals: none failed, {serials} serials in the records");
    assert_eq!(failed.load(Ordering::Relaxed), 0);
    assert!(serials as u64 > renewals, "{serials} serials after {renewals} renewals of two proxies");
}

fn times() -> (Duration, Duration) {
    let given = std::env::var(VARIABLE).unwrap_or_else(|_| "4,0".into());
    let (lasts, period) = given.split_once(',').expect("SECONDS,PERIOD");
    let seconds = |text: &str| Duration::from_secs(text.parse().expect("whole seconds"));
    (seconds(lasts), seconds(period))
}

/// Puts new leaves of one root in place for both proxies, with all the roots that are believed.
async fn renew(mesh: &Mesh, root: &Authority, believed: &[Authority]) {
    let bundle: String = believed.iter().map(Authority::certificate_pem).collect();
    mesh.renew(|credentials| {
        credentials.renew(&root.issue(&Profile::workload(credentials.id(), HOUR)).unwrap(), &bundle);
    })
    .await;
}

/// Requests without pause: by turns on a connection that stays, and on a new one.
async fn load(to: std::net::SocketAddr, number: usize, over: Arc<AtomicBool>) -> u64 {
    let mut requests = 0;
    let mut kept = tests::Client::connect(to).await;
    while !over.load(Ordering::Relaxed) {
        assert_eq!(kept.get("/kept", "").await.status, 200);
        requests += 1;
        if number.is_multiple_of(2) {
            assert_eq!(tests::Client::connect(to).await.get("/new", "").await.status, 200);
            requests += 1;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    requests
}
