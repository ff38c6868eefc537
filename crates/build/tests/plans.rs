//! Plans by tables and properties.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use proptest::prelude::*;
use sandbank_build::{
    Action, Base, CommandLine, CopiedFile, CopyFrom, Ignore, Pattern, Plan, RunAction, StageContext, StepKind, absolute_path,
    cache_key, clean_path, content_hash, expand, file_system_identity, from_dockerfile, key_values, literal, split_words,
};
use sandbank_model::{ImageConfig, Layer, TenantId, Timestamp};

fn plan(text: &str) -> Plan {
    from_dockerfile(text, BTreeMap::new(), None).unwrap()
}

fn refusal(text: &str) -> String {
    from_dockerfile(text, BTreeMap::new(), None).unwrap_err().to_string()
}

/// What the steps of the target mean, and the configuration they end with.
fn meaning(plan: &Plan) -> (Vec<Action>, ImageConfig) {
    let mut stage = StageContext::new(plan, ImageConfig::default());
    let actions = plan.stages[plan.target].steps.iter().map(|step| stage.next(step).unwrap()).collect();
    (actions, stage.config)
}

fn runs(actions: &[Action]) -> Vec<&RunAction> {
    actions.iter().filter_map(|action| if let Action::Run(run) = action { Some(run) } else { None }).collect()
}

#[test]
fn variables_are_replaced_as_the_reference_says() {
    let lookup = |name: &str| match name {
        "x" => Some("X".to_owned()),
        "empty" => Some(String::new()),
        _ => None,
    };
    let table = [
        ("$x", "X"),
        ("a${x}b", "aXb"),
        ("$none.", "."),
        ("${none:-d}", "d"),
        ("${empty:-d}", "d"),
        ("${empty-d}", ""),
        ("${x:+y}", "y"),
        ("${none:+y}", ""),
        ("${empty:+y}", ""),
        ("${empty+y}", "y"),
        ("${none:-${x}}", "X"),
        ("${none:-a b}", "a b"),
        ("\\$x", "$x"),
        ("'$x'", "$x"),
        ("\"$x y\"", "X y"),
        ("\"a\\\"b\"", "a\"b"),
        ("\"a\\nb\"", "a\\nb"),
        ("a\\ b", "a b"),
        ("$", "$"),
        ("$x$x", "XX"),
        ("${x:?missing}", "X"),
    ];
    for (text, wanted) in table {
        assert_eq!(expand(text, &lookup).unwrap(), wanted, "{text}");
    }
    for text in ["${x", "'open", "\"open", "${}", "${x%y}", "${none:?is needed}"] {
        assert!(expand(text, &lookup).is_err(), "{text}");
    }
    let deep = format!("{}x{}", "${n:-".repeat(40), "}".repeat(40));
    assert!(expand(&deep, &|_| None).is_err());
}

#[test]
fn pairs_are_read_in_both_forms() {
    let pairs = |text: &str| key_values(text).unwrap();
    assert_eq!(pairs("A=1 B=\"two words\" C=a\\ b").len(), 3);
    assert_eq!(pairs("A some words"), [("A".to_owned(), "some words".to_owned())]);
    assert_eq!(pairs("\"quoted name\"=v"), [("quoted name".to_owned(), "v".to_owned())]);
    for text in ["", "A", "A=1 B"] {
        assert!(key_values(text).is_err(), "{text}");
    }
    assert_eq!(split_words("a 'b c' \"d e\" f\\ g"), ["a", "'b c'", "\"d e\"", "f\\ g"]);
}

