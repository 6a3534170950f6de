//! Errors in words, with the way out.

use std::io::ErrorKind;
use std::process::ExitCode;

use garboard_machine_api::client::ClientError;

/// Writes an error with its causes and what to do about it to standard error.
pub fn report(error: &anyhow::Error) -> ExitCode {
    if is_closed_pipe(error) {
        // Whoever read our output, as `head` does, has had enough.
        return ExitCode::SUCCESS;
    }
    eprintln!("error: {error:#}");
    if let Some(hint) = error.downcast_ref().and_then(hint) {
        eprintln!("\n{hint}");
    }
    ExitCode::FAILURE
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

/// What stands in the way, in one line: for progress.
pub fn in_short(error: &ClientError) -> String {
    match error {
        ClientError::Connect { endpoint, .. } | ClientError::Closed { endpoint } => {
            format!("{endpoint} does not accept connections yet")
        }
        other => other.to_string(),
    }
}

fn hint(error: &ClientError) -> Option<String> {
    Some(match error {
        ClientError::Resolve { .. } => {
            "The name is not known here. The machine's console shows its addresses; give one with --endpoint.".to_owned()
        }
        ClientError::Connect { source, .. } if source.kind() == ErrorKind::ConnectionRefused => {
            "The host is there, but nothing listens: the machine may still be starting, or another one has this address. \
             The machine's console shows its addresses and what it waits for."
                .to_owned()
        }
        ClientError::Connect { .. } | ClientError::Silent { .. } => {
            "Is the machine on, and is this its address? Its console shows its addresses. A firewall between here and \
             there must let port 7443 through."
                .to_owned()
        }
        ClientError::Closed { .. } => {
            "Something accepts connections there and closes them, as a port forwarder does while the machine behind it \
             is still starting. Try again, or look at the machine's console."
                .to_owned()
        }
        ClientError::Tls { .. } => {
            "What answers there is not the machine API of Garboard, or one of a very different version. Is it the right \
             port? The machine API has 7443 unless ports are forwarded."
                .to_owned()
        }
        ClientError::OtherMachine { presented, .. } => format!(
            "Another machine answers at this address, the machine was installed anew, or somebody stands between. The \
             machine's console shows its fingerprint: only if it shows\n  {presented}\nthen give it with --fingerprint or \
             write it into config.yaml."
        ),
        ClientError::UnknownKey { own, .. } => format!(
            "Somebody with access must add your key to spec.access of the Cluster:\n  - name: YOUR-NAME\n    role: \
             reader\n    publicKey: {own}\nA new machine knows only the keys in the manifests that it was started with: \
             were they attached?"
        ),
        ClientError::Forbidden { .. } => {
            "An admin can change your role in spec.access of the Cluster; it counts at once.".to_owned()
        }
        ClientError::NotYet { .. } => {
            "`garboardctl status` shows what the machine waits for.".to_owned()
        }
        ClientError::NotFound { .. } => "`garboardctl services` lists the services.".to_owned(),
        ClientError::Lost { .. } | ClientError::Invalid { .. } | ClientError::Failed { .. } => return None,
    })
}
