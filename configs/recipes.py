"""Slices and what suits them: fields of a stage's full-size config, by stage, program and slice.

    imagen-video train --config configs/stages/ssr3.py --slice v5e:16x16 ...

A recipe is fields by dotted path; flags of the command line win over it. A slice that no recipe
names is run with the config as it is: rows and parameters cut over all chips. The README's table
says which have been compiled for their slices (`bash launch/compile_all.sh DIR` compiles all); none
has run on one.
"""

from collections.abc import Mapping

# A clip's frames over all chips, parameters whole on each.
FRAMES = {"sharding.mesh.fsdp": 1, "sharding.mesh.context": -1}

# Rows and parameters over all chips, a quarter of the batch at a time.
QUARTERS = {"train.microbatches": 4}

# Rows over all chips, parameters over a quarter of them: cut over all 64 of v5p:4x4x4, XLA makes of
# each gather and scatter of a parameter an all-reduce, mostly of zeros and twice as large.
BLOCKS = {"sharding.mesh.data": 4}


def distill(
    slice_name: str, mesh: Mapping[str, object] | None = None, *, guide: int = 4, halve: int = 4
) -> dict[str, dict[str, dict[str, object]]]:
    """Returns recipes of both stages of distillation: `mesh`, and batches in so many parts."""
    return {
        "guide": {slice_name: {"guided.microbatches": guide, **(mesh or {})}},
        "halve": {slice_name: {"halving.microbatches": halve, **(mesh or {})}},
    }


RECIPES: dict[str, dict[str, dict[str, dict[str, object]]]] = {
    "base": {
        # Eight rows of 16 frames of 24x40 on a chip at a time.
        "train": {"v5p:4x4x4": QUARTERS | BLOCKS},
        "sample": {"v5e:2x2": FRAMES},
        # The guided teacher needs memory for both its branches.
        **distill("v5p:4x4x4", BLOCKS, guide=8),
    },
    "tsr1": {
        "train": {"v5p:4x4x4": QUARTERS},
        "sample": {"v5e:2x2": FRAMES},
        **distill("v5p:4x4x4"),
    },
    "ssr1": {
        "train": {"v5p:4x4x4": QUARTERS},
        "sample": {"v5e:2x4": FRAMES},
        **distill("v5p:4x4x4"),
    },
    "ssr2": {
        "train": {"v5p:4x4x4": QUARTERS},
        # On 16 chips, 2 frames each, XLA pads and reorders small batches.
        "sample": {"v5e:2x4": FRAMES},
        **distill("v5p:4x4x4"),
    },
    "tsr2": {
        "train": {"v5p:4x4x4": QUARTERS},
        "sample": {"v5e:4x4": FRAMES},
        **distill("v5p:4x4x4"),
    },
    "tsr3": {
        "train": {"v5p:4x4x4": QUARTERS},
        "sample": {"v5e:4x4": FRAMES},
        **distill("v5p:4x4x4"),
    },
    "ssr3": {
        # Two rows of 16 frames of 256x256 on a chip at a time.
        "train": {"v5e:16x16": QUARTERS},
        "sample": {"v5e:4x4": FRAMES},
        **distill("v5e:16x16", guide=8, halve=8),
    },
}


def get_recipe(stage: str, program: str, slice_name: str) -> dict[str, object]:
    """Returns the recipe of a stage's "train" or "sample" program on a slice; empty for none."""
    return dict(RECIPES.get(stage, {}).get(program, {}).get(slice_name, {}))


def all_recipes() -> list[tuple[str, str, str]]:
    """Returns stage, program and slice of every recipe."""
    return [
        (stage, program, where)
        for stage, programs in RECIPES.items()
        for program, slices in programs.items()
        for where in slices
    ]