#[test]
fn a_file_of_several_stages_becomes_a_plan() {
    let text = "ARG BASE=alpine\nARG TAG\nFROM ${BASE}:${TAG:-3.20} AS Build\nRUN make\nFROM scratch\nFROM build AS next\n\
                COPY --from=build --chown=1000:1000 --chmod=755 /out/a /out/b /bin/\nCOPY --from=nginx:1 /etc/x /x\nCMD [\"run\"]\n";
    let plan = plan(text);
    assert_eq!(plan.stages.len(), 3);
    assert_eq!(plan.stages[0].base, Base::Image("alpine:3.20".to_owned()));
    assert_eq!(plan.stages[0].name.as_deref(), Some("build"));
    assert_eq!(plan.stages[1].base, Base::Scratch);
    assert_eq!(plan.stages[2].base, Base::Stage(0));
    assert_eq!(plan.needed(), [0, 2]);
    let StepKind::Copy(copy) = &plan.stages[2].steps[0].kind else { panic!("not a copy") };
    assert_eq!(copy.from, CopyFrom::Stage(0));
    assert_eq!((copy.chown.as_deref(), copy.chmod), (Some("1000:1000"), Some(0o755)));
    assert_eq!(copy.sources, ["/out/a", "/out/b"]);
    let StepKind::Copy(copy) = &plan.stages[2].steps[1].kind else { panic!("not a copy") };
    assert_eq!(copy.from, CopyFrom::Image("nginx:1".to_owned()));
    assert_eq!(plan.stages[2].steps[2].kind, StepKind::Command(CommandLine::Exec(vec!["run".to_owned()])));
    let picked = from_dockerfile(text, BTreeMap::from([("TAG".to_owned(), "edge".to_owned())]), Some("BUILD")).unwrap();
    assert_eq!((picked.target, picked.needed()), (0, vec![0]));
    assert_eq!(picked.stages[0].base, Base::Image("alpine:edge".to_owned()));
    assert!(from_dockerfile(text, BTreeMap::new(), Some("absent")).is_err());
}

#[test]
fn steps_mean_what_they_mean_where_they_stand() {
    let text = "FROM x\nARG V=1\nENV A=$V P=/bin:$P\nENV A=2 B=$A\nWORKDIR /w\nWORKDIR sub/../deep\nUSER me\nRUN echo $A \\\n  # a comment\n  \
                && true\nRUN [\"prog\", \"$A\"]\nSHELL [\"/bin/bash\", \"-c\"]\nRUN x\nEXPOSE 80 53/udp\nLABEL a=b \"c d\"=$B\n\
                ENTRYPOINT [\"e\"]\nCMD c\nSTOPSIGNAL SIGINT\nCOPY a.txt ./\n";
    let (actions, config) = meaning(&plan(text));
    let found = runs(&actions);
    assert_eq!(found[0].argv, ["/bin/sh", "-c", "echo $A   && true"]);
    assert_eq!(found[0].env.get("V").map(String::as_str), Some("1"));
    assert_eq!((found[0].user.as_deref(), found[0].workdir.as_str()), (Some("me"), "/w/deep"));
    assert_eq!(found[1].argv, ["prog", "$A"]);
    assert_eq!(found[2].argv, ["/bin/bash", "-c", "x"]);
    assert_eq!(config.env.get("A").map(String::as_str), Some("2"));
    assert_eq!(config.env.get("B").map(String::as_str), Some("1"), "one instruction sees the environment before it");
    assert_eq!(config.env.get("P").map(String::as_str), Some("/bin:"));
    assert!(!config.env.contains_key("V"), "build arguments stay out of the image");
    assert_eq!(config.exposed_ports.len(), 2);
    assert_eq!(config.labels.get("c d").map(String::as_str), Some("1"));
    assert_eq!(config.start_command(), ["e", "/bin/bash", "-c", "c"]);
    assert_eq!(config.stop_signal.as_deref(), Some("SIGINT"));
    let Some(Action::Copy(copy)) = actions.last() else { panic!("not a copy") };
    assert_eq!((copy.dest.as_str(), copy.sources.as_slice()), ("/w/deep/", ["a.txt".to_owned()].as_slice()));
}

#[test]
fn an_entrypoint_forgets_the_command_of_the_base_only() {
    let base = ImageConfig { command: vec!["old".to_owned()], ..ImageConfig::default() };
    for (text, wanted) in
        [("FROM x\nENTRYPOINT [\"e\"]\n", vec!["e"]), ("FROM x\nCMD [\"c\"]\nENTRYPOINT [\"e\"]\n", vec!["e", "c"])]
    {
        let plan = plan(text);
        let mut stage = StageContext::new(&plan, base.clone());
        plan.stages[0].steps.iter().for_each(|step| drop(stage.next(step).unwrap()));
        assert_eq!(stage.config.start_command(), wanted);
    }
}

