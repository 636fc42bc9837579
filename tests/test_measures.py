"""What saves memory or time in training changes no loss: each measure with and without, to a stated tolerance."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.optimize import linprog
from test_train import CPU, run, settings
from torch.nn.functional import cross_entropy
from toy_vlm import answer, make, question

from pipelines.common.vlm import muon
from pipelines.common.vlm.encode import IGNORED
from pipelines.common.vlm.features import VisionFeatures
from pipelines.common.vlm.load import linear_patches
from pipelines.common.vlm.lora import put_lora
from pipelines.common.vlm.muon import Muon, orthogonal, shares
from pipelines.common.vlm.settings import LoraSettings
from pipelines.common.vlm.train import fit, loss_sum

pytestmark = pytest.mark.usefixtures("one_thread")

LORA = LoraSettings(rank=4, alpha=8, vision=False)
LONG = "What is done? Look at all of the frames, at what lies on the bench, and at where the worker stands."


def encoded(encoder, count: int = 4):
    asked = [question(seed, text=LONG if seed % 2 else "What is done?") for seed in range(count)]
    return encoder.encode(asked, [answer(seed).text() for seed in range(count)])


def tuned(**flags):
    vlm = make()
    return vlm, put_lora(vlm.model, LORA, gradient_checkpointing=False, **flags).train()


def gradients(model, encoder, rows):
    loss = loss_sum(model, encoder, rows, CPU)
    loss.backward()
    return loss.item(), {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def assert_same(one, other, rel=1e-5):
    assert one[0] == pytest.approx(other[0], rel=rel)
    assert one[1].keys() == other[1].keys()
    for name, grad in one[1].items():
        torch.testing.assert_close(grad, other[1][name], atol=1e-5, rtol=1e-4)


def nodes(loss) -> set[str]:
    """Names of all functions that the graph of `loss` keeps."""
    seen, found, left = set(), set(), [loss.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        found.add(node.name())
        left += [following for following, _ in node.next_functions]
    return found


def test_label_only_logits_give_the_loss_of_all_logits():
    vlm = make()
    rows = encoded(vlm.encoder)
    labels = vlm.encoder.labels(rows)
    logits = vlm.model(**vlm.encoder.collate(rows)).logits
    whole = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")
    assert loss_sum(vlm.model, vlm.encoder, rows, CPU).item() == pytest.approx(whole.item(), rel=1e-6)


def test_the_frozen_tower_stays_out_of_the_graph_and_the_loss_stays():
    results, graphs = [], []
    for outside in (False, True):
        vlm, model = tuned(input_require_grads=True)
        rows = encoded(vlm.encoder)
        rows = VisionFeatures(model, vlm.encoder).fill(rows, range(len(rows))) if outside else rows
        graphs.append(nodes(loss_sum(model, vlm.encoder, rows, CPU)))
        results.append(gradients(model, vlm.encoder, rows))
    assert_same(*results)
    tower_only = {name for name in graphs[0] if "LayerNorm" in name}  # the language part has RMS norms
    assert tower_only
    assert not tower_only & graphs[1]


def test_kept_features_are_computed_once_and_give_the_same_bits(tmp_path, monkeypatch):
    vlm, model = tuned()
    rows = encoded(vlm.encoder)
    plain = VisionFeatures(model, vlm.encoder).fill(rows, range(4))
    kept = VisionFeatures(model, vlm.encoder, tmp_path).fill(rows, range(4))
    monkeypatch.setattr(vlm.encoder, "see", None)  # the tower is not asked again, not even by another process
    again = VisionFeatures(model, vlm.encoder, tmp_path).fill(rows, range(4))
    for a, b, c in zip(plain, kept, again, strict=True):
        assert a.pixels is None
        assert torch.equal(a.features, b.features)
        assert torch.equal(a.features, c.features)
    assert len(load_file(tmp_path / "0000" / "000003.safetensors")) == 1


@pytest.mark.parametrize(
    "flags",
    [
        {"gradient_checkpointing": True},
        {"gradient_checkpointing": True, "input_require_grads": True},
        {"gradient_checkpointing": True, "input_require_grads": True, "use_reentrant": True},
    ],
)
def test_the_checkpointing_flags_change_no_gradient(flags):
    vlm, model = tuned()
    expected = gradients(model, vlm.encoder, encoded(vlm.encoder))
    other = make()
    model = put_lora(other.model, LORA, **flags).train()
    assert model.base_model.model.is_gradient_checkpointing
    assert_same(expected, gradients(model, other.encoder, encoded(other.encoder)))


def test_re_entrant_checkpointing_without_gradients_of_the_input_is_refused():
    with pytest.raises(ValueError, match="input_require_grads"):
        put_lora(make().model, LORA, gradient_checkpointing=True, use_reentrant=True)


def test_parts_by_length_have_less_padding_and_the_same_loss_and_weights(tmp_path, monkeypatch):
    ends, padding = [], []
    for by_length in (False, True):
        vlm, model = tuned()
        rows, padded = encoded(vlm.encoder, 8), []
        collate = vlm.encoder.collate

        def counted(rows, collate=collate, padded=padded, **options):
            batch = collate(rows, **options)
            padded.append(int((batch["attention_mask"] == 0).sum()))
            return batch

        monkeypatch.setattr(vlm.encoder, "collate", counted)
        loop = settings(steps=3, batch_size=2, gradient_accumulation_steps=4, by_length=by_length)
        losses = fit(
            model, vlm.encoder, lambda step, rows=rows: rows, loop, tmp_path / str(by_length), device=CPU, progress=str
        )
        padding.append(sum(padded))
        ends.append(([loss for _, loss in losses], {n: w.detach() for n, w in model.named_parameters()}))
    assert padding[1] == 0 < padding[0]
    assert ends[0][0] == pytest.approx(ends[1][0], rel=1e-4)
    for name, weight in ends[0][1].items():
        torch.testing.assert_close(weight, ends[1][1][name], atol=1e-3, rtol=1e-2)


def test_muon_takes_the_steps_of_torchs_own():
    """Up to how near to orthogonal each of them comes: a step is as long, and in the same direction."""
    torch.manual_seed(0)
    mine = [torch.nn.Parameter(torch.randn(shape)) for shape in ((8, 16), (16, 8), (8, 16), (4, 4))]
    theirs = [torch.nn.Parameter(weight.detach().clone()) for weight in mine]
    before = [weight.detach().clone() for weight in mine]
    options = {"lr": 0.1, "weight_decay": 0.01}
    ours, other = Muon(mine, **options), torch.optim.Muon(theirs, adjust_lr_fn="match_rms_adamw", **options)
    for _ in range(3):
        for one, same in zip(mine, theirs, strict=True):
            one.grad = torch.randn(one.shape)
            same.grad = one.grad.clone()
        ours.step()
        other.step()
    for one, same, start in zip(mine, theirs, before, strict=True):
        moved, expected = (one.detach() - start).flatten(), (same.detach() - start).flatten()
        assert torch.cosine_similarity(moved, expected, 0) > 0.95
        assert moved.norm() == pytest.approx(expected.norm().item(), rel=0.25)


@pytest.mark.parametrize("shape", [(3, 16, 48), (2, 48, 16), (1, 16, 16)])
def test_steps_of_muon_are_nearly_orthogonal(shape):
    count, rows, columns = shape
    generator = torch.Generator().manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(shape, generator=generator), full_matrices=False)
    values = torch.rand(count, min(rows, columns), generator=generator) * 0.9 + 0.1  # 0.02 and more of their norm
    made = orthogonal(left * values[:, None] @ right)
    assert made.dtype == torch.float32
    assert made.shape == shape
    spread = torch.linalg.svdvals(made)
    assert spread.min() > 0.9
    assert spread.max() < 1.1
    torch.testing.assert_close(torch.linalg.svdvals(made - left @ right).max(), torch.tensor(0.0), atol=0.1, rtol=0)


@pytest.mark.parametrize("size", [1e-9, 1e-5, 1e5])
def test_steps_of_muon_do_not_depend_on_the_size_of_gradients(size):
    """Those of an adapter begin tiny: half of its matrices are zero."""
    matrices = torch.randn(2, 16, 48, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(orthogonal(matrices * size), orthogonal(matrices), atol=1e-4, rtol=0)
    assert not orthogonal(torch.zeros(1, 4, 8)).any()
    assert orthogonal(matrices * 1e-30).abs().max() < 1


def test_muons_iterations_are_the_best_of_their_kind():
    """Each is the odd polynomial of fifth degree that is nearest to 1 on what the ones before have left."""
    low, high = muon.LEAST, 1.0
    for coefficients in muon.COEFFICIENTS:
        at = np.concatenate([np.linspace(low, high, 2000), np.geomspace(low, high, 2000)])
        powers, ones = np.stack([at, at**3, at**5], axis=1), np.ones((len(at), 1))
        limits = np.block([[powers, -ones], [-powers, -ones]])
        best = linprog([0, 0, 0, 1], limits, np.concatenate([ones, -ones]), bounds=[(None, None)] * 3 + [(0, None)])
        error = np.abs(1 - powers @ np.array(coefficients)).max()
        assert error == pytest.approx(best.x[3], abs=1e-4)
        low, high = 1 - error, 1 + error


def test_processes_take_equal_shares_of_muons_work():
    shapes = [torch.Size(shape) for shape in ((384, 128),) * 16 + ((128, 128),) * 12 + ((64, 128),) * 8]
    parts = shares(shapes, 2)
    assert sorted(parts[0] + parts[1]) == list(range(len(shapes)))
    work = [sum(min(shapes[number]) ** 2 * max(shapes[number]) for number in part) for part in parts]
    assert max(work) < 1.05 * min(work)


def test_patches_by_a_product_are_patches_by_a_convolution():
    vlm, asked = make(), question(1)
    batch = vlm.encoder.collate(vlm.encoder.encode([asked]))
    with torch.inference_mode():
        before = vlm.model(**batch).logits
        linear_patches(vlm.model)
        assert "forward" in vars(vlm.model.model.visual.patch_embed)
        torch.testing.assert_close(vlm.model(**batch).logits, before)


def test_muon_learns_and_resumes_bit_for_bit(tmp_path):
    muon = settings(optimiser="muon")
    losses, weights = run(tmp_path / "whole", muon)
    assert losses[-1][1] < losses[0][1]
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", muon, stop=5)
    again, resumed = run(tmp_path / "cut", muon)
    assert again == losses
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)


def test_the_8_bit_optimiser_learns_alike_and_resumes_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setattr("test_train.LoraSettings", lambda **sizes: LoraSettings(rank=64, alpha=64))  # ≥ 4,096 entries
    plain, _ = run(tmp_path / "adamw", settings())
    small = settings(optimiser="adamw_8bit")
    losses, weights = run(tmp_path / "whole", small)
    assert [loss for _, loss in losses] == pytest.approx([loss for _, loss in plain], rel=0.02)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", small, stop=5)
    again, resumed = run(tmp_path / "cut", small)
    assert again == losses
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)
    state = torch.load(tmp_path / "whole" / "step-000006" / "optimiser.pt", weights_only=True)[0]["state"]
    assert any(
        moment.dtype == torch.uint8
        for one in state.values()
        for moment in one["__bnb_optimizer_quant_state__"].values()
    )
