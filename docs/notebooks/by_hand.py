# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # An update by hand
#
# The methods of `updcomp.methods` are made of pure functions. Here you use these in an optax loop of your own: you keep
# your loop, and updcomp gives the scores, the masks, the rounding and the bytes.
#
# A small network reads handwritten digits. Then the camera is mounted on its side: every image arrives turned by
# 90 degrees.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import pandas as pd
from sklearn.datasets import load_digits

import updcomp
from updcomp import contribution, delta, factorize, quantize, selection, subspace
from updcomp.training.optimizers import masked

digits = load_digits()
order = np.random.default_rng(0).permutation(len(digits.target))
upright = (digits.images[order] / 16).astype(np.float32)  # (1797, 8, 8), from 0 to 1
turned = np.rot90(upright, axes=(1, 2))
labels = digits.target[order].astype(np.int32)
old_rows, train_rows, test_rows = slice(0, 700), slice(700, 1300), slice(1300, None)

# %% [markdown]
# ## Your loop
#
# Nothing in this part is of updcomp. The model is a dict of arrays. `train` is a plain loop: a gradient and an optax
# update, with `**extra` for optimizers that take more arguments.


# %%
@jax.jit
def logits(params, images):
    """Two layers, without biases to keep this short."""
    return jax.nn.relu(images.reshape(len(images), -1) @ params["hidden"]) @ params["out"]


def loss(params, images, labels):
    """Mean cross-entropy."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits(params, images), labels))


def accuracy(params):
    """Share of the turned test images that are read right."""
    return float(np.mean(np.argmax(logits(params, turned[test_rows]), axis=-1) == labels[test_rows]))


def train(loss, start, optimizer, images, labels, *, epochs=30, **extra):
    """The trained start, and the optimizer's last state."""

    @jax.jit
    def step(trained, state, images, labels):
        gradients = jax.grad(loss)(trained, images, labels)
        updates, state = optimizer.update(gradients, state, trained, **extra)
        return optax.apply_updates(trained, updates), state

    trained, state, random = start, optimizer.init(start), np.random.default_rng(0)
    for _ in range(epochs):
        for rows in random.permutation(len(labels)).reshape(-1, 100):
            trained, state = step(trained, state, images[rows], labels[rows])
    return trained, state


# %%
random = np.random.default_rng(0)
start = {
    "hidden": jnp.asarray(random.normal(size=(64, 128)) / 8, jnp.float32),
    "out": jnp.asarray(random.normal(size=(128, 10)) / 12, jnp.float32),
}
deployed, _ = train(loss, start, optax.rmsprop(1e-3), upright[old_rows], labels[old_rows])

size = sum(leaf.size for leaf in jax.tree.leaves(deployed))
print(f"{size:,} weights, {4 * size:,} bytes; turned images read right: {accuracy(deployed):.1%}")

# %% [markdown]
# ## Which weights matter
#
# Train all weights on the new images, and record what each one contributes to the lower loss. To first order, the loss
# falls by
#
# $$c_i = -\sum_q g_{q,i}\, d_{q,i}$$
#
# because of weight $i$, with its gradient $g_q$ and its increment $d_q$ at step $q$. `contribution.record` wraps any
# optimizer and adds this up.

# %%
new_images, new_labels = turned[train_rows], labels[train_rows]
tuned, state = train(loss, deployed, contribution.record(optax.rmsprop(1e-3)), new_images, new_labels)
print(f"all weights trained: {accuracy(tuned):.1%}")

# %% [markdown]
# Deep partial updating (Qu et al., ECCV 2022) adds the squared change, each of the two divided by its sum:
#
# $$s_i = \frac{1}{2} \frac{(w_i^{new} - w_i^{old})^2}{\sum_j (w_j^{new} - w_j^{old})^2}
#       + \frac{1}{2} \frac{c_i}{\sum_j c_j}$$
#
# `selection.top_ratio` gives the mask of the largest scores over all leaves together. True means that a weight is sent.
# (`selection.top_k` takes their number in place of a ratio.) The functions are pure: compile them as you like.


