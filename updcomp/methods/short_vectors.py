"""Peers that send a short vector, of which a map from a seed and the deployed weights makes the whole change.

In all of them, `bits=None` is the published form: values are not rounded in training, and each takes 32 plain bits.
"""

from updcomp import factorize
from updcomp.methods import base, mapped, recipes
from updcomp.methods.mapped import MappedVector
from updcomp.wire.errors import Error


def random_low_rank(*, rank: int, bits: int | None = 4, aux: int | None = 16, rate: float = 100.0) -> base.Trained:
    """Trains W + U V^T with U random signs from a seed that travels in its place.

    The *structured low-rank update* of Konecny et al.: Federated Learning (arXiv 1610.05492), section 2.

    Args:
      rank: columns of both factors, at least 1; a kernel gets at most min(fan_in, fan_out).
      bits: of V's entries, rounded straight-through; None: float32 as published.
      aux: bits of the aux leaves' deltas; None leaves them as deployed.
      rate: multiplies the task's learning rate.

    Returns:
      A method.

    Raises:
      Error: an option is out of range.
    """
    factorize.check_rank(rank)
    form = MappedVector(recipes.HALF, rank, bits)
    return base.trained("random_low_rank", form, bits=bits, aux=aux, rate=rate)


def vera(*, rank: int, bits: int | None = 4, aux: int | None = 16, rate: float = 100.0) -> base.Trained:
    """Trains W + A diag(d) B^T diag(b), with A and B random signs from a seed.

    Args:
      rank: columns of A and B, and length of d, at least 1; b has one value for each column of the kernel.
      bits: of each value of d and b, rounded straight-through; None: float32 as published.
      aux: bits of the aux leaves' deltas; None leaves them as deployed.
      rate: multiplies the task's learning rate.

    Returns:
      A method.

    Raises:
      Error: an option is out of range.

    Kopiczko et al.: VeRA (arXiv 2310.11454), equation 2. d starts at one and b at zero; the published A and B are the
    same in all layers, which saves memory there and no bytes here.
    """
    factorize.check_rank(rank)
    form = MappedVector(recipes.SCALED, rank, bits)
    return base.trained("vera", form, bits=bits, aux=aux, rate=rate)


def nola(
    *, size: int, rank: int = 4, bits: int | None = 4, aux: int | None = None, rate: float = 100.0
) -> base.Trained:
    """Trains W + (sum_i alpha_i A_i) (sum_j beta_j B_j)^T, with all A_i and B_j random signs from a seed.

    Args:
      size: length of alpha and beta together, for each kernel.
      rank: columns of the factors, a power of two.
      bits: of each value, rounded straight-through; None: float32 as published.
      aux: bits of the aux leaves' deltas; None leaves them as deployed.
      rate: multiplies the task's learning rate.

    Returns:
      A method.

    Raises:
      Error: an option is out of range.

    Koohpayegani et al.: NOLA (arXiv 2310.02556), equation 3.
    """
    mapped.check_size(size)
    mapped.check_rank(rank)
    form = MappedVector(recipes.MIXED, size, bits, rank)
    return base.trained("nola", form, bits=bits, aux=aux, rate=rate)


def uni_lora(
    *, size: int, rank: int = 4, bits: int | None = 4, aux: int | None = None, rate: float = 100.0
) -> base.Trained:
    """Trains one vector for the whole model: each entry of all low-rank factors is one of its values.

    Groups are random and equally large in each kernel, so that the projection keeps lengths. The first half of the
    vector makes all left factors and the second, which starts at zero, all right ones: training starts from the
    deployed model, which the published vector, random as a whole, does not.

    Args:
      size: length of the vector.
      rank: columns of the factors, a power of two.
      bits: of each value, rounded straight-through; None: float32 as published.
      aux: bits of the aux leaves' deltas; None leaves them as deployed.
      rate: multiplies the task's learning rate.

    Returns:
      A method.

    Raises:
      Error: an option is out of range.

    Li et al.: Uni-LoRA (arXiv 2506.00799), section 3.
    """
    mapped.check_size(size)
    mapped.check_rank(rank)
    form = MappedVector(recipes.GROUPED, size, bits, rank, share=0)
    return base.trained("uni_lora", form, bits=bits, aux=aux, rate=rate)


def tiny_lora(
    *, size: int, share: int = 0, rank: int = 2, bits: int | None = 4, aux: int | None = None, rate: float = 100.0
) -> base.Trained:
    """Trains W + A (sum_i v_i P_i) B^T, with random signs P_i, A and B as in `subspace`, and one v for many kernels.

    Args:
      size: length of v.
      share: how many kernels in a row, in the order of their names, have one v; 0: all of them.
      rank: columns of A and B, a power of two.
      bits: of each value, rounded straight-through; None: float32 as published.
      aux: bits of the aux leaves' deltas; None leaves them as deployed.
      rate: multiplies the task's learning rate.

    Returns:
      A method.

    Raises:
      Error: an option is out of range.

    Morris et al.: Learning to Reason in 13 Parameters (arXiv 2602.04118), which also weighs A by the singular values.
    """
    mapped.check_size(size)
    mapped.check_rank(rank)
    if not isinstance(share, int) or share < 0:
        raise Error(f"share: expected 0 or more kernels, found {share!r}")
    form = MappedVector(recipes.TIED, size, bits, rank, share)
    return base.trained("tiny_lora", form, bits=bits, aux=aux, rate=rate)


def fourier(*, size: int, bits: int | None = 4, aux: int | None = None, rate: float = 100.0) -> base.Trained:
    """Trains coefficients of plane waves over each kernel, of random frequencies from a seed.

    Args:
      size: waves of each matrix, at most its weights.
      bits: of each coefficient, rounded straight-through; None: float32 as published.
      aux: bits of the aux leaves' deltas; None leaves them as deployed.
      rate: multiplies the task's learning rate.

    Returns:
      A method.

    Raises:
      Error: an option is out of range.

    Gao et al.: FourierFT (arXiv 2405.03003), equation 3; the cosines are integers that both sides compute.
    """
    mapped.check_size(size)
    form = MappedVector(recipes.WAVES, size, bits)
    return base.trained("fourier", form, bits=bits, aux=aux, rate=rate)


def pranc(*, size: int, bits: int | None = 4, aux: int | None = None, rate: float = 100.0) -> base.Trained:
    """Trains one vector for the whole model: coefficients of random bases of the weights.

    A basis is a random row of a Walsh-Hadamard matrix with random signs, over a block of 2^12 weights; it takes no
    memory, and a product with all of them the time of a few with 64 x 64 matrices.

    Args:
      size: length of the vector, at most the weights of each kernel, padded to a power of two or a multiple of 2^12.
      bits: of each value, rounded straight-through; None: float32 as published.
      aux: bits of the aux leaves' deltas; None leaves them as deployed.
      rate: multiplies the task's learning rate.

    Returns:
      A method.

    Raises:
      Error: an option is out of range.

    Nooralinejad et al.: PRANC (arXiv 2206.08464), equation 1, where bases are random networks.
    """
    mapped.check_size(size)
    form = MappedVector(recipes.SPREAD, size, bits, share=0)
    return base.trained("pranc", form, bits=bits, aux=aux, rate=rate)
