from pathlib import Path

import pytest

from tests.pipeline.stores import textured_record, write_store
from tests.pipeline.streams import CLIPS, EZ, MEL


@pytest.fixture(scope="session")
def textured_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 clips of split train, 13 of split test without truth; textured pictures, both front-ends and the waveform."""
    records = [textured_record(number, [EZ, MEL]) for number in range(CLIPS)]
    records += [textured_record(number, [EZ, MEL], split="test") for number in range(100, 113)]
    return write_store(tmp_path_factory.mktemp("textured") / "store", records, [EZ, MEL])
