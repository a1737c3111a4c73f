"""A whole study: nine chains of iterative magnitude pruning."""

from collections.abc import Iterator

from benchmarks import studies
from benchmarks.record import Row, machine, row
from benchmarks.worker import Worker


def measure(chosen: list[str], quick: bool = False) -> Iterator[Row]:
    """Yield the rows of this benchmark that are chosen."""
    study = studies.imp(1, 1, 1, [0.05]) if quick else studies.imp(3, 9, 20, [0.01, 0.05, 0.2])
    answers = []
    for _ in range(2 if quick else 3):
        with Worker("studies:compute") as worker:
            answers.append(worker(study=study))
    for name in chosen:
        what = "command_seconds" if name.endswith("command_seconds") else "seconds"
        yield row(name, "s", [answer[what] for answer in answers], machine(answers[0]["threads"]))
