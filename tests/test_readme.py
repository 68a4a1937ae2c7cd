"""What the README tells others to build on does what it says."""

import pathlib
import re

import jax
import numpy as np

from imagen_video.cascade.cascade import Cascade

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text()


def snippets():
    section = re.search(r"^## Build on it$(.*?)^## ", README, re.MULTILINE | re.DOTALL)
    return re.findall(r"^```python\n(.*?)^```", section[1], re.MULTILINE | re.DOTALL)


def test_the_embedded_base_model_is_sampled_with_ones_own_guidance():
    names = {}
    exec(snippets()[0], names)
    clips = np.asarray(names["clips"])
    assert isinstance(names["cascade"], Cascade) and clips.shape == (1, 8, 12, 20, 3)
    # Red on white: where there is little green, the object, there is much red.
    red, green, blue = np.moveaxis(clips[0], -1, 0)
    on_object = green < 0
    assert 0.05 < on_object.mean() < 0.5
    assert red[on_object].mean() > 0.2 and blue[on_object].mean() < 0
    assert clips[0, :, ~on_object.any(axis=0)].mean() > 0.7


def test_a_network_of_ones_own_is_trained_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = snippets()[1]
    length = '"train.num_steps": 1_000'
    assert code.count(length) == 1
    trained = {}
    for num_steps in (2, 3):
        trained[num_steps] = {}
        shorter = f'"train.num_steps": {num_steps}, "train.optimizer.warmup_steps": 1'
        exec(code.replace(length, shorter), trained[num_steps])
    before, after = (trained[n]["state"] for n in (2, 3))
    assert int(before.step) == 2 and int(after.step) == 3
    moved = jax.tree.map(lambda a, b: float(abs(a - b).max()), before.params, after.params)
    assert all(change > 0 for change in jax.tree.leaves(moved))
    assert sum(leaf.size for leaf in jax.tree.leaves(after.params)) < 50_000  # and not the U-Net
