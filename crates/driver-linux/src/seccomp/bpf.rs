//! From rules to a classic BPF program: check the architecture, load the call's number, find it by binary search, look at
//! arguments where a rule says so.

use std::collections::BTreeMap;

use libc::{
    BPF_ABS, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET, BPF_W, SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO,
    SECCOMP_RET_KILL_PROCESS, c_int, c_long, sock_filter,
};

use super::rules::{Check, Condition, Rule, Test};

/// Why rules do not make a program.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// Two rules for one call.
    #[error("system call {number} has two seccomp rules")]
    Twice {
        /// Its number.
        number: c_long,
    },
    /// A number or an error that cannot be.
    #[error("{value} is not a system call number or errno")]
    Number {
        /// The value.
        value: i64,
    },
    /// Longer than a jump reaches (255 instructions).
    #[error("the seccomp program has {length} instructions, which is more than a jump can reach over")]
    TooLong {
        /// Instructions.
        length: usize,
    },
}

// <linux/audit.h>: the ELF machine number | __AUDIT_ARCH_64BIT | __AUDIT_ARCH_LE.
#[cfg(target_arch = "x86_64")]
pub(super) const ARCHITECTURE: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
pub(super) const ARCHITECTURE: u32 = 0xC000_00B7;

/// Numbers from here on are the x32 ABI's on x86-64, and nobody's on arm64.
pub(super) const NUMBER_END: u32 = 0x4000_0000;

// Offsets in struct seccomp_data (seccomp(2)). The lower half of an argument comes first: both architectures are little-endian.
const OFFSET_NUMBER: u32 = 0;
const OFFSET_ARCHITECTURE: u32 = 4;
const OFFSET_ARGUMENTS: u32 = 16;

/// A place in the program that is jumped to.
type Label = usize;

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Allow,
    Refuse(c_int),
    /// Look at the arguments by this rule.
    Check(usize),
}

#[derive(Debug)]
enum Item {
    Label(Label),
    Load(u32),
    Return(u32),
    Jump { test: u32, value: u32, yes: Label, no: Label },
}

#[derive(Debug, Default)]
struct Assembler {
    items: Vec<Item>,
    labels: usize,
    /// Shared return instructions, by value; emitted at the end.
    returns: BTreeMap<u32, Label>,
}

impl Assembler {
    fn label(&mut self) -> Label {
        self.labels += 1;
        self.labels - 1
    }

    fn place(&mut self, label: Label) {
        self.items.push(Item::Label(label));
    }

    fn returning(&mut self, value: u32) -> Label {
        if let Some(label) = self.returns.get(&value) {
            return *label;
        }
        let label = self.label();
        self.returns.insert(value, label);
        label
    }

    /// Goes to `yes` where the test holds and to the next instruction where it does not.
    fn jump_if(&mut self, test: u32, value: u32, yes: Label) {
        let no = self.label();
        self.items.push(Item::Jump { test, value, yes, no });
        self.place(no);
    }

    /// Goes to the next instruction where the test holds and to `no` where it does not.
    fn jump_unless(&mut self, test: u32, value: u32, no: Label) {
        let yes = self.label();
        self.items.push(Item::Jump { test, value, yes, no });
        self.place(yes);
    }

    fn finish(mut self) -> Result<Vec<sock_filter>, CompileError> {
        for (value, label) in std::mem::take(&mut self.returns) {
            self.place(label);
            self.items.push(Item::Return(value));
        }
        let mut positions = vec![0; self.labels];
        let mut length = 0;
        for item in &self.items {
            match item {
                Item::Label(label) => positions[*label] = length,
                _ => length += 1,
            }
        }
        let mut program = Vec::with_capacity(length);
        for item in &self.items {
            let next = program.len() + 1;
            let distance =
                |label: Label| u8::try_from(positions[label].wrapping_sub(next)).map_err(|_| CompileError::TooLong { length });
            program.push(match *item {
                Item::Label(_) => continue,
                Item::Load(offset) => instruction(BPF_LD | BPF_W | BPF_ABS, 0, 0, offset),
                Item::Return(value) => instruction(BPF_RET | BPF_K, 0, 0, value),
                Item::Jump { test, value, yes, no } => instruction(BPF_JMP | test | BPF_K, distance(yes)?, distance(no)?, value),
            });
        }
        Ok(program)
    }
}

fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> sock_filter {
    // Classic BPF codes have 16 bits, and the constants that make them up fewer.
    sock_filter { code: code as u16, jt, jf, k }
}

fn refusal(errno: c_int) -> Result<u32, CompileError> {
    u16::try_from(errno)
        .map(|errno| SECCOMP_RET_ERRNO | u32::from(errno))
        .map_err(|_| CompileError::Number { value: errno.into() })
}

