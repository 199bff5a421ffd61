"""What vLLM takes as arguments, by its source, and what is said of those that it does not take."""

import pytest
from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from rayferry.job import arguments
from rayferry.job.arguments import Known, known, refused
from rayferry.job.engine_spec import COMMON_ENGINE_KEYS
from rayferry.job.errors import EngineError

ARGUMENTS = """
from dataclasses import dataclass
@dataclass
class EngineArgs:
    model: str = "m"
    max_num_seqs: int | None = None
    tensor_parallel_size: int = 1
    some_constant = 3
    def helper(self): ...
"""
LLM = """
class LLM(Mixin):
    def generate(self, prompts): ...
    def __init__(self, model, *, chat_template=None, **kwargs):
        "Text of its own."
        if "swap_space" in kwargs:
            kwargs.pop("swap_space")
"""
NAMES = {"model", "max_num_seqs", "tensor_parallel_size", "chat_template", "swap_space"}


@pytest.fixture
def package(tmp_path):
    """A folder laid out as vLLM's; with other text in one of its files."""

    def write(*, arg_utils=ARGUMENTS, llm=LLM):
        for name in ("engine", "entrypoints"):
            (tmp_path / name).mkdir()
        (tmp_path / "engine/arg_utils.py").write_text(arg_utils)
        (tmp_path / "entrypoints/llm.py").write_text(llm)
        (tmp_path / "_version.py").write_text("version: str\n__version__ = version = '0.99.1'\n")
        return tmp_path

    return write


def test_arguments_are_the_fields_and_what_llm_takes_and_looks_for(package):
    assert known(package()) == Known("0.99.1", frozenset(NAMES))


@pytest.mark.parametrize(
    "texts",
    [
        {"arg_utils": ARGUMENTS.replace("EngineArgs", "EngineArgs(Base)")},
        {"arg_utils": ARGUMENTS.replace("EngineArgs", "OtherArgs")},
        {"arg_utils": "class EngineArgs(:\n"},
        {"arg_utils": ARGUMENTS.replace("tensor_parallel_size", "other")},
        {"llm": "class LLM: ...\n"},
    ],
)
def test_a_source_that_looks_otherwise_is_not_judged_by(package, texts):
    assert known(package(**texts)) is None


def test_a_folder_without_vllm_is_not_judged_by(tmp_path):
    assert known(tmp_path) is None


def test_a_node_without_vllm_is_not_judged_by(monkeypatch):
    monkeypatch.setattr(arguments.importlib.util, "find_spec", lambda _name: None)
    assert known() is None


def test_the_arguments_that_people_write_most_are_those_of_the_vllm_that_is_installed():
    found = known()
    if found is None:
        pytest.skip("no vLLM here")
    found.check(dict.fromkeys(COMMON_ENGINE_KEYS))


@pytest.mark.parametrize(
    ("key", "advice"),
    [
        ("max_num_sequences", "did you mean 'max_num_seqs'?"),
        ("tensor_parallel", "did you mean 'tensor_parallel_size'?"),
        ("zzz", "see its documentation of engine arguments"),
    ],
)
def test_an_argument_that_is_not_there_is_refused_with_the_nearest(key, advice):
    with pytest.raises(EngineError) as caught:
        Known("0.99.1", frozenset(NAMES)).check({key: 1, "max_num_seqs": 2})
    assert str(caught.value) == f"engine.{key}: vLLM 0.99.1 has no such argument; {advice}"


def test_arguments_that_are_there_pass():
    Known("0.99.1", frozenset(NAMES)).check({"swap_space": 4, "model": "m"})


@dataclass(config=ConfigDict(extra="forbid"))
class CacheConfig:
    """Stands for one of vLLM's configurations."""

    gpu_memory_utilization: float = Field(0.9, le=1)
    cache_dtype: str = Field("auto", pattern="auto|fp8")
    level: int | list[int] = 1
    api_key: int = 1


def complaint(**fields):
    with pytest.raises(ValidationError) as caught:
        CacheConfig(**fields)
    return caught.value


@pytest.mark.parametrize(
    ("given", "fields", "says"),
    [
        (
            {"gpu_memory_utilization": 1.9},
            {},
            "engine.gpu_memory_utilization: 1.9: Input should be less than or equal to 1",
        ),
        (
            {"kv_cache_dtype": "fp9"},
            {"cache_dtype": "fp9"},
            "engine.kv_cache_dtype: 'fp9': String should match pattern 'auto|fp8'",
        ),
        (
            {"cache_config": {"levle": 3}},
            {"levle": 3},
            "engine.cache_config.levle: 3: Unexpected keyword argument",
        ),
        (
            {"level": "x"},
            {},
            "engine.level: 'x': Input should be a valid integer, unable to parse string as an integer or ",
        ),
        # what the job does not give follows from what it does
        ({"gpu_memory_utilization": 2}, {"gpu_memory_utilization": 2, "level": "x"}, "engine.gpu_memory_utilization"),
        ({"seed": 1}, {"level": [None]}, "the model or its arguments: Input should be a valid integer"),
        ({"api_key": "hush-hush"}, {}, "engine.api_key: ***: "),
    ],
)
def test_a_value_that_vllm_refuses_is_told_by_the_jobs_own_key(given, fields, says):
    line = refused(complaint(**(fields or given)), given, "0.99.1")
    assert line.startswith(f"vLLM 0.99.1 refuses {says}")
    assert "\n" not in line
    assert line.count("engine.") <= 1
