//! Several gRPC services on one connection: the path's first word says whose the request is.
//!
//! tonic's own router does the same by way of a whole HTTP framework; four services need four comparisons.

use std::convert::Infallible;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use http::{Request, Response};
use tonic::body::Body;
use tonic::server::NamedService;
use tower::ServiceExt;
use tower::util::BoxCloneSyncService;

type Route = BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>;

/// The services.
#[derive(Debug, Clone, Default)]
pub(crate) struct Routes(Vec<(&'static str, Route)>);

impl Routes {
    /// These services and one more.
    pub(crate) fn with<S>(mut self, service: S) -> Self
    where
        S: tower::Service<Request<Body>, Response = Response<Body>, Error = Infallible>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
    {
        self.0.push((S::NAME, BoxCloneSyncService::new(service)));
        self
    }
}

impl tower::Service<Request<Body>> for Routes {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // Each request gets its own clone of its service, which it waits for itself.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let asked = request
            .uri()
            .path()
            .trim_start_matches('/')
            .split('/')
            .next()
            .unwrap_or_default();
        match self.0.iter().find(|(name, _)| *name == asked) {
            Some((_, route)) => Box::pin(route.clone().oneshot(request)),
            None => {
                let status = tonic::Status::unimplemented(format!("there is no service `{asked}`"));
                Box::pin(async move { Ok(status.into_http()) })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_service_that_does_not_exist_is_unimplemented() {
        let request = Request::post("/no.such.Service/Method")
            .body(Body::empty())
            .unwrap();
        let response = Routes::default().oneshot(request).await.unwrap();
        let status = tonic::Status::from_header_map(response.headers()).unwrap();
        assert_eq!(status.code(), tonic::Code::Unimplemented);
        assert_eq!(status.message(), "there is no service `no.such.Service`");
    }
}
