//! Everything that is logged in this process, to look for what must not be there.

use std::io;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

#[derive(Clone, Default)]
pub struct Logs(Arc<Mutex<Vec<u8>>>);

impl Logs {
    /// Starts to listen, once for the process. h2 is heard at debug only: the servers of the tests run in this process too, and
    /// at trace it prints what they decode.
    pub fn capture() -> Self {
        static LOGS: OnceLock<Logs> = OnceLock::new();
        let start = || {
            let logs = Self::default();
            let filter = EnvFilter::new("trace,h2=debug");
            let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(logs.clone()).with_ansi(false);
            subscriber.try_init().expect("the first subscriber");
            logs
        };
        LOGS.get_or_init(start).clone()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock()).into_owned()
    }
}

impl io::Write for Logs {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Logs {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}