/// Compiles `rules` for the architecture that this is built for.
pub(super) fn compile(rules: &[Rule]) -> Result<Vec<sock_filter>, CompileError> {
    let mut assembler = Assembler::default();
    let kill = assembler.returning(SECCOMP_RET_KILL_PROCESS);
    let unknown = assembler.returning(refusal(libc::ENOSYS)?);
    assembler.items.push(Item::Load(OFFSET_ARCHITECTURE));
    assembler.jump_unless(BPF_JEQ, ARCHITECTURE, kill);
    assembler.items.push(Item::Load(OFFSET_NUMBER));
    assembler.jump_if(BPF_JGE, NUMBER_END, unknown);

    let checks: Vec<Label> = rules.iter().map(|_| assembler.label()).collect();
    let pieces = pieces(rules)?;
    search(&mut assembler, &pieces, &checks)?;
    for (rule, label) in rules.iter().zip(&checks) {
        if !always(rule) {
            assembler.place(*label);
            check_arguments(&mut assembler, rule.checks)?;
        }
    }
    assembler.finish()
}

fn always(rule: &Rule) -> bool {
    rule.checks.first().is_some_and(|check| check.conditions.is_empty())
}

/// Cuts the numbers into runs of the same outcome: (first number, outcome), ascending, the first from 0.
fn pieces(rules: &[Rule]) -> Result<Vec<(u32, Outcome)>, CompileError> {
    let mut calls = BTreeMap::new();
    for (index, rule) in rules.iter().enumerate() {
        let outcome = match rule.checks.first() {
            Some(check) if check.conditions.is_empty() => Outcome::Refuse(check.errno),
            Some(_) => Outcome::Check(index),
            None => Outcome::Allow,
        };
        for &number in rule.calls {
            let position = u32::try_from(number).ok().filter(|position| *position < NUMBER_END);
            let position = position.ok_or(CompileError::Number { value: number })?;
            if calls.insert(position, outcome).is_some() {
                return Err(CompileError::Twice { number });
            }
        }
    }
    let mut pieces = vec![(0, Outcome::Allow)];
    for (number, outcome) in calls {
        begin(&mut pieces, number, outcome);
        begin(&mut pieces, number + 1, Outcome::Allow);
    }
    pieces.dedup_by_key(|(_, outcome)| *outcome);
    Ok(pieces)
}

/// Lets a piece begin at `start`; one that would begin there already is replaced.
fn begin(pieces: &mut Vec<(u32, Outcome)>, start: u32, outcome: Outcome) {
    if pieces.last().is_some_and(|(last, _)| *last == start) {
        pieces.pop();
    }
    pieces.push((start, outcome));
}

fn search(assembler: &mut Assembler, pieces: &[(u32, Outcome)], checks: &[Label]) -> Result<(), CompileError> {
    let middle = pieces.len() / 2;
    if middle == 0 {
        return Ok(());
    }
    let (low, high) = pieces.split_at(middle);
    let low_label = target(assembler, low, checks)?;
    let high_label = target(assembler, high, checks)?;
    assembler.items.push(Item::Jump { test: BPF_JGE, value: high[0].0, yes: high_label, no: low_label });
    for (half, label) in [(low, low_label), (high, high_label)] {
        if half.len() > 1 {
            assembler.place(label);
            search(assembler, half, checks)?;
        }
    }
    Ok(())
}

/// Where the search goes on for these pieces: its end, if it is only one, or a new place.
fn target(assembler: &mut Assembler, pieces: &[(u32, Outcome)], checks: &[Label]) -> Result<Label, CompileError> {
    match pieces {
        [(_, Outcome::Allow)] => Ok(assembler.returning(SECCOMP_RET_ALLOW)),
        [(_, Outcome::Refuse(errno))] => {
            let value = refusal(*errno)?;
            Ok(assembler.returning(value))
        }
        [(_, Outcome::Check(rule))] => Ok(checks[*rule]),
        _ => Ok(assembler.label()),
    }
}

fn check_arguments(assembler: &mut Assembler, checks: &[Check]) -> Result<(), CompileError> {
    for (position, check) in checks.iter().enumerate() {
        let refuse = assembler.returning(refusal(check.errno)?);
        let last = position + 1 == checks.len();
        let otherwise = if last { assembler.returning(SECCOMP_RET_ALLOW) } else { assembler.label() };
        for (index, condition) in check.conditions.iter().enumerate() {
            let holds = if index + 1 == check.conditions.len() { refuse } else { assembler.label() };
            test_argument(assembler, condition, holds, otherwise);
            if holds != refuse {
                assembler.place(holds);
            }
        }
        if !last {
            assembler.place(otherwise);
        }
    }
    Ok(())
}

fn test_argument(assembler: &mut Assembler, condition: &Condition, holds: Label, otherwise: Label) {
    assembler.items.push(Item::Load(OFFSET_ARGUMENTS + 8 * u32::from(condition.argument)));
    let (values, test, found, absent) = match &condition.test {
        Test::AnyBit(mask) => (std::slice::from_ref(mask), BPF_JSET, holds, otherwise),
        Test::Among(values) => (*values, BPF_JEQ, holds, otherwise),
        Test::NotAmong(values) => (*values, BPF_JEQ, otherwise, holds),
    };
    for (index, value) in values.iter().enumerate() {
        if index + 1 == values.len() {
            assembler.items.push(Item::Jump { test, value: *value, yes: found, no: absent });
        } else {
            assembler.jump_if(test, *value, found);
        }
    }
}
