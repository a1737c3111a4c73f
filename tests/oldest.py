"""Print `==` constraints for the lowest versions that pyproject.toml allows, for `make test-oldest`."""

import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement


def direct(project: dict) -> list[Requirement]:
    """List the requirements of a `[project]` table, extras included."""
    extras = project["optional-dependencies"].values()
    return [Requirement(line) for group in (project["dependencies"], *extras) for line in group]


def lowest(requirement: Requirement) -> str:
    """Turn the one `>=` bound of a requirement into a `==` constraint."""
    bounds = [spec.version for spec in requirement.specifier if spec.operator == ">="]
    if len(bounds) != 1:
        raise ValueError(f"pyproject.toml: {requirement} has {len(bounds)} lower bounds (>=), not one")
    return f"{requirement.name}=={bounds[0]}"


def main(pyproject: Path) -> None:
    """Print one constraint per line."""
    project = tomllib.loads(pyproject.read_text())["project"]
    print("\n".join(lowest(requirement) for requirement in direct(project)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
