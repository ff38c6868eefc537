//! Images in and out.

use serde_json::json;

use crate::support::{ADMIN, Server};

#[tokio::test]
async fn an_image_with_slashes_and_a_colon_is_imported_exported_and_pruned() {
    let server = Server::new().await;
    let user = server.user("ann").await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let import = |body| server.post(ADMIN, "/v1/admin/images/import", body);
    let error = import(json!({ "path": path, "global": true })).await.expect(400);
    assert!(error["error"].as_str().unwrap().contains("has no name"), "{error}");
    import(json!({ "path": path, "name": "a", "reference": "b" })).await.expect(400);
    import(json!({ "path": path, "name": "quay.io/team/export:1", "global": true })).await.expect(201);

    let name = "/v1/images/quay.io/team/export:1";
    assert_eq!(server.get(&user, name).await.expect(200)["image"]["name"], "quay.io/team/export:1");
    for compression in ["", "?compression=zstd", "?compression=none"] {
        let answer = server.call(&user, "POST", &format!("{name}/export{compression}"), None).await;
        assert_eq!(answer.status, 200);
        let header = |name: &str| answer.headers[name].to_str().unwrap().to_owned();
        assert_eq!(header("content-type"), "application/x-tar");
        assert_eq!(header("content-disposition"), "attachment; filename=\"quay.io_team_export_1.tar\"");
        assert_eq!(header("content-length"), answer.body.len().to_string());
        assert_eq!(answer.body.len() % 512, 0);
    }
    server.call(&user, "POST", &format!("{name}/export?compression=lzma"), None).await.expect(400);
    server.call(&user, "POST", "/v1/images/none:1/export", None).await.expect(404);
    server.call(&user, "POST", name, None).await.expect(404);
    let error = server.call(&user, "POST", "/v1/images/host/export", None).await.expect(400);
    assert!(error["error"].as_str().unwrap().contains("cannot be exported"), "{error}");

    server.get(&user, "/v1/admin/images/usage").await.expect(403);
    server.call(&user, "POST", "/v1/admin/images/prune", None).await.expect(403);
    let usage = server.get(ADMIN, "/v1/admin/images/usage").await.expect(200);
    assert_eq!((&usage["layers"], &usage["unusedBytes"]), (&json!(1), &json!(0)));
    assert_eq!(usage["images"].as_array().unwrap().len(), 2, "{usage}");
    let pruned = server.call(ADMIN, "POST", "/v1/admin/images/prune", None).await.expect(200);
    assert_eq!(pruned, json!({ "layers": 0, "freedBytes": 0 }));
}
