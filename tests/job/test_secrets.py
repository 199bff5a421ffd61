"""Secrets by reference: where each kind finds its value, and what is said where there is none."""

import json
import os
import pickle
import traceback

import boto3
import pytest
from botocore.exceptions import ClientError, NoCredentialsError, NoRegionError

from rayferry.job import secrets
from rayferry.job.errors import EngineError, JobError, SpecError
from rayferry.job.predictor import LLMPredictor

VALUE = "the-value-" + os.urandom(4).hex()


class Aws:
    """Stands for boto3: gives `answer`, or raises it; knows what it was asked."""

    def __init__(self):
        self.answer = None
        self.asked = []

    def client(self, service, *, region_name, config):
        self.asked.append((service, region_name))
        return self

    def _give(self, **asked):
        self.asked.append(asked)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    get_parameter = get_secret_value = _give


@pytest.fixture
def aws(monkeypatch):
    fake = Aws()
    monkeypatch.setattr(boto3, "client", fake.client)
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    return fake


@pytest.fixture
def settled(monkeypatch):
    """What one reference puts into the environment."""

    def settle(reference):
        monkeypatch.setenv("A_SECRET", "")  # undone after the test, whatever settle does to it
        secrets.settle({"A_SECRET": reference})
        return os.environ["A_SECRET"]

    return settle


def failure(settled, reference):
    with pytest.raises(JobError) as raised:
        settled(reference)
    told = "".join(traceback.format_exception(raised.value)) + repr(pickle.dumps(raised.value))
    assert (VALUE in told, raised.value.__context__, raised.value.__cause__) == (False, None, None)
    assert str(raised.value).startswith(f"secret A_SECRET: {reference}: ")
    return str(raised.value)


def test_a_variable_of_the_node_gives_a_secret(settled, monkeypatch):
    monkeypatch.setenv("OTHER_NAME", VALUE)
    assert settled("env:OTHER_NAME") == VALUE


@pytest.mark.parametrize("content", [VALUE, VALUE + "\n", VALUE + "\r\n"])
def test_a_file_of_the_node_gives_a_secret_without_its_line_end(settled, tmp_path, content):
    (tmp_path / "token").write_bytes(content.encode())
    assert settled(f"file:{tmp_path}/token") == VALUE


def test_a_parameter_gives_a_secret(settled, aws):
    aws.answer = {"Parameter": {"Value": VALUE}}
    assert settled("ssm:/team/token") == VALUE
    assert aws.asked == [("ssm", "eu-west-1"), {"Name": "/team/token", "WithDecryption": True}]


def test_a_secret_of_secrets_manager_is_given_whole(settled, aws):
    aws.answer = {"SecretString": VALUE}
    assert settled("secretsmanager:team/token") == VALUE
    assert aws.asked == [("secretsmanager", "eu-west-1"), {"SecretId": "team/token"}]


def test_a_key_of_a_json_secret_gives_its_text(settled, aws):
    aws.answer = {"SecretString": json.dumps({"a": "other", "token": VALUE})}
    assert settled("secretsmanager:team#token") == VALUE


def test_an_arn_brings_its_region(settled, aws):
    arn = "arn:aws:secretsmanager:us-west-2:123456789012:secret:team-AbCdEf"
    aws.answer = {"SecretString": VALUE}
    settled(f"secretsmanager:{arn}")
    assert aws.asked == [("secretsmanager", "us-west-2"), {"SecretId": arn}]


def test_a_job_without_secrets_changes_nothing():
    before = dict(os.environ)
    secrets.settle({})
    assert dict(os.environ) == before


def test_a_variable_that_is_not_set_is_told_with_the_next_step(settled, monkeypatch):
    monkeypatch.delenv("NOT_THERE", raising=False)
    assert "NOT_THERE is not set on node" in failure(settled, "env:NOT_THERE")


