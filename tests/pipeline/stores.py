"""Stores written record by record, for cases that no packing of real media gives: textured pictures of stated sizes,
several frames, short sounds, damage, other sample rates.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import lmdb
import msgpack
import numpy as np
import torch

from configs.load import as_mapping
from configs.schema import FrontendConfig
from pipeline.frontends import log_spectrogram
from pipeline.record import RECORD_VERSION, Frame, Record, Source, encode
from pipeline.store import DATA, INDEX, INDEX_COLUMNS, MANIFEST, STORE_FORMAT, STORE_VERSION, index_row, key_of

SIZES = ((120, 90), (96, 96), (70, 128), (144, 81))


def textured_jpeg(number: int, width: int, height: int) -> bytes:
    """A picture with soft and sharp structure in all three channels, different for every number."""
    random = np.random.default_rng(number)
    picture = random.integers(0, 256, (height, width, 3)).astype(np.float32)
    picture = 128 + 6 * (cv2.GaussianBlur(picture, (0, 0), 4) - 128)
    cv2.rectangle(
        picture, (width // 4, height // 4), (width // 2, height // 2), random.integers(0, 256, 3).tolist(), -1
    )
    picture = picture.clip(0, 255).astype(np.uint8)
    return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()


def grey_jpeg(codes: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", codes, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def textured_record(
    number: int,
    frontends: Sequence[FrontendConfig] = (),
    *,
    split: str = "train",
    frames: int = 1,
    seconds: float = 2.5,
    rate_hz: int = 16000,
    waveform: bool = True,
    annotated_s: float | None = None,
    flow: bool = False,
    pixels: bool = False,
) -> Record:
    """Clip `number`: noise as sound, a frame each second of another texture; its pixels and a flow if asked for."""
    width, height = SIZES[number % len(SIZES)]
    random = np.random.default_rng((7, number))
    samples = np.round(3000 * random.standard_normal(round(seconds * rate_hz))).clip(-32768, 32767).astype(np.int16)
    sound = torch.from_numpy(samples.astype(np.float32) / 32767)
    pictures = []
    for index in range(frames):
        jpeg = textured_jpeg(100 * number + index, width, height)
        codes = cv2.imdecode(np.frombuffer(textured_jpeg(7000 + 100 * number + index, width, height), np.uint8), 0)
        picture = Frame(jpeg=jpeg, time_s=float(index), width=width, height=height)
        if pixels:
            picture.pixels = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)
        if flow:
            picture.flow = (grey_jpeg(codes), grey_jpeg(255 - codes))
        pictures.append(picture)
    return Record(
        clip_id=f"clip_{number:03d}",
        split=split,
        frames=pictures,
        source=Source(file="made", duration_s=seconds),
        annotated_s=annotated_s,
        spectrograms={item.name: log_spectrogram(sound, item).half().numpy() for item in frontends},
        waveform=samples if waveform else None,
        sample_rate_hz=rate_hz if waveform else None,
    )


def write_store(
    folder: Path, records: Sequence[Record], frontends: Sequence[FrontendConfig] = (), shards: int = 2, **said: Any
) -> Path:
    """A finished store of these records, dealt to its shards in turn. said: more of the manifest."""
    table = []
    for number in range(shards):
        mine = records[number::shards]
        shard = folder / f"shard-{number:05d}"
        shard.mkdir(parents=True)
        with lmdb.open(str(shard), map_size=1 << 28) as environment, environment.begin(write=True) as transaction:
            for place, record in enumerate(mine):
                transaction.put(key_of(place), encode(record))
        rows = [index_row(record) for record in mine]
        columns = {name: [row[name] for row in rows] for name in INDEX_COLUMNS}
        (shard / INDEX).write_bytes(msgpack.Packer().pack(columns))
        table.append({"name": shard.name, "bytes": (shard / DATA).stat().st_size, "clips": len(mine)})
    manifest = {
        "format": STORE_FORMAT,
        "version": STORE_VERSION,
        "record_version": RECORD_VERSION,
        "shards": table,
        "splits": {split: {} for split in {record.split for record in records}},
        "frontends": {item.name: as_mapping(item) for item in frontends},
        **said,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder
