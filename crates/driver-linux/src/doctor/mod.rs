//! What this machine can do, line by line.
