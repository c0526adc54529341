//! Settings: precedence, origins, mistakes; and the key in the state directory.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use hearth::config::{Layers, Origin, Settings, state};

fn hearth(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hearth"));
    command.args(arguments).env_clear().envs(environment.iter().copied()).output().unwrap()
}

fn out(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The exit code and standard error of a failure that printed nothing else.
fn failure(output: &Output) -> (i32, String) {
    assert!(output.stdout.is_empty());
    (output.status.code().unwrap(), String::from_utf8(output.stderr.clone()).unwrap())
}

fn write(path: &Path, text: &str) -> String {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
    path.display().to_string()
}

#[test]
fn each_layer_lies_over_the_one_before_and_says_where_a_value_came_from() {
    let dir = tempfile::tempdir().unwrap();
    let file = write(
        &dir.path().join("hearth.toml"),
        "[server]\nlisten = \"127.0.0.1:1111\"\ndrain = 11\nbody_timeout = 12\n[engine]\nthreads = 3\n[[model]]\npath = \
         \"/models/a\"\n[[model]]\nname = \"b\"\npath = \"/models/b\"\ncontext = 100\n",
    );
    write(
        &dir.path().join("conf.d/20.toml"),
        "[server]\ndrain = 22\n[[model]]\nname = \"b\"\nkv = \"2GiB\"\n",
    );
    write(&dir.path().join("conf.d/10.toml"), "[server]\ndrain = 21\nheader_timeout = 5\n");
    write(&dir.path().join("conf.d/ignored.txt"), "nonsense");
    let environment = [("HEARTH__SERVER__DRAIN", "33"), ("HEARTH_KEY", "a-key-of-mine-1234567")];
    let shown = out(&hearth(&["config", "show", "--origin", "--config", &file], &environment));
    for line in [
        format!("listen = \"127.0.0.1:1111\"  # from {file}; address of the API"),
        "drain = 33  # from environment variable HEARTH__SERVER__DRAIN; ".to_owned(),
        format!("header_timeout = 5  # from {}", dir.path().join("conf.d/10.toml").display()),
        "connections = 4096  # from default; ".to_owned(),
        "key = \"***\"  # from environment variable HEARTH_KEY; ".to_owned(),
        "name = \"a\"".to_owned(),
        "kv = 2147483648".to_owned(),
    ] {
        assert!(shown.contains(&line), "no {line:?} in\n{shown}");
    }
    assert!(!shown.contains("of-mine"), "the key is not shown");
    assert_eq!(shown.matches("[[model]]").count(), 2, "a model of the same name is replaced");
    let plain = out(&hearth(&["config", "show", "--config", &file], &[]));
    assert!(plain.contains("drain = 22  # seconds") && !plain.contains("from default"));
    // What is shown is itself a settings file.
    let mut again = Layers::new();
    again.toml(&plain, &Origin::Default).unwrap();
    assert_eq!(again.text("server.drain"), "22");
}

#[test]
fn a_flag_lies_over_everything() {
    let mut layers =
        Layers::load(None, [("HEARTH__SERVER__LISTEN".into(), "127.0.0.1:1".into())].into_iter()).unwrap();
    layers.flag("--listen", "server.listen", "127.0.0.1:2".into()).unwrap();
    assert_eq!(Settings::of(&layers).unwrap().listen[0].port(), 2);
    assert_eq!(layers.origin("server.listen").to_string(), "flag --listen");
}

#[test]
fn mistakes_are_told_with_their_place_and_the_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let cases = [
        ("[server]\nlisen = \"x\"", "unknown setting `server.lisen`", "did you mean `server.listen`?"),
        ("[serve]\ndrain = 1", "unknown setting `serve.drain`", "did you mean `server.drain`?"),
        ("[server]\nlisten = \"5052\"", "`server.listen` is \"5052\"", "an address with a port"),
        ("[server]\ndrain = \"30\"", "`server.drain` is \"30\"", "a number without quotes"),
        ("[server]\ndrain = -1", "`server.drain` is \"-1\"", "from 0 to 86400"),
        ("[server]\nmax_headers = 5", "`server.max_headers` is \"5\"", "from 16 to 1024"),
        ("[server]\nmax_body = \"1GiB\"", "`server.max_body` is \"1GiB\"", "from 64KiB to 256MiB"),
        (
            "[server]\nmax_body = \"128MiB\"",
            "server.max_body is 128MiB, and all bodies together may be 64MiB",
            "raise server.max_bodies",
        ),
        ("[engine]\nprefix_cache = 1", "`engine.prefix_cache` is 1", "true or false"),
        ("[log]\nlevel = \"loud\"", "`log.level` is \"loud\"", "one of error, warn, info"),
        ("drain = 1", "`drain` stands outside a section", "settings are in sections: [server], [engine], "),
        (
            "[[model]]\nquantise = \"q8_0\"",
            "unknown setting `quantise` of a [[model]]",
            "did you mean `quantize`?",
        ),
        (
            "[[model]]\nname = \"x\"\nquantize = \"q2\"",
            "`quantize` of a [[model]] is \"q2\"",
            "one of none, q8_0",
        ),
        ("[[model]]\nname = \"x\"\nkv = \"lots\"", "`kv` of a [[model]] is \"lots\"", "512MiB or 8GiB"),
        (
            "[[model]]\nname = \"x\"\nfamily = \"Mistral\"",
            "`family` of a [[model]] is \"Mistral\"",
            "one of mistral",
        ),
        ("[[model]]\nname = \"x\"\naliases = [1]", "`aliases` is [1]", "a list of texts"),
        ("[[model]]\nname = \"x\"\naliases = \"a, x\"", "two models are named x", "change one of the names"),
        (
            "[[model]]\nname = \"mixtral\"\n[duo]\nchat_model = \"mistral\"",
            "no model has that name",
            "did you mean mixtral?",
        ),
        ("[duo]\npatience = 601", "`duo.patience` is \"601\"", "from 1 to 600"),
        ("[[upstream]]\nurl = \"https://x\"", "has no `name`", "name = \"cluster\""),
        ("[[upstream]]\nname = \"c\"", "\"c\" has no `url`", "https://vllm.example.com/v1"),
        (
            "[[upstream]]\nname = \"c\"\nurl = \"vllm:8000\"",
            "`url` of a [[upstream]]",
            "a URL with its scheme",
        ),
        ("[[upstream]]\nname = \"c\"\nurl = \"https://x\"", "\"c\" has no `models`", "name what to serve"),
        (
            "[[upstream]]\nname = \"c\"\nurl = \"http://x\"\nmodels = \"m\"",
            "would be readable on the way",
            "plain = true",
        ),
        (
            "[[upstream]]\nname = \"c\"\nurl = \"https://x\"\nmodels = [\"m=\"]",
            "a model without a name",
            "NAME=ITS-NAME-THERE",
        ),
        (
            "[[upstream]]\nmodel = \"m\"",
            "unknown setting `model` of a [[upstream]]",
            "did you mean `models`?",
        ),
        (
            "[[upstream]]\nname = \"c\"\nurl = \"https://x\"\nmodels = \"m\"\nkey = \"k\"\nkey_file = \"f\"",
            "has `key` and `key_file`",
            "leave one of them out",
        ),
        (
            "[[upstream]]\nname = \"c\"\nurl = \"https://x\"\nmodels = \"m\"\nkey = \"a key\"",
            "the key of an upstream has 5 characters",
            "without spaces",
        ),
        (
            "[[model]]\nname = \"m\"\n[[upstream]]\nname = \"c\"\nurl = \"https://x\"\nmodels = [\"m=n\"]",
            "two models are named m",
            "change one of the names",
        ),
        ("[[model]]\ncontext = 5", "neither `name` nor `path`", "give it a `path`"),
        ("[model]\nname = \"x\"", "`model` must be a list of tables", "write [[model]]"),
        ("[server\n", "not valid TOML", "line 1"),
        ("[server]\nkey = \"short\"", "the API key has 5 characters", "16 to 512"),
    ];
    for (i, (text, what, fix)) in cases.iter().enumerate() {
        let file = write(&dir.path().join(format!("{i}/hearth.toml")), text);
        let (code, error) = failure(&hearth(&["config", "check", "--config", &file], &[]));
        assert_eq!(code, 3, "{text}: {error}");
        assert!(error.starts_with("error: ") && error.contains(&file) && error.contains("fix: "), "{error}");
        assert!(error.contains(what) && error.contains(fix), "{text:?}: {error}");
    }
    let (code, error) = failure(&hearth(&["config", "check"], &[("HEARTH__ENGINE__THREAD", "1")]));
    assert_eq!(code, 3);
    assert!(
        error.contains("HEARTH__ENGINE__THREAD") && error.contains("did you mean `engine.threads`?"),
        "{error}"
    );
    let (code, error) = failure(&hearth(&["config", "check", "--config", "/nowhere/hearth.toml"], &[]));
    assert_eq!(code, 3);
    assert!(error.contains("/nowhere/hearth.toml"), "{error}");
    let (code, error) = failure(&hearth(&["config", "check"], &[("HEARTH_KEY", "guess")]));
    assert_eq!(code, 3);
    assert!(!error.contains("guess"), "{error}");
}

