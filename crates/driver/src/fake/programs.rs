//! The programs that a fake sandbox has, and a shell just large enough for tests: `a; b && c || d`, quotes, `$NAME`,
//! `> file`, `>> file`, `>&2`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sandbank_agent_protocol::{OpenMode, Stream, WriteFile};
use tokio::sync::mpsc;

use super::files::User;
use super::lock;
use super::processes::Process;
use super::world::FakeSandbox;

const PROGRAMS: [&str; 11] = ["true", "false", "echo", "printf", "cat", "sleep", "env", "pwd", "yes", "sh", "bash"];
const NOT_FOUND: i32 = 127;

pub(super) struct Io {
    pub(super) sandbox: Arc<FakeSandbox>,
    pub(super) process: Arc<Process>,
    pub(super) user: User,
    pub(super) stdin: mpsc::Receiver<Bytes>,
}

/// Where a command's output goes.
enum Sink {
    Stream(Stream),
    File { path: String, open: OpenMode },
}

pub(super) fn exists(program: &str) -> bool {
    PROGRAMS.contains(&base(program))
}

fn base(program: &str) -> &str {
    program.rsplit('/').next().unwrap_or(program)
}

/// Runs the process's argv to its exit code.
pub(super) async fn run(io: &mut Io) -> i32 {
    let argv = io.process.request.argv.clone();
    match (base(&argv[0]), argv.get(1).map(String::as_str)) {
        ("sh" | "bash", Some("-c" | "-lc")) => match argv.get(2) {
            Some(script) => shell(io, script).await,
            None => 2,
        },
        ("sh" | "bash", _) => shell_on_stdin(io).await,
        _ => program(io, &argv, &Sink::Stream(Stream::Stdout)).await.unwrap_or_else(|exit| exit.0),
    }
}

/// The shell was told to exit with this code.
struct Exit(i32);

async fn program(io: &mut Io, argv: &[String], sink: &Sink) -> Result<i32, Exit> {
    io.sandbox.awake().await;
    let args = &argv[1..];
    match base(&argv[0]) {
        "true" | ":" => Ok(0),
        "false" => Ok(1),
        "exit" => Err(Exit(args.first().and_then(|code| code.parse().ok()).unwrap_or(0))),
        "echo" => Ok(emit(io, sink, format!("{}\n", args.join(" ")).as_bytes())),
        "printf" => Ok(emit(io, sink, args.join(" ").replace("\\n", "\n").as_bytes())),
        "pwd" => {
            let cwd = io.process.request.cwd.clone().unwrap_or_else(|| io.user.home.to_owned());
            Ok(emit(io, sink, format!("{cwd}\n").as_bytes()))
        }
        "env" => {
            let lines: String = environment(io).iter().map(|(name, value)| format!("{name}={value}\n")).collect();
            Ok(emit(io, sink, lines.as_bytes()))
        }
        "sleep" => {
            let seconds = args.first().and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
            let wait = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::from_secs(24 * 3600));
            tokio::time::sleep(wait).await;
            io.sandbox.awake().await;
            Ok(0)
        }
        "cat" if args.is_empty() => {
            while let Some(chunk) = io.stdin.recv().await {
                io.sandbox.awake().await;
                emit(io, sink, &chunk);
            }
            Ok(0)
        }
        "cat" => Ok(cat_files(io, args, sink)),
        "yes" => loop {
            io.sandbox.awake().await;
            emit(io, sink, "y\n".repeat(2048).as_bytes());
            tokio::time::sleep(Duration::from_millis(1)).await;
        },
        other => {
            io.process.append(Stream::Stderr, format!("{other}: not found\n").as_bytes());
            Ok(NOT_FOUND)
        }
    }
}

fn cat_files(io: &Io, paths: &[String], sink: &Sink) -> i32 {
    let mut code = 0;
    for path in paths {
        let read = lock(&io.sandbox.files).read(path, Some(io.user.name));
        match read {
            Ok((_, content)) => code = code.max(emit(io, sink, &content)),
            Err(error) => {
                io.process.append(Stream::Stderr, format!("cat: {error}\n").as_bytes());
                code = 1;
            }
        }
    }
    code
}

