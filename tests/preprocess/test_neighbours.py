import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torchaudio
import torchvision

from configs.errors import UserError
from pipeline.store import Store, id_hash
from preprocess.__main__ import main
from preprocess.embed import embeddings
from preprocess.files import NEIGHBOURS
from preprocess.neighbours import nearest, neighbours
from tests.pipeline.stores import textured_record, write_store

CPU = torch.device("cpu")


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)


@pytest.mark.parametrize(("count", "k"), [(700, 10), (9300, 33), (12, 20)])
def test_nearest_equals_a_search_of_all_pairs_in_float64(count: int, k: int):
    draw = np.random.default_rng(count)
    vectors = draw.standard_normal((count, 12)).astype(np.float32) * draw.uniform(0.1, 10, (count, 1)).astype(
        np.float32
    )
    groups = draw.integers(-1, count // 3, count)
    found = nearest(torch.from_numpy(vectors), torch.from_numpy(groups), k)
    assert found.shape == (count, k) and found.dtype == np.int32
    rows = draw.permutation(count)[:400]
    cosine = unit(vectors[rows].astype(np.float64)) @ unit(vectors.astype(np.float64)).T
    excluded = (groups[rows, None] == groups[None]) & (groups[rows, None] >= 0)
    excluded |= rows[:, None] == np.arange(count)[None]
    cosine[excluded] = -np.inf
    wanted = -np.sort(-cosine, axis=1)[:, :k]
    for row, (mine, best) in enumerate(zip(found[rows], wanted)):
        there = mine[mine >= 0]
        assert len(there) == len(set(there)) == np.isfinite(best).sum()
        assert (mine[len(there) :] == -1).all()
        # The same cosines, in the same order; which of two equal ones stands first is rounding.
        np.testing.assert_allclose(cosine[row, there], best[: len(there)], atol=1e-6)


def test_equal_vectors_come_in_the_order_of_their_numbers():
    vectors = torch.tensor([[1.0, 0], [2, 0], [0, 1], [3, 0], [0, 0]])
    found = nearest(vectors, torch.full((5,), -1), 4)
    assert found[:2].tolist() == [[1, 3, 2, 4], [0, 3, 2, 4]]
    assert nearest(vectors, torch.tensor([0, 0, -1, 0, 0]), 4)[0].tolist() == [2, -1, -1, -1]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten clips of split train, of which 0 and 1 share a group, and four of split test."""
    records = [textured_record(number, split="train" if number < 10 else "test", seconds=0.6) for number in range(14)]
    records[0].group = records[1].group = "same"
    return write_store(tmp_path_factory.mktemp("near") / "store", records)


def saved(path: Path, vectors: np.ndarray) -> str:
    np.save(path, vectors)
    return str(path)


def test_tables_stay_within_split_and_out_of_the_group(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    vectors = np.random.default_rng(0).standard_normal((14, 5))
    image, audio = saved(tmp_path / "image.npy", vectors), saved(tmp_path / "audio.npy", -vectors[::-1].copy())
    assert main(["neighbours", str(store), "--image", image, "--audio", audio, "--k", "6"]) == 0
    assert "4 clips have fewer, 3 at least" in capsys.readouterr().out
    with Store(store) as opened:
        index = opened.index
        # Rows of embeddings follow the sorted ids, rows of tables the clips of the store.
        order = np.argsort(index["clip_id"])
        said = json.loads((store / NEIGHBOURS / "neighbours.json").read_text())
        assert (said["id_hash"], said["k"]) == (id_hash(index["clip_id"]), 6)
        assert said["encoders"]["image"]["dimensions"] == 5
        for kind, given in (("image", vectors), ("audio", -vectors[::-1])):
            table = np.load(store / NEIGHBOURS / f"{kind}.npy", mmap_mode="r")
            assert table.dtype == np.int32 and table.shape == (14, 6)
            own = np.empty_like(given)
            own[order] = given
            cosine = unit(own) @ unit(own).T
            for number, row in enumerate(table):
                others = [
                    other
                    for other in np.argsort(-cosine[number])
                    if other != number
                    and index["split"][other] == index["split"][number]
                    and (index["group"][number] is None or index["group"][other] != index["group"][number])
                ]
                assert row.tolist() == (others + [-1] * 6)[:6]


def test_wrong_embeddings_are_refused(store: Path, tmp_path: Path):
    with Store(store) as opened:
        for vectors, message in (
            (np.zeros((13, 4)), r"a row of floats for each of the 14 clips .* it holds float64 \(13, 4\)"),
            (np.zeros((14, 4), np.int64), "a row of floats"),
        ):
            file = saved(tmp_path / "bad.npy", vectors)
            with pytest.raises(UserError, match=message):
                embeddings(opened, "image", file, None, 16000, CPU, lambda done: None)
        endless = np.ones((14, 4), np.float32)
        endless[3, 1] = np.inf
        with pytest.raises(UserError, match=f"clip {opened.index['clip_id'][3]} is not finite"):
            neighbours(endless, opened, 3, CPU)
        with pytest.raises(UserError, match="cannot read embeddings"):
            embeddings(opened, "image", str(tmp_path / "none.npy"), None, 16000, CPU, lambda done: None)


def test_a_classifier_of_torchvision(store: Path, tmp_path: Path):
    """Its features are those of the model without the last layer, whatever classes the weights are for."""
    torch.manual_seed(0)
    model = torchvision.models.get_model("mobilenet_v3_small", weights=None, num_classes=7).eval()
    weights = tmp_path / "mobile.pt"
    torch.save(model.state_dict(), weights)
    done = []
    with Store(store) as opened:
        found, said = embeddings(opened, "image", "mobilenet_v3_small", weights, 16000, CPU, done.append)
        assert found.shape == (14, 1024) and sum(done) == 14 and said["file"] == "mobile.pt"
        assert len(np.unique((found / np.abs(found).max()).round(4), axis=0)) == 14
        for encoder, file, message in (
            ("mobilenet_v3_small", None, "nothing is downloaded. Name their file with --image-weights"),
            ("mobilenet_v9", weights, "torchvision has no classifier 'mobilenet_v9'"),
            ("resnet18", weights, "does not fit resnet18"),
            ("resnet18", tmp_path / "none.pt", "no file"),
            (str(weights), None, "is no TorchScript file"),
        ):
            with pytest.raises(UserError, match=message):
                embeddings(opened, "image", encoder, file, 16000, CPU, done.append)


class Energy(torch.nn.Module):
    def forward(self, sound: torch.Tensor) -> torch.Tensor:
        return sound.unflatten(1, (10, -1)).square().mean(2)


class Sevenths(torch.nn.Module):
    def forward(self, sound: torch.Tensor) -> torch.Tensor:
        return sound.unflatten(1, (7, -1)).square().mean(2)


class Whole(torch.nn.Module):
    def forward(self, sound: torch.Tensor) -> torch.Tensor:
        return sound[:, None]


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_torchscript_hears_the_middle_ten_seconds(store: Path, tmp_path: Path):
    for name, module in (("energy", Energy()), ("sevenths", Sevenths()), ("whole", Whole())):
        torch.jit.script(module).save(str(tmp_path / f"{name}.pt"))
    with Store(store) as opened:
        found, said = embeddings(opened, "audio", str(tmp_path / "energy.pt"), None, 8000, CPU, lambda done: None)
        assert found.shape == (14, 10) and said["encoder"] == "torchscript"
        samples = opened.view(3).blob("waveform").astype(np.float64) / 32767
        # A clip of 0.6 s is repeated, so that every second holds about its own energy, less what is above 4 kHz.
        assert found[3] == pytest.approx(np.full(10, (samples**2).mean() / 2), rel=0.2)
        with pytest.raises(UserError, match=r"must give a vector a clip, \(B, d\); it gives \(14, 1, 80000\)"):
            embeddings(opened, "audio", str(tmp_path / "whole.pt"), None, 8000, CPU, lambda done: None)
        with pytest.raises(UserError, match=r"audio encoder .* fails on \(14, 80000\)"):
            embeddings(opened, "audio", str(tmp_path / "sevenths.pt"), None, 8000, CPU, lambda done: None)


def test_a_pipeline_of_torchaudio_needs_its_weights(store: Path, tmp_path: Path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "w.pt")
    with Store(store) as opened:
        for name, weights, message in (
            ("WAV2VEC2_BASE", None, "--audio-weights"),
            ("WAV2VEC2_BASE", tmp_path / "none.pt", "no file"),
            ("WAV2VEC2_BASE", tmp_path / "w.pt", "does not fit WAV2VEC2_BASE"),
            ("WAV2VEC3", tmp_path / "w.pt", "no such pipeline 'WAV2VEC3'; there are: .*HUBERT_BASE"),
        ):
            with pytest.raises(UserError, match=message):
                embeddings(opened, "audio", name, weights, 16000, CPU, lambda done: None)


@pytest.mark.slow
def test_a_pipeline_of_torchaudio(tmp_path: Path):
    """WAV2VEC2_BASE with random weights, 380 MB of them."""
    store = write_store(tmp_path / "store", [textured_record(number, seconds=0.3) for number in range(2)])
    torch.manual_seed(0)
    weights = tmp_path / "w.pt"
    torch.save(torchaudio.models.wav2vec2_base().state_dict(), weights)
    with Store(store) as opened:
        found, _ = embeddings(opened, "audio", "WAV2VEC2_BASE", weights, 8000, CPU, lambda done: None)
    assert found.shape == (2, 768) and np.isfinite(found).all() and np.abs(found[0] - found[1]).max() > 1e-4
