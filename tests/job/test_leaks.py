"""What is taken for a secret, and what is not. Strings that look like secrets are put together here, at run time."""

import json
import secrets

import pytest
import yaml

from rayferry.job.errors import SpecError
from rayferry.job.leaks import find, is_secret_name, kind_of, mask, shown, shown_assignment
from rayferry.job.spec import parse

MINIMAL = {"model": "m", "input": {"uri": "s3://bucket/in/"}, "output": {"uri": "s3://bucket/out/"}}
RANDOM = secrets.token_hex(20)
WORD = "plain" + secrets.token_hex(4)  # a password that looks like nothing
SHAPES = {
    "a Hugging Face token": ["hf_" + RANDOM[:34]],
    "an AWS access key": ["AKIA" + RANDOM[:16].upper(), "ASIA" + RANDOM[:16].upper()],
    "an AWS secret key": ["aws_secret_access_key = " + RANDOM, 'AWS_SECRET_ACCESS_KEY="' + RANDOM + '"'],
    "an API key": ["sk-" + RANDOM, "sk-proj-" + RANDOM, "sk-ant-api03-" + RANDOM + "_a-b", "nvapi-" + RANDOM],
    "a GitHub token": [kind + "_" + RANDOM[:36] for kind in ("ghp", "gho", "ghs", "github_pat")],
    "a GitLab token": ["glpat-" + RANDOM[:20]],
    "a Slack token": [f"xox{kind}-123456789-{RANDOM[:12]}" for kind in "bap"],
    "a private key": [f"-----BEGIN {kind}PRIVATE " + "KEY-----\n" + RANDOM for kind in ("", "RSA ", "OPENSSH ")],
    "a JSON Web Token": [f"eyJ{RANDOM}.eyJ{RANDOM}.{RANDOM}"],
    "an address with a password in it": [f"https://me:{RANDOM}@host/x", f"redis://:{RANDOM}@host", "ftp://a:b@c"],
}
ONE_OF_EACH = [texts[0] for texts in SHAPES.values()]


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in SHAPES.items() for text in texts])
@pytest.mark.parametrize("around", ["{}", "export X={} # mine", '"{}"'])
def test_a_secret_is_known_by_its_looks_wherever_it_stands(kind, text, around):
    assert kind_of(around.format(text)) == kind


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hf_transfer",
        "hf_overrides",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "task-" + RANDOM,
        "sk-learn-models-for-my-prompts",
        "risk-assessment-of-something-long",
        "eyJhbGciOiJIUzI1NiJ9",
        "-----BEGIN PUBLIC KEY-----",
        "s3://anonymous@bucket/in",
        "http://head:8265/a@b",
        "git+ssh://git@github.com/a/b",
        "https://host/a:b@c",
        'f"postgres://{user}:{password}@{host}"',
        "https://me:${TOKEN}@host",
        "https://me:<password>@host",
        "https://me:***@host",
        "0123456789abcdef" * 4,
    ],
)
def test_what_is_none_is_not_taken_for_one(text):
    assert kind_of(text) is None


@pytest.mark.parametrize(
    "name",
    [
        *("HF_TOKEN", "TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SESSION_TOKEN", "hf_token", "HFTOKEN", "dbPassword"),
        *("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "OPENAI_API_KEY", "OPENAI_APIKEY", "api-key", "DB_PWD"),
        *("MY_SECRET", "DB_PASSWORD", "MYSQL_PASSWD", "SSH_PRIVATE_KEY", "GCP_CREDENTIALS", "KEY_PASSPHRASE"),
    ],
)
def test_a_name_tells_a_secret(name):
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *("TOKENIZERS_PARALLELISM", "MAX_TOKENS", "NUM_TOKENS_TOTAL", "TOKENIZER", "HF_TOKEN_PATH", "RAY_AUTH_MODE"),
        *("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_SHARED_CREDENTIALS_FILE", "SECRET_NAME", "PWD", "KEY", "MONKEY", "A"),
        *("HF_HOME", "CUDA_VISIBLE_DEVICES", "PASSWORD_FILE", "API_KEY_PATH", "SECRET_ARN", "OLDPWD"),
    ],
)
def test_a_name_tells_no_secret(name):
    assert not is_secret_name(name)


def refused(**changes):
    with pytest.raises(SpecError) as raised:
        parse(MINIMAL | changes, "job.yaml")
    return str(raised.value)


