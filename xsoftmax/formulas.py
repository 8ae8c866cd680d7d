"""The mathematics, written once, in array-API calls alone: each value directly above its derivative.

x logits · m = max x · c shift · w = exp(x − c) · wm the maximum's w · q = Σ of the other w · s = q + wm · y = w / s.

Every function takes floating arrays of one dtype, the negative class axes `axes`, and the namespace `xp`. Reduced axes
are kept. Masked classes hold x = −∞ and y = 0.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from .libraries.arrays import class_indices, constant, device_of, dtype_name, looked_up, with_axis
from .libraries.sums import Pair, apart, count, divided, maximum, plus, times, total

Array = Any
Axes = tuple[int, ...]

# dtype → (T: exp(T) is finite, U: exp(−U) is 0, the largest finite number)
_LIMITS = {
    "float32": (88.0, 104.0, float.fromhex("0x1.fffffep+127")),
    "float64": (709.0, 746.0, float.fromhex("0x1.fffffffffffffp+1023")),
}
_MOST = 9 / 16  # of y; two rounded halves are no majority
_LOG_HALF = -math.log(2.0)
# exp(−R) times the largest sum of exponentials is normal
_REACH = {"float32": 60.0, "float64": 600.0}
_HUGE = 2.0**64  # of logits: differences are 0, or exp(z) is
_LEAST = {"float32": 2.0**-126, "float64": 2.0**-1022}  # normal numbers
_LARGE = {"float32": 2.0**96, "float64": 2.0**992}  # 2 ζ times more may overflow
# Adding less than half an ulp to the largest does not overflow.
_SPARE = {"float32": float.fromhex("0x1.ffffep+102"), "float64": float.fromhex("0x1.fffffffffffp+969")}


# ---------------------------------------------------------------------------------------------------------------------
# logits


def capped(x: Array, softcap: float | None, temperature: Array | float, axes: Axes, *, xp: Any) -> Array:
    """z = softcap · tanh(x / softcap) / temperature of whole rows, as `tempered` has it."""
    x = softcapped(x, softcap, xp=xp)
    m = x if _is_mild(temperature) else _top(x, axes, xp=xp)
    return tempered(x, m, temperature, xp=xp)


def lifted(
    lse: Array,
    x: Array,
    softcap: float | None,
    temperature: Array | float,
    axes: Axes,
    unit: Array | float = 1.0,
    *,
    xp: Any,
) -> Array:
    """unit · logsumexp(x) from that of the z that `capped` makes of x."""
    lse = lse * unit
    if _is_mild(temperature):
        return lse
    m = _top(softcapped(x, softcap, xp=xp), axes, xp=xp)
    return lse + over(_origin(m, temperature, xp=xp), temperature, unit, xp=xp)


def softcapped(x: Array, softcap: float | None, *, xp: Any) -> Array:
    """softcap · tanh(x / softcap). An infinite logit stays infinite."""
    return x if softcap is None else xp.where(xp.isinf(x), x, softcap * xp.tanh(x / softcap))


def tempered(x: Array, m: Array, temperature: Array | float, *, xp: Any) -> Array:
    """x / temperature; (x − m) / temperature where that of the maximum m would be huge.

    There x − m is exact wherever exp(z) is not 0, and whatever is huge but for its ties alone has a weight.
    """
    return over(x if _is_mild(temperature) else x - _origin(m, temperature, xp=xp), temperature, xp=xp)


def _origin(m: Array, temperature: Array | float, *, xp: Any) -> Array:
    if not isinstance(temperature, float):
        temperature = as_array(temperature, m, xp=xp)
    huge = xp.isfinite(m) & (over(xp.abs(m), temperature, xp=xp) > _HUGE) & (temperature < 1.0)
    return xp.where(huge, m, xp.zeros_like(m))


def _is_mild(temperature: Array | float) -> bool:
    return isinstance(temperature, float) and temperature >= 1.0


def is_cold(temperature: Array | float) -> bool:
    """Whether what is divided by it may be a number times another factor, and none by itself."""
    return isinstance(temperature, float) and temperature < 2.0**-64


def _top(x: Array, axes: Axes, *, xp: Any) -> Array:
    return constant(maximum(x, axes, xp=xp), xp)  # no derivative of a row asks for a shift


def over(a: Array, temperature: Array | float, unit: Array | float = 1.0, *, xp: Any) -> Array:
    """unit · a / temperature, which keeps 0 and ∞ also where the dtype of a has no such number, or flushes it"""
    least = _LEAST[dtype_name(a)]
    if (known := isinstance(temperature, float)) and least <= temperature <= 1.0 / least:
        a = a if _is(unit, 1.0) else a * unit
        return a if temperature == 1.0 else a / temperature
    # XLA multiplies by the reciprocal, which is not to be subnormal, and would make one infinite factor of two at hand
    stays = (a == 0.0) | xp.isinf(a)
    if known:
        by, more = (2.0**-64, 2.0**-96) if temperature > 1.0 else (2.0**64, 2.0**96)
        if not least <= temperature * by <= 1.0 / least:  # a float has more of them than the dtype of a
            a, temperature = xp.where(stays, a, more * a), min(more * temperature, 1.0 / (least * by))
    else:
        temperature = as_array(temperature, a, xp=xp)
        by = xp.where(temperature > 1.0, 0.25, 1.0)
    scaled = xp.where(stays, a, by * a)
    # after the factor, lest a subnormal lose its digits
    return xp.where(stays, a, (scaled if _is(unit, 1.0) else scaled * unit) / (by * temperature))


def as_array(number: Array | float, like: Array, *, xp: Any) -> Array:
    """A number with 0 dimensions; PyTorch's symbolic ones are no arrays, and mlx knows no devices."""
    if hasattr(number, "dtype"):
        return number
    device = device_of(like)
    return xp.ones((), dtype=like.dtype, **({} if device is None else {"device": device})) * number


