"""Which layout a folder is of."""

from pathlib import Path

from configs.errors import UserError
from configs.resolve import names, resolve
from preprocess.layout import Look

LAYOUTS = "preprocess.layouts"
_SHOWN = 8


def recognise(source: Path) -> tuple[str, str]:
    """Name of the layout of a folder or file, and why, in words.

    Raises: UserError if there is nothing, no layout is recognised, or several are; the message names them.
    """
    if not source.exists():
        raise UserError(f"no input at {source}")
    look = Look(source)
    found = _candidates(look)
    if len(found) == 1:
        return next(iter(found.items()))
    if found:
        raise UserError(
            "\n  ".join(
                [
                    f"{source} may be of {len(found)} layouts; name one of them in place of 'auto':",
                    *(f"{name}: {why}" for name, why in found.items()),
                ]
            )
        )
    below = [
        f"{source / folder} is of {' or '.join(inner)}"
        for folder in sorted(look.folders)[:_SHOWN]
        if (inner := _candidates(Look(source / folder)))
    ]
    there = ", ".join([*(f"{name}/" for name in sorted(look.folders)[:_SHOWN]), *sorted(look.files)[:_SHOWN]])
    raise UserError(
        "\n  ".join(
            [
                f"{source} is of no layout that is recognised; it holds {there or 'nothing'}",
                *below,
                "See `python -m preprocess pack --help` for the layouts, or list the clips in a manifest.jsonl",
            ]
        )
    )


def _candidates(look: Look) -> dict[str, str]:
    return {name: why for name in names(LAYOUTS) if (why := resolve(LAYOUTS, name).recognise(look))}
