"""Slices and what suits them: fields of a stage's full-size config, by stage, program and slice.

    imagen-video train --config configs/stages/base.py --slice v5p:4x4x4 ...

A recipe is fields by dotted path; flags of the command line win over it. A slice that no recipe
names is run with the config as it is: rows and parameters cut over all chips. There are none yet:
they are to be found with the TPU compiler, not guessed.
"""

RECIPES: dict[str, dict[str, dict[str, dict[str, object]]]] = {}


def get_recipe(stage: str, program: str, slice_name: str) -> dict[str, object]:
    """Returns the recipe of a stage's "train" or "sample" program on a slice; empty for none."""
    return dict(RECIPES.get(stage, {}).get(program, {}).get(slice_name, {}))