# %%
@jax.jit
def choose(old, new, local):
    """The mask of the 5 % of all weights that contribute most."""
    scores = contribution.combine(contribution.squared_change(old, new), local)
    return selection.top_ratio(scores, 0.05)


mask = choose(deployed, tuned, state.local)
sent = sum(int(leaf.sum()) for leaf in jax.tree.leaves(mask))
assert sent == selection.budget(0.05, size)
for name, chosen in mask.items():
    print(f"{name:6} {int(chosen.sum()):4} of {chosen.size:5} weights are sent")

# %% [markdown]
# These few have to do the work alone, so take all other changes back and train on. `delta.rewind` does the first:
#
# $$w = m \odot w^{new} + (1 - m) \odot w^{old}$$
#
# `masked` wraps an optimizer and zeroes its final update where the mask is False, after momentum and decay.

# %%
rewound = delta.rewind(deployed, tuned, mask)
print(f"rewound: {accuracy(rewound):.1%}")

sparse, _ = train(loss, rewound, masked(optax.rmsprop(5e-3)), new_images, new_labels, mask=mask)
print(f"trained on: {accuracy(sparse):.1%}")

for name, chosen in mask.items():  # every weight that is not sent has its old bits
    np.testing.assert_array_equal(deployed[name][~chosen], sparse[name][~chosen])

# %% [markdown]
# ## Rounding that training sees
#
# The wire carries integers. A change $x$ becomes
#
# $$q = \mathrm{clip}(\mathrm{round}(x / \Delta), -L, L), \qquad L = 2^{bits - 1} - 1$$
#
# and the device reads $q\,\Delta$. `quantize.dynamic_step` chooses $\Delta$ for the values that are there now.
# `quantize.straight_through` rounds in the forward pass and is the identity in the backward pass. So the loss is that
# of the device's model, and the weights still get gradients.

# %%
BITS = 4


@jax.jit
def as_on_device(trained):
    """W + Q(trained - W), each leaf with a step of its own."""

    def rounded(old, new, sent):
        step = quantize.dynamic_step(new - old, BITS, where=sent)
        return old + quantize.straight_through(new - old, step, BITS)

    return jax.tree.map(rounded, deployed, trained, mask)


def rounded_loss(trained, images, labels):
    """The loss of what the device will hold."""
    return loss(as_on_device(trained), images, labels)


sparse, _ = train(rounded_loss, rewound, masked(optax.rmsprop(5e-3)), new_images, new_labels, mask=mask)
print(f"{sent} weights of {BITS} bits: {accuracy(as_on_device(sparse)):.1%}")

# %% [markdown]
# ## Blocks, a packet, bytes
#
# A block is what travels of one leaf. `delta.to_block` makes it, with the same step as in training. `updcomp.pack`
# takes a tree of blocks in the places of the leaves (None where a leaf stays as deployed). `encode` gives the bytes,
# and `apply` the model that a device has then.

# %%
blocks = {name: delta.to_block(deployed[name], sparse[name], BITS, mask=mask[name]) for name in deployed}
updates = {"sparse": updcomp.encode(updcomp.pack(blocks, deployed), deployed)}
on_device = updcomp.apply(updates["sparse"], deployed)

print(f"{len(updates['sparse']):,} bytes: {accuracy(on_device):.1%}")
trained = as_on_device(sparse)
for name, chosen in mask.items():  # the device has the model that was trained
    np.testing.assert_array_equal(deployed[name][~chosen], on_device[name][~chosen])
    np.testing.assert_allclose(on_device[name], trained[name], atol=1e-5)

# %% [markdown]
# ## Low rank
#
# Chen et al. (CVPR Workshops 2022) train two thin factors of each kernel, from a frozen $W$:
#
# $$W^{new} = W + U V^T, \qquad U \in \mathbb{R}^{in \times r},\ V \in \mathbb{R}^{out \times r}$$
#
# `factorize.init` gives factors whose product is zero. `factorize.quantized` rounds them straight-through.

# %%
RANK = 4


def with_factors(factors):
    """W + U V^T, with both factors rounded."""
    rounded = {name: factorize.quantized(both, BITS) for name, both in factors.items()}
    return {name: old + factorize.product(rounded[name], old.shape) for name, old in deployed.items()}


