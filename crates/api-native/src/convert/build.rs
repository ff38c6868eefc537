//! Builds.

use sandbank_build::{CommandLine, CopyFrom, CopySpec, Step, StepKind, literal};
use sandbank_control::{BuildLogPiece, BuildRequest, BuildSource};
use sandbank_http::format_time;
use sandbank_model::{Build, BuildFailure, BuildId, BuildLevel, BuildPart, BuildSteps, ParseIdError};

use super::{ResourceTexts, ResourceValues, image_name, positive};
use crate::errors::{ApiError, ApiResult};
use crate::wire;

/// Most characters of a step that are shown.
const SHOWN_MAX: usize = 200;

pub(crate) fn build_id(text: &str) -> ApiResult<BuildId> {
    text.parse().map_err(|error: ParseIdError| ApiError::bad_request(error.to_string()))
}

pub(crate) fn build_model(request: wire::BuildCreate) -> ApiResult<BuildRequest> {
    let wire::BuildCreate {
        name,
        dockerfile,
        build_args,
        target,
        from,
        steps,
        context,
        timeout,
        cpu,
        memory,
        disk,
        no_cache,
        start_command,
        ready_command,
    } = request;
    let source = match (dockerfile, from, steps) {
        (Some(text), None, None) => BuildSource::Dockerfile { text, args: build_args.unwrap_or_default(), target },
        (None, Some(from), steps) if build_args.is_none() && target.is_none() => {
            let steps = steps.unwrap_or_default().into_iter().map(step_model).collect::<ApiResult<_>>()?;
            BuildSource::Steps { from, steps }
        }
        _ => {
            let message = "give either dockerfile (with buildArgs and target, if any) or from and steps";
            return Err(ApiError::bad_request(message));
        }
    };
    let ResourceValues { cpu_millis, memory_bytes, disk_bytes, pids: _ } =
        ResourceTexts { cpu, memory, disk, pids: None }.parse()?;
    Ok(BuildRequest {
        name: image_name("name", &name)?,
        source,
        context,
        timeout: timeout.map(|text| positive("timeout", &text)).transpose()?,
        cpu_millis,
        memory_bytes,
        disk_bytes,
        no_cache: no_cache.unwrap_or(false),
        start_command,
        ready_command,
    })
}

fn step_model(step: wire::BuildStep) -> ApiResult<Step> {
    let (text, kind) = match step {
        wire::BuildStep::Run { command, user } => {
            (format!("RUN {command}"), StepKind::Run { command: CommandLine::Shell(command), user })
        }
        wire::BuildStep::Copy { sources, dest, chown, chmod, context } => {
            let chmod = chmod.map(|text| {
                let octal = u32::from_str_radix(&text, 8).ok().filter(|mode| *mode <= 0o7777);
                octal.ok_or_else(|| ApiError::bad_request(format!("chmod {text:?}: write permission bits in octal, as 755")))
            });
            if sources.is_empty() {
                return Err(ApiError::bad_request("a copy step names no sources"));
            }
            let text = format!("COPY {} {dest}", sources.join(" "));
            let spec = CopySpec {
                from: context.map_or(CopyFrom::Context, CopyFrom::Upload),
                sources: sources.iter().map(|source| literal(source)).collect(),
                dest: literal(&dest),
                chown: chown.map(|owner| literal(&owner)),
                chmod: chmod.transpose()?,
            };
            (text, StepKind::Copy(spec))
        }
        wire::BuildStep::Env { vars } => {
            let names: Vec<&str> = vars.keys().map(String::as_str).collect();
            let text = format!("ENV {}", names.join(" "));
            (text, StepKind::Env(vars.iter().map(|(name, value)| (name.clone(), literal(value))).collect()))
        }
        wire::BuildStep::Workdir { path } => (format!("WORKDIR {path}"), StepKind::Workdir(literal(&path))),
        wire::BuildStep::User { name } => (format!("USER {name}"), StepKind::User(literal(&name))),
    };
    let text = text.replace('\n', " ").chars().take(SHOWN_MAX).collect();
    Ok(Step { line: None, text, kind })
}

fn part_text(part: BuildPart) -> String {
    match part {
        BuildPart::Base => "base".to_owned(),
        BuildPart::Step(number) => number.to_string(),
        BuildPart::Finalize => "finalize".to_owned(),
    }
}

pub(crate) fn build_wire(build: Build) -> wire::Build {
    let Build { id, tenant: _, name, state, failure, steps, created_at, started_at, ended_at } = build;
    let BuildSteps { total, done, cached } = steps;
    wire::Build {
        id: id.to_string(),
        name: name.to_string(),
        state: state.as_str().to_owned(),
        reason: failure.map(|BuildFailure { message, part }| wire::BuildReason { message, step: part_text(part) }),
        steps_total: total,
        steps_done: done,
        steps_cached: cached,
        created_at: format_time(created_at),
        started_at: started_at.map(format_time),
        ended_at: ended_at.map(format_time),
    }
}

pub(crate) fn build_log_wire(piece: BuildLogPiece) -> Vec<wire::BuildLogLine> {
    let level = |level| match level {
        BuildLevel::Info => "info",
        BuildLevel::Warn => "warn",
        BuildLevel::Error => "error",
    };
    let numbered = piece.lines.into_iter().zip(piece.offset..);
    let line = |(line, offset): (sandbank_model::BuildLine, u64)| wire::BuildLogLine {
        offset,
        at: format_time(line.at),
        step: part_text(line.part),
        level: level(line.level).to_owned(),
        text: line.text,
    };
    numbered.map(line).collect()
}
