//! Build plans, without any input or output: what a Dockerfile or a list of steps asks for, what each step means where it
//! stands, which files a pattern names, and the keys of the build cache.
//!
//! | module | what it decides |
//! |---|---|
//! | `plan` | stages and their steps, as written |
//! | `dockerfile` | a Dockerfile as a plan; what is not supported is refused by name, with its line |
//! | `words` | quotes, escapes and `$variables` |
//! | `meaning` | what a step does after all steps before it: a program to run, files to copy, a changed configuration |
//! | `paths` | paths inside an upload, patterns, `.dockerignore` |
//! | `key` | what a cached layer is found by |

mod dockerfile;
mod key;
mod meaning;
mod paths;
mod plan;
mod words;

pub use dockerfile::from_dockerfile;
pub use key::{CopiedFile, cache_key, content_hash, file_system_identity};
pub use meaning::{Action, CopyAction, Origin, RunAction, StageContext};
pub use paths::{Ignore, Pattern, UnsafePath, absolute_path, clean_path};
pub use plan::{Base, CommandLine, CopyFrom, CopySpec, Plan, PlanError, Stage, Step, StepKind};
pub use words::{Lookup, expand, key_values, literal, split_words};
