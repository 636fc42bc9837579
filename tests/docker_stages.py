"""The Dockerfile read as far as this project's goes: its stages, what each copies, sets and starts."""

import json
import re
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass
class Stage:
    """A stage with what it has from its base. `copies` are (stage or "" for the project, sources, target)."""

    base: str
    user: str = ""
    copies: list[tuple[str, list[str], str]] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)
    command: list[str] = field(default_factory=list)
    healthcheck: list[str] = field(default_factory=list)

    @property
    def copied(self) -> list[str]:
        """Names in the project's folder that it copies."""
        return [name for stage, sources, _ in self.copies if not stage for name in sources]


def read_stages(path: Path = ROOT / "Dockerfile") -> dict[str, Stage]:
    stages: dict[str, Stage] = {}
    stage = Stage("")
    lines = "\n".join(line for line in path.read_text().splitlines() if not line.lstrip().startswith("#"))
    for line in re.sub(r"\\\n\s*", " ", lines).splitlines():
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            base, _, name = rest.partition(" AS ")
            before = stages.get(base, Stage(""))
            stage = stages[name] = Stage(base, before.user, [*before.copies], {**before.variables})
        elif instruction == "COPY":
            words = rest.split()
            source = words.pop(0).partition("=")[2] if words[0].startswith("--from=") else ""
            stage.copies.append((source, words[:-1], words[-1]))
        elif instruction == "ENV":
            stage.variables |= dict(word.split("=", 1) for word in rest.split())
        elif instruction == "USER":
            stage.user = rest
        elif instruction == "CMD":
            stage.command = json.loads(rest)
        elif instruction == "HEALTHCHECK":
            stage.healthcheck = json.loads(rest.partition(" CMD ")[2])
    return stages


def reaches_the_engine(name: str) -> bool:
    """Whether .dockerignore lets a name of the project's folder through; as there, the last line that fits decides."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    fits = [line for line in lines if fnmatch(name, line.lstrip("!").rstrip("/"))]
    return not fits or fits[-1].startswith("!")
