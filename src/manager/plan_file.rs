//! The configured plan file: read when there is no release yet, followed where the configuration says so.
//!
//! What is wrong with it changes nothing and is shown in the status.

use std::time::Duration;

use tokio::time::sleep;

use super::{Manager, Submission, SubmitError, config::PlanFile, execute::chain};

/// Editors replace files: the text is compared, not the folder watched.
const LOOK: Duration = Duration::from_secs(1);

pub(super) async fn follow(manager: Manager, plan: PlanFile) {
    let mut taken: Option<String> = None;
    let has_release = manager.overview().borrow().remembered.release.is_some()
        || manager.journal().read().is_ok_and(|known| known.release.is_some());
    if has_release {
        if !plan.watch {
            return;
        }
        // What is there now was taken, or overruled by a deploy, before.
        taken = tokio::fs::read_to_string(&plan.file).await.ok();
    }
    loop {
        let text = tokio::fs::read_to_string(&plan.file).await;
        match text {
            Ok(text) if taken.as_ref() == Some(&text) => {}
            Ok(text) => {
                let submission = Submission {
                    file: plan.file.display().to_string(),
                    text: text.clone(),
                    by: "plan file".to_owned(),
                    message: None,
                    dry_run: false,
                    stage: false,
                };
                match manager.submit(submission).await {
                    Ok(_) => {
                        manager.set_plan_problem(None);
                        if !plan.watch {
                            return;
                        }
                        taken = Some(text);
                    }
                    Err(error) => {
                        manager.set_plan_problem(Some(format!("{}: {}", plan.file.display(), chain(&error))));
                        // A wrong text is not read again until it changes; a registry that is down is asked again.
                        if matches!(error, SubmitError::Plan(_)) {
                            taken = Some(text);
                        }
                    }
                }
            }
            Err(error) => {
                manager.set_plan_problem(Some(format!("cannot read {}: {error}", plan.file.display())));
            }
        }
        tokio::select! {
            () = sleep(LOOK) => {}
            () = manager.stopped().cancelled() => return,
        }
    }
}
