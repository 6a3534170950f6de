//! Looks at the caller's role before a request reaches the implementation.

use std::convert::Infallible;
use std::task::{Context, Poll};

use futures::future::{Either, Ready, ready};
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tower::Service;
use tracing::{info, warn};

use super::Caller;
use crate::role::rule;

#[derive(Clone)]
pub(super) struct Authorize<S>(S);

impl<S> Authorize<S> {
    pub(super) fn new(service: S) -> Self {
        Self(service)
    }
}

impl<S> Service<Request<Body>> for Authorize<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<S::Future, Ready<Result<Response<Body>, Infallible>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match permit(&request) {
            Ok(()) => Either::Left(self.0.call(request)),
            Err(status) => Either::Right(ready(Ok(status.into_http()))),
        }
    }
}

fn permit(request: &Request<Body>) -> Result<(), tonic::Status> {
    let caller = request.extensions().get::<Caller>();
    let caller = caller.ok_or_else(|| tonic::Status::unauthenticated("the caller is unknown"))?;
    let Some(rule) = rule(request.uri().path()) else {
        return Err(tonic::Status::unimplemented("this machine has no such call; it may run an older version"));
    };
    let Caller { name, role, public_key: _, address } = caller;
    if *role < rule.role {
        warn!(caller = %name, %role, %address, rpc = rule.rpc, "a call to the machine API was refused");
        let (rpc, needed) = (rule.rpc, rule.role);
        return Err(tonic::Status::permission_denied(format!(
            "{name} has the role {role} on this machine, and {rpc} needs the role {needed}"
        )));
    }
    if rule.audited {
        info!(caller = %name, %role, %address, rpc = rule.rpc, "a call to the machine API");
    }
    Ok(())
}
