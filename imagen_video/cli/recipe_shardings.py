"""How the recipes of a slice spread the stages of a cascade that is sampled there."""

from imagen_video.cascade.stage import STAGE_NAMES
from imagen_video.config import in_recipe, load_config, to_record
from imagen_video.sharding.layout import ShardingConfig


def recipe_shardings(slice_name: str | None) -> dict[str, ShardingConfig] | None:
    """Returns the layout of each stage where it is sampled on the slice.

    Args:
      slice_name: such as "v5e:4x4"; None for no slice, and no recipes.
    """
    if slice_name is None:
        return None
    shardings = {}
    for name in STAGE_NAMES:
        config = load_config(f"configs/stages/{name}.py")
        config = in_recipe(config, program="sample", slice_name=slice_name)
        shardings[name] = to_record(ShardingConfig, config.sharding, where="sharding")
    return shardings