@pytest.mark.parametrize("secret", ONE_OF_EACH)
@pytest.mark.parametrize(
    "place",
    [
        "name",
        "model",
        "input.uri",
        "engine.hf_token",
        "engine.hf_overrides.deep",
        "lora.adapters.a",
        "runtime_env.env_vars.A",
        "runtime_env.pip",
        "runtime_env.secrets.A",
        "cluster.address",
        "nonsense",
    ],
)
def test_a_secret_anywhere_in_a_job_file_is_refused_without_its_value(place, secret):
    value = [secret] if place == "runtime_env.pip" else secret
    for key in reversed(place.split(".")[1:]):
        value = {key: value}
    top = place.split(".", maxsplit=1)[0]
    message = refused(**{top: value if top != "input" else {"uri": secret}})
    assert (f"job.yaml: {place}" in message, "runtime_env.secrets: {" in message) == (True, True)
    assert (secret in message, RANDOM[:10] in message) == (False, False)


@pytest.mark.parametrize("secret", ONE_OF_EACH[:-1])
@pytest.mark.parametrize("where", [("input", "template"), ("chat", "chat_template"), ("chat", "system_prompt")])
def test_a_secret_in_words_for_the_model_is_refused_by_its_looks(where, secret):
    top, key = where
    message = refused(task="chat", **{top: MINIMAL.get(top, {}) | {key: f"say {secret}"}})
    assert (f"{top}.{key}: looks like a" in message, secret in message) == (True, False)


@pytest.mark.parametrize("text", ["The password is {{ text }}", "API_KEY=secret", "see http://me:pw@host"])
def test_words_for_the_model_may_speak_of_secrets(text):
    assert find(MINIMAL | {"input": {"uri": "/in", "template": text}, "chat": {"system_prompt": text}}) == []


@pytest.mark.parametrize("name", ["HF_TOKEN", "OPENAI_API_KEY", "DB_PASSWORD", "AWS_SECRET_ACCESS_KEY"])
@pytest.mark.parametrize("value", [WORD, 7777777777, [WORD], {"a": WORD}, True])
def test_a_variable_whose_name_tells_a_secret_never_shows_its_value(name, value):
    message = refused(runtime_env={"env_vars": {name: value}})
    assert (f"runtime_env.env_vars.{name}" in message, WORD in message, "7777" in message) == (True, False, False)


@pytest.mark.parametrize("name", ["HF_TOKEN", "OPENAI_API_KEY", "dbPassword"])
def test_a_variable_whose_name_tells_a_secret_is_refused_with_the_way_to_go(name):
    message = refused(runtime_env={"env_vars": {name: WORD}})
    assert message == (
        f"job.yaml: runtime_env.env_vars.{name}: a secret by its name; a secret has no place in a job file: say where "
        "the nodes find it, such as runtime_env.secrets: {HF_TOKEN: env:HF_TOKEN} (or file:, ssm:, secretsmanager:)"
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HF_TOKEN", ""),
        ("HF_TOKEN", "${HF_TOKEN}"),
        ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1"),
        ("MAX_TOKEN", "4096"),
        ("TOKENIZERS_PARALLELISM", "false"),
        ("HF_TOKEN_PATH", "/run/token"),
        ("GOOGLE_APPLICATION_CREDENTIALS", "/etc/gcp.json"),
        ("A", WORD),
    ],
)
def test_a_variable_that_holds_no_secret_may_be_set(name, value):
    assert parse(MINIMAL | {"runtime_env": {"env_vars": {name: value}}}, "").runtime_env.env_vars == {name: value}


@pytest.mark.parametrize(
    "runtime_env",
    [
        {"env_vars": ["DB_PASSWORD=" + WORD]},
        {"env_vars": "DB_PASSWORD=" + WORD},
        {"env_vars": [{"A": WORD}]},
        {"env_vars": {"A": {"b": WORD}}},
        {"secrets": {"A": WORD}},
        {"secrets": WORD},
        {"secrets": [WORD]},
        {"secrets": {"A": 5}},
        {"env_var": {"DB_PASSWORD": WORD}},
        [{"env_vars": {"DB_PASSWORD": WORD}}],
        "DB_PASSWORD=" + WORD,
        {"pip": {"API_KEY": WORD}},
    ],
    ids=str,
)
def test_a_wrong_kind_of_value_is_told_without_a_secret_that_it_may_hold(runtime_env):
    message = refused(runtime_env=runtime_env)
    assert ("runtime_env" in message, WORD in message) == (True, False)


