# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Update a model of your own
#
# You bring a model, a loss and data. updcomp trains a small update of the model, and a device applies it bit for bit.
#
# The example is a keyboard that suggests the next character. It is deployed for English text. Then its users begin to
# write Python code. The model must change on every phone, and every byte that travels costs energy or money.
#
# The text is what each Python installation has: the documentation of the language, and the standard library.

# %%
import argparse
import difflib
import inspect
import re
import shutil
import tarfile
import textwrap
from pydoc_data.topics import topics

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import pandas as pd
from flax import nnx

import updcomp
from updcomp.methods import by_path, full, low_rank, magnitude_mask, subspace
from updcomp.training import Objective, Task, make_score

# %% [markdown]
# ## Data
#
# A row is 12 characters and the one that follows. Characters are numbers: 0 for a new line, 1 to 95 for ASCII, and
# 1 (a blank) for any other.

# %%
CONTEXT, CHARACTERS = 12, 96


def rows_of(text, count, seed):
    """As many random places in a text, each with the characters before it."""
    codes = np.frombuffer(text.encode("ascii", "replace"), np.uint8).astype(np.int32) - 31
    codes = np.where(codes == 10 - 31, 0, np.clip(codes, 1, CHARACTERS - 1))
    starts = np.random.default_rng(seed).integers(0, len(codes) - CONTEXT, count)
    windows = np.lib.stride_tricks.sliding_window_view(codes, CONTEXT + 1)[starts]
    return {"before": windows[:, :-1], "next": windows[:, -1]}


english = re.sub(r" +", " ", "\n".join(topics.values()))
code = "".join(inspect.getsource(module) for module in (argparse, difflib, tarfile))