#[test]
fn a_plain_here_document_is_a_script() {
    let plan = plan("FROM x\nRUN <<EOF\necho one\necho $two\nEOF\nRUN echo three\n");
    let StepKind::Run { command: CommandLine::Shell(script), .. } = &plan.stages[0].steps[0].kind else { panic!("no script") };
    assert_eq!(script.trim_end(), "echo one\necho $two");
    assert_eq!(plan.stages[0].steps[1].line, Some(6));
}

#[test]
fn what_is_not_supported_is_refused_by_name_and_line() {
    let table = [
        ("FROM x\nADD a /a\n", 2, "ADD"),
        ("FROM x\n\nHEALTHCHECK CMD true\n", 3, "HEALTHCHECK"),
        ("FROM x\nVOLUME /d\n", 2, "VOLUME"),
        ("FROM x\nRUN true\nONBUILD RUN true\n", 3, "ONBUILD"),
        ("FROM x\nRUN --mount=type=cache,target=/c true\n", 2, "--mount"),
        ("FROM x\nCOPY --link a /a\n", 2, "--link"),
        ("FROM x\nCOPY --chmod=u+x a /a\n", 2, "octal"),
        ("FROM --platform=linux/s390x x\n", 1, "linux/s390x"),
        ("FROM x\nCOPY <<EOF /a\ntext\nEOF\n", 2, "here-document"),
        ("FROM x\nRUN <<EOF python3\nprint(1)\nEOF\n", 2, "here-document"),
        ("FROM x\nFROBNICATE y\n", 2, "FROBNICATE"),
        ("# escape=`\nFROM x\n", 1, "escape"),
        ("FROM $NONE\n", 1, "no image"),
        ("FROM x\nENV A\n", 2, "ENV"),
    ];
    for (text, line, word) in table {
        let error = refusal(text);
        assert!(error.starts_with(&format!("Dockerfile line {line}: ")), "{text}: {error}");
        assert!(error.contains(word), "{text}: {error}");
    }
    assert!(refusal("").starts_with("Dockerfile"));
    let plan = plan("FROM x\nCOPY ../secret /a\n");
    let mut stage = StageContext::new(&plan, ImageConfig::default());
    assert!(stage.next(&plan.stages[0].steps[0]).unwrap_err().to_string().contains(".."));
}

#[test]
fn paths_stay_where_they_belong() {
    for (text, wanted) in [("a/./b//c/", "a/b/c"), ("", ""), (".", ""), ("a", "a")] {
        assert_eq!(clean_path(text).unwrap(), wanted);
    }
    for text in ["/a", "..", "a/../b", "a\0b"] {
        assert!(clean_path(text).is_err(), "{text}");
    }
    let table = [
        ("/w", "a", "/w/a"),
        ("/w", "../../a", "/a"),
        ("/", "/x/", "/x/"),
        ("/w", ".", "/w/"),
        ("/", ".", "/"),
        ("/w", "", "/w"),
    ];
    for (workdir, path, wanted) in table {
        assert_eq!(absolute_path(workdir, path), wanted, "{workdir} {path}");
    }
}

#[test]
fn patterns_and_ignore_files_name_what_docker_means() {
    let table = [
        ("*.txt", "a.txt", true),
        ("*.txt", "d/a.txt", false),
        ("**/*.txt", "d/e/a.txt", true),
        ("**/*.txt", "a.txt", true),
        ("a?c", "abc", true),
        ("[a-c]", "b", true),
        ("{a,b}", "a", false),
        ("{a,b}*", "{a,b}c", true),
        ("a", "a", true),
    ];
    for (pattern, path, wanted) in table {
        assert_eq!(Pattern::new(pattern).unwrap().matches(path), wanted, "{pattern} {path}");
    }
    assert!(Pattern::new("[").is_err());
    let ignore = Ignore::parse("# comment\nnode_modules\n*.log\n!keep.log\n/target/\n**/tmp\n").unwrap();
    let table = [
        ("node_modules", true),
        ("node_modules/x/y", true),
        ("a/node_modules", false),
        ("a.log", true),
        ("keep.log", false),
        ("target/x", true),
        ("a/tmp/b", true),
        ("src/main.rs", false),
    ];
    for (path, wanted) in table {
        assert_eq!(ignore.ignores(path), wanted, "{path}");
    }
    assert!(ignore.may_hold_exceptions() && !Ignore::parse("a").unwrap().may_hold_exceptions());
    assert!(Ignore::parse("../x").unwrap_err().contains("line 1"));
}