def test_a_file_that_is_not_there_is_told_with_the_next_step(settled, tmp_path):
    message = failure(settled, f"file:{tmp_path}/none")
    assert ("No such file or directory" in message, "on every node" in message) == (True, True)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (b" \n", "it is empty"),
        (VALUE.encode() + b"\xff", "is it text?"),
        (VALUE.encode() + b"\0", "is it text?"),
        (VALUE.encode() * 5000, "too large for a secret"),
    ],
    ids=["empty", "blank", "not UTF-8", "NUL", "large"],
)
def test_a_file_that_holds_no_secret_is_told_without_what_it_holds(settled, tmp_path, content, said):
    (tmp_path / "token").write_bytes(content)
    assert said in failure(settled, f"file:{tmp_path}/token")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (ClientError({"Error": {"Code": "ParameterNotFound", "Message": VALUE}}, "x"), "check name and region"),
        (ClientError({"Error": {"Code": "ResourceNotFoundException", "Message": VALUE}}, "x"), "check name and region"),
        (ClientError({"Error": {"Code": "AccessDeniedException", "Message": VALUE}}, "x"), "let the nodes' role use"),
        (ClientError({"Error": {"Code": "ThrottlingException", "Message": VALUE}}, "x"), "AWS did not give it"),
        (NoCredentialsError(), "let the nodes' role use"),
        (NoRegionError(), "set AWS_REGION on the nodes"),
    ],
    ids=lambda one: getattr(one, "response", {}).get("Error", {}).get("Code", type(one).__name__),
)
@pytest.mark.parametrize("reference", ["ssm:/team/token", "secretsmanager:team"])
def test_what_aws_does_not_give_is_told_with_the_next_step(settled, aws, reference, answer, said):
    aws.answer = answer
    assert said in failure(settled, reference)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"SecretBinary": VALUE.encode()}, "it holds bytes"),
        ({"SecretString": VALUE}, "no JSON object with a text under 'token'"),
        ({"SecretString": json.dumps({"other": VALUE})}, "no JSON object with a text under 'token'"),
        ({"SecretString": json.dumps({"token": [VALUE]})}, "no JSON object with a text under 'token'"),
        ({"SecretString": json.dumps({"token": ""})}, "it is empty"),
    ],
)
def test_a_secret_of_another_form_is_told_without_what_it_holds(settled, aws, answer, said):
    aws.answer = answer
    assert said in failure(settled, "secretsmanager:team#token")


@pytest.mark.parametrize(
    "reference",
    [
        *("env:A", "env:HF_TOKEN", "file:/run/secrets/hf token", "ssm:/a/b", "ssm:name", "secretsmanager:a/b#c"),
        "secretsmanager:arn:aws:secretsmanager:eu-west-1:123456789012:secret:a-AbCdEf#token",
        "ssm:arn:aws:ssm:eu-west-1:123456789012:parameter/a",
    ],
)
def test_a_reference_is_accepted(make_spec, reference):
    assert make_spec(runtime_env={"secrets": {"A": reference}}).runtime_env.secrets == {"A": reference}


@pytest.mark.parametrize(
    "reference",
    [
        *("", "env:", "env:A B", "env:$A", "file:rel", "file:", "ssm:", "secretsmanager:", "secretsmanager:a#"),
        *("vault:a", VALUE, "ENV:A", "env:A\n", "${HF_TOKEN}"),
    ],
)
def test_what_is_no_reference_is_refused_without_telling_it(make_spec, reference):
    with pytest.raises(SpecError) as raised:
        make_spec(runtime_env={"secrets": {"A_SECRET": reference}})
    assert "A_SECRET: not a reference to a secret; write env:NAME" in str(raised.value)
    assert VALUE not in str(raised.value)


@pytest.mark.parametrize("name", ["", "a-b", "1a", "a b", "A="])
def test_a_secret_is_named_as_a_variable_is(make_spec, name):
    with pytest.raises(SpecError, match="that of an environment variable"):
        make_spec(runtime_env={"secrets": {name: "env:A"}})


def test_a_variable_is_set_in_one_place_only(make_spec):
    with pytest.raises(SpecError, match=r"runtime_env.secrets.A: is set under runtime_env.env_vars as well"):
        make_spec(runtime_env={"secrets": {"A": "env:A"}, "env_vars": {"A": "1"}})


def test_a_replica_has_its_secrets_before_the_model_is_loaded(make_spec, monkeypatch):
    monkeypatch.setenv("A_SECRET", "")
    monkeypatch.setenv("OTHER_NAME", VALUE)
    seen = []

    def load(spec, device):
        seen.append(os.environ["A_SECRET"])
        raise OSError("enough")

    monkeypatch.setattr("rayferry.job.engine.load", load)
    with pytest.raises(EngineError):
        LLMPredictor(make_spec(runtime_env={"secrets": {"A_SECRET": "env:OTHER_NAME"}}), "cpu")
    assert seen == [VALUE]


def test_a_replica_without_its_secret_names_it_and_not_the_model(make_spec):
    with pytest.raises(EngineError, match=r"^secret A_SECRET: env:NOT_THERE: NOT_THERE is not set on node"):
        LLMPredictor(make_spec(runtime_env={"secrets": {"A_SECRET": "env:NOT_THERE"}}), "cpu")
