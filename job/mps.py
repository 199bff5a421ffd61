"""CUDA's MPS, by which several engines use one GPU together instead of in turns."""

import os
import shutil
import subprocess
import tempfile

CONTROL = "nvidia-cuda-mps-control"
PIPE = "CUDA_MPS_PIPE_DIRECTORY"
# Its last line runs when the actor's end of the pipe closes, however the actor died. A server whose clients hang is
# ended after five seconds.
_KEEPER = f"""
({CONTROL} -d && cat <&3; echo quit -t 5 | {CONTROL}; rm -rf "${PIPE}") 3<&0 >/dev/null 2>&1 &
"""


class Daemon:
    """An actor on a node with engines that share a GPU; MPS runs there for as long as it lives.

    Source: https://docs.nvidia.com/deploy/mps/
    """

    def __init__(self) -> None:
        """Starts MPS, if the node has it."""
        self._folder: str | None = None
        if shutil.which(CONTROL) is None:
            return
        folder = tempfile.mkdtemp(prefix="rayferry-mps-")
        environment = {**os.environ, PIPE: folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        environment.pop("CUDA_VISIBLE_DEVICES", None)  # none, as this actor has no GPU
        # not a child of this process, which Ray would kill with it before it could end MPS
        self._keeper = subprocess.Popen(  # noqa: S603  # the line is above
            ["/bin/sh", "-c", _KEEPER], env=environment, stdin=subprocess.PIPE, start_new_session=True
        )
        self._folder = folder

    def folder(self) -> str | None:
        """Where its clients find it; None where there is none."""
        return self._folder
