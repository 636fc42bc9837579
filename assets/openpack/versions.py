"""The code versions: an asset is stale when its stage or its settings are no longer those that made it."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from pipelines.common.files import digest, file_digest
from pipelines.common.settings import Settings
from pipelines.openpack.settings import STAGE_VERSIONS

GROUP = "openpack"
# Packages whose other versions give other results for equal inputs: other bytes of a video or picture, other decoded
# pixels, other sums. Those that only carry data (pandas, pyarrow, webdataset) or tell of it are not among them.
_PICTURES = ("imageio-ffmpeg", "numpy", "pillow")
_MODEL = ("torch", "transformers", "peft", "bitsandbytes", "numpy", "pillow")
LIBRARIES: dict[str, tuple[str, ...]] = {
    "raw_session": _PICTURES,
    "normalized_video": _PICTURES,
    "clips": ("decord", "numpy", "pillow"),
    "shards": (),
    "base_model": _MODEL,
    "adapter": _MODEL,
    "evaluation": (*_MODEL, "scipy", "decord", "imageio-ffmpeg"),  # it draws and decodes whole sessions
    "bento": (),  # has its requirements in it
}
_ROOT = Path(__file__).parents[2]


def code_version(stage: str, *settings: Settings | str | list[str]) -> str:
    """The stage's version and, after a plus, the digest of everything else that its result depends on."""
    parts: list[Any] = [part.digest() if isinstance(part, Settings) else part for part in settings]
    parts += [[name, version(name)] for name in LIBRARIES[stage]]
    return f"{STAGE_VERSIONS[stage]}+{digest(parts)}"


def service_code() -> str:
    """Digest of the code that bentofile.yaml puts into the bento, which is outdated as soon as any of it changes."""
    bentofile = _ROOT / "bentofile.yaml"
    patterns = yaml.safe_load(bentofile.read_text())["include"]
    files = [bentofile, *(path for pattern in patterns for path in sorted(_ROOT.glob(pattern)))]
    return digest([[str(path.relative_to(_ROOT)), file_digest(path)] for path in files])
