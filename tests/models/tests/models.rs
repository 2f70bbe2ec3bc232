//! The scenes, each as a test. Here and not beside them: the library's files bring tests of their own,
//! which know nothing of shuttle.

macro_rules! scenes {
    ($($path:path as $name:ident),+ $(,)?) => {
        $(
            #[test]
            fn $name() {
                $path();
            }
        )+
    };
}

mod lock {
    use rocket_tx_models::lock;

    scenes!(
        lock::the_gate_lets_one_in_at_a_time_and_loses_no_turn
            as the_gate_lets_one_in_at_a_time_and_loses_no_turn,
        lock::the_gate_gives_way_once_when_it_is_due as the_gate_gives_way_once_when_it_is_due,
    );
}

mod sqlite {
    use rocket_tx_models::db::sqlite;

    scenes!(
        sqlite::the_writer_goes_from_one_to_the_next_in_order_and_clean
            as the_writer_goes_from_one_to_the_next_in_order_and_clean,
        sqlite::the_writer_is_closed_for_good as the_writer_is_closed_for_good,
    );
}

mod postgres {
    use rocket_tx_models::db::postgres;

    scenes!(
        postgres::no_session_has_two_users_or_brings_anything_of_another
            as no_session_has_two_users_or_brings_anything_of_another,
        postgres::a_pool_that_is_closed_has_no_session_left
            as a_pool_that_is_closed_has_no_session_left,
    );
}

mod registry {
    use rocket_tx_models::tx;

    scenes!(
        tx::a_registry_is_settled_under_its_tasks as a_registry_is_settled_under_its_tasks,
        tx::opposite_orders_never_meet_in_a_circle as opposite_orders_never_meet_in_a_circle,
        tx::tasks_of_a_request_share_one_transaction_of_a_database
            as tasks_of_a_request_share_one_transaction_of_a_database,
    );
}
