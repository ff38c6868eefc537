//! skeleton
/// skeleton
#[derive(Debug)]
pub struct SqliteStore;
