"""The published forms of the losses give what ours give, and the benchmark counts what it says."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from benchmarks.__main__ import main
from benchmarks.harness import measure
from benchmarks.published_losses import PUBLISHED
from benchmarks.step_rate import Work, _roofline, encoder_calls
from configs.errors import UserError
from configs.resolve import resolve

SHAPES = {
    "scale": (1,),
    "pair_weights": (2, 3),
    "image_slots": (6, 2, 8),
    "audio_slots": (6, 2, 8),
    "image_views": (2, 6, 8, 3, 2),
    "audio_views": (3, 6, 8),
    "image_embeddings": (2, 6, 8),
    "audio_embeddings": (3, 6, 8),
}
OPTIONS: dict[str, dict[str, Any]] = {"mutual_neighbour_contrast": {"neighbours": 3, "tau": 0.5}}


def outputs(needs: tuple[str, ...], seed: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    made = {}
    for need in needs:
        maps = "audio" not in need
        shape = SHAPES.get(need, (6, 8, 3, 2) if maps else (6, 8))
        value = torch.randn(shape, generator=draw)
        unit = {"scale": 0, "pair_weights": 0, "second_look": 0}.get(need, 2 if need in SHAPES else 1)
        made[need] = (normalize(value, dim=unit) if unit else value.abs()).requires_grad_()
    return made


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_form_is_the_same_loss(name: str, seed: int):
    kind = resolve("model.losses", name)
    loss = kind(kind.Config(name=name, **OPTIONS.get(name, {})))
    given = outputs(kind.needs, seed)
    ours, theirs = loss(**given), PUBLISHED[name](loss.config, **given)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    values = list(given.values())
    gradients = zip(
        torch.autograd.grad(ours, values, allow_unused=True), torch.autograd.grad(theirs, values, allow_unused=True)
    )
    for one, other in gradients:
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_it_measures_a_method_on_noise_and_on_real_clips(packed_store: Path, capsys: pytest.CaptureFixture[str]):
    asked = ["step_rate", "--methods", "ez_vsl", "--size", "64", "--batch", "2", "--rounds", "3", "--device", "cpu"]
    assert main([*asked, "--store", str(packed_store)]) == 0
    said = capsys.readouterr().out
    assert all(part in said for part in ("roofline", "network", "encoders", "published", "real"))
    assert "100.0% of the step, keeps" in said and " GFLOP and " in said


def test_work_counts_products_and_convolutions_with_their_backward_passes():
    left, right = torch.randn(3, 4, requires_grad=True), torch.randn(4, 5, requires_grad=True)
    with Work() as work:
        (left @ right).relu().sum().backward()
    sizes = 4 * (12 + 20 + 15)
    assert work.calls == [(2 * 60, sizes)] * 3, "one product forward, two backward, and nothing between them"
    with Work() as work, torch.no_grad():
        torch.nn.functional.conv2d(torch.randn(2, 3, 8, 8), torch.randn(6, 3, 3, 3))
    assert work.calls == [(2 * 2 * 6 * 36 * 27, 4 * (2 * 3 * 64 + 6 * 27 + 2 * 6 * 36))]


def test_the_roofline_is_the_longer_of_arithmetic_and_traffic():
    figures = measure("x", {"step": lambda: 10, "products": lambda: 1, "copy": lambda: 1}, 3, by="wall")
    step, product, copy = figures
    work = Work()
    work.calls = [(10**12, 0), (0, 3 * 10**9)]
    limits = (replace(product, value=2.0, cpu_ms=500.0), replace(copy, value=6.0, cpu_ms=250.0))
    best = _roofline(step, work, 10, limits)
    assert best.value == pytest.approx(10 / (0.5 + 0.5)) and best.cpu_ms == pytest.approx((500 + 750) / 10)


def test_wrong_options_are_named():
    with pytest.raises(UserError, match=r"no method 'sira'.*Did you mean 'sira_ssl'"):
        main(["step_rate", "--methods", "sira"])
    with pytest.raises(UserError, match="must be above 0"):
        main(["step_rate", "--batch", "-1", "--device", "cpu"])


def test_encoders_are_called_as_the_method_calls_them():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.image_encoder = nn.Linear(2, 2)

        def forward(self, batch: Any) -> Tensor:
            with torch.no_grad():
                seen = self.image_encoder(batch)
            return self.image_encoder(seen)

    model = Twice()
    calls = encoder_calls(model, torch.ones(1, 2))  # type: ignore[arg-type]
    assert [graded for *_, graded in calls] == [False, True] and all(each is model.image_encoder for each, *_ in calls)