def capped_derivatives(x: Array, softcap: float | None, *, xp: Any) -> tuple[Array | None, Array | None]:
    """temperature · dz/dx = sech²(u) and temperature · d²z/dx² = −2 tanh(u) sech²(u) / softcap, u = x / softcap.

    None stands for 1 and for 0.
    """
    if softcap is None:
        return None, None
    u = x / softcap
    e = xp.exp(-2.0 * xp.where(u < 0.0, -u, u))
    sech2 = 4.0 * e / ((1.0 + e) * (1.0 + e))  # 1 − tanh² would cancel where tanh is near ±1
    return sech2, -2.0 * xp.tanh(u) * sech2 / softcap


class Exponentials(NamedTuple):
    """A row of logits, exponentiated so that neither overflow nor rounding of x − c can touch it."""

    m: Array  # max x
    w: Array  # exp(x − c)
    wm: Array  # exp(m − c)
    q: Array  # Σ w less one copy of wm; nan where m is not finite

    @property
    def s(self) -> Array:
        return self.q + self.wm

    def softmax(self) -> Array:
        return self.w / self.s

    def complement(self, *, xp: Any) -> Array:
        """1 − y, as q / s at a class with more than half of y, where it would cancel."""
        y = self.softmax()
        return xp.where(y > 0.5, self.q / self.s, 1.0 - y)

    def log_sum(self, *, xp: Any) -> Array:
        """log(s / wm) = logsumexp(x) − m, right also where it is tiny: one copy of the maximum stays out of the sum."""
        return xp.log1p(self.q / self.wm)


def exponentials(
    x: Array, axes: Axes, headroom: Array | None = None, *, classes: int | None = None, m: Array | None = None, xp: Any
) -> Exponentials:
    """`headroom`: the logarithm of a factor that w can be multiplied by without overflow, for c = m at the latest.

    `classes`: the number of classes of a row of which x holds a part. `m`: the maximum, where it is known.
    """
    m = maximum(x, axes, xp=xp) if m is None else m
    shift = _shift(m, _count(x, axes) if classes is None else classes, headroom, xp=xp)
    wm = shift.exp(shift.m0, xp=xp)
    at_max = x == m
    w = xp.where(at_max, wm, shift.exp(x, xp=xp))
    ties = count(at_max, axes, x.dtype, xp=xp)
    q = total(xp.where(at_max, xp.zeros_like(w), w), axes, wm, xp=xp) + (ties - 1.0) * wm
    return Exponentials(m, w, wm, xp.where(shift.finite, q, xp.full_like(q, math.nan)))


class _Shift(NamedTuple):
    """How a row with maximum m is exponentiated; m0 = m, but 0 where m is not finite."""

    m0: Array
    c: Array
    scale: Array
    finite: Array

    def exp(self, x: Array, *, xp: Any) -> Array:
        """exp(x − c) · scale; neither x − c nor exp overflows, whatever the row holds"""
        _, _, largest = _LIMITS.get(dtype_name(x), _LIMITS["float64"])
        positive = self.m0 > 0.0
        lowest = xp.where(positive, self.m0, xp.zeros_like(self.m0)) - largest
        lowest = xp.where(positive, lowest, xp.full_like(lowest, -math.inf))
        inside = xp.minimum(xp.maximum(x, lowest), self.m0)
        return xp.exp(inside - self.c) * self.scale


def _shift(m: Array, classes: int, headroom: Array | None = None, *, xp: Any) -> _Shift:
    big, _, _ = _LIMITS.get(dtype_name(m), _LIMITS["float64"])
    finite = xp.isfinite(m)
    m0 = xp.where(finite, m, xp.zeros_like(m))
    c = exact_shift(m0, xp=xp)
    limit = big - math.log(classes) - 1.0
    if headroom is not None:
        c = xp.where(m0 - c + headroom > limit, m0, c)
    # s would overflow: scale by a power of two; what underflows by it is below the smallest subnormal y anyway
    scale = xp.where(
        m0 - c > limit,
        xp.full_like(m0, 2.0 ** -(2 + math.ceil(math.log2(classes)))),
        xp.ones_like(m0),
    )
    return _Shift(m0, c, scale, finite)


def exact_shift(m: Array, *, xp: Any) -> Array:
    """A shift c ≈ m that makes x − c exact wherever exp(x − c) / s is a normal number.

    m < 0: the integer below, so |x − c| ≤ |x| but for x > −1/2, half an ulp.  0 ≤ m ≤ T: none.  T < m < 2U: an integer
    c ≤ x.  2U ≤ m: m itself (Sterbenz).  m − c ≥ 0, so that w ≥ y: where subnormals are flushed, no normal y is lost.
    """
    big, tiny, _ = _LIMITS.get(dtype_name(m), _LIMITS["float64"])
    above = xp.where(m < 2.0 * tiny, xp.ceil(m - big), m)
    return xp.where(m < 0.0, xp.ceil(m) - 1.0, xp.where(m > big, above, xp.zeros_like(m)))


def _count(x: Array, axes: Axes) -> int:
    """The number of classes; an upper bound where the shape does not tell."""
    sizes = [x.shape[axis] for axis in axes]
    return 2**31 if not all(isinstance(size, int) for size in sizes) else math.prod(sizes)


# ---------------------------------------------------------------------------------------------------------------------
# softmax


