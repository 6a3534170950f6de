//! `trial`

use garboard_machine_api::proto::trial_decide_request::Decision;
use garboard_machine_api::proto::{TrialAbort, TrialConfirm, TrialExtend};

use crate::cli::TrialCommand;
use crate::config::Contact;

pub async fn run(contact: &Contact, command: &TrialCommand) -> anyhow::Result<()> {
    let (decision, done) = match command {
        TrialCommand::Confirm => (Decision::Confirm(TrialConfirm {}), "the change is kept".to_owned()),
        TrialCommand::Abort => {
            (Decision::Abort(TrialAbort {}), "the configuration before the change is in force again".to_owned())
        }
        TrialCommand::Extend { seconds } => {
            (Decision::Extend(TrialExtend { seconds: *seconds }), format!("the change has {seconds} seconds more"))
        }
    };
    let mut client = contact.connect().await?;
    client.decide_trial(decision).await?;
    eprintln!("{}: {done}", client.version().machine);
    Ok(())
}
