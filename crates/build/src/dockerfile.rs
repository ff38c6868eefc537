//! A Dockerfile as a plan.
//!
//! The text is parsed by `parse-dockerfile`; here it becomes a plan, and what Sandbank does not do is refused by name.

use std::collections::BTreeMap;

use parse_dockerfile::{
    Command, CopyInstruction, Dockerfile, Flag, FromInstruction, HereDoc, Instruction, RunInstruction, Source, Span,
};

use crate::plan::{Base, CommandLine, CopyFrom, CopySpec, Plan, PlanError, Stage, Step, StepKind};
use crate::words::{expand, key_values, shown, split_words};

/// Largest Dockerfile.
const TEXT_MAX: usize = 1024 * 1024;
/// Most characters of an instruction that are shown as a step's text.
const SHOWN_MAX: usize = 200;

/// Reads a Dockerfile. `target` is a stage by name or number; `None` is the last one.
pub fn from_dockerfile(text: &str, build_args: BTreeMap<String, String>, target: Option<&str>) -> Result<Plan, PlanError> {
    if text.len() > TEXT_MAX {
        return Err(PlanError::Plan(format!("the Dockerfile has {} bytes; at most {TEXT_MAX} are read", text.len())));
    }
    let file = parse_dockerfile::parse(text).map_err(|error| {
        let what = error.to_string();
        // The parser ends its message with the place, which stands in front of ours.
        let what = what.rsplit_once(" at line ").map_or(what.clone(), |(what, _)| what.to_owned());
        PlanError::Line { line: error.line().max(1), what }
    })?;
    let reader = Reader { text, escape: file.parser_directives.escape.as_ref().map_or('\\', |escape| escape.value.value) };
    reader.refuse_escape(&file)?;
    let global_args = reader.global_args(&file, &build_args)?;
    let mut stages: Vec<Stage> = Vec::new();
    for found in file.stages() {
        let (base, name) = reader.from(found.from, &global_args, &stages)?;
        let mut steps = Vec::new();
        for instruction in found.instructions {
            reader.steps(instruction, &stages, &mut steps)?;
        }
        stages.push(Stage { base, name, steps });
    }
    let target = match target {
        None => stages.len().saturating_sub(1),
        Some(wanted) => stage_index(&stages, wanted)
            .ok_or_else(|| PlanError::Plan(format!("the Dockerfile has no stage {}", shown(wanted))))?,
    };
    Ok(Plan { stages, target, build_args, global_args })
}

/// A stage by name, whatever the case, or by number.
fn stage_index(stages: &[Stage], wanted: &str) -> Option<usize> {
    let lower = wanted.to_ascii_lowercase();
    let named = stages.iter().rposition(|stage| stage.name.as_deref() == Some(&lower));
    named.or_else(|| wanted.parse().ok().filter(|index| *index < stages.len()))
}

/// The platform of this build, as images name it.
fn own_platform() -> (&'static str, String) {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    (arch, format!("linux/{arch}"))
}

struct Reader<'a> {
    text: &'a str,
    escape: char,
}