def softmax(x: Array, axes: Axes, *, xp: Any) -> Array:
    """y_i = exp(x_i) / Σ_j exp(x_j)"""
    return exponentials(x, axes, xp=xp).softmax()


def excess(y: Array, axes: Axes, *, xp: Any) -> Array:
    """r = Σ y − 1: what Σ w was rounded by, the same for all y of a row, which are y (1 − r)"""
    high, low = apart(y, axes, xp=xp)
    return (high - 1.0) + low


def softmax_product(y: Array, v: Array, axes: Axes, *, xp: Any) -> Array:
    """Σ_j y_i (δ_ij − y_j) v_j = y_i (v_i − Σ_j y_j v_j); the Jacobian is symmetric, so this is vjp and jvp in one."""
    return y * centred(y, v, axes, xp=xp)


def centred(y: Array, v: Array, axes: Axes, *, xp: Any) -> Array:
    """v_i − Σ_j y_j v_j.

    v is taken relative to the class that has more than half of y, whose own entry would otherwise cancel; this needs
    Σ y = 1, but for rounding. That class's own 0 is none of a difference, so that the transpose cancels nothing either.
    """
    top = _majority(y, axes, xp=xp) & _sums_to_one(total(y, axes, xp=xp), xp=xp)
    zeros = xp.zeros_like(v)
    d = xp.where(top, zeros, v - total(xp.where(top, v, zeros), axes, xp=xp))
    return d - total(y * d, axes, xp=xp)


def softmax_jacobian(y: Array, *, xp: Any) -> Array:
    """∂y_i / ∂x_j = y_i (δ_ij − y_j), classes on the last axis."""
    rows, columns = with_axis(y, -1), with_axis(y, -2)
    diagonal = with_axis(y * complement(y, (-1,), xp=xp), -1)
    n, device = y.shape[-1], device_of(y)
    same = class_indices(n, -2, xp, device, rows) == class_indices(n, -1, xp, device, columns)
    return xp.where(same, diagonal, -rows * columns)


def complement(y: Array, axes: Axes, *, xp: Any) -> Array:
    """1 − y_i; for the class that has more than half, the sum of the others, which does not cancel."""
    majority = _majority(y, axes, xp=xp)
    others = total(xp.where(majority, xp.zeros_like(y), y), axes, xp=xp)
    return xp.where(majority & _sums_to_one(others + y, xp=xp), others, 1.0 - y)


def _sums_to_one(total_y: Array, *, xp: Any) -> Array:
    return xp.abs(total_y - 1.0) < 1.0 / 64.0  # half precision rounds many small probabilities


def _majority(y: Array, axes: Axes, *, xp: Any) -> Array:
    return (y > 0.5) & (y == maximum(y, axes, xp=xp))


# ---------------------------------------------------------------------------------------------------------------------
# log_softmax and logsumexp


def log_softmax(x: Array, axes: Axes, *, xp: Any) -> Array:
    """log y_i = (x_i − m) − log1p(q / wm)"""
    e = exponentials(x, axes, xp=xp)
    return (0.0 - distance_from_max(x, e.m, xp=xp)) - e.log_sum(xp=xp)


class LogProductState(NamedTuple):
    """What some classes of a row tell of a product of log_softmax; the states of parts are added.

    The terms are v for the vjp, y v for the jvp. A class alone with more than half of y stays out of the sum that its
    own result needs.
    """

    above: Array  # how many classes have y > 1/2
    top: Array  # Σ of their terms
    rest: Array  # Σ of the other terms


def log_softmax_vjp(log_y: Array, dy: Array, axes: Axes, state: LogProductState | None = None, *, xp: Any) -> Array:
    """Σ_i dy_i (δ_ij − y_j) = dy_j (1 − y_j) − y_j Σ_{i≠j} dy_i"""
    s = vjp_state(log_y, dy, axes, xp=xp) if state is None else state
    own, others = _apart(log_y, dy, s, xp=xp)
    return own - xp.exp(log_y) * others


def log_softmax_jvp(log_y: Array, dx: Array, axes: Axes, state: LogProductState | None = None, *, xp: Any) -> Array:
    """Σ_j (δ_ij − y_j) dx_j = dx_i (1 − y_i) − Σ_{j≠i} y_j dx_j"""
    s = jvp_state(log_y, dx, axes, xp=xp) if state is None else state
    own, others = _apart(log_y, dx, s, xp=xp)
    return own - others


def vjp_state(log_y: Array, dy: Array, axes: Axes, *, xp: Any) -> LogProductState:
    return _log_product_state(log_y, dy, axes, xp=xp)


def jvp_state(log_y: Array, dx: Array, axes: Axes, *, xp: Any) -> LogProductState:
    return _log_product_state(log_y, xp.exp(log_y) * dx, axes, xp=xp)


def _log_product_state(log_y: Array, terms: Array, axes: Axes, *, xp: Any) -> LogProductState:
    above, zeros = log_y > _LOG_HALF, xp.zeros_like(terms)
    top, rest = (total(a, axes, xp=xp) for a in (xp.where(above, terms, zeros), xp.where(above, zeros, terms)))
    return LogProductState(count(above, axes, terms.dtype, xp=xp), top, rest)


def merged_log_products(s: LogProductState, axes: Axes, *, xp: Any) -> LogProductState:
    return LogProductState(*(total(a, axes, xp=xp) for a in s))


def _apart(log_y: Array, v: Array, s: LogProductState, *, xp: Any) -> tuple[Array, Array]:
    """v (1 − y) and the sum of the other terms at the class alone with more than half of y; v and all terms elsewhere.

    There v cancels no more than half of itself.
    """
    alone = (log_y > _LOG_HALF) & (s.above == 1.0)
    not_y = -xp.expm1(xp.where(alone, log_y, xp.zeros_like(log_y)))
    return xp.where(alone, v * not_y, v), xp.where(alone, s.rest, s.top + s.rest)


def distance_from_max(x: Array, m: Array, *, xp: Any) -> Array:
    """m − x ≥ 0, ∞ where it overflows or x = −∞, without a floating-point warning."""
    _, _, largest = _LIMITS.get(dtype_name(x), _LIMITS["float64"])
    m0 = xp.where(xp.isfinite(m), m, xp.zeros_like(m))
    spare = _SPARE.get(dtype_name(x), _SPARE["float64"])
    lowest = (xp.where(m0 > 0.0, m0, xp.zeros_like(m)) - largest) - spare
    return xp.where(x < lowest, xp.full_like(x, math.inf), m0 - xp.where(x < lowest, m0, xp.minimum(x, m0)))


def logsumexp(x: Array, axes: Axes, *, xp: Any) -> Array:
    """log Σ_i exp(x_i) = m + log1p(q / wm)"""
    e = exponentials(x, axes, xp=xp)
    return _logsumexp(e.m, e.log_sum(xp=xp), xp=xp)


def _logsumexp(m: Array, log_sum: Array, *, xp: Any) -> Array:
    finite = xp.isfinite(m)
    return xp.where(finite, m + xp.where(finite, log_sum, xp.zeros_like(m)), m)


def logsumexp_gradient(x: Array, axes: Axes, *, softmax: Any, xp: Any) -> Array:
    """∂ logsumexp / ∂x_i = y_i; a class at −∞ has none, also where all are"""
    return xp.where(x == -math.inf, xp.zeros_like(x), softmax(x, axes, xp=xp))


def signed_logsumexp(x: Array, b: Array, axes: Axes, *, xp: Any) -> tuple[Array, Array]:
    """log |Σ_i b_i exp(x_i)| and the sign of the sum. b_i = 0 hides x_i."""
    x = xp.where(b == 0.0, xp.full_like(x, -math.inf), x)
    largest = maximum(xp.abs(b), axes, xp=xp)
    e = exponentials(x, axes, xp.log(xp.maximum(largest, xp.ones_like(largest))), xp=xp)
    at_max, zeros, ones = x == e.m, xp.zeros_like(largest), xp.ones_like(largest)
    bm = total(xp.where(at_max, b, xp.zeros_like(b)), axes, xp=xp)
    # Σ b w / wm = σ (1 + r), also where it is ±1 but for the smallest of its terms
    high, low = _cut_total(xp.where(at_max, b, b * (e.w / e.wm)), largest, axes, xp=xp)
    sigma = xp.where(high + low < 0.0, -ones, ones)
    r = (sigma * high - 1.0) + sigma * low
    near = r > -0.25  # XLA's log1p is off by 128 ulp from −0.45 to −0.35
    s = xp.where(near, 1.0 + r, sigma * (high + low))
    magnitude = xp.where(near | (s == 0.0), ones, s)
    log_s = xp.where(near, xp.log1p(xp.where(near, r, zeros)), xp.log(magnitude))
    finite = xp.isfinite(e.m)
    value = xp.where(finite, xp.where(finite, e.m, zeros) + log_s, e.m)
    value = xp.where(finite & (s == 0.0), xp.full_like(value, -math.inf), value)
    sign = _sign(xp.where(e.m == math.inf, bm, xp.where(e.m == -math.inf, zeros, sigma * s)), xp=xp)
    # ∞ of either sign meets ∞ of the other
    unlike = (e.m == math.inf) & (xp.abs(bm) != total(xp.where(at_max, xp.abs(b), xp.zeros_like(b)), axes, xp=xp))
    nan = xp.full_like(value, math.nan)
    return xp.where(unlike, nan, value), xp.where(unlike | xp.isnan(e.m), nan, sign)


def _cut_total(t: Array, largest: Array, axes: Axes, *, xp: Any) -> tuple[Array, Array]:
    """Σ t in two: terms cut at an ulp of 2 C max |t| add up exactly, in any order, and so little is left."""
    _, _, limit = _LIMITS.get(dtype_name(t), _LIMITS["float64"])
    factor = 2.0 ** (2 * max(1, _count(t, axes)) - 1).bit_length()  # of two: a fused product rounds alike
    cut = xp.where(largest < limit / factor / 2.0, factor * largest, xp.zeros_like(largest))
    high = (t + cut) - cut
    finite = xp.isfinite(high)
    low = xp.where(finite, t, xp.zeros_like(t)) - xp.where(finite, high, xp.zeros_like(high))
    return total(high, axes, xp=xp), total(low, axes, xp=xp)


def _sign(x: Array, *, xp: Any) -> Array:
    """Of nan, nan; array_api_compat's own for PyTorch writes these in place, which not every tensor can."""
    sign = xp.astype(x > 0.0, x.dtype) - xp.astype(x < 0.0, x.dtype)
    return xp.where(xp.isnan(x), x, sign)


# ---------------------------------------------------------------------------------------------------------------------
# cross-entropy of a row: L = Σ_i t_i (logsumexp(x) − x_i) + ζ logsumexp(x)², T = Σ_i t_i


class Part(NamedTuple):
    """Some classes of a row: from `start`, of `classes`, of which `kept` are not masked."""

    start: int
    classes: int
    kept: Array | int


def targets(
    given: Array,
    where: Array | None,
    weight: Array | None,
    *,
    labels: bool,
    label_smoothing: float,
    like: Array,
    axis: int,
    xp: Any,
    part: Part | None = None,
) -> Array:
    """t = weight · ((1 − ε) target + ε / K), K the number of classes kept; no such class: a row of nan"""
    if labels:
        n = like.shape[axis]
        start, classes = (0, n) if part is None else part[:2]
        label = with_axis(given, axis)
        hit = xp.astype(label == class_indices(n, axis, xp, device_of(like), like) + start, like.dtype)
        t = xp.where((label >= 0) & (label < classes), hit, xp.full_like(hit, math.nan))
    else:
        t = given if where is None else xp.where(where, given, xp.zeros_like(given))
    if label_smoothing:
        kept = xp.ones_like(like) if where is None else xp.where(where, xp.ones_like(like), xp.zeros_like(like))
        number = xp.sum(kept, axis=axis, keepdims=True) if part is None else part.kept
        if not isinstance(number, int):
            number = xp.maximum(number, xp.ones_like(number))
        t = (1.0 - label_smoothing) * t + label_smoothing * kept / number
    return t if weight is None else times_weight(t, weight, xp=xp)


def sum_of_targets(
    given: Array,
    where: Array | None,
    weight: Array | None,
    *,
    labels: bool,
    label_smoothing: float,
    like: Array,
    axes: Axes,
    xp: Any,
) -> Pair:
    """T = (1 − ε) Σ weight · target + ε Σ weight / K, in two parts; weights of labels are looked up, without t"""
    axis = axes[0]
    if labels and (weight is None or weight.shape[axis] == math.prod(weight.shape)):
        label = with_axis(given, axis)
        is_class = (label >= 0) & (label < like.shape[axis])
        of_label = xp.ones_like(label, dtype=like.dtype)
        if weight is not None:
            of_label = looked_up(xp.reshape(weight, (-1,)), xp.where(is_class, label, xp.zeros_like(label)), xp)
        sum_t = Pair(xp.where(is_class, of_label, xp.full_like(of_label, math.nan)))
    else:
        t = targets(given, where, weight, labels=labels, label_smoothing=0.0, like=like, axis=axis, xp=xp)
        sum_t = Pair(*apart(t, axes, xp=xp))
    if not label_smoothing:
        return sum_t
    own, share = 1.0 - label_smoothing, Pair(as_array(label_smoothing, like, xp=xp))
    sum_t = times(sum_t, Pair(as_array(own, like, xp=xp), (1.0 - own) - label_smoothing), xp=xp)
    if weight is None:
        return plus(sum_t, share, xp=xp)
    number = like.shape[axis]
    if where is not None:
        zeros = xp.zeros_like(like)
        number = total(xp.where(where, zeros + 1.0, zeros), (axis,), xp=xp)
        number = xp.maximum(number, xp.ones_like(number))
        weight = xp.where(where, weight, zeros)
    every = times(Pair(*apart(weight, (axis,), xp=xp)), share, xp=xp)
    return plus(sum_t, divided(every, as_array(number, like, xp=xp), xp=xp), xp=xp)


def times_weight(t: Array, weight: Array, *, xp: Any) -> Array:
    """t · weight, where t = 0 outweighs a weight that is not finite"""
    return t * xp.where((t == 0.0) & ~xp.isfinite(weight), xp.zeros_like(weight), weight)


def of_kept(a: Array, where: Array | None, axes: Axes, *, xp: Any) -> Array:
    """0 in rows of which `where` keeps nothing"""
    if where is None:
        return a
    where = where[(None,) * (a.ndim - where.ndim) + (...,)]
    return xp.where(count(where, axes, a.dtype, xp=xp) == 0.0, xp.zeros_like(a), a)


def cross_entropy(
    e: Exponentials, t: Array, far: Array, zeta: Array | float, lse: Array, axes: Axes, *, xp: Any
) -> Array:
    """L = T log1p(q / wm) + Σ_i t_i (m − x_i) + ζ logsumexp²: no term can cancel another; `far` is the second"""
    return _loss(total(t, axes, xp=xp), far, e.log_sum(xp=xp), zeta, lse, xp=xp)


def _loss(sum_t: Array, far: Array, log_sum: Array, zeta: Array | float, lse: Array, *, xp: Any) -> Array:
    # ∞ · 0 of an infinite target at the maximum
    far = xp.where(xp.isinf(sum_t) & xp.isnan(far), xp.zeros_like(far), far)
    loss = sum_t * log_sum + far
    return loss if _is(zeta, 0.0) else loss + zeta * lse * lse


def times_distance(t: Array, z: Array, top: Array, x: Array, m: Array, temperature: Array | float, *, xp: Any) -> Array:
    """t (top − z), 0 · ∞ = 0, of the z and the top that `tempered` makes of x and m.

    By a small temperature a share of a distance is a number where the distance is none.
    """
    near = _times_distance(t, z, top, xp=xp)
    if not is_cold(temperature):
        return near
    apart = over(_times_distance(t, x, m, xp=xp), temperature, xp=xp)
    return xp.where(xp.isinf(z) & xp.isfinite(x), apart, near)


def _times_distance(t: Array, x: Array, m: Array, *, xp: Any) -> Array:
    """By halves in rows where m − x may overflow, and t (m − x) need not."""
    m0 = xp.where(xp.isfinite(m), m, xp.zeros_like(m))
    ones = xp.ones_like(m0)
    half = xp.where(m0 > _SPARE.get(dtype_name(x), _SPARE["float64"]), 0.5 * ones, ones)
    distance = half * m0 - half * xp.minimum(x, m0)
    return t * xp.where(t == 0.0, xp.zeros_like(t), distance) / half