@pytest.mark.parametrize(
    "entry",
    ["--index-url https://{}@host/simple", "--extra-index-url https://u:{}@host/", "p @ git+https://{}@github.com/a/b"],
)
def test_a_package_index_with_a_password_is_refused(entry):
    message = refused(runtime_env={"pip": ["a==1", entry.format(WORD)]})
    assert ("runtime_env.pip.1: looks like an address with a password" in message, WORD in message) == (True, False)


@pytest.mark.parametrize(
    "entry",
    ["a==1", "p @ git+https://github.com/a/b@v1", "p @ git+ssh://git@github.com/a/b", "-i https://${U}:${T}@host/x"],
)
def test_a_package_may_come_from_anywhere_without_one(entry):
    assert parse(MINIMAL | {"runtime_env": {"pip": [entry]}}, "").runtime_env.pip == [entry]


def test_each_secret_has_its_line():
    assert len(find({"a": ONE_OF_EACH[0], "b": [{"c": ONE_OF_EACH[1]}], "d": 5})) == 2


def test_a_key_that_is_a_secret_is_refused_without_telling_it():
    lines = find({"engine": {ONE_OF_EACH[0]: 1}})
    assert (len(lines), lines[0].startswith("engine.***: this key looks like a Hugging Face token")) == (1, True)


def test_a_file_that_holds_itself_comes_to_an_end():
    assert find(yaml.safe_load("a: &a {b: *a, c: [*a, &d [*d]]}")) == []


def test_bytes_are_looked_at():
    assert len(find({"a": ONE_OF_EACH[0].encode()})) == 1


@pytest.mark.parametrize("secret", ONE_OF_EACH)
def test_a_masked_text_holds_no_secret(secret):
    assert RANDOM[:10] not in mask(f"a {secret} b {secret}")


def test_a_text_without_a_secret_is_its_own_mask():
    assert mask("input.uri: 's3://bucket/x' at http://head:8265") == "input.uri: 's3://bucket/x' at http://head:8265"


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("a.b", 5, "5"),
        ("a.b", "x", "'x'"),
        ("a.api_key", "x", "***"),
        ("a", {"api_key": "x", "b": ["c"]}, "{'api_key': '***', 'b': ['c']}"),
        ("a", ["API_KEY=x"], "['API_KEY=***']"),
        ("runtime_env.env_vars.A", "x", "***"),
        ("runtime_env.env_vars.A", 1, "1"),
        ("runtime_env.secrets.A", "x", "***"),
    ],
)
def test_a_value_is_shown_without_what_may_be_a_secret(path, value, expected):
    assert shown(path, value) == expected


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("name=a b", "name=a b"),
        ("name", "name"),
        ("=x", "=x"),
        ("runtime_env.env_vars.A=x", "runtime_env.env_vars.A=***"),
        ("engine.hf_token=x", "engine.hf_token=***"),
        ("runtime_env={env_vars: {A: x", "runtime_env={env_vars: {A: x"),
        ("x={API_KEY: y}", "x={API_KEY: ***}"),
        (ONE_OF_EACH[0], "***"),
    ],
)
def test_an_assignment_is_shown_without_what_may_be_a_secret(assignment, expected):
    assert shown_assignment(assignment) == expected


def test_the_validators_own_error_does_not_quote_the_value():
    with pytest.raises(SpecError) as raised:
        parse(MINIMAL | {"runtime_env": {"secrets": {"A": WORD}}}, "job.yaml")
    assert WORD not in str(raised.value.__cause__)


def test_a_reference_is_no_secret():
    references = {"A": "env:HF_TOKEN", "B": "secretsmanager:my/secret#token", "C": "ssm:/a/password", "D": "file:/t"}
    spec = parse(MINIMAL | {"runtime_env": {"secrets": references}}, "")
    assert json.loads(json.dumps(spec.to_json()))["runtime_env"]["secrets"] == references


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("'bob:hunter2@h:8265' is no address", "'***@h:8265' is no address"),
        ("user:a+b=c@[::1]:8265", "***@[::1]:8265"),
        ("s3://anonymous@bucket/x", "s3://anonymous@bucket/x"),
        ("mail me@here.test: now", "mail me@here.test: now"),
    ],
)
def test_a_name_and_password_before_a_host_are_masked_without_a_scheme_too(text, masked):
    assert mask(text) == masked
