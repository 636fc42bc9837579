"""The code versions: an asset is stale when its stage or its settings are no longer those that made it."""

from pathlib import Path

import yaml

from pipelines.common.files import digest, file_digest
from pipelines.common.settings import Settings
from pipelines.openpack.settings import STAGE_VERSIONS

GROUP = "openpack"
_ROOT = Path(__file__).parents[2]


def code_version(stage: str, *settings: Settings | str | list[str]) -> str:
    """The stage's version and, after a plus, the digest of everything else that its result depends on."""
    parts = [part.digest() if isinstance(part, Settings) else part for part in settings]
    return f"{STAGE_VERSIONS[stage]}+{digest(parts)}"


def service_code() -> str:
    """Digest of the code that bentofile.yaml puts into the bento, which is outdated as soon as any of it changes."""
    bentofile = _ROOT / "bentofile.yaml"
    patterns = yaml.safe_load(bentofile.read_text())["include"]
    files = [bentofile, *(path for pattern in patterns for path in sorted(_ROOT.glob(pattern)))]
    return digest([[str(path.relative_to(_ROOT)), file_digest(path)] for path in files])
