use rocket::http::{Header, Status};
use rocket_tx::testing;

use crate::Main;

#[rocket::async_test]
async fn a_secret_is_not_stored() {
    let app = testing::launch(crate::rocket()).await; // with databases of its own
    let new = app.post("/notes").body(r#"{"text": "a secret"}"#);
    assert_eq!(new.dispatch().await.status(), Status::UnprocessableEntity);
    let mut main = app.read::<Main>().await;
    let notes = sqlx::query_scalar("SELECT count(*) FROM notes");
    let notes: i64 = notes.fetch_one(&mut main).await.unwrap();
    assert_eq!(notes, 0);
    app.assert_nothing_outstanding();
}

#[rocket::async_test]
async fn only_authors_remove_notes() {
    let app = testing::launch(crate::rocket()).await;
    app.execute::<Main>("INSERT INTO notes (text) VALUES ('buy milk')")
        .await;
    let unknown = app.delete("/notes/1");
    assert_eq!(unknown.dispatch().await.status(), Status::Unauthorized);
    let ann = app
        .delete("/notes/1")
        .header(Header::new("Authorization", "of-ann"));
    assert_eq!(ann.dispatch().await.status(), Status::NoContent);
}