#[test]
fn an_upstream_is_shown_without_its_key() {
    let dir = tempfile::tempdir().unwrap();
    let text = "[[upstream]]\nname = \"c\"\nurl = \"http://10.0.0.1:8000/v1/\"\nmodels = [\"m\", \"far = org/far\"]\naliases \
                = [\"a\", \"b\"]\nkey = \"the-secret\"\nfamily = \"codestral\"\nplain = true\n";
    let file = write(&dir.path().join("hearth.toml"), text);
    let shown = out(&hearth(&["config", "show", "--config", &file], &[]));
    for line in [
        "url = \"http://10.0.0.1:8000/v1\"",
        "models = [\"m=m\", \"far=org/far\"]",
        "aliases = [\"a\", \"b\"]",
        "key = \"***\"",
        "family = \"codestral\"",
        "context = 32768",
    ] {
        assert!(shown.contains(line), "no {line:?} in\n{shown}");
    }
    assert!(!shown.contains("the-secret"));
    let listed = out(&hearth(&["models", "list", "--config", &file], &[]));
    for line in ["m\tupstream c\tcodestral\tor a, b\n", "far\tupstream c\tcodestral\n", "\tgeneral\n"] {
        assert!(listed.contains(line), "no {line:?} in\n{listed}");
    }
    let (code, error) = failure(&hearth(
        &["serve", "--listen", "127.0.0.1:0", "--config", &file],
        &[("HEARTH__DUO__CHAT_MODEL", "n"), ("HEARTH_KEY", "a-key-of-mine-1234567")],
    ));
    assert_eq!(code, 3);
    assert!(error.contains("HEARTH__DUO__CHAT_MODEL") && error.contains("did you mean m?"), "{error}");
}

#[test]
fn the_key_is_made_once_and_only_its_owner_can_read_it() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("deep/state");
    let (first, made) = state::key(&state).unwrap();
    assert!(made);
    assert_eq!(first.expose().len(), "hearth_".len() + 64);
    assert_eq!(format!("{first:?}"), "***");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&state.join("key")), 0o600);
    assert_eq!(mode(&state), 0o700);
    assert_eq!(std::fs::read_dir(&state).unwrap().count(), 1, "nothing else is left");
    let (second, made) = state::key(&state).unwrap();
    assert!(!made && second == first);
    let other = state::key(&dir.path().join("other")).unwrap().0;
    assert!(other != first);
    std::fs::set_permissions(state.join("key"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let error = state::key(&state).unwrap_err();
    assert!(error.what.contains("mode 644") && error.fix.starts_with("chmod 600"), "{error:?}");
    std::fs::write(state.join("key"), "short\n").unwrap();
    std::fs::set_permissions(state.join("key"), std::fs::Permissions::from_mode(0o600)).unwrap();
    assert!(state::key(&state).is_err());
}

#[test]
fn of_two_first_starts_one_makes_the_key() {
    let dir = tempfile::tempdir().unwrap();
    let keys: Vec<_> = std::thread::scope(|scope| {
        let start = || state::key(dir.path()).unwrap();
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert!(keys.iter().all(|(key, _)| *key == keys[0].0));
    assert_eq!(keys.iter().filter(|(_, made)| *made).count(), 1);
}

#[test]
fn help_names_the_exit_codes_and_wrong_usage_is_code_2() {
    let help = out(&hearth(&["--help"], &[]));
    assert!(help.contains("Exit codes:") && help.contains("does not fit in memory"));
    let (code, error) = failure(&hearth(&["srve"], &[]));
    assert_eq!(code, 2);
    assert!(error.contains("srve"));
}

#[test]
fn variables_of_gitlabs_own_gateway_mean_what_they_meant() {
    let environment = [
        ("AIGW_GITLAB_URL", "https://gitlab.example.com/"),
        ("AIGW_CUSTOMER_PORTAL_URL", "https://customers.gitlab.com"),
        ("AIGW_CLOUD_CONNECTOR_SERVICE_NAME", "another-gateway"),
        ("AIGW_AUTH__BYPASS_EXTERNAL", "False"),
        ("AIGW_AUTH__BYPASS_EXTERNAL_WITH_HEADER", "true"),
        ("AIGW_CUSTOM_MODELS__DISABLE_STREAMING", "1"),
        ("AIGW_LOGGING__LEVEL", "WARNING"),
        ("AIGW_CUSTOM_MODELS__ENABLED", "true"),
        ("AIGW_FASTAPI__DOCS_URL", "/docs"),
        ("HEARTH__GITLAB__AUDIENCE", "mine"),
    ];
    let variables = environment.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned()));
    let layers = Layers::load(None, variables).unwrap();
    for (name, value) in [
        ("gitlab.url", "https://gitlab.example.com/"),
        ("gitlab.portal_url", "https://customers.gitlab.com"),
        ("gitlab.audience", "mine"),
        ("gitlab.bypass", "header"),
        ("duo.streaming", "false"),
        ("log.level", "warn"),
    ] {
        assert_eq!(layers.text(name), value, "{name}");
    }
    assert_eq!(layers.origin("gitlab.url").to_string(), "environment variable AIGW_GITLAB_URL");
    assert_eq!(layers.unused(), ["AIGW_CUSTOM_MODELS__ENABLED", "AIGW_FASTAPI__DOCS_URL"]);
    let settings = Settings::of(&layers).unwrap();
    assert!(!settings.streaming);
    assert_eq!(settings.gitlab.rules.gitlab.unwrap().to_string(), "https://gitlab.example.com");
    let odd = [("AIGW_AUTH__BYPASS_EXTERNAL".to_owned(), "maybe".to_owned())];
    let error = Layers::load(None, odd.into_iter()).unwrap_err();
    assert_eq!(
        (error.what.as_str(), error.fix.as_str()),
        ("its value is \"maybe\"", "it must be true or false")
    );
}

#[test]
fn mistakes_about_gitlab_are_told_before_anything_starts() {
    let dir = tempfile::tempdir().unwrap();
    let public = "validation_key = \"-----BEGIN PUBLIC KEY-----\\nMCow\\n-----END PUBLIC KEY-----\"";
    let cases = [
        ("url = \"gitlab.example.com\"", "`gitlab.url` is \"gitlab.example.com\"", "a URL with its scheme"),
        ("url = \"https://u:p@gitlab\"", "`gitlab.url`", "without a user name"),
        ("portal_url = \"ftp://x\"", "`gitlab.portal_url`", "a URL with its scheme"),
        ("scopes = \"maybe\"", "`gitlab.scopes` is \"maybe\"", "one of enforce, trust"),
        ("audience = \"\"", "`gitlab.audience` is empty", "gitlab-ai-gateway"),
        (
            "signing_key = \"secret nonsense\"",
            "`gitlab.signing_key` holds no usable key",
            "RSA private key in PEM form",
        ),
        (public, "`gitlab.validation_key` holds no usable key", "this is a public key"),
        (
            "bypass = \"all\"",
            "`gitlab.bypass` is \"all\" while `server.listen` is 0.0.0.0:5052",
            "127.0.0.1:5052",
        ),
    ];
    for (lines, what, fix) in cases {
        let text = format!("[server]\nlisten = \"0.0.0.0:5052\"\n[gitlab]\n{lines}\n");
        let file = write(&dir.path().join("hearth.toml"), &text);
        let (code, said) = failure(&hearth(&["config", "check", "--config", &file], &[]));
        assert_eq!(code, 3, "{said}");
        assert!(said.contains(what) && said.contains(fix), "{lines}: {said}");
        assert!(!said.contains("nonsense"), "a secret is shown: {said}");
    }
    let text =
        "[gitlab]\nbypass = \"all\"\nca_file = \"/nowhere.pem\"\nurl = \"https://gitlab.example.com\"\n";
    let loopback = write(&dir.path().join("hearth.toml"), text);
    assert!(out(&hearth(&["config", "check", "--config", &loopback], &[])).contains("valid"));
    let state = dir.path().join("state").display().to_string();
    let serve = ["serve", "--config", &loopback, "--state-dir", &state];
    let (code, said) = failure(&hearth(&serve, &[("HEARTH_KEY", "a-key-of-mine-1234567")]));
    assert!(code == 3 && said.contains("/nowhere.pem cannot be read"), "{said}");
}

#[test]
fn the_key_for_editors_tokens_is_made_rotated_and_never_shown() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let (signing, validation) = (state.join("jwt_signing.pem"), state.join("jwt_validation.pem"));
    let read = |path: &Path| std::fs::read_to_string(path).unwrap();
    let place = state.display().to_string();
    let rotate = ["keys", "rotate", "--signing", "--state-dir", &place];
    assert_eq!(out(&hearth(&rotate, &[])), "");
    let first = read(&signing);
    assert!(first.starts_with("-----BEGIN PRIVATE KEY-----\n"));
    for path in [&signing, &validation] {
        assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
    }
    let said = String::from_utf8(hearth(&rotate, &[]).stderr).unwrap();
    assert!(said.contains("takes it at its next start") && !said.contains("BEGIN"), "{said}");
    assert_eq!(read(&validation), first, "the key before is the previous one");
    assert_ne!(read(&signing), first);
    let mut names: Vec<_> =
        std::fs::read_dir(&state).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(
        names,
        ["audit.jsonl", "jwt_signing.pem", "jwt_validation.pem"],
        "nothing is left lying about"
    );
    // A configured key goes before the state directory's, so that rotating that one would do nothing.
    let configured = first.replace('\n', "\\n");
    let configured = [("AIGW_SELF_SIGNED_JWT__SIGNING_KEY", configured.as_str())];
    let (code, said) = failure(&hearth(&rotate, &configured));
    assert!(code == 3 && said.contains("`gitlab.signing_key` is configured"), "{said}");
    let shown = out(&hearth(&["config", "show"], &configured));
    assert!(shown.contains("signing_key = \"***\"") && !shown.contains("BEGIN"), "{shown}");
    // A file that others can read, or a damaged one, is told and not replaced.
    std::fs::set_permissions(&signing, std::fs::Permissions::from_mode(0o644)).unwrap();
    let (code, said) = failure(&hearth(&rotate, &[]));
    assert!(code == 3 && said.contains("others can read the key that signs editors' tokens"), "{said}");
    std::fs::set_permissions(&signing, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::write(&signing, "half").unwrap();
    let (code, said) = failure(&hearth(&rotate, &[]));
    assert!(code == 3 && said.contains("it holds no key for editors' tokens"), "{said}");
}

#[test]
fn a_secret_in_the_wrong_place_is_not_shown() {
    let dir = tempfile::tempdir().unwrap();
    for text in [
        "[server]\nkey = 1234567890123456",
        "[server]\nkey = [\"1234567890123456\"]",
        "[gitlab]\nsigning_key = [\"1234567890123456\"]",
        "[gitlab]\nvalidation_key = 1234567890123456",
        "[gitlab]\nurl = \"https://root:1234567890123456@gitlab.example.com\"",
        "[gitlab]\nurl = \"https://root:123456/7890123456@gitlab.example.com\"",
        "[gitlab]\nurl = \"root:1234567890123456@gitlab.example.com\"",
        "[gitlab]\nportal_url = [\"https://root:1234567890123456@gitlab.example.com\"]",
        "[[upstream]]\nname = \"c\"\nkey = 1234567890123456",
        "[[upstream]]\nname = \"c\"\nurl = \"https://root:1234567890123456@vllm\"",
    ] {
        let file = write(&dir.path().join("hearth.toml"), text);
        let (code, said) = failure(&hearth(&["config", "check", "--config", &file], &[]));
        assert!(code == 3 && said.contains("***"), "{text}: {said}");
        assert!(!said.contains("123456") && !said.contains("890123456"), "{text}: {said}");
    }
}

#[test]
fn keys_over_a_line_that_others_can_answer_are_an_error_or_told() {
    let dir = tempfile::tempdir().unwrap();
    let portal = write(&dir.path().join("a.toml"), "[gitlab]\nportal_url = \"http://portal.example.com\"\n");
    let (code, said) = failure(&hearth(&["config", "check", "--config", &portal], &[]));
    assert!(code == 3 && said.contains("without TLS") && said.contains("use https"), "{said}");
    let settings = |url: &str| {
        let mut layers = Layers::new();
        layers.toml(&format!("[gitlab]\nurl = \"{url}\"\n"), &Origin::Default).unwrap();
        Settings::of(&layers).unwrap()
    };
    let (warning, fix) = settings("http://gitlab.example.com").gitlab.warning().unwrap();
    assert!(warning.contains("can let themselves in") && fix.contains("use https"), "{warning}; {fix}");
    assert_eq!(settings("https://gitlab.example.com").gitlab.warning(), None);
    assert_eq!(settings("http://127.0.0.1:8080").gitlab.warning(), None);
    let wrong = write(&dir.path().join("b.toml"), "[gitlab]\ninstance_id = \"mine\"\n");
    let (code, said) = failure(&hearth(&["config", "check", "--config", &wrong], &[]));
    assert!(
        code == 3 && said.contains("`gitlab.instance_id` is \"mine\"") && said.contains("UUID"),
        "{said}"
    );
}

#[test]
fn keys_are_rotated_by_their_owner_or_by_root_and_by_nobody_else() {
    use std::os::unix::process::CommandExt;
    const NOBODY: u32 = 65_534;
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let place = state.display().to_string();
    let rotate = ["keys", "rotate", "--signing", "--state-dir", &place];
    assert_eq!(out(&hearth(&rotate, &[])), "");
    let keys = [state.join("jwt_signing.pem"), state.join("jwt_validation.pem")];
    let before = keys.each_ref().map(|key| std::fs::read_to_string(key).unwrap());
    // Where that user may execute it.
    let binary = dir.path().join("hearth");
    std::fs::copy(env!("CARGO_BIN_EXE_hearth"), &binary).unwrap();
    let open = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode));
    open(dir.path(), 0o755).unwrap();
    for (mode, refusal) in [
        (0o755, "the key that signs editors' tokens belongs to user"),
        (0o777, "the key that signs editors' tokens belongs to user"),
        (0o700, "the key that signs editors' tokens cannot be kept there: Permission denied"),
    ] {
        open(&state, mode).unwrap();
        for revoke in [false, true] {
            let mut command = Command::new(&binary);
            command.args(rotate).args(revoke.then_some("--revoke")).uid(NOBODY).gid(NOBODY);
            // Only root can be somebody else; for others there is nothing to see here.
            let Ok(output) = command.output() else { return };
            let (code, said) = failure(&output);
            assert!(code == 3 && said.contains(refusal), "{mode:o}: {said}");
            if mode != 0o700 {
                assert!(said.contains("and this is user 65534") && said.contains("sudo -u '#"), "{said}");
            }
            let after = keys.each_ref().map(|key| std::fs::read_to_string(key).unwrap());
            assert!(before == after, "mode {mode:o}: a key was replaced");
        }
    }
}

