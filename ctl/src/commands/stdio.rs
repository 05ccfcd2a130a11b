//! `tunnelctl stdio`: standard input and output are a connection. It says nothing unless it fails.

use std::io;
use std::os::fd::BorrowedFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::fs::File;
use tokio::io::AsyncWrite;
use tunneld_proto::v1::PushKeyRequest;

use crate::cli::remote::Stdio;
use crate::client::Client;
use crate::error::{Error, Exit};
use crate::remote::key::knows_pushed_keys;
use crate::remote::pipe::Pipe;

/// Carries bytes until the connection ends.
pub(super) async fn run(told: &Stdio, client: Result<Client, Error>) -> Result<Exit, Error> {
    carry(told, client).await.map_err(Error::signed)
}

async fn carry(told: &Stdio, client: Result<Client, Error>) -> Result<Exit, Error> {
    let mut client = client?;
    let (mut reach, mut instance) = (told.reach.clone(), told.instance.clone());
    if told.push_key.is_some() && !knows_pushed_keys(&instance) {
        // The key must be for the instance that the connection leads to, and a name may have two while one is replaced.
        let resolved = client.resolve(reach.question(&instance, told.port)).await?;
        (reach.route, instance) = (Some(resolved.route), resolved.id);
    }
    let pipe = Pipe::open(&mut client, reach.opening(&instance, told.port)).await?;
    // Only now: the wait for a connection may take longer than the instance accepts the key.
    if let (Some(user), Some(file)) = (&told.user, &told.push_key) {
        let public_key = std::fs::read_to_string(file).map_err(|error| {
            Error::failed(format!("cannot read the public key `{}`", file.display()))
                .because(error.to_string())
        })?;
        let request = PushKeyRequest {
            account: Some(reach.account()),
            instance,
            user: user.clone(),
            public_key: public_key.trim().to_owned(),
        };
        client.push_key(request).await?;
    }
    let unusable =
        |error: io::Error| Error::failed("cannot use standard input and output").because(error.to_string());
    let input = taken(rustix::stdio::stdin()).map_err(unusable)?;
    let output = Stdout::take().map_err(unusable)?;
    pipe.carry(input, output).await?;
    Ok(Exit::Ok)
}

fn taken(end: BorrowedFd<'_>) -> io::Result<File> {
    let end = end.try_clone_to_owned()?;
    Ok(File::from_std(end.into()))
}

/// What was standard output: it can end before the program does. `None`: it has.
struct Stdout(Option<File>);

impl Stdout {
    /// Takes it from the program.
    fn take() -> io::Result<Self> {
        let output = taken(rustix::stdio::stdout())?;
        let nowhere = std::fs::OpenOptions::new().write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdout(nowhere)?;
        Ok(Self(Some(output)))
    }

    fn open(&mut self) -> io::Result<Pin<&mut File>> {
        let ended = || io::Error::from(io::ErrorKind::BrokenPipe);
        self.0.as_mut().map(Pin::new).ok_or_else(ended)
    }
}

impl AsyncWrite for Stdout {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.open()?.poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.open()?.poll_flush(context)
    }

    /// Whoever reads meets the end, although this side may go on sending.
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.open()?.poll_flush(context))?;
        self.0 = None;
        Poll::Ready(Ok(()))
    }
}
