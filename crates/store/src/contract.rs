//! The contract suite: what every store must do, as functions that take one.
