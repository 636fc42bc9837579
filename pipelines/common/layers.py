"""Settings from layers: the defaults, then files that name only what they change; and where each value came from.

Belongs here: reading, merging and checking, for any class of settings. Which files there are, and their order, do not.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from pipelines.common.errors import SetupError
from pipelines.common.settings import Settings

S = TypeVar("S", bound=Settings)


@dataclass(frozen=True)
class Layer:
    """What one file changes; `name` is what a person calls it."""

    name: str
    file: Path
    values: Mapping[str, Any]

    @classmethod
    def read(cls, name: str, file: Path, cure: str) -> Layer:
        """A TOML file with a section a stage; SetupError, with `cure`, where it is missing, or where it is no TOML."""
        if not file.is_file():
            raise SetupError("the settings file is missing", file=file, cure=cure)
        try:
            return cls(name, file, tomllib.loads(file.read_text(encoding="utf-8")))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SetupError(f"not valid TOML ({error})", file=file, cure="Mend that line.") from None


@dataclass(frozen=True)
class Layered(Generic[S]):
    """Settings, and for the dotted name of each value that is not the default the layer that it came from."""

    settings: S
    origins: Mapping[str, str]

    def changed(self, sections: Sequence[str] = ()) -> Iterator[tuple[str, str]]:
        """Each layer's name and those of its values that count, as a TOML file has them, in `sections` or in all."""
        made = self.settings.model_dump(mode="json")
        for layer in dict.fromkeys(self.origins.values()):
            values = [
                f"{name} = {json.dumps(_value(made, name), ensure_ascii=False)}"
                for name, origin in self.origins.items()
                if origin == layer and (not sections or name.partition(".")[0] in sections)
            ]
            if values:
                yield layer, ", ".join(values)


def combine(kind: type[S], layers: Sequence[Layer]) -> Layered[S]:
    """Later layers change what earlier ones say. SetupError, with the file, for an unknown name or a wrong value; an
    unknown name is told with the nearest known one."""
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = _merge(merged, layer.values)
    try:
        settings = kind.model_validate(merged)
    except ValidationError as error:
        first = error.errors()[0]
        path = tuple(str(part) for part in first["loc"])
        file = next((layer.file for layer in reversed(layers) if _has(layer.values, path)), layers[-1].file)
        unknown = first["type"] == "extra_forbidden"
        what = f"no setting has this name{_nearest(kind, path)}" if unknown else first["msg"]
        cure = "The names and their defaults are in pipelines/*/settings.py and pipelines/common/vlm/settings.py."
        raise SetupError(what, file=file, where=".".join(path), cure=cure) from None
    made, default = settings.model_dump(mode="json"), kind.model_validate({}).model_dump(mode="json")
    origins: dict[str, str] = {}
    for layer in layers:
        for name in _names(layer.values, kind):
            origins.pop(name, None)  # in the order of the file that counts
            if _value(made, name) != _value(default, name):
                origins[name] = layer.name
    return Layered(settings, origins)


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for name, value in above.items():
        inner = isinstance(value, dict) and isinstance(below.get(name), dict)
        merged[name] = _merge(below[name], value) if inner else value
    return merged


def _has(values: Any, path: Sequence[str]) -> bool:
    """Whether a layer says something at `path`; an index into a list counts as its list."""
    for part in path:
        if not isinstance(values, Mapping):
            return True
        if part not in values:
            return False
        values = values[part]
    return True


def _names(values: Mapping[str, Any], kind: type[Settings], before: str = "") -> Iterator[str]:
    """Dotted names of all single values of a layer."""
    for name, value in values.items():
        inner = _section(kind, name)
        if inner and isinstance(value, Mapping):
            yield from _names(value, inner, f"{before}{name}.")
        else:
            yield f"{before}{name}"


def _section(kind: type[Settings], name: str) -> type[Settings] | None:
    field = kind.model_fields.get(name)
    annotation = field.annotation if field else None
    return annotation if isinstance(annotation, type) and issubclass(annotation, Settings) else None


def _value(values: Any, name: str) -> Any:
    for part in name.split("."):
        values = values[part]
    return values


def _nearest(kind: type[Settings], path: Sequence[str]) -> str:
    """The known names that may be meant: a near one in the same section, else near ones in any other."""
    here, name = list(path[:-1]), path[-1]
    known = [(*one.rpartition(".")[::2], one) for one in _known(kind)]
    beside = [last for section, last, _ in known if section == ".".join(here)]
    close = get_close_matches(name, beside, 1) or get_close_matches(name, {last for _, last, _ in known}, 1)
    if not close:
        return ""
    found = [whole for section, last, whole in known if last == close[0]]
    same = [one for one in found if one == ".".join([*here, close[0]])]
    near = [one for one in found if here and one.startswith(f"{here[0]}.")]
    return f"; the nearest is {' or '.join((same or near or found)[:3])}"


def _known(kind: type[Settings], before: str = "") -> Iterator[str]:
    for name in kind.model_fields:
        yield f"{before}{name}"
        if inner := _section(kind, name):
            yield from _known(inner, f"{before}{name}.")
