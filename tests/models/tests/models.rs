//! The scenarios, each as a test. The tests are in a separate file because the included source
//! files have unit tests, which do not run under shuttle.

macro_rules! scenarios {
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

    scenarios!(
        lock::the_gate_admits_one_task_at_a_time_and_loses_no_turn
            as the_gate_admits_one_task_at_a_time_and_loses_no_turn,
        lock::the_gate_yields_to_another_process_once as the_gate_yields_to_another_process_once,
        lock::a_gate_without_a_queue_gives_way as a_gate_without_a_queue_gives_way,
    );
}

mod sqlite {
    use rocket_tx_models::db::sqlite;

    scenarios!(
        sqlite::the_writer_has_one_user_at_a_time_and_no_open_transaction
            as the_writer_has_one_user_at_a_time_and_no_open_transaction,
        sqlite::a_closed_writer_cannot_be_acquired as a_closed_writer_cannot_be_acquired,
    );
}

mod postgres {
    use rocket_tx_models::db::postgres;

    scenarios!(
        postgres::a_session_has_one_user_at_a_time_and_nothing_of_its_last_user
            as a_session_has_one_user_at_a_time_and_nothing_of_its_last_user,
        postgres::a_closed_pool_has_no_open_session as a_closed_pool_has_no_open_session,
    );
}

mod registry {
    use rocket_tx_models::tx;

    scenarios!(
        tx::a_registry_is_settled_while_its_tasks_run as a_registry_is_settled_while_its_tasks_run,
        tx::requests_with_opposite_orders_do_not_deadlock
            as requests_with_opposite_orders_do_not_deadlock,
        tx::tasks_of_a_request_share_one_transaction_per_database
            as tasks_of_a_request_share_one_transaction_per_database,
    );
}