impl Reader<'_> {
    fn refuse(&self, span: &Span, what: impl Into<String>) -> PlanError {
        let line = self.text.as_bytes().iter().take(span.start).filter(|byte| **byte == b'\n').count() + 1;
        PlanError::Line { line, what: what.into() }
    }

    fn refuse_escape(&self, file: &Dockerfile<'_>) -> Result<(), PlanError> {
        match &file.parser_directives.escape {
            Some(escape) if escape.value.value != '\\' => {
                let what = "the parser directive escape is not supported: end continued lines with \\";
                Err(self.refuse(&escape.value.span, what))
            }
            _ => Ok(()),
        }
    }

    /// Arguments declared before the first stage, and those that every builder knows.
    fn global_args(
        &self,
        file: &Dockerfile<'_>,
        given: &BTreeMap<String, String>,
    ) -> Result<BTreeMap<String, String>, PlanError> {
        let (arch, platform) = own_platform();
        let mut args = BTreeMap::new();
        for side in ["BUILD", "TARGET"] {
            args.insert(format!("{side}PLATFORM"), platform.clone());
            args.insert(format!("{side}OS"), "linux".to_owned());
            args.insert(format!("{side}ARCH"), arch.to_owned());
        }
        for arg in file.global_args() {
            for (name, default) in declared(&arg.arguments.value) {
                let default = default
                    .map(|raw| expand(&raw, &|name| args.get(name).cloned()))
                    .transpose()
                    .map_err(|what| self.refuse(&arg.arguments.span, what))?;
                if let Some(value) = given.get(&name).cloned().or(default) {
                    args.insert(name, value);
                }
            }
        }
        Ok(args)
    }

    fn from(
        &self,
        from: &FromInstruction<'_>,
        args: &BTreeMap<String, String>,
        stages: &[Stage],
    ) -> Result<(Base, Option<String>), PlanError> {
        let lookup = |name: &str| args.get(name).cloned();
        let expanded = |text: &str| expand(text, &lookup).map_err(|what| self.refuse(&from.from.span, what));
        for flag in &from.options {
            let value = expanded(self.flag_value("FROM", flag, &["platform"])?)?;
            let (_, own) = own_platform();
            let plain = value.strip_suffix("/v8").unwrap_or(&value);
            if plain != own {
                let what = format!("FROM --platform={value} is not supported: this server runs {own} only");
                return Err(self.refuse(&flag.span(), what));
            }
        }
        let image = expanded(&from.image.value)?;
        if image.is_empty() {
            return Err(self.refuse(&from.image.span, "FROM names no image: an argument in it has no value"));
        }
        let name = from.as_.as_ref().map(|(_, name)| name.value.to_ascii_lowercase());
        let base = match stage_index(stages, &image).filter(|_| image.parse::<usize>().is_err()) {
            Some(index) => Base::Stage(index),
            None if image == "scratch" => Base::Scratch,
            None => Base::Image(image),
        };
        Ok((base, name))
    }

    fn steps(&self, instruction: &Instruction<'_>, stages: &[Stage], into: &mut Vec<Step>) -> Result<(), PlanError> {
        let (word, span) = keyword(instruction);
        let words = |span: &Span, value: &str| {
            let words = split_words(value);
            if words.is_empty() { Err(self.refuse(span, format!("{word} needs an argument"))) } else { Ok(words) }
        };
        let pairs = |span: &Span, value: &str| key_values(value).map_err(|what| self.refuse(span, format!("{word} {what}")));
        let kind = match instruction {
            Instruction::Run(run) => StepKind::Run { command: self.run(run)?, user: None },
            Instruction::Copy(copy) => StepKind::Copy(self.copy(copy, stages)?),
            Instruction::Env(env) => StepKind::Env(pairs(&env.arguments.span, &env.arguments.value)?),
            Instruction::Label(label) => StepKind::Label(pairs(&label.arguments.span, &label.arguments.value)?),
            Instruction::Arg(arg) => {
                for (name, default) in declared(&arg.arguments.value) {
                    let kind = StepKind::Arg(name, default);
                    into.push(Step { line: Some(self.line(&span)), text: self.shown(word, &arg.arguments.span), kind });
                }
                return Ok(());
            }
            Instruction::Workdir(workdir) => StepKind::Workdir(workdir.arguments.value.trim().to_owned()),
            Instruction::User(user) => StepKind::User(user.arguments.value.trim().to_owned()),
            Instruction::Stopsignal(signal) => StepKind::StopSignal(signal.arguments.value.trim().to_owned()),
            Instruction::Expose(expose) => {
                let mut ports = Vec::new();
                for port in &expose.arguments {
                    ports.extend(words(&port.span, &port.value)?);
                }
                StepKind::Expose(ports)
            }
            Instruction::Entrypoint(entrypoint) => StepKind::Entrypoint(self.command(&entrypoint.arguments)),
            Instruction::Cmd(cmd) => StepKind::Command(self.command(&cmd.arguments)),
            Instruction::Shell(shell) => {
                StepKind::Shell(shell.arguments.iter().map(|argument| argument.value.clone().into_owned()).collect())
            }
            Instruction::Maintainer(_) => return Ok(()),
            _ => return Err(self.unsupported(word, &span)),
        };
        into.push(Step { line: Some(self.line(&span)), text: self.shown(word, &span), kind });
        Ok(())
    }

    fn unsupported(&self, word: &str, span: &Span) -> PlanError {
        let hint = match word {
            "ADD" => ": use COPY for files, and RUN with curl and tar for what comes from elsewhere",
            "HEALTHCHECK" => ": give the template a readiness probe instead",
            "VOLUME" => ": a sandbox keeps its whole file system; leave it out",
            "ONBUILD" => ": write the instruction where it is meant",
            _ => "",
        };
        self.refuse(span, format!("{word} is not supported{hint}"))
    }

    fn line(&self, span: &Span) -> usize {
        self.text.as_bytes().iter().take(span.start).filter(|byte| **byte == b'\n').count() + 1
    }

    /// An instruction in one line: from its keyword (or argument) to the end of its continued lines.
    fn shown(&self, word: &str, span: &Span) -> String {
        let rest = self.text.get(span.start..).unwrap_or_default();
        let rest = if rest.get(..word.len()).is_some_and(|found| found.eq_ignore_ascii_case(word)) {
            rest.get(word.len()..).unwrap_or_default()
        } else {
            rest
        };
        let (mut whole, mut lines) = (String::from(word), rest.lines());
        for line in lines.by_ref() {
            let (part, more) = match line.trim_end().strip_suffix(self.escape) {
                Some(part) => (part, true),
                None => (line, false),
            };
            if !part.trim_start().starts_with('#') {
                whole.push(' ');
                whole.push_str(part.trim());
            }
            if !more && !line.trim_start().starts_with('#') {
                break;
            }
        }
        whole.chars().take(SHOWN_MAX).collect()
    }

    fn run(&self, run: &RunInstruction<'_>) -> Result<CommandLine, PlanError> {
        if let Some(flag) = run.options.first() {
            let what = format!("RUN --{} is not supported: leave it out", flag.name.value);
            return Err(self.refuse(&flag.span(), what));
        }
        match run.here_docs.as_slice() {
            [] => {}
            [document] => return self.here_document(run, document).map(CommandLine::Shell),
            [_, second, ..] => return Err(self.refuse(&second.span, "several here-documents in one RUN are not supported")),
        }
        match self.command(&run.arguments) {
            CommandLine::Shell(text) if text.trim().is_empty() => Err(self.refuse(&run.run.span, "RUN needs a command")),
            command => Ok(command),
        }
    }

    fn here_document(&self, run: &RunInstruction<'_>, document: &HereDoc<'_>) -> Result<String, PlanError> {
        let Command::Shell(first) = &run.arguments else { return Ok(document.value.clone().into_owned()) };
        // What stands behind the delimiter: a program that would read the document.
        if !first.value.trim().is_empty() || document.value.trim_start().starts_with("#!") {
            let what = "only a plain here-document is supported: RUN <<EOF, lines for the shell, EOF";
            return Err(self.refuse(&run.run.span, what));
        }
        Ok(document.value.clone().into_owned())
    }

    fn command(&self, command: &Command<'_>) -> CommandLine {
        match command {
            Command::Exec(words) => CommandLine::Exec(words.value.iter().map(|word| word.value.clone().into_owned()).collect()),
            Command::Shell(text) => CommandLine::Shell(self.joined(text.value)),
            _ => CommandLine::Shell(String::new()),
        }
    }

    /// Continued lines as one, without the comments between them.
    fn joined(&self, text: &str) -> String {
        let (mut whole, mut continued) = (String::new(), false);
        for line in text.lines() {
            if continued && (line.trim_start().starts_with('#') || line.trim().is_empty()) {
                continue;
            }
            match line.trim_end().strip_suffix(self.escape) {
                Some(part) => {
                    whole.push_str(part);
                    continued = true;
                }
                None => {
                    whole.push_str(line);
                    break;
                }
            }
        }
        whole.trim().to_owned()
    }

    fn copy(&self, copy: &CopyInstruction<'_>, stages: &[Stage]) -> Result<CopySpec, PlanError> {
        let mut spec = CopySpec {
            from: CopyFrom::Context,
            sources: Vec::new(),
            dest: copy.dest.value.clone().into_owned(),
            chown: None,
            chmod: None,
        };
        for flag in &copy.options {
            let value = self.flag_value("COPY", flag, &["from", "chown", "chmod"])?;
            match flag.name.value.as_ref() {
                "from" => {
                    spec.from = match stage_index(stages, value) {
                        Some(index) => CopyFrom::Stage(index),
                        None => CopyFrom::Image(value.to_owned()),
                    }
                }
                "chown" => spec.chown = Some(value.to_owned()),
                _ => {
                    let octal = u32::from_str_radix(value, 8).ok().filter(|mode| *mode <= 0o7777);
                    let refused =
                        || self.refuse(&flag.span(), format!("COPY --chmod={value}: write permission bits in octal, as 755"));
                    spec.chmod = Some(octal.ok_or_else(refused)?);
                }
            }
        }
        for source in &copy.src {
            match source {
                Source::Path(path) => spec.sources.push(path.value.clone().into_owned()),
                Source::HereDoc(_) => {
                    return Err(
                        self.refuse(&copy.copy.span, "COPY with a here-document is not supported: put the text into a file")
                    );
                }
                _ => return Err(self.refuse(&copy.copy.span, "this form of COPY is not supported")),
            }
        }
        Ok(spec)
    }

    fn flag_value<'b>(&self, word: &str, flag: &'b Flag<'_>, known: &[&str]) -> Result<&'b str, PlanError> {
        let name = flag.name.value.as_ref();
        match &flag.value {
            Some(value) if known.contains(&name) => Ok(value.value.as_ref()),
            None if known.contains(&name) => {
                Err(self.refuse(&flag.span(), format!("{word} --{name} needs a value: --{name}=...")))
            }
            _ => {
                let known: Vec<String> = known.iter().map(|name| format!("--{name}")).collect();
                let what = format!("{word} --{name} is not supported: it takes {}", known.join(", "));
                Err(self.refuse(&flag.span(), what))
            }
        }
    }
}

