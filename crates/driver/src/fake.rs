//! skeleton
/// skeleton
#[derive(Debug, Default)]
pub struct FakeDriver;
/// skeleton
#[derive(Debug, Default)]
pub struct FakeFaults;