fn tenant(n: u64) -> TenantId {
    TenantId::new(Timestamp::from_millis(n), [0; 10])
}

fn run(argv: &[&str], env: &[(&str, &str)]) -> Action {
    Action::Run(RunAction {
        argv: argv.iter().map(ToString::to_string).collect(),
        env: env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        user: None,
        workdir: "/".to_owned(),
    })
}

#[test]
fn a_key_changes_with_everything_that_matters() {
    let layer = |id: &str| Layer { id: id.to_owned(), size_bytes: 1 };
    let parent = file_system_identity(&[layer("a"), layer("b")], false);
    let file = |path, mode, content| CopiedFile { path, mode, kind: 'f', content };
    let content = content_hash([file("a", 0o644, "1")]);
    let keys = [
        cache_key(tenant(1), &parent, &run(&["a"], &[]), ""),
        cache_key(tenant(2), &parent, &run(&["a"], &[]), ""),
        cache_key(tenant(1), &file_system_identity(&[layer("ab")], false), &run(&["a"], &[]), ""),
        cache_key(tenant(1), &file_system_identity(&[layer("a"), layer("b")], true), &run(&["a"], &[]), ""),
        cache_key(tenant(1), &parent, &run(&["a", ""], &[]), ""),
        cache_key(tenant(1), &parent, &run(&["a"], &[("A", "1")]), ""),
        cache_key(tenant(1), &parent, &run(&["a"], &[]), &content),
        cache_key(tenant(1), &parent, &run(&["a"], &[]), &content_hash([file("a", 0o755, "1")])),
        cache_key(tenant(1), &parent, &run(&["a"], &[]), &content_hash([file("b", 0o644, "1")])),
        cache_key(tenant(1), &parent, &run(&["a"], &[]), &content_hash([file("a", 0o644, "2")])),
        cache_key(tenant(1), &parent, &Action::MakeDir { path: "/a".to_owned() }, ""),
    ];
    let distinct: std::collections::BTreeSet<&String> = keys.iter().collect();
    assert_eq!(distinct.len(), keys.len());
    assert_eq!(keys[0], cache_key(tenant(1), &parent, &run(&["a"], &[]), ""));
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in "(FROM x\n)?[A-Z]{2,10} [ -~\n]{0,120}") {
        if let Ok(plan) = from_dockerfile(&text, BTreeMap::new(), None) {
            let mut stage = StageContext::new(&plan, ImageConfig::default());
            for step in &plan.stages[plan.target].steps {
                let _ = stage.next(step);
            }
        }
    }

    #[test]
    fn words_without_meaning_stay_as_they_are(text in "[a-zA-Z0-9./_ :=-]{0,60}") {
        prop_assert_eq!(expand(&text, &|_| None).unwrap(), text);
    }

    #[test]
    fn single_quotes_keep_everything(text in "[^']{0,60}") {
        prop_assert_eq!(expand(&format!("'{text}'"), &|_| Some("replaced".to_owned())).unwrap(), text);
    }

    #[test]
    fn a_literal_means_itself(text in "\\PC{0,60}") {
        prop_assert_eq!(expand(&literal(&text), &|_| Some("replaced".to_owned())).unwrap(), text);
    }

    #[test]
    fn a_clean_path_is_clean(path in "[a-z./]{0,40}") {
        if let Ok(clean) = clean_path(&path) {
            prop_assert_eq!(clean_path(&clean).unwrap(), clean.clone());
            prop_assert!(!clean.starts_with('/') && !clean.split('/').any(|part| part == ".."));
        }
        let absolute = absolute_path("/w", &path);
        prop_assert!(absolute.starts_with('/') && !absolute.split('/').any(|part| part == ".."));
    }

    #[test]
    fn ignoring_is_inherited(path in "[a-c]{1,3}(/[a-c]{1,3}){0,3}", rule in "[a-c*]{1,3}") {
        let ignore = Ignore::parse(&rule).unwrap();
        let below = format!("{path}/below");
        prop_assert!(!ignore.ignores(&path) || ignore.ignores(&below));
    }
}