/// The arguments that an `ARG` declares, with their raw defaults.
fn declared(text: &str) -> Vec<(String, Option<String>)> {
    let pair = |word: String| match word.split_once('=') {
        Some((name, default)) => (name.to_owned(), Some(default.to_owned())),
        None => (word, None),
    };
    split_words(text).into_iter().map(pair).collect()
}

fn keyword(instruction: &Instruction<'_>) -> (&'static str, Span) {
    match instruction {
        Instruction::Add(found) => ("ADD", found.add.span.clone()),
        Instruction::Arg(found) => ("ARG", found.arg.span.clone()),
        Instruction::Cmd(found) => ("CMD", found.cmd.span.clone()),
        Instruction::Copy(found) => ("COPY", found.copy.span.clone()),
        Instruction::Entrypoint(found) => ("ENTRYPOINT", found.entrypoint.span.clone()),
        Instruction::Env(found) => ("ENV", found.env.span.clone()),
        Instruction::Expose(found) => ("EXPOSE", found.expose.span.clone()),
        Instruction::From(found) => ("FROM", found.from.span.clone()),
        Instruction::Healthcheck(found) => ("HEALTHCHECK", found.healthcheck.span.clone()),
        Instruction::Label(found) => ("LABEL", found.label.span.clone()),
        Instruction::Maintainer(found) => ("MAINTAINER", found.maintainer.span.clone()),
        Instruction::Onbuild(found) => ("ONBUILD", found.onbuild.span.clone()),
        Instruction::Run(found) => ("RUN", found.run.span.clone()),
        Instruction::Shell(found) => ("SHELL", found.shell.span.clone()),
        Instruction::Stopsignal(found) => ("STOPSIGNAL", found.stopsignal.span.clone()),
        Instruction::User(found) => ("USER", found.user.span.clone()),
        Instruction::Volume(found) => ("VOLUME", found.volume.span.clone()),
        Instruction::Workdir(found) => ("WORKDIR", found.workdir.span.clone()),
        _ => ("this instruction", 0..0),
    }
}
