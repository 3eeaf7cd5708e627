"""The published forms of the losses give what ours give, and the benchmark counts what it says."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from benchmarks.__main__ import main
from benchmarks.published_losses import PUBLISHED
from benchmarks.step_rate import encoder_calls, kept_for_backward
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
def test_it_measures_a_method(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "200")
    asked = ["step_rate", "--methods", "ez_vsl", "--size", "64", "--batch", "2", "--rounds", "3", "--device", "cpu"]
    assert main(asked) == 0
    said = capsys.readouterr().out
    assert all(f"ez_vsl: {part}" in said for part in ("step", "network", "encoders", "published"))
    assert "100.0% of the step, keeps" in said


def test_wrong_options_are_named():
    with pytest.raises(UserError, match=r"no method 'sira'.*Did you mean 'sira_ssl'"):
        main(["step_rate", "--methods", "sira"])
    with pytest.raises(UserError, match="must be above 0"):
        main(["step_rate", "--batch", "-1", "--device", "cpu"])


def test_kept_bytes_are_counted_once_and_without_weights():
    layer = nn.Linear(8, 8, bias=False)
    x = torch.ones(4, 8)
    with kept_for_backward(layer) as kept:
        (layer(x) * layer(x)).sum().backward()
    assert sum(kept.values()) == 3 * 4 * 8 * 4  # the input, once, and both products


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
