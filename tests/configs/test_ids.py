"""Forms of ids, and what clips were cut from."""

import pytest

from configs.ids import normalise_id, source_of


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("zpWuikVorYg_000032", "zpWuikVorYg_000032"),
        ("zpWuikVorYg_000032.mp4", "zpWuikVorYg_000032"),
        ("zpWuikVorYg_32000_42000", "zpWuikVorYg_000032"),
        ("zpWuikVorYg_32000_42000.wav", "zpWuikVorYg_000032"),
        ("-Qowmc0P9ic_000034.png", "-Qowmc0P9ic_000034"),
        ("_3_4_5_6_7__0_10000", "_3_4_5_6_7__000000"),
        ("6zlMP_kQ_-w_30000_40000", "6zlMP_kQ_-w_000030"),
        ("123456_0001_000007", "123456_0001_000007"),
        ("10000130166", "10000130166"),
        ("10000130166.png", "10000130166"),
        ("10000130166.mp4.mp3", "10000130166"),
        # Not the forms of VGGSound or Flickr: as they are.
        ("zpWuikVorYg_0_1", "zpWuikVorYg_0_1"),
        ("zpWuikVorYg_32500_42500", "zpWuikVorYg_32500_42500"),
        ("xv7eM6-UmkY_36", "xv7eM6-UmkY_36"),
        ("000000489267_157452", "000000489267_157452"),
        ("accordion_female_10438_accordion.jpg", "accordion_female_10438_accordion.jpg"),
        ("my clip.mp4", "my clip.mp4"),
        ("", ""),
    ],
)
def test_every_form_has_one_name(text: str, canonical: str):
    assert normalise_id(text) == canonical
    assert normalise_id(canonical) == canonical


@pytest.mark.parametrize(
    ("clip_id", "source"),
    [
        ("_3_4_5_6_7__000010", "_3_4_5_6_7_"),
        ("6zlMP_kQ_-w_30000_40000.mp4", "6zlMP_kQ_-w"),
        ("xv7eM6-UmkY_36", "xv7eM6-UmkY"),
        ("10000130166.jpg", "10000130166"),
        ("my clip", "my clip"),
    ],
)
def test_the_source_is_cut_off_by_position(clip_id: str, source: str):
    assert source_of(clip_id) == source
