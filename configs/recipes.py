"""Slices and what suits them: fields of a stage's full-size config, by stage, program and slice.

    imagen-video train --config configs/stages/ssr3.py --slice v5e:16x16 ...

A recipe is fields by dotted path; flags of the command line win over it. On a slice that no recipe
names, sampling cuts a clip's frames over all chips, and other programs run with the config as it
is: rows and parameters cut over all chips. Those without a star in README's table have been
compiled for their slices as they are here, the others as it says there (`bash launch/compile_all.sh
DIR` compiles them anew); none has run on one.
"""

# A clip's frames over all chips, parameters whole on each.
FRAMES = {"sharding.mesh.fsdp": 1, "sharding.mesh.context": -1}

# Rows over all chips, parameters over 16 of them: cut over all 64 of v5p:4x4x4 or 256 of v5e:16x16,
# XLA makes of each gather and scatter of a parameter an all-reduce, mostly of zeros and twice as
# large.
SIXTEENTHS = {"sharding.mesh.data": -1, "sharding.mesh.fsdp": 16}

# Kernels that are compiled sooner, for programs that otherwise take more than ten minutes: not more
# than 97% of what a convolution could reach is looked for, in less of a chip's vector memory (KiB).
SOONER = (
    "xla_jf_convolution_performance_target=0.97",
    "xla_tpu_scoped_vmem_limit_kib=12288",
)
# On v5e a product with a gather of parameters in it is a large kernel: they are gathered before it.
# The base's step takes longer for it, but with them it would take too long to compile: README.
GATHERED_BEFORE = ("xla_tpu_enable_async_collective_fusion_fuse_all_gather=false",)


def train(
    *slice_names: str, parts: int = 4, compiler_options: tuple[str, ...] = ()
) -> dict[str, dict[str, object]]:
    """Returns the recipes of a training step, its batch in so many parts.

    Few where memory allows, for each gathers the parameters anew: tsr2 on v5p:4x4x4 took 0.811 s
    in four, 0.728 s in one (compiler's estimates, of earlier code).
    """
    fields = {"train.microbatches": parts, "train.compiler_options": compiler_options}
    return dict.fromkeys(slice_names, SIXTEENTHS | fields)


def sample(*slice_names: str) -> dict[str, dict[str, object]]:
    """Returns the recipes of a sampler step.

    Eight frames a chip make the most of it (the base, of 16 on four chips, has four): XLA's
    convolutions lay what they take for the batch along the eight rows of a tile, frames
    where a chip has no multiple of eight clips, and copy each activation where there are fewer.
    """
    return dict.fromkeys(slice_names, FRAMES)


def distill(
    slice_name: str, *, guide: int = 4, halve: int = 4
) -> dict[str, dict[str, dict[str, object]]]:
    """Returns recipes of both stages of distillation, their batches in so many parts."""
    return {
        "guide": {slice_name: SIXTEENTHS | {"guided.microbatches": guide}},
        "halve": {slice_name: SIXTEENTHS | {"halving.microbatches": halve}},
    }


RECIPES: dict[str, dict[str, dict[str, dict[str, object]]]] = {
    "base": {
        # Eight rows of 16 frames of 24x40 on a chip of v5p at a time, one on one of v5e.
        "train": train("v5p:4x4x4")
        | train("v5e:16x16", parts=8, compiler_options=SOONER + GATHERED_BEFORE),
        "sample": sample("v5e:2x2", "v5p:2x2x1"),
        # The guided teacher needs memory for both its branches.
        **distill("v5p:4x4x4", guide=8),
    },
    "tsr1": {
        "train": train("v5p:4x4x4", "v5e:16x16", parts=2),
        "sample": sample("v5e:2x2", "v5p:2x2x1"),
        **distill("v5p:4x4x4", guide=2, halve=2),
    },
    "ssr1": {
        "train": train("v5p:4x4x4", parts=2, compiler_options=SOONER) | train("v5e:16x16"),
        "sample": sample("v5e:2x2", "v5p:2x2x1"),
        **distill("v5p:4x4x4"),
    },
    "ssr2": {
        "train": train("v5p:4x4x4", parts=1, compiler_options=SOONER) | train("v5e:16x16", parts=2),
        "sample": sample("v5e:2x2", "v5p:2x2x1"),
        **distill("v5p:4x4x4", guide=2, halve=2),
    },
    "tsr2": {
        "train": train("v5p:4x4x4", parts=1, compiler_options=SOONER) | train("v5e:16x16", parts=1),
        "sample": sample("v5e:2x4", "v5p:2x2x2"),
        **distill("v5p:4x4x4", guide=1, halve=1),
    },
    "tsr3": {
        "train": train("v5p:4x4x4", parts=1, compiler_options=SOONER) | train("v5e:16x16", parts=1),
        "sample": sample("v5e:4x4", "v5p:2x2x4"),
        **distill("v5p:4x4x4", guide=1, halve=1),
    },
    "ssr3": {
        # Two rows of 16 frames of 256x256 on a chip of v5e at a time, sixteen on one of v5p.
        "train": train("v5e:16x16") | train("v5p:4x4x4", parts=2),
        "sample": sample("v5e:4x4", "v5p:2x2x4"),
        **distill("v5e:16x16"),
    },
}


def get_recipe(stage: str, program: str, slice_name: str) -> dict[str, object]:
    """Returns the recipe of a stage's program on a slice; empty where there is nothing to say."""
    otherwise = FRAMES if program == "sample" else {}
    return dict(RECIPES.get(stage, {}).get(program, {}).get(slice_name, otherwise))


def all_recipes() -> list[tuple[str, str, str]]:
    """Returns stage, program and slice of every recipe."""
    return [
        (stage, program, where)
        for stage, programs in RECIPES.items()
        for program, slices in programs.items()
        for where in slices
    ]
