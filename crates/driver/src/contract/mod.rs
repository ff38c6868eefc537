//! The contract suite: what every driver must do, as one async function a rule.
//!
//! A driver passes it with one line, `sandbank_driver::driver_contract!(make)`. `make` is an async function that returns a
//! [`Subject`], or `None` after it has printed `skipped: why`. Each rule gets a fresh one and leaves no sandbox behind when it
//! holds; what a failing rule leaves is the business of [`Subject::guard`].

// A broken rule is told by a panic, as in any test.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod inside;
mod life;
mod session;

use std::any::Any;
use std::sync::Arc;

use sandbank_model::Image;

use crate::Driver;

pub use inside::*;
pub use life::*;
pub use session::{Held, Output, within};

/// A driver to test, with an image that holds `sh`, `true`, `false`, `echo`, `cat`, `sleep` and `yes`.
pub struct Subject {
    /// The driver, with no sandbox yet.
    pub driver: Arc<dyn Driver>,
    /// The image.
    pub image: Image,
    /// Dropped at the end; cleans whatever a failing rule left.
    pub guard: Box<dyn Any + Send>,
}

impl std::fmt::Debug for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subject").field("driver", &self.driver.name()).finish_non_exhaustive()
    }
}

/// Stamps one test for each rule of the contract. The calling crate needs tokio with `macros` and `rt-multi-thread`.
#[macro_export]
macro_rules! driver_contract {
    ($make:path) => {
        $crate::driver_contract_rules! { $make:
            a_new_sandbox_answers,
            creating_an_existing_id_replaces_it,
            destroying_is_safe_to_repeat_and_for_unknown_ids,
            a_destroyed_sandbox_is_gone_for_every_operation,
            destroying_ends_open_connections,
            two_sandboxes_share_no_files,
            many_sandboxes_are_made_and_destroyed_at_once,
            pausing_and_resuming_change_nothing_the_second_time,
            a_paused_process_makes_no_progress_and_goes_on_afterwards,
            a_paused_sandbox_can_be_destroyed,
            an_image_with_missing_layers_is_refused_and_leaves_nothing,
            adopting_tells_alive_from_gone_and_destroys_orphans,
            a_committed_file_is_in_what_is_made_from_it,
            a_commit_leaves_its_sandbox_running_and_unchanged,
            importing_nonsense_is_refused,
            what_is_not_supported_is_refused_by_name,
            events_can_be_taken_once,
            programs_exit_with_their_codes,
            stdout_and_stderr_are_told_apart,
            a_program_that_is_not_there_is_told,
            environment_and_arguments_arrive_as_given,
            stdin_reaches_a_process_until_it_is_closed,
            a_signal_ends_a_process_and_is_told,
            a_deadline_ends_a_process_and_is_told,
            output_is_replayed_after_the_connection_is_gone,
            a_listed_process_is_found_by_its_tag,
            files_come_back_as_they_were_written,
            files_are_listed_moved_and_removed,
            file_errors_say_their_kind,
            an_aborted_write_leaves_the_old_file,
            changes_are_told_to_watchers,
            dialling_a_port_without_listener_is_told,
            dialling_directly_reaches_nothing_that_is_not_there,
            metrics_tell_the_limits,
        }
    };
}

/// One test for each named rule; see [`driver_contract!`].
#[doc(hidden)]
#[macro_export]
macro_rules! driver_contract_rules {
    ($make:path: $($rule:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $rule() {
                let subject: Option<$crate::contract::Subject> = $make().await;
                if let Some(subject) = subject {
                    $crate::contract::$rule(&subject).await;
                }
            }
        )*
    };
}
