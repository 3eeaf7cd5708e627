"""The test sets of the field: every file is whole, its list is as long as it says, and options can be changed."""

import pytest

from configs.errors import UserError
from configs.id_lists import LISTS_FOLDER, load_list
from configs.load import as_mapping, check
from configs.schema import EvaluateConfig
from configs.test_sets import set_names
from model.external_maps import read_truth
from model.scoring import build_scorer


@pytest.mark.parametrize("name", set_names())
def test_every_set_is_whole(name: str):
    config = EvaluateConfig.model_validate({"sets": {name: {}}})
    options = config.sets[name]
    assert options.about and options.expected and options.family
    assert all(split.endswith(("_test", "_silent")) for split in options.splits)
    if options.ids:
        assert len(load_list(options.ids)) == options.expected
    elif options.splits in (("vggss_test",), ("flickr_test",)):
        assert options.bring  # several lists pack into these splits: what is there may be more than the set
    if options.annotations and options.negatives:
        boxes = read_truth(LISTS_FOLDER / f"{options.annotations}.json.gz")
        assert len(boxes) + len(load_list(options.negatives)) == options.expected
    build_scorer(config.for_set(options))  # its metrics go with the usual ones
    assert EvaluateConfig.model_validate(as_mapping(config)) == config


def test_a_set_is_a_file_a_split_or_what_is_said():
    sets = {"vggss": {"expected": 7}, "dev": {}, "mine": {"splits": ["a", "b"]}, "gone": None}
    found = EvaluateConfig.model_validate({"sets": sets}).sets
    assert list(found) == ["vggss", "dev", "mine"]
    assert found["vggss"].expected == 7 and found["vggss"].ids == "vggss_test"
    assert found["dev"].splits == ("dev",) and found["dev"].ids is None
    assert found["mine"].splits == ("a", "b")
    with pytest.raises(UserError, match=r"sets\.vggss.*unknown key 'idz'.*Did you mean 'ids'"):
        check(EvaluateConfig, {"sets": {"vggss": {"idz": "x"}}}, "here")
