"""The service with a toy model, from nothing but a folder: for tests and commands that need one that answers."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import toy_bento
from conftest import make_toy_base
from toy_bento import Served


@contextmanager
def serving(folder: Path, base: Path | None = None) -> Iterator[Served]:
    """Serves the sources with a toy adapter on `base`, or on a base that is made for it."""
    import bentoml

    from resources.bento import build

    toy_bento.store(folder / "bentoml")
    stages = toy_bento.write_toy(folder / "stages", base or make_toy_base(folder / "base"))
    tag = build(stages / "base_model", stages / "adapter").model_tag
    served = folder / "served"
    served.mkdir()
    # by its path: where another test was first, BentoML keeps to that one's store
    toy_bento.put_model(served / "home", Path(bentoml.models.get(tag).path))
    with toy_bento.serve("service:PackagingService", served) as one:
        yield one
