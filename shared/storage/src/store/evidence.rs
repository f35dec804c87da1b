//! Whether an answer to a create comes from the store.
//!
//! A proxy between the agents and a store may, in maintenance or after losing its backend, answer `200 OK` to everything,
//! with an `ETag` of its own page. The client library takes that for a success. So an answer to a create must show what
//! only a store sends: a request number, and no body. An answer without both is no success and says nothing
//! ([`FailureKind::Unproven`](super::failure::FailureKind)); the object is then read. A store that numbers no requests
//! costs one more request for each object.

use async_trait::async_trait;
use futures_util::TryStreamExt;
use http::{HeaderMap, Method};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody,
    HttpService, ReqwestConnector,
};

/// How stores number their requests, or objects: S3 and what speaks it, Azure, Google; proxies have other names for theirs.
const NUMBERS: [&str; 7] = [
    "x-amz-request-id",
    "x-ms-request-id",
    "x-guploader-uploadid",
    "x-goog-generation",
    "x-oss-request-id",
    "x-cos-request-id",
    "x-obs-request-id",
];

/// What a request for credentials carries that has the method of a create, and is answered with a body.
const FOR_CREDENTIALS: &str = "x-aws-ec2-metadata-token-ttl-seconds";

/// A create was answered with a success that nothing shows to be the store's.
#[derive(Debug, thiserror::Error)]
#[error("the answer {status} does not come from the store: {what}")]
pub(super) struct Unproven {
    status: http::StatusCode,
    what: String,
}

/// Connects to a store whose answers to creates are looked at.
#[derive(Debug, Default)]
pub(super) struct Connector(ReqwestConnector);

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Service(self.0.connect(options)?)))
    }
}

#[derive(Debug)]
struct Service(HttpClient);

#[async_trait]
impl HttpService for Service {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let creates = request.method() == Method::PUT && !request.headers().contains_key(FOR_CREDENTIALS);
        let answer = self.0.execute(request).await?;
        if creates && answer.status().is_success() { prove(answer).await } else { Ok(answer) }
    }
}

/// An answer to a create, if it is the store's.
async fn prove(answer: HttpResponse) -> Result<HttpResponse, HttpError> {
    let (head, body) = answer.into_parts();
    let unproven = |what| Err(HttpError::new(HttpErrorKind::Decode, Unproven { status: head.status, what }));
    let mut chunks = body.bytes_stream();
    while let Some(chunk) = chunks.try_next().await? {
        if !chunk.is_empty() {
            return unproven(format!("it has a body of {}", content_type(&head.headers)));
        }
    }
    if !NUMBERS.iter().any(|name| head.headers.contains_key(*name)) {
        return unproven("it has no number of the request".to_owned());
    }
    Ok(HttpResponse::from_parts(head, HttpResponseBody::from(Vec::new())))
}

/// What a body is said to be. The text is another server's: only what may be in a media type is shown.
fn content_type(headers: &HeaderMap) -> String {
    let value = headers.get(http::header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let shown: String = value.unwrap_or("no type").chars().filter(char::is_ascii_graphic).take(60).collect();
    format!("type {shown:?}")
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// A server that answers with these headers and this body.
    #[derive(Debug)]
    struct Server(Mutex<Vec<(&'static str, &'static str)>>, &'static str);

    #[async_trait]
    impl HttpService for Server {
        async fn call(&self, _: HttpRequest) -> Result<HttpResponse, HttpError> {
            let mut answer = http::Response::builder().status(200);
            for (name, value) in self.0.lock().unwrap().iter() {
                answer = answer.header(*name, *value);
            }
            Ok(answer.body(HttpResponseBody::from(self.1.to_owned())).unwrap())
        }
    }

    async fn ask(
        method: Method,
        asked: Option<&'static str>,
        headers: &[(&'static str, &'static str)],
        body: &'static str,
    ) -> Result<(), String> {
        let service = Service(HttpClient::new(Server(Mutex::new(headers.to_vec()), body)));
        let mut request = http::Request::builder().method(method).uri("http://store/object");
        if let Some(name) = asked {
            request = request.header(name, "1");
        }
        let answer = service.call(request.body(Vec::new().into()).unwrap()).await;
        answer.map(drop).map_err(|error| crate::error::error_chain(&error))
    }

    #[tokio::test]
    async fn a_create_that_a_proxy_answers_is_no_success() {
        let etag = ("etag", "\"5f-abc\"");
        let html = ("content-type", "text/html");
        let put = async |headers: &[_], body| ask(Method::PUT, None, headers, body).await;
        let page = put(&[etag, html, NUMBER], "<html>We are in maintenance</html>").await.unwrap_err();
        assert!(
            page.contains("200 OK does not come from the store: it has a body of type \"text/html\""),
            "{page}"
        );
        let empty = put(&[etag], "").await.unwrap_err();
        assert!(empty.contains("no number of the request"), "{empty}");
        // As Google answers.
        put(&[etag, html, ("X-GUploader-UploadID", "x")], "").await.unwrap();
        put(&[etag, NUMBER], "").await.unwrap();
    }

    const NUMBER: (&str, &str) = ("x-amz-request-id", "1");

    #[tokio::test]
    async fn only_creates_are_looked_at() {
        ask(Method::GET, None, &[], "content").await.unwrap();
        ask(Method::PUT, Some(FOR_CREDENTIALS), &[], "a token").await.unwrap();
    }
}