def factors_loss(factors, images, labels):
    """The loss of what the device will hold."""
    return loss(with_factors(factors), images, labels)


keys = dict(zip(deployed, jax.random.split(jax.random.key(1), len(deployed)), strict=True))
no_change = {name: factorize.init(keys[name], old.shape, RANK) for name, old in deployed.items()}
factors, _ = train(factors_loss, no_change, optax.rmsprop(5e-3), new_images, new_labels)
blocks = {name: factorize.to_block(both, BITS) for name, both in factors.items()}
updates["low rank"] = updcomp.encode(updcomp.pack(blocks, deployed), deployed)
print(f"{len(updates['low rank']):,} bytes: {accuracy(updcomp.apply(updates['low rank'], deployed)):.1%}")

# %% [markdown]
# The best factors of an update that exists are its truncated singular value decomposition. It has the same size, but
# training did not know of it:

# %%
changes = delta.between(deployed, tuned)
blocks = {name: factorize.to_block(factorize.truncated_svd(change, RANK), BITS) for name, change in changes.items()}
updates["SVD of all"] = updcomp.encode(updcomp.pack(blocks, deployed), deployed)
in_training, afterwards = (accuracy(updcomp.apply(updates[name], deployed)) for name in ("low rank", "SVD of all"))
print(f"{len(updates['SVD of all']):,} bytes: {afterwards:.1%}")
assert in_training > afterwards

# %% [markdown]
# ## A subspace that both sides know
#
# The device has $W$, so that both sides can derive the same bases $A$ and $B$ from it, bit for bit. Only the
# coefficients travel:
#
# $$W^{new} = W + A\,C\,B^T, \qquad C \in \mathbb{R}^{r \times r}$$
#
# `subspace.bases_of` finds the bases of all kernels. A coefficient moves many weights a little, so the learning rate is
# higher.

# %%
bases = subspace.bases_of(deployed, rank=8)


def with_coefficients(coefficients):
    """W + A C B^T, with C rounded."""
    new = {}
    for name, old in deployed.items():
        step = quantize.dynamic_step(coefficients[name], BITS)
        rounded = quantize.straight_through(coefficients[name], step, BITS)
        new[name] = old + subspace.update(rounded, bases[name], old.shape)
    return new


def coefficients_loss(coefficients, images, labels):
    """The loss of what the device will hold."""
    return loss(with_coefficients(coefficients), images, labels)


no_change = {name: jnp.zeros((1, 8, 8)) for name in deployed}  # one matrix for each kernel
coefficients, _ = train(coefficients_loss, no_change, optax.rmsprop(3e-2), new_images, new_labels)
blocks = {name: subspace.to_block(found, BITS) for name, found in coefficients.items()}
updates["subspace"] = updcomp.encode(updcomp.pack(blocks, deployed), deployed)
print(f"{len(updates['subspace']):,} bytes: {accuracy(updcomp.apply(updates['subspace'], deployed)):.1%}")

# %% [markdown]
# ## All of them
#
# For comparison: all changes of the full training, exactly (`updcomp.diff`).

# %%
updates["all, exactly"] = updcomp.encode(updcomp.diff(deployed, tuned), deployed)
exact = updcomp.apply(updates["all, exactly"], deployed)
for name, leaf in tuned.items():
    np.testing.assert_array_equal(exact[name], leaf)

results = pd.DataFrame(
    [(name, len(update), accuracy(updcomp.apply(update, deployed))) for name, update in updates.items()],
    columns=["update", "bytes", "accuracy"],
).sort_values("bytes", ignore_index=True)
results.round(3)

# %%
figure, axes = plt.subplots(figsize=(7, 4))
for name, length, share in results.itertuples(index=False):
    axes.semilogx(length, 100 * share, "o", label=name)
axes.axhline(100 * accuracy(deployed), linestyle="--", color="grey", label="without an update")
axes.set(xlabel="bytes of the update", ylabel="turned images read right, %", xlim=(50, 2e5), ylim=(0, 100))
axes.legend(loc="lower right")
figure.tight_layout()
