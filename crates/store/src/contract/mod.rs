//! The contract suite: what every store must do, as one async function a rule, each taking a fresh store.
//!
//! A store passes it in one line: `sandbank_store::store_contract!(make)`, where `make` is an async function that returns a
//! fresh store and whatever must live as long as it does.

// A broken rule is told by a panic, as in any test.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod builds;
mod credentials;
mod events;
mod fixture;
mod lists;
mod objects;
mod sandboxes;
mod snapshots;

pub use builds::*;
pub use credentials::*;
pub use events::*;
pub use fixture::{
    Clock, apply, claim_request, credential, event_of, image, key, lease, pool, pool_event, ready, recount, sandbox, snapshot_id,
    template, tenant, warm,
};
pub use lists::*;
pub use objects::*;
pub use sandboxes::*;
pub use snapshots::*;

/// Stamps one test for each rule of the contract. The calling crate needs tokio with `macros` and `rt-multi-thread`.
#[macro_export]
macro_rules! store_contract {
    ($make:path) => {
        $crate::store_contract_rules! { $make:
            a_tenant_is_made_once_under_its_name,
            tenants_are_found_by_id_and_name_and_listed_by_name,
            a_quota_is_replaced_or_its_tenant_is_missing,
            a_network_policy_is_replaced_or_its_tenant_is_missing,
            a_key_is_found_by_its_hash_and_its_hash_is_unique,
            a_revoked_key_stays_as_it_was_revoked,
            keys_are_listed_oldest_first_and_by_tenant,
            a_template_name_is_unique_beside_its_owner,
            a_template_version_follows_the_generation_it_read,
            templates_are_listed_by_owner_and_name_with_their_newest_version,
            a_deleted_template_is_gone_with_all_versions,
            a_pool_name_is_unique_within_its_tenant_and_free_after_removal,
            a_pool_update_is_conditional_on_the_generation,
            pools_are_paged_by_name,
            an_own_image_hides_the_installations,
            an_image_replaces_the_one_of_its_name_and_owner,
            credentials_belong_to_an_owner_and_a_host,
            credentials_replace_those_of_their_host_and_owner,
            credentials_are_listed_by_host_for_these_owners,
            deleted_credentials_are_gone_for_their_owner_only,
            a_build_is_replaced_by_id_and_keeps_its_log,
            cached_steps_are_found_by_tenant_and_key,
            a_snapshot_is_its_tenants_until_it_is_deleted,
            a_snapshots_name_goes_to_the_newest_that_is_given_it,
            a_sandbox_is_read_as_it_was_written,
            a_sandbox_id_is_used_once,
            a_sandbox_update_is_conditional_on_the_generation,
            an_ended_sandbox_stays_readable_and_changes_no_more,
            concurrent_updates_of_one_generation_succeed_once,
            a_claim_takes_the_newest_revision_then_the_longest_warm,
            a_claim_takes_nothing_but_ready_sandboxes_of_its_pool,
            a_claim_attaches_the_lease_and_tells_of_it,
            racing_claims_never_get_the_same_sandbox,
            claims_racing_for_the_last_sandbox_have_one_winner,
            claims_race_with_updates_without_losing_either,
            warm_sandboxes_are_listed_outdated_first_then_longest_warm,
            touching_moves_activity_forward_only_and_changes_nothing_else,
            an_update_keeps_the_later_activity,
            counts_and_usage_equal_a_recount_after_many_operations,
            a_summary_counts_recent_failures_and_outdated_ones,
            live_sandboxes_are_all_those_in_live_states,
            sandboxes_are_listed_most_recently_claimed_or_made_first,
            pages_join_without_gap_or_overlap,
            each_filter_restricts_and_all_restrict_together,
            metadata_filters_take_any_key_literally,
            counts_by_state_follow_the_filter,
            pruning_forgets_what_ended_before_and_no_more_than_the_limit,
            every_write_appends_its_event_in_order,
            a_refused_write_appends_no_event,
            events_are_filtered_and_continue_after_a_position,
            event_positions_go_on_after_pruning,
            a_closed_store_refuses_writes,
        }
    };
}

/// One test for each named rule; see [`store_contract!`].
#[doc(hidden)]
#[macro_export]
macro_rules! store_contract_rules {
    ($make:path: $($rule:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $rule() {
                let (store, _guard) = $make().await;
                $crate::contract::$rule(std::sync::Arc::new(store)).await;
            }
        )*
    };
}