def cross_entropy_grad(
    y: Array, not_y: Array, t: Array, zeta: Array | float, lse: Array, axes: Axes, infinite: bool = False, *, xp: Any
) -> Array:
    """∂L/∂x_i = T y_i − t_i + 2 ζ logsumexp y_i, that is ŷ − y for one-hot targets; not_y = 1 − y.

    At a class with more than half of y: (T − t_i) − T (1 − y_i), from sums that leave that class out.
    `infinite`: unless T is. Not for tangents, of which JAX transposes what is linear.
    """
    others = total(xp.where(y > 0.5, xp.zeros_like(t), t), axes, xp=xp)
    return _grad(y, not_y, t, total(t, axes, xp=xp), others, zeta, lse, infinite, xp=xp)


def _grad(
    y: Array,
    not_y: Array,
    t: Array,
    sum_t: Array,
    others: Array,
    zeta: Array | float,
    lse: Array,
    infinite: bool,
    *,
    xp: Any,
) -> Array:
    apart = (y > 0.5) & ~xp.isinf(sum_t) if infinite else y > 0.5
    grad = xp.where(apart, others - sum_t * not_y, sum_t * y - t)
    return grad if _is(zeta, 0.0) else grad + 2.0 * zeta * times_or_zero(lse, y, xp=xp)


def times_or_zero(a: Array, b: Array, *, xp: Any) -> Array:
    """a b, 0 where b = 0, though a may be ∞"""
    return xp.where(b == 0.0, b, a) * b


def unit(lse: Array, *, xp: Any) -> Array:
    """A power of two for a row: with it 2 ζ logsumexp does not overflow where the row's scale makes a number of it."""
    large = xp.abs(lse) > _LARGE.get(dtype_name(lse), _LARGE["float64"])
    return xp.where(large, xp.full_like(lse, 2.0**-32), xp.ones_like(lse))


class Curvature(NamedTuple):
    """What of a row its Hessian is made of; y are softmax(x) (1 + r)."""

    y: Array
    r: Array | float
    sum_t: Pair  # T
    zeta: Array | float
    lse: Array  # None where ζ = 0; in units, as T is
    scale: Array | float | None
    unit: Array | float = 1.0

    def factors(self, *, xp: Any) -> tuple[Array, Array, Array | None]:
        """scale (T + 2 ζ logsumexp) (1 − r), rounded once; 2 ζ scale (1 − r); the scale that is left for the end.

        That is all of it in rows where the first would be huge, tiny or 0: what it multiplies may be the opposite.
        """
        own, pull = self.sum_t, 2.0 * self.zeta
        if not _is(self.zeta, 0.0):
            own = plus(own, times(Pair(self.lse), Pair(as_array(pull, self.lse, xp=xp)), xp=xp), xp=xp)
            pull = pull * self.unit
        one = as_array(1.0, self.y, xp=xp)
        scale = one if self.scale is None else one * self.scale
        scaled = times(own, Pair(scale, -self.r * scale), xp=xp).value()
        kept = 1.0 - self.r
        if self.scale is None or isinstance(self.scale, float):
            return scaled, pull * scale * kept, None
        least = _LEAST[dtype_name(scaled)] * 2.0**64
        fits = (xp.abs(scaled) > least) & (xp.abs(scaled) < 1.0 / least)
        now, later = xp.where(fits, scale, one), xp.where(fits, one, scale)
        return xp.where(fits, scaled, own.value() * kept), pull * now * kept, later


def hessian_product(of: Curvature, v: Array, axes: Axes, *, xp: Any) -> tuple[Array, Array | None]:
    """Σ_j ∂²L/∂x_i∂x_j v_j = (T + 2 ζ logsumexp) y_i (v_i − Σ y v) + 2 ζ y_i Σ y v, and the scale that is left.

    v is relative to that of the class with most of y, p, as in `centred`; v − p may be rounded by more than v and p.
    """
    y, zeros = of.y, xp.zeros_like(v)
    factor, pull, later = of.factors(xp=xp)
    top = y > _MOST
    p = total(xp.where(top, v, zeros), axes, xp=xp)
    rest = total(y * xp.where(top, zeros, v - p), axes, xp=xp)
    rest = rest - of.r * rest
    product = y * xp.where(top, -rest, v - (p + rest))
    if _is(of.zeta, 0.0):
        return factor * product, later
    # asked of y and not of the product, which JAX transposes as linear in v
    flat = y * xp.where(top, total(xp.where(top, zeros, y), axes, xp=xp), 1.0) == 0.0
    return xp.where(flat, zeros, factor) * product + pull * (p + rest) * y, later


def hessian_diag(of: Curvature, axes: Axes, *, xp: Any) -> tuple[Array, Array | None]:
    """∂²L/∂x_i² = (T + 2 ζ logsumexp) y_i (1 − y_i) + 2 ζ y_i², and the scale that is left."""
    factor, pull, later = of.factors(xp=xp)
    top = of.y > _MOST
    others = total(xp.where(top, xp.zeros_like(of.y), of.y), axes, xp=xp)
    y = of.y if _is(of.r, 0.0) else of.y * (1.0 - of.r)
    diag = of.y * xp.where(top, others - of.r * others, 1.0 - y)
    if _is(of.zeta, 0.0):
        return factor * diag, later
    return times_or_zero(factor, diag, xp=xp) + pull * of.y * y, later


def _is(option: Array | float, number: float) -> bool:
    return isinstance(option, float) and option == number


# ---------------------------------------------------------------------------------------------------------------------
# cross-entropy of a row that is read part by part: first the states of all parts, merged, then the gradients


