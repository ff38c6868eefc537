//! A real registry: Debian's `docker-registry`, pushed to by `skopeo`.

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::wait_for;

/// A registry on loopback, which ends with the test.
pub struct Registry {
    child: Child,
    address: String,
    directory: tempfile::TempDir,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Registry {
    pub fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (address, config) = (format!("127.0.0.1:{port}"), directory.path().join("config.yml"));
        let storage = directory.path().join("storage");
        let text = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n  secret: x\n",
            storage.display()
        );
        std::fs::write(&config, text).unwrap();
        let mut command = Command::new("docker-registry");
        let child = command.arg("serve").arg(&config).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let registry = Self { child, address, directory };
        wait_for("the registry to listen", || TcpStream::connect(&registry.address).ok());
        registry
    }

    /// Host and port.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// For files that shall go when it goes.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Pushes what `skopeo` calls `source` as `name`, and returns the image's whole name.
    pub fn push(&self, source: &str, name: &str) -> String {
        let name = format!("{}/{name}", self.address);
        let mut command = Command::new("skopeo");
        command.args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false", source]);
        let output = command.arg(format!("docker://{name}")).output().unwrap();
        assert!(output.status.success(), "skopeo: {}", String::from_utf8_lossy(&output.stderr));
        name
    }
}
