//! Signed S3 requests that a repository client never makes: versioning, object lock, anything else by hand.

use object_store::aws::{AwsAuthorizer, AwsCredential};
use object_store::client::HttpRequestBody;

use crate::seaweed::{self, Credentials};

/// Sends one signed request to an S3 server on 127.0.0.1; status and body. `path` begins with a slash and may carry a
/// query: `/bucket?versioning`.
pub fn request(
    port: u16,
    credentials: &Credentials,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> (u16, String) {
    let uri = format!("http://127.0.0.1:{port}{path}");
    let mut request = http::Request::builder().method(method).uri(&uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let body = body.as_bytes().to_vec();
    let mut request = request.body(HttpRequestBody::from(body.clone())).expect("a request");
    let credential = AwsCredential {
        key_id: credentials.key.clone(),
        secret_key: credentials.secret.clone(),
        token: None,
    };
    AwsAuthorizer::new(&credential, "s3", "us-east-1").try_authorize(&mut request, None).expect("sign");
    let mut text = format!("{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n");
    for (name, value) in request.headers() {
        text += &format!("{name}: {}\r\n", value.to_str().expect("a header"));
    }
    text += &format!("Content-Length: {}\r\n\r\n", body.len());
    let mut bytes = text.into_bytes();
    bytes.extend(body);
    seaweed::exchange(port, &bytes).unwrap_or_else(|e| panic!("{method} {path}: {e}"))
}

/// Turns versioning of a bucket on.
pub fn enable_versioning(port: u16, bucket: &str) {
    let body = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
    let (status, answer) =
        request(port, &Credentials::full(), "PUT", &format!("/{bucket}?versioning="), &[], body);
    assert!(status == 200, "versioning: {status} {answer}");
}

/// Makes a bucket whose objects are under a lock (COMPLIANCE mode) for some days by default.
pub fn create_locked_bucket(port: u16, bucket: &str, days: u32) {
    let full = Credentials::full();
    let lock = [("x-amz-bucket-object-lock-enabled", "true")];
    let (status, answer) = request(port, &full, "PUT", &format!("/{bucket}"), &lock, "");
    assert!(status == 200, "making a locked bucket: {status} {answer}");
    let body = format!(
        "<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule><DefaultRetention>\
         <Mode>COMPLIANCE</Mode><Days>{days}</Days></DefaultRetention></Rule></ObjectLockConfiguration>"
    );
    let (status, answer) = request(port, &full, "PUT", &format!("/{bucket}?object-lock="), &[], &body);
    assert!(status == 200, "object lock: {status} {answer}");
}