class State(NamedTuple):
    """What some classes of a row tell; one copy of the maximum stays out of `q`, and its t out of `others`.

    The others are of the z that `tempered` makes of the classes' x and their m.
    """

    m: Array  # max x, before the temperature
    wm: Array
    q: Array  # where m = −∞: 0 if all these classes are masked, else nan
    top: Array  # t at the maximum, of ties their sum: no gradient asks for it then
    others: Array  # Σ of the other t
    far: Array  # Σ t (max z − z)

    @property
    def sum_t(self) -> Array:
        return self.top + self.others

    @property
    def is_empty(self) -> Array:
        """Whether all classes are masked."""
        return (self.m == -math.inf) & (self.q == 0.0)

    def log_sum(self, *, xp: Any) -> Array:
        return xp.log1p(self.q / self.wm)


def state(
    x: Array,
    t: Array | None,
    where: Array | None,
    classes: int,
    axes: Axes,
    temperature: Array | float = 1.0,
    *,
    xp: Any,
) -> State:
    """`x` is what `softcapped` returns, as in all that follows; `t` is None where no loss is asked for."""
    m = maximum(x, axes, xp=xp)
    z, top = (tempered(a, m, temperature, xp=xp) for a in (x, m))
    e = exponentials(z, axes, classes=classes, m=top, xp=xp)
    q = of_kept(e.q, where, axes, xp=xp)
    if t is None:
        zeros = xp.zeros_like(m)
        return State(m, e.wm, q, zeros, zeros, zeros)
    zeros, at_max = xp.zeros_like(t), z == top
    of_top, others = (total(a, axes, xp=xp) for a in (xp.where(at_max, t, zeros), xp.where(at_max, zeros, t)))
    far = total(times_distance(t, z, top, x, m, temperature, xp=xp), axes, xp=xp)
    return State(m, e.wm, q, of_top, others, far)


def merged(s: State, classes: int, axes: Axes, temperature: Array | float = 1.0, *, xp: Any) -> State:
    """The state of a row from those of its parts, side by side along `axes`, all at once.

    q = Σ (w_k + q_k w_k / wm_k) less one copy of wm, w_k = exp(z_k − c): no rounding is repeated by part after part.
    Where z of the row or of a part is huge, w_k is 0 or the part's own wm_k.
    """
    m = maximum(s.m, axes, xp=xp)
    z, top = (tempered(a, m, temperature, xp=xp) for a in (s.m, m))
    at_max, zeros = s.m == m, xp.zeros_like(s.m)
    own, shift = _shift(z, classes, xp=xp), _shift(top, classes, xp=xp)
    w, wm = shift.exp(z, xp=xp), shift.exp(shift.m0, xp=xp)
    d = own.c - shift.c  # exact, so that w_k / wm_k = exp(d) is rounded once, unless it underflows
    near = d > -_REACH.get(dtype_name(m), _REACH["float64"])
    ratio = xp.exp(xp.where(near, d, zeros)) * (shift.scale / own.scale)
    q = xp.where(near, s.q * ratio, (s.q / s.wm) * w)
    q = xp.where(z == -math.inf, zeros, q) + xp.where(at_max, zeros, w)
    q = total(q, axes, xp=xp) + (count(at_max, axes, q.dtype, xp=xp) - 1.0) * wm
    others = s.others + xp.where(at_max, zeros, s.top)
    return State(
        m,
        wm,
        xp.where(shift.finite, q, xp.where(m == -math.inf, total(s.q, axes, xp=xp), xp.full_like(q, math.nan))),
        total(xp.where(at_max, s.top, zeros), axes, xp=xp),
        total(others, axes, xp=xp),
        total(s.far + times_distance(s.sum_t, z, top, s.m, m, temperature, xp=xp), axes, xp=xp),
    )


def weight_of(x: Array, m: Array, classes: int, *, xp: Any) -> Array:
    """w = exp(x − c), c the shift of a row with maximum m"""
    return _shift(m, classes, xp=xp).exp(x, xp=xp)


def softmax_of_part(x: Array, s: State, classes: int, temperature: Array | float = 1.0, *, xp: Any) -> Array:
    """y at the classes x, s the state of the whole row."""
    return _of_part(x, s, classes, temperature, xp=xp).softmax()


def log_softmax_of_part(x: Array, s: State, temperature: Array | float = 1.0, *, xp: Any) -> Array:
    z, top = (tempered(a, s.m, temperature, xp=xp) for a in (x, s.m))
    return (0.0 - distance_from_max(z, top, xp=xp)) - s.log_sum(xp=xp)


def logsumexp_of_state(s: State, temperature: Array | float = 1.0, unit: Array | float = 1.0, *, xp: Any) -> Array:
    """unit · logsumexp"""
    return _logsumexp(over(s.m, temperature, unit, xp=xp), s.log_sum(xp=xp) * unit, xp=xp)


def _of_part(x: Array, s: State, classes: int, temperature: Array | float, *, xp: Any) -> Exponentials:
    z, top = (tempered(a, s.m, temperature, xp=xp) for a in (x, s.m))
    w = xp.where(z == top, s.wm, weight_of(z, top, classes, xp=xp))
    return Exponentials(top, w, s.wm, s.q)


def cross_entropy_of_state(s: State, zeta: Array | float, temperature: Array | float = 1.0, *, xp: Any) -> Array:
    lse = None if _is(zeta, 0.0) else logsumexp_of_state(s, temperature, xp=xp)
    loss = _loss(s.sum_t, s.far, s.log_sum(xp=xp), zeta, lse, xp=xp)
    return xp.where(s.is_empty, xp.zeros_like(loss), loss)