english_rows = rows_of(english[: len(english) // 2], 4_000, seed=0)
english_validation = rows_of(english[len(english) // 2 :], 1_000, seed=1)
train = rows_of(code, 4_000, seed=2)
validation = rows_of(inspect.getsource(textwrap), 1_000, seed=3)
test = rows_of(inspect.getsource(shutil), 2_000, seed=4)

# %% [markdown]
# ## Model, loss and score
#
# The model is a flax nnx module with nothing of updcomp in it. `nnx.split` gives its structure and its variables.
# updcomp works on the variables: any tree of arrays.


# %%
class Keyboard(nnx.Module):
    """Characters before -> logits of the next one."""

    def __init__(self, rngs):
        self.embedding = nnx.Embed(CHARACTERS, 16, rngs=rngs)
        self.hidden = nnx.Linear(CONTEXT * 16, 128, rngs=rngs)
        self.norm = nnx.LayerNorm(128, rngs=rngs)
        self.out = nnx.Linear(128, CHARACTERS, rngs=rngs)

    def __call__(self, before):
        embedded = self.embedding(before).reshape(len(before), -1)
        return self.out(nnx.relu(self.norm(self.hidden(embedded))))


structure, random_start = nnx.split(Keyboard(nnx.Rngs(0)))

# %% [markdown]
# A loss gets the variables, a batch and a key, which differs at every step (for dropout, say). It is minimised. A score
# gets the variables and a batch. Higher is better. Here it is the share of characters that the keyboard guesses right.


# %%
def loss(variables, batch, key):
    """Mean cross-entropy of the next character."""
    logits = nnx.merge(structure, variables)(batch["before"])
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch["next"]))


def right(variables, batch):
    """Share of characters that are guessed right."""
    logits = nnx.merge(structure, variables)(batch["before"])
    return jnp.mean(jnp.argmax(logits, axis=-1) == batch["next"])


objective = Objective(loss, right)
score = make_score(objective)

# %% [markdown]
# ## The deployed model
#
# It may come from any trainer. Here it is made with updcomp as well: as a full update of a random start.

# %%
english_task = Task(objective, english_rows, english_validation, optax.adam, learning_rate=3e-3, epochs=8)
packet = full()(jax.random.key(0), random_start, english_task)
deployed = updcomp.apply(updcomp.encode(packet, random_start), random_start)

print(f"guessed right: {score(deployed, english_validation):.1%} of English, {score(deployed, test):.1%} of code")

# %% [markdown]
# ## An update
#
# The world has changed: users write code. A `Task` says what to train on and how. A method trains an update for it.
# `low_rank` trains two thin factors for each kernel, $W + U V^T$, already rounded to as many bits as will travel.
#
# `validation` chooses the best epoch. The test data stay aside.

# %%
task = Task(objective, train, validation, optax.adam, learning_rate=1e-3, epochs=8)
method = low_rank(rank=4, bits=4, aux=4)  # aux: bits of biases and norms
packet = method(jax.random.key(1), deployed, task)
update = updcomp.encode(packet, deployed)  # what travels: bytes

new = updcomp.apply(update, deployed)
print(f"{len(update):,} bytes; guessed right: {score(deployed, test):.1%} of code before, {score(new, test):.1%} after")
assert score(new, test) > score(deployed, test)

# %% [markdown]
# What is in these bytes? `inspect` reads the update. With the model it also knows the names of the leaves. The size of
# factors is their rank, and that of masked weights their number. The step is the unit of the integers that travel.

# %%
told = updcomp.inspect(update, deployed)
assert told["bytes"] == sum(told["bytes_by_part"].values()) == len(update)
print(told["bytes_by_part"])
pd.DataFrame(told["blocks"])[["leaf", "shape", "kind", "size", "step"]].astype({"size": "Int64"})

# %% [markdown]
# A device has NumPy alone. There a model is a dict of arrays, and `updcomp.edge` applies the update. The result is the
# server's, bit for bit. If it were not, `apply` would refuse: the update carries a fingerprint of both models.

# %%
on_device = updcomp.edge.apply(update, updcomp.trees.to_model(deployed))
on_server = updcomp.trees.to_model(new)
assert all(on_device[name].tobytes() == on_server[name].tobytes() for name in on_server)
print(*(f"{name:18} {leaf.dtype} {leaf.shape}" for name, leaf in on_device.items()), sep="\n")

# %% [markdown]
# ## Different leaves, different methods
#
# `by_path` takes rules: a regular expression of whole paths, and a method. The first rule that matches a leaf counts.
# None means that the leaf stays as deployed: nothing of it trains or travels.
#
# - `subspace` trains $W + A\,C\,B^T$. The device finds $A$ and $B$ from the weights that it has, so that only the small
#   $C$ travels.
# - `magnitude_mask` trains the weights of the largest deployed magnitude. The device finds the same ones, so that no
#   positions travel.


# %%
def by_rules(rank, ratio):
    """Embedding as deployed, the large layer within its own subspace, a part of the last one."""
    return by_path(
        {
            "embedding/.*": None,
            "hidden/kernel": subspace(rank=rank),
            ".*": magnitude_mask(ratio=ratio, bits=2, aux=4),
        }
    )


mixed = updcomp.encode(by_rules(rank=16, ratio=0.1)(jax.random.key(1), deployed, task), deployed)
told = updcomp.inspect(mixed, deployed)
assert not any(block["leaf"].startswith("embedding") for block in told["blocks"])
print(f"{len(mixed):,} bytes; guessed right: {score(updcomp.apply(mixed, deployed), test):.1%} of code")
pd.DataFrame(told["blocks"])[["leaf", "shape", "kind", "size", "step"]].astype({"size": "Int64"})

# %% [markdown]
# ## Which method for how many bytes?
#
# The score against the bytes answers that. `full()` sends all weights as they are, for comparison. Other ranks and
# ratios of a method train quickly: they share what is compiled.

# %%
methods = [
    ("full", "all weights", full()),
    ("low_rank", "rank 1, 2 bits", low_rank(rank=1, bits=2, aux=4)),
    ("low_rank", "rank 2, 3 bits", low_rank(rank=2, bits=3, aux=4)),
    ("by_path", "rank 8, 3 %", by_rules(rank=8, ratio=0.03)),
    ("by_path", "rank 16, 30 %", by_rules(rank=16, ratio=0.3)),
]
updates = [("low_rank", "rank 4, 4 bits", update), ("by_path", "rank 16, 10 %", mixed)]
for name, setting, method in methods:
    updates.append((name, setting, updcomp.encode(method(jax.random.key(1), deployed, task), deployed)))

results = pd.DataFrame(
    [(name, setting, len(sent), score(updcomp.apply(sent, deployed), test)) for name, setting, sent in updates],
    columns=["method", "setting", "bytes", "right"],
)
results = results.sort_values("bytes", ignore_index=True)
results.round(3)

# %%
figure, axes = plt.subplots(figsize=(7, 4))
for name, group in results.groupby("method"):
    axes.semilogx(group["bytes"], 100 * group["right"], "o-", label=name)
axes.axhline(100 * score(deployed, test), linestyle="--", color="grey", label="without an update")
axes.set(xlabel="bytes of the update", ylabel="code guessed right, %", xlim=(100, 1e6), ylim=(0, 40))
axes.legend(loc="lower right")
figure.tight_layout()

# %% [markdown]
# Some hundred bytes take most of the gain that the full update has. Each point is one training. To compare methods
# fairly, tune the rate of each (`low_rank(rate=...)`) on validation data, and repeat with other keys.

# %%
before = score(deployed, test)
complete, smallest = results.iloc[-1], results.iloc[0]
share = (smallest["right"] - before) / (complete["right"] - before)
print(f"{share:.0%} of the full gain, with {complete['bytes'] / smallest['bytes']:.0f} times fewer bytes")
assert share > 0.5
assert complete["bytes"] > 100 * smallest["bytes"]
