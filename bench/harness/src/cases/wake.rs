//! A sleep in which all websockets die, and the way back.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::{Bench, ms};
use crate::client::{Client, Who};
use crate::figures::{Comer, Quantity, Setting};
use crate::load::Echo;

impl Bench<'_> {
    /// From the end of a sleep until the connection from before and a new one work.
    pub(crate) fn wake(&mut self, setting: Setting) {
        let measured = self.with(Who::Ours, setting.far, 1, |client| self.sleeps(client));
        let quantities = [Comer::Old, Comer::New].map(Quantity::Wake);
        self.put(setting, quantities, Who::Ours, measured);
    }

    fn sleeps(&self, client: &Client) -> anyhow::Result<[Vec<f64>; 2]> {
        /// Longer than what the daemon takes for a busy machine, and than the time between its pings.
        const SLEEP: Duration = Duration::from_secs(20);
        let (mut old, mut new) = (Vec::new(), Vec::new());
        for _ in 0..self.effort.sleeps {
            let mut echo = Echo::open(client.address())?;
            client.stand_still()?;
            self.place.emulator.freeze()?;
            thread::sleep(SLEEP);
            client.go_on()?;
            let woke = Instant::now();
            let since = || ms(woke.elapsed());
            let (again, opened) = thread::scope(|scope| {
                let opened = scope.spawn(|| Echo::open(client.address()).map(|_| since()));
                let again = echo.ping().map(|_| since());
                let opened = opened
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                (again, opened)
            });
            old.push(again.context("the connection from before the sleep")?);
            new.push(opened.context("a connection after the sleep")?);
        }
        Ok([old, new])
    }
}
