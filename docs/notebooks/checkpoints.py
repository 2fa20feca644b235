# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Two checkpoints and the update between them
#
# You have two checkpoints of a model: the one that the devices hold, and a later one. It does not matter what trained
# them. Here it is scikit-learn. Only the difference travels.

# %%
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

import updcomp

folder = tempfile.TemporaryDirectory()
here = Path(folder.name)


def run(command, *, status=0, is_json=False):
    """Runs a command line in the folder and shows it as a terminal does, or returns the JSON that it prints."""
    print("$", command)
    done = subprocess.run([sys.executable, *command.split()[1:]], cwd=here, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    if not is_json:
        print(done.stdout + done.stderr)
    return json.loads(done.stdout) if is_json else None


# %% [markdown]
# ## The checkpoints
#
# A network reads handwritten digits. It is deployed. Later there are more data, and it is trained a little further.

# %%
digits = load_digits()
order = np.random.default_rng(0).permutation(len(digits.target))
images, labels = (digits.data[order] / 16).astype(np.float32), digits.target[order]
few, more, test = slice(0, 200), slice(0, 1300), slice(1300, None)


def checkpoint(network):
    """The weights of a network of scikit-learn: name -> array."""
    leaves = {}
    for i, (kernel, bias) in enumerate(zip(network.coefs_, network.intercepts_, strict=True)):
        leaves |= {f"layer{i}/kernel": kernel, f"layer{i}/bias": bias}
    return leaves


network = MLPClassifier((64, 32), learning_rate_init=3e-3, alpha=0, random_state=0)
for _ in range(40):
    network.partial_fit(images[few], labels[few], classes=np.arange(10))
save_file(checkpoint(network), here / "old.safetensors", metadata={"trained on": "200 digits"})

network.set_params(learning_rate_init=1e-3)
for _ in range(10):
    network.partial_fit(images[more], labels[more])
save_file(checkpoint(network), here / "new.safetensors", metadata={"trained on": "1,300 digits"})

old, new = (load_file(here / f"{name}.safetensors") for name in ("old", "new"))
for name, leaf in old.items():
    changed = np.mean(leaf != new[name])
    print(f"{name:14} {leaf.dtype} {leaf.shape!s:10} {changed:.0%} of the weights change")


# %%
def accuracy(leaves):
    """Share of the test images that a checkpoint reads right."""
    x = images[test]
    for i in range(3):
        x = x @ leaves[f"layer{i}/kernel"] + leaves[f"layer{i}/bias"]
        x = np.maximum(x, 0) if i < 2 else x
    return np.mean(np.argmax(x, axis=1) == labels[test])


print(f"read right: {accuracy(old):.1%} with the old checkpoint, {accuracy(new):.1%} with the new one")

# %% [markdown]
# ## The difference
#
# `python -m updcomp diff` compares two files and writes an update. By default it is exact, and holds all that changed,
# the files' metadata included.

# %%
run("python -m updcomp diff old.safetensors new.safetensors -o exact.upd")

# %% [markdown]
# `apply` makes the new model of the old one and the update. `python -m updcomp.edge` needs NumPy alone, so that it is
# what a device has. The result is the new checkpoint, bit for bit.

# %%
run("python -m updcomp.edge apply old.safetensors exact.upd -o made.safetensors")

made = load_file(here / "made.safetensors")
assert all(made[name].tobytes() == leaf.tobytes() for name, leaf in new.items())
with safe_open(here / "made.safetensors", "numpy") as file:
    print(file.metadata())

# %% [markdown]
# ## Smaller: a lossy update
#
# Training moves nearly every weight a little, and most bits of these changes are noise. A lossy update rounds them to
# multiples of a step: no weight is further than half a step from the new one. In Python, `updcomp.diff` compares two
# trees of arrays.

# %%
rows = []
for step in (2**-8, 2**-7, 2**-6, 2**-5, 2**-4):
    update = updcomp.encode(updcomp.diff(old, new, step=step), old)
    held = updcomp.apply(update, old)  # what a device will hold
    error = max(np.max(np.abs(held[name] - leaf)) for name, leaf in new.items())
    assert error <= step / 2 + 1e-6
    rows.append((step, len(update), error, accuracy(held)))
pd.DataFrame(rows, columns=["step", "bytes", "largest error", "read right"]).round(4)

# %% [markdown]
# Often the number of bytes is given: what a radio link can carry, say. `max_bytes` finds the smallest step that fits.
# The command has both: `--step` and `--max-bytes`.

# %%
small = updcomp.encode(updcomp.diff(old, new, max_bytes=1500), old)
assert len(small) <= 1500
(here / "small.upd").write_bytes(small)
print(f"{len(small):,} bytes; read right: {accuracy(updcomp.apply(small, old)):.1%}")

# %% [markdown]
# ## Where the bytes go
#
# `inspect` reads an update, as JSON. With the model that it starts from, it names the leaves.

# %%
told = run("python -m updcomp.edge inspect small.upd old.safetensors", is_json=True)
print(told["bytes_by_part"])
pd.DataFrame(told["blocks"])[["leaf", "shape", "kind", "step"]]

# %% [markdown]
# How many bytes does each leaf take? Make an update in which it alone changes, and compare with an update in which
# nothing does. The sum is about the whole update.

# %%
step = told["blocks"][0]["step"]


def size_of(changes, **options):
    """Bytes of an update in which only some leaves change."""
    return len(updcomp.encode(updcomp.diff(old, {**old, **changes}, **options), old))


sizes = pd.DataFrame(
    {
        kind: {name: size_of({name: leaf}, **options) - size_of({}, **options) for name, leaf in new.items()}
        for kind, options in (("exact", {}), (f"step = {step:.3f}", {"step": step}))
    }
)
whole = size_of(new, step=step)
print(f"whole updates: {size_of(new):,} and {whole:,} bytes")
assert abs(sizes.iloc[:, 1].sum() + size_of({}) - whole) < 0.05 * whole
sizes

# %%
figure, axes = plt.subplots(1, 2, figsize=(8, 3), sharey=True)
for axis, kind in zip(axes, sizes, strict=True):
    sizes[::-1].plot.barh(y=kind, ax=axis, title=kind, xlabel="bytes", legend=False)
figure.tight_layout()

# %% [markdown]
# ## To the device
#
# A device keeps versions of its model in a folder. `init` makes it, once. `verify` checks that an update fits and gives
# what it promises. `install` does the same, applies it, and makes the new version current. It may be killed at any
# moment: a whole, verified model is always there.

# %%
run("python -m updcomp.edge init device old.safetensors")
run("python -m updcomp.edge verify old.safetensors small.upd")
run("python -m updcomp.edge install device small.upd")

told = run("python -m updcomp.edge status device", is_json=True)
assert told["version"] == 2
pd.DataFrame(told["versions"])[["number", "fingerprint", "size"]]

# %%
store = updcomp.edge.Store(here / "device")
held = store.current()  # name -> array, verified
assert all(held[name].tobytes() == leaf.tobytes() for name, leaf in updcomp.apply(small, old).items())
print(f"version {store.version()} reads {accuracy(held):.1%} right")

# %% [markdown]
# Something is wrong with the new version? `rollback` makes the one before it current again. The update is refused from
# then on, until someone says `--again`. A command that is refused ends with status 2.

# %%
run("python -m updcomp.edge rollback device")
run("python -m updcomp.edge install device small.upd", status=2)
run("python -m updcomp.edge install device small.upd --again")
assert store.version() == 3

# %% [markdown]
# ## The wrong base
#
# An update carries the fingerprint of the model that it starts from. For any other model it is refused, and nothing is
# written. This happens easily: after a lossy update, the device does not hold `new.safetensors` exactly. So an update
# from there to a third checkpoint does not fit.

# %%
for _ in range(10):
    network.partial_fit(images[more], labels[more])
latest = checkpoint(network)

wrong = updcomp.encode(updcomp.diff(new, latest, step=step), new)
(here / "wrong.upd").write_bytes(wrong)
run("python -m updcomp.edge install device wrong.upd", status=2)
assert store.version() == 3

try:
    updcomp.apply(wrong, held)
except updcomp.edge.WrongBaseError as error:
    print(type(error).__name__, "-", error)
else:
    raise AssertionError("an update was applied to the wrong model")

# %% [markdown]
# Start from what the device holds. The server knows that to the last bit: it applies each update as well.

# %%
held = updcomp.apply(small, old)
right = updcomp.encode(updcomp.diff(held, latest, step=step), held)
(here / "right.upd").write_bytes(right)
run("python -m updcomp.edge install device right.upd")
assert store.version() == 4
print(f"{len(right):,} bytes; version 4 reads {accuracy(store.current()):.1%} right")

# %%
folder.cleanup()
