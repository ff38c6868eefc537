//! Pulls from a real registry, Debian's `docker-registry`, of images pushed by `skopeo`: plain, with TLS, with a password.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use sandbank_oci::{Credentials, Error, Platform, RegistryClient, RegistrySettings, RegistrySource, Source};
use support::{Layout, assert_layers, three_layers};
use tempfile::TempDir;

/// Whether the Debian packages are there; says so if not.
fn can_run(programs: &[&str]) -> bool {
    let missing: Vec<_> = programs.iter().filter(|program| Command::new(program).arg("--version").output().is_err()).collect();
    if !missing.is_empty() {
        eprintln!("skipped: {missing:?} not installed (Debian packages docker-registry, skopeo and apache2-utils)");
    }
    missing.is_empty()
}

#[derive(Default)]
struct Options {
    tls: bool,
    password: bool,
}

/// A registry on loopback, which ends with the test.
struct Registry {
    child: Child,
    address: String,
    directory: TempDir,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Registry {
    fn start(options: &Options) -> Self {
        // Somebody else may take the port in between; then the registry ends, and another port is tried.
        for _ in 0..5 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let directory = TempDir::new().unwrap();
            let config = directory.path().join("config.yml");
            let log_path = directory.path().join("log");
            std::fs::write(&config, configuration(directory.path(), port, options)).unwrap();
            let log = std::fs::File::create(&log_path).unwrap();
            let mut command = Command::new("docker-registry");
            let child = command.arg("serve").arg(&config).stdout(Stdio::null()).stderr(log).spawn().unwrap();
            let mut registry = Self { child, address: format!("127.0.0.1:{port}"), directory };
            if registry.listens() {
                return registry;
            }
            let log = std::fs::read_to_string(&log_path).unwrap();
            assert!(log.contains("address already in use"), "docker-registry does not start: {log}");
        }
        panic!("no free port");
    }