#[test]
fn keys_that_root_rotates_stay_their_owners() {
    use std::os::unix::fs::{MetadataExt, chown};
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let place = state.display().to_string();
    let rotate = ["keys", "rotate", "--signing", "--state-dir", &place];
    assert_eq!(out(&hearth(&rotate, &[])), "");
    // Only root can give files away; for others there is nothing to see here.
    if chown(&state, Some(12_345), None).is_err() {
        return;
    }
    let keys = [state.join("jwt_signing.pem"), state.join("jwt_validation.pem")];
    keys.iter().for_each(|key| chown(key, Some(12_345), None).unwrap());
    assert_eq!(out(&hearth(&rotate, &[])), "");
    for key in &keys {
        assert_eq!(std::fs::metadata(key).unwrap().uid(), 12_345);
    }
    let revoke = ["keys", "rotate", "--signing", "--revoke", "--state-dir", &place];
    assert_eq!(out(&hearth(&revoke, &[])), "");
    assert_eq!(std::fs::metadata(&keys[0]).unwrap().uid(), 12_345);
    assert!(!keys[1].exists());
}

#[test]
fn editors_get_the_form_of_the_file_and_units_a_quiet_check() {
    let schema: serde_json::Value = serde_json::from_str(&out(&hearth(&["config", "schema"], &[]))).unwrap();
    assert_eq!(schema["properties"]["log"]["properties"]["format"]["type"], "string");
    assert_eq!(schema["properties"]["model"]["items"]["additionalProperties"], false);
    assert_eq!(out(&hearth(&["config", "check", "--quiet"], &[])), "");
    let wrong = hearth(&["config", "check", "--quiet"], &[("HEARTH__SERVER__DRAIN", "soon")]);
    let (code, said) = failure(&wrong);
    assert_eq!(code, 3);
    assert!(said.contains("server.drain"), "{said}");
}
