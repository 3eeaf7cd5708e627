"""Which clips of a store a test set is made of."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from configs.errors import UserError
from configs.id_lists import load_list
from configs.ids import normalise_id
from configs.schema import EvaluateConfig, EvaluateSet
from configs.test_sets import set_names
from pipeline.store import Store


def clips_outside(options: EvaluateSet, clip_ids: Iterable[str], name: str) -> set[str]:
    """The clips of a set's splits that its list does not name. Raises: UserError if the list is missing."""
    if options.ids is None:
        if options.bring:
            raise UserError(
                f"set '{name}' is a list of clips that we may not bundle: give your copy of {options.bring}, with "
                f"evaluate.sets.{name}.ids=FILE"
            )
        return set()
    wanted = set(load_list(options.ids))
    return {clip_id for clip_id in clip_ids if normalise_id(clip_id) not in wanted}


def clips_of(store: Store, options: EvaluateSet, name: str) -> list[int]:
    """The numbers of a set's clips. Raises: UserError if the store lacks a split of it, or all of its clips."""
    numbers = [int(number) for split in options.splits for number in store.select(split)]
    outside = clips_outside(options, (store.index["clip_id"][number] for number in numbers), name)
    found = [number for number in numbers if store.index["clip_id"][number] not in outside]
    if not found:
        raise UserError(
            f"set '{name}': no clip of split {' or '.join(options.splits)} of {store.path} is in the list {options.ids}"
        )
    return found


def with_expected(store: Store, options: EvaluateSet) -> EvaluateSet:
    """The set with the number of clips that the full set has, as its splits were packed, unless it says so itself."""
    told = [store.manifest["splits"][split].get("expected") for split in options.splits]
    if options.expected or options.ids or not all(told):
        return options
    return options.model_copy(update={"expected": sum(told)})


def check_sets(store_path: Path | None, sets: Mapping[str, EvaluateSet]) -> None:
    """Raises: UserError if a set cannot be scored: its store, split, list, clips or truth is missing."""
    if store_path is None:
        raise UserError("no store is named (data.store), so that there is nothing to score")
    with Store(store_path) as store:
        for name, options in sets.items():
            found = clips_of(store, options, name)
            lacking = [store.index["clip_id"][number] for number in found if store.index["truth"][number] is None]
            if lacking:
                shown = ", ".join(lacking[:5]) + (", ..." if len(lacking) > 5 else "")
                raise UserError(
                    f"set '{name}': {len(lacking)} of {len(found)} clip(s) have neither boxes nor a mask and cannot be "
                    f"scored: {shown}. Pack the split with its annotations (a manifest's `negative` where nothing in "
                    "the picture makes the sound), or leave the set out of evaluate.sets"
                )


def every_set(store_path: Path, train_split: str) -> list[str]:
    """The sets that a store can give: the known ones of which it has half of the clips, then further splits whose clips
    all have truth. Raises: UserError if there is none.
    """
    known = EvaluateConfig.model_validate({"sets": {name: {} for name in set_names()}}).sets
    with Store(store_path) as store:
        found = [name for name, options in known.items() if _has_half(store, options, name)]
        covered = {train_split, *(split for name in found for split in known[name].splits)}
        truth = store.index["truth"]
        found += [
            split
            for split in store.splits
            if split not in covered and all(truth[number] for number in store.select(split))
        ]
    if not found:
        raise UserError(f"store {store_path} has no split with truth beside '{train_split}'")
    return found


def _has_half(store: Store, options: EvaluateSet, name: str) -> bool:
    if not set(options.splits) <= set(store.splits) or (options.bring and options.ids is None):
        return False
    numbers = [int(number) for split in options.splits for number in store.select(split)]
    outside = clips_outside(options, (store.index["clip_id"][number] for number in numbers), name)
    return 2 * (len(numbers) - len(outside)) >= (options.expected or 2)