    fn listens(&mut self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(30);
        while Instant::now() < deadline && self.child.try_wait().unwrap().is_none() {
            if TcpStream::connect(&self.address).is_ok() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }

    fn ca(&self) -> PathBuf {
        self.directory.path().join("certs/ca.crt")
    }

    /// Pushes the layout's image of that name with all its variants.
    fn push(&self, layout: &Layout, name: &str, options: &Options) {
        let mut command = Command::new("skopeo");
        command.args(["--insecure-policy", "copy", "--quiet", "--all"]);
        if options.tls {
            command.arg("--dest-cert-dir").arg(self.ca().parent().unwrap());
        } else {
            command.arg("--dest-tls-verify=false");
        }
        if options.password {
            command.args(["--dest-creds", "me:secret"]);
        }
        let output = command
            .arg(format!("oci:{}:1", layout.path().display()))
            .arg(format!("docker://{}/{name}", self.address))
            .output()
            .unwrap();
        assert!(output.status.success(), "skopeo: {}", String::from_utf8_lossy(&output.stderr));
    }
}

fn configuration(directory: &Path, port: u16, options: &Options) -> String {
    let storage = directory.join("storage");
    let mut text = format!(
        "version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    rootdirectory: {}\n\
         http:\n  addr: 127.0.0.1:{port}\n  secret: test\n",
        storage.display()
    );
    if options.tls {
        let certs = directory.join("certs");
        write_certificates(&certs);
        let server = directory.join("server");
        text += &format!("  tls:\n    certificate: {0}.crt\n    key: {0}.key\n", server.display());
    }
    if options.password {
        let path = directory.join("htpasswd");
        let line = Command::new("htpasswd").args(["-Bbn", "-C", "4", "me", "secret"]).output().unwrap();
        std::fs::write(&path, line.stdout).unwrap();
        text += &format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", path.display());
    }
    text
}

/// An authority in `certs`, and beside it a server's certificate and key.
fn write_certificates(certs: &Path) {
    std::fs::create_dir_all(certs).unwrap();
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.distinguished_name.push(rcgen::DnType::CommonName, "sandbank test authority");
    std::fs::write(certs.join("ca.crt"), ca.self_signed(&ca_key).unwrap().pem()).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap();
    let server = certs.parent().unwrap().join("server");
    std::fs::write(server.with_extension("crt"), certificate.pem()).unwrap();
    std::fs::write(server.with_extension("key"), key.serialize_pem()).unwrap();
}

fn layout() -> Layout {
    let mut layout = Layout::new();
    let index = layout.index(&[layout.image("amd64", &three_layers("amd")), layout.image("arm64", &three_layers("arm"))]);
    layout.add(Some("1"), index);
    layout
}

fn settings() -> RegistrySettings {
    RegistrySettings { backoff: Duration::from_millis(10), tries_max: 2, ..RegistrySettings::default() }
}

fn image(settings: RegistrySettings, name: &str, credentials: Option<Credentials>) -> RegistrySource {
    let client = RegistryClient::new(settings).unwrap();
    client.image(client.reference(name).unwrap(), credentials).unwrap()
}

async fn assert_both_platforms(source: &RegistrySource) {
    for (platform, salt) in [(Platform::linux_amd64(), "amd"), (Platform::linux_arm64(), "arm")] {
        let resolved = source.resolve(&platform).await.unwrap();
        assert_eq!(resolved.config.env["ARCH"], platform.architecture);
        assert_eq!(resolved.config.user.as_deref(), Some("1000"));
        assert_layers(source, &resolved, &three_layers(salt)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_registry_on_loopback() {
    if !can_run(&["docker-registry", "skopeo"]) {
        return;
    }
    let options = Options::default();
    let registry = Registry::start(&options);
    registry.push(&layout(), "team/app:1", &options);
    assert_both_platforms(&image(settings(), &format!("{}/team/app:1", registry.address), None)).await;

    let missing = image(settings(), &format!("{}/team/app:2", registry.address), None);
    let error = missing.resolve(&Platform::linux_amd64()).await.unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_serves_short_names() {
    if !can_run(&["docker-registry", "skopeo"]) {
        return;
    }
    let options = Options::default();
    let registry = Registry::start(&options);
    registry.push(&layout(), "library/python:3.12-slim", &options);
    let mirrors = [("docker.io".to_owned(), vec![registry.address.clone()])].into();
    let source = image(RegistrySettings { mirrors, ..settings() }, "python:3.12-slim", None);
    assert_eq!(source.name(), "python:3.12-slim");
    assert_both_platforms(&source).await;

    let default_registry = registry.address.clone();
    let source = image(RegistrySettings { default_registry, ..settings() }, "python:3.12-slim", None);
    assert_both_platforms(&source).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_is_wanted_and_shown() {
    if !can_run(&["docker-registry", "skopeo", "htpasswd"]) {
        return;
    }
    let options = Options { password: true, ..Options::default() };
    let registry = Registry::start(&options);
    registry.push(&layout(), "app:1", &options);
    let name = format!("{}/app:1", registry.address);
    let password = |password: &str| Some(Credentials::Password { username: "me".to_owned(), password: password.to_owned() });
    assert_both_platforms(&image(settings(), &name, password("secret"))).await;
    for (credentials, says) in [(None, "wants credentials"), (password("wrong"), "does not accept the credentials")] {
        let error = image(settings(), &name, credentials).resolve(&Platform::linux_amd64()).await.unwrap_err();
        assert!(matches!(error, Error::Unauthorized { .. }) && error.to_string().contains(says), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_authority_is_trusted_when_it_is_given() {
    if !can_run(&["docker-registry", "skopeo", "htpasswd"]) {
        return;
    }
    let options = Options { tls: true, password: true };
    let registry = Registry::start(&options);
    registry.push(&layout(), "app:1", &options);
    let name = format!("{}/app:1", registry.address);
    let password = || Some(Credentials::Password { username: "me".to_owned(), password: "secret".to_owned() });
    let trusting = RegistrySettings { ca_files: vec![registry.ca()], ..settings() };
    assert_both_platforms(&image(trusting, &name, password())).await;

    let error = image(settings(), &name, password()).resolve(&Platform::linux_amd64()).await.unwrap_err();
    assert!(error.to_string().contains("ca_files"), "{error}");
    let missing = RegistrySettings { ca_files: vec![registry.directory.path().join("nothing.pem")], ..settings() };
    assert!(matches!(RegistryClient::new(missing), Err(Error::Setting { setting: "ca_files", .. })));
}