fn emit(io: &Io, sink: &Sink, data: &[u8]) -> i32 {
    match sink {
        Sink::Stream(stream) => {
            io.process.append(*stream, data);
            0
        }
        Sink::File { path, open } => {
            let request = WriteFile { path: path.clone(), user: Some(io.user.name.to_owned()), mode: None, open: *open };
            let written = lock(&io.sandbox.files).write(&request, data);
            match written {
                Ok((_, changes)) => {
                    io.sandbox.tell(changes);
                    0
                }
                Err(error) => {
                    io.process.append(Stream::Stderr, format!("sh: {error}\n").as_bytes());
                    1
                }
            }
        }
    }
}

fn environment(io: &Io) -> std::collections::BTreeMap<String, String> {
    let mut env = io.process.request.env.clone();
    for (name, value) in [
        ("HOME", io.user.home),
        ("USER", io.user.name),
        ("LOGNAME", io.user.name),
        ("SHELL", "/bin/sh"),
        ("PATH", "/usr/local/bin:/usr/bin:/bin"),
    ] {
        env.entry(name.to_owned()).or_insert_with(|| value.to_owned());
    }
    env
}

async fn shell_on_stdin(io: &mut Io) -> i32 {
    let mut pending = Vec::new();
    let mut code = 0;
    while let Some(chunk) = io.stdin.recv().await {
        pending.extend_from_slice(&chunk);
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            match script(io, &String::from_utf8_lossy(&line)).await {
                Ok(status) => code = status,
                Err(Exit(code)) => return code,
            }
        }
    }
    code
}

async fn shell(io: &mut Io, text: &str) -> i32 {
    script(io, text).await.unwrap_or_else(|Exit(code)| code)
}

async fn script(io: &mut Io, text: &str) -> Result<i32, Exit> {
    let env = environment(io);
    let mut words: Vec<String> = Vec::new();
    let mut code = 0;
    let mut wanted = true;
    for token in tokens(text, &env).into_iter().chain([Token::Operator(";".to_owned())]) {
        match token {
            Token::Word(word) => words.push(word),
            Token::Operator(operator) => {
                if wanted && !words.is_empty() {
                    code = command(io, std::mem::take(&mut words)).await?;
                }
                words.clear();
                wanted = match operator.as_str() {
                    "&&" => code == 0,
                    "||" => code != 0,
                    _ => true,
                };
            }
        }
    }
    Ok(code)
}

async fn command(io: &mut Io, words: Vec<String>) -> Result<i32, Exit> {
    let mut argv = Vec::new();
    let mut sink = Sink::Stream(Stream::Stdout);
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let open = match word.as_str() {
            ">&2" | "1>&2" => {
                sink = Sink::Stream(Stream::Stderr);
                continue;
            }
            ">" => OpenMode::Replace,
            ">>" => OpenMode::Append,
            _ => {
                argv.push(word);
                continue;
            }
        };
        let Some(path) = words.next() else { return Err(Exit(2)) };
        sink = Sink::File { path, open };
    }
    if argv.is_empty() { Ok(0) } else { program(io, &argv, &sink).await }
}

enum Token {
    Word(String),
    Operator(String),
}

fn tokens(text: &str, env: &std::collections::BTreeMap<String, String>) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    let mut chars = text.chars().peekable();
    while let Some(char) = chars.next() {
        match (quote, char) {
            (Some(open), char) if char == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(char);
                word.get_or_insert_default();
            }
            (None | Some('"'), '$') => {
                let mut name = String::new();
                while let Some(next) = chars.next_if(|c| c.is_ascii_alphanumeric() || "_{}".contains(*c)) {
                    name.push(next);
                }
                let name = name.trim_matches(['{', '}']);
                word.get_or_insert_default().push_str(env.get(name).map_or("", String::as_str));
            }
            (None, ';' | '\n') => {
                tokens.extend(word.take().map(Token::Word));
                tokens.push(Token::Operator(";".to_owned()));
            }
            (None, '&' | '|') if chars.next_if_eq(&char).is_some() => {
                tokens.extend(word.take().map(Token::Word));
                tokens.push(Token::Operator(format!("{char}{char}")));
            }
            (None, char) if char.is_whitespace() => tokens.extend(word.take().map(Token::Word)),
            (_, char) => word.get_or_insert_default().push(char),
        }
    }
    tokens.extend(word.map(Token::Word));
    tokens
}