def cross_entropy_grad_of_part(
    x: Array,
    s: State,
    t: Array,
    zeta: Array | float,
    classes: int,
    temperature: Array | float = 1.0,
    unit: Array | float = 1.0,
    infinite: bool = False,
    *,
    xp: Any,
) -> Array:
    """The gradient at the classes x, s the state of the whole row; with t and its sums in units, in units."""
    e = _of_part(x, s, classes, temperature, xp=xp)
    lse = None if _is(zeta, 0.0) else logsumexp_of_state(s, temperature, unit, xp=xp)
    return _grad(e.softmax(), e.complement(xp=xp), t, s.sum_t, s.others, zeta, lse, infinite, xp=xp)


# ---------------------------------------------------------------------------------------------------------------------
# a product with the Jacobian of softmax, of a row that is read part by part


class ProductState(NamedTuple):
    """What some classes of a row tell of y (v − Σ y v); those at the largest y stay out of the sums."""

    top: Array  # max y
    ties: Array  # how many classes have it
    at_top: Array  # Σ of their v
    rest: Array  # Σ of the other y
    product: Array  # Σ of the other y v


def product_state(y: Array, v: Array, axes: Axes, *, xp: Any) -> ProductState:
    top = maximum(y, axes, xp=xp)
    at_top, zeros = y == top, xp.zeros_like(y)
    others = xp.where(at_top, zeros, y)
    ties, of_top, rest, product = (
        total(a, axes, xp=xp)
        for a in (xp.astype(at_top, y.dtype), xp.where(at_top, v, zeros), others, xp.where(at_top, zeros, others * v))
    )
    return ProductState(top, ties, of_top, rest, product)


def merged_products(s: ProductState, axes: Axes, *, xp: Any) -> ProductState:
    """Of a row from those of its parts, side by side along `axes`."""
    top = maximum(s.top, axes, xp=xp)
    at_top, zeros = s.top == top, xp.zeros_like(s.top)
    sums = (
        xp.where(at_top, s.ties, zeros),
        xp.where(at_top, s.at_top, zeros),
        s.rest + xp.where(at_top, zeros, s.ties * s.top),
        s.product + xp.where(at_top, zeros, s.top * s.at_top),
    )
    return ProductState(top, *(total(a, axes, xp=xp) for a in sums))


def pivot_and_mean(s: ProductState, *, xp: Any) -> tuple[Array, Array]:
    """p, the v of the class with more than half of y, if Σ y = 1 but for rounding, else 0; and Σ y (v − p)"""
    has_pivot = (s.top > 0.5) & _sums_to_one(s.rest + s.ties * s.top, xp=xp)
    pivot = xp.where(has_pivot, s.at_top, xp.zeros_like(s.top))
    return pivot, xp.where(has_pivot, s.product - pivot * s.rest, s.product + s.top * s.at_top)


def softmax_product_of_part(y: Array, v: Array, s: ProductState, *, xp: Any) -> Array:
    """y (v − p − Σ y (v − p))"""
    pivot, mean = pivot_and_mean(s, xp=xp)
    return y * ((v - pivot) - mean)


# ---------------------------------------------------------------------------------------------------------------------
# probabilities


def cross_entropy_from_probs(p: Array, t: Array, axes: Axes, *, xp: Any) -> Array:
    """−Σ t_i log p_i, 0 · log 0 = 0"""
    absent, certain = t == 0.0, p == 0.0
    log_p = xp.log(xp.where(certain | absent, xp.ones_like(p), p))
    log_p = xp.where(certain & ~absent, xp.full_like(p, -math.inf), log_p)
    return 0.0 - total(t * log_p, axes, xp=xp)  # never −0.0; compilers leave out a + 0.0


def entropy(p: Array, axes: Axes, *, xp: Any) -> Array:
    """−Σ p_i log p_i, −∞ where a p_i < 0"""
    positive = p > 0.0
    terms = xp.where(positive, -p * xp.log(xp.where(positive, p, xp.ones_like(p))), xp.zeros_like(p))
    return total(xp.where(p < 0.0, xp.full_like(p, -math.inf), _or_nan(terms, p, xp=xp)), axes, xp=xp)


def kl_divergence(p: Array, q: Array, axes: Axes, *, xp: Any) -> Array:
    """Σ p_i log(p_i / q_i), ∞ where q_i = 0 < p_i or either is negative; log1p((p − q) / q) where they are close"""
    both = (p > 0.0) & (q > 0.0)
    p1, q1 = xp.where(both, p, xp.ones_like(p)), xp.where(both, q, xp.ones_like(q))
    close = (p1 < 2.0 * q1) & (3.0 * q1 < 4.0 * p1)  # p / q from 3/4 to 2
    apart = xp.log(p1) - xp.log(q1)
    big, _, _ = _LIMITS.get(dtype_name(p), _LIMITS["float64"])
    moderate = xp.abs(apart) < big - 8.0  # where p / q neither overflows nor is subnormal
    ratio = xp.where(moderate, p1, xp.ones_like(p1)) / xp.where(moderate, q1, xp.ones_like(q1))
    log_ratio = xp.where(moderate, xp.log(ratio), apart)
    log_ratio = xp.where(close, xp.log1p(xp.where(close, (p1 - q1) / q1, xp.zeros_like(q1))), log_ratio)
    infinite = (p < 0.0) | (q < 0.0) | ((q == 0.0) & (p > 0.0))
    terms = xp.where(both, p1 * log_ratio, xp.zeros_like(p))
    terms = xp.where(infinite, xp.full_like(p, math.inf), terms)
    return total(_or_nan(_or_nan(terms, p, xp=xp), q, xp=xp), axes, xp=xp)


def _or_nan(terms: Array, p: Array, *, xp: Any) -> Array:
    return xp.where(xp.isnan(p), p, terms)
