"""Studies computed by `lthlab compute`, each in a process of its own and a new store."""

import io
import json
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from lthlab import cli


def imp(replicates: int, levels: int, epochs: int, lr: Sequence[float]) -> dict[str, Any]:
    """Describe iterative magnitude pruning of LeNet-300-100 on digits; `levels` counts those after the dense one."""
    return {
        "name": "imp",
        "title": "Iterative magnitude pruning",
        "net": "lenet_300_100",
        "data": "digits",
        "replicates": replicates,
        "find": {"epochs": epochs, "batch_size": 64, "lr": list(lr), "momentum": 0.9, "weight_decay": 1e-4},
        "prune": {"rate": 0.2, "levels": list(range(1, levels + 1))},
        "tickets": {"LT": {"methods": ["IMP"]}},
    }


def compute() -> Callable[..., dict[str, Any]]:
    """For a process that computes one study and ends; it imports torch as late as `lthlab compute` does."""

    def once(study: dict[str, Any]) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "imp.yaml")
            path.write_text(json.dumps(study))
            output, errors = io.StringIO(), io.StringIO()
            began = time.perf_counter()
            with redirect_stdout(output), redirect_stderr(errors):
                code = cli.main(["compute", str(path), "--runs", str(Path(folder, "runs")), "--json"])
            seconds = time.perf_counter() - began
        if code:
            raise RuntimeError(f"`lthlab compute` ended with code {code}: {errors.getvalue()}")
        import torch

        return {
            "seconds": json.loads(output.getvalue())["seconds"],
            "command_seconds": seconds,
            "mebibytes": peak_mebibytes(),
            "threads": torch.get_num_threads(),
        }

    return once


def peak_mebibytes() -> float:
    """Largest resident set of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
