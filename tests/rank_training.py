"""A toy training as one of several processes; `test_ranks` starts it with accelerate. Arguments: folder, processes.

Interrupted after four steps and started again. The last process is out of memory in a step with more than one clip.
"""

import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from test_out_of_memory import SmallCard
from test_train import CPU, rows_of, trained
from toy_vlm import make

from pipelines.common.files import write_json
from pipelines.common.vlm.lora import put_lora
from pipelines.common.vlm.ranks import Ranks, joined
from pipelines.common.vlm.settings import LoopSettings, LoraSettings
from pipelines.common.vlm.train import fit

CLIPS = 4  # a step, of all processes


def train(out: Path, ranks: Ranks, stop: int | None = None):
    torch.set_num_threads(1)
    vlm = make()
    torch.manual_seed(ranks.index)  # another first adapter in each process, which the first one's must replace
    model = put_lora(vlm.model, LoraSettings(rank=4, alpha=8), gradient_checkpointing=False)
    if ranks.count > 1 and not ranks.first:
        SmallCard(model, clips=1)
    share = CLIPS // ranks.count
    loop = LoopSettings(
        steps=6, batch_size=share, gradient_accumulation_steps=1, learning_rate=1e-2, save_steps=2, save_total_limit=1
    )
    rows, said = rows_of(vlm.encoder, CLIPS), []

    def part(step: int):
        if step == stop:
            raise KeyboardInterrupt
        return rows(step)[ranks.index * share : (ranks.index + 1) * share]

    losses = fit(model, vlm.encoder, part, loop, out / "steps", device=CPU, progress=said.append, ranks=ranks)
    return losses, trained(model), said


def main(out: Path, processes: int) -> None:
    with joined("cpu", processes) as ranks:
        try:
            train(out, ranks, stop=4)
        except KeyboardInterrupt:
            ranks.wait()
        losses, weights, said = train(out, ranks)
        write_json(out / f"said-{ranks.index}.json", {"losses": losses, "said": said, "parent": os.getppid()})
        save_file(weights, out / f"weights-{ranks.index}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
