"""Which stages an option is meant for, as a user writes it: all, sr, none, or names."""

from imagen_video.cascade.stage import STAGE_NAMES

# Where the paper alternates high and low guidance weights (arXiv 2210.02303, section 2.6.2).
OSCILLATING_STAGES = ("base", "tsr1", "ssr1")
_GROUPS = {"all": STAGE_NAMES, "sr": STAGE_NAMES[1:], "none": ()}


def chosen_stages(choice: str, *, field: str) -> frozenset[str]:
    """Returns the names that a choice stands for.

    Args:
      choice: "all", "sr" (the six super-resolution stages, temporal and spatial), "none", or names
        with commas between.
      field: the option, for the message.

    Raises:
      ValueError: one of the names is no stage, or a group among several.
    """
    if choice in _GROUPS:
        return frozenset(_GROUPS[choice])
    names = choice.split(",")
    known = STAGE_NAMES if len(names) > 1 else (*_GROUPS, *STAGE_NAMES)
    for name in names:
        if name not in known:
            raise ValueError(f"{field}: {name!r} is none of {', '.join(known)}")
    return frozenset(names)


def oscillating_stages(guidance: str) -> frozenset[str]:
    """Returns the stages whose guidance oscillates.

    None for "constant"; base, tsr1 and ssr1 for "oscillating"; those named for "oscillating:base"
    or "oscillating:base,ssr1".

    Raises:
      ValueError: `guidance` is none of these, or names a stage that never oscillates.
    """
    kind, colon, names = guidance.partition(":")
    if guidance == "constant":
        return frozenset()
    if kind != "oscillating" or (colon and not names):
        raise ValueError(
            f"guidance: {guidance!r} is not 'constant', 'oscillating' or 'oscillating:STAGES'"
        )
    if not colon:
        return frozenset(OSCILLATING_STAGES)
    chosen = chosen_stages(names, field="guidance")
    for name in sorted(chosen.difference(OSCILLATING_STAGES)):
        raise ValueError(
            f"guidance: {name} does not oscillate, only {', '.join(OSCILLATING_STAGES)} do"
        )
    return chosen
