//! What follows the API server whenever there is one, and what waits for what it is about.

use kube::Client;
use tokio::sync::watch;

/// Follows something anew with each client, and ends never. Nothing may be kept between two times that the next does not read again: a
/// new client breaks off what was followed with the one before.
pub(crate) async fn whenever_served<Follow: Future<Output = ()>>(
    mut api: watch::Receiver<Option<Client>>,
    follow: impl Fn(Client) -> Follow,
) {
    loop {
        let client = api.borrow_and_update().clone();
        let follow = async {
            match client {
                Some(client) => follow(client).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = follow => {}
            Ok(()) = api.changed() => {}
        }
    }
}

/// The first value of a channel that begins with none; none when it ends without.
pub(crate) async fn first<T: Clone>(channel: &mut watch::Receiver<Option<T>>) -> Option<T> {
    channel.wait_for(Option::is_some).await.ok()?.clone()
}
