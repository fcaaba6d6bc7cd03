"""The other library, in a process of its own: it reads and writes adapter files, and only files pass between the two.

Run as a script it answers one JSON line with one JSON line; ``ask`` starts it on first use and keeps it.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
LOGITS = "logits.pt"


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Write or read one feature's adapter, and leave the logits beside it."""
    import torch
    from bases import FEATURES
    from drivers import Peft, fill

    of, directory = FEATURES[request["feature"]], Path(request["directory"])
    model = Peft(of.base())
    if request["act"] == "write":
        model.attach(of.spec)
        fill(model)
        model.save(directory, pickled=request.get("pickled", False))
    else:
        model.load(directory)
    model.callable().eval()
    with torch.no_grad():
        torch.save(model.run(of.x()), directory / LOGITS)
    return {"told": model.told}


_running: list[subprocess.Popen[str]] = []


def ask(act: str, feature: str, directory: Path, **options: Any) -> list[str]:
    """Have PEFT write or read an adapter.

    Args:
        act: "write" or "read".
        feature: name in ``bases.FEATURES``.
        directory: where the files are.
        options: further fields of the request.

    Returns:
        Warnings, and keys that did not fit.
    """
    if not _running:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        _running.append(process)
        atexit.register(process.kill)
    stdin, stdout = _running[0].stdin, _running[0].stdout
    assert stdin is not None and stdout is not None
    stdin.write(json.dumps({"act": act, "feature": feature, "directory": str(directory), **options}) + "\n")
    stdin.flush()
    reply = json.loads(stdout.readline())
    assert "error" not in reply, f"PEFT: {reply['error']}"
    told: list[str] = reply["told"]
    return told


def main() -> None:
    """Answer until the input ends."""
    import torch

    torch.set_num_threads(1)
    replies, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        try:
            reply = answer(json.loads(line))
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    sys.path[:0] = [str(HERE), str(HERE.parent)]
    main()
