//! The launcher alone, for this crate's tests and measurements. The server's own binary carries it as a hidden subcommand.

fn main() {
    sandbank_driver_linux::launcher_main()
}
