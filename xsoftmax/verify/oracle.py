"""The exact reference: every verb in arbitrary precision on the exact values of its inputs.

Nothing here goes through the library's own formulas. Long rows are computed by run length: once per distinct entry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from .exact import Exact, Later, Total, amount
from .formats import FORMATS, MP, promoted
from .loss_problem import LossProblem, Reduction
from .mathematics import INF, NAN, ONE, ZERO, Transform, exp, loss_row, sensitivities, state, working_bits
from .rows import AsRows, as_float64, distinct, row_mask

HALF = ("float16", "bfloat16")


def expected(
    verbs: tuple[str, ...], arrays: Mapping[str, np.ndarray], options: Mapping, default_float: str = "float64"
) -> dict[str, tuple[Exact, ...]]:
    """Exact results of verbs of one family on the same inputs.

    ``arrays`` holds the positional arrays by name (``x``; ``y, dy``; ``logits, targets, v``; ``p, q``, …), ``options``
    the keyword arguments. Integer and bool arrays that the library converts become ``default_float`` first.
    """
    family = next(f for f in FAMILIES if set(verbs) <= set(FAMILIES[f]))
    results = _COMPUTE[family](dict(arrays), dict(options), default_float, verbs)
    return {verb: results[verb] for verb in verbs}


FAMILIES = {
    "softmax": ("softmax", "log_softmax", "logsumexp"),
    "jacobian": ("softmax_jacobian",),
    "softmax product": ("softmax_vjp", "softmax_jvp"),
    "log_softmax product": ("log_softmax_vjp", "log_softmax_jvp"),
    "cross_entropy": (
        "cross_entropy",
        "cross_entropy_grad",
        "cross_entropy_and_grad",
        "cross_entropy_hvp",
        "cross_entropy_grad_and_hessian_diag",
    ),
    "linear": (
        "linear_cross_entropy",
        "linear_cross_entropy_and_grad.grad_input",
        "linear_cross_entropy_and_grad.grad_linear_weight",
        "linear_cross_entropy_and_grad.grad_linear_bias",
    ),
    "from_probs": ("cross_entropy_from_probs",),
    "entropy": ("entropy",),
    "kl_divergence": ("kl_divergence",),
}


def _floating(a: np.ndarray, default_float: str) -> np.ndarray:
    return a if a.dtype.kind not in "biu" else a.astype(default_float)


def _loss_dtype(dtype: str) -> str:
    return "float32" if dtype in HALF else dtype


def _transform_slack(changes: Later | None, transform: Transform, j: int) -> dict:
    return {transform.roundings: changes[j]} if changes else {}


def _changes(transform: Transform, function: Callable, z: list, bits: int) -> Later | None:
    return None if transform.exact else Later(partial(sensitivities, function, z), bits)


def _softmax(arrays, options, default_float, verbs) -> dict[str, tuple[Exact, ...]]:
    if "b" in options:
        return {"logsumexp": _weighted_logsumexp(arrays["x"], default_float, **options)}
    x = _floating(arrays["x"], default_float)
    axis, where = options.get("axis", -1), options.get("where")
    transform = Transform(options.get("temperature", 1.0))
    rows = AsRows.of(np.broadcast_shapes(x.shape, np.shape(where) if where is not None else ()), axis)
    dtype = x.dtype.name
    p, log_p = (Exact(kind, dtype, rows.axes) for kind in ("softmax", "log_softmax"))
    lse = Exact("logsumexp", dtype)
    values, mask = rows.split(as_float64(x)), row_mask(where, rows)
    index = np.empty(values.shape, np.int64)
    for i, (row, kept) in enumerate(zip(values, mask, strict=True)):
        (levels,), codes, counts = distinct(row[kept])
        bits = working_bits(levels, counts, transform)
        with MP.workprec(bits):
            z = [transform(a) for a in levels.tolist()]
            n = counts.tolist()
            s = state(z, n)
            underflow = {"underflowing sums": MP.mpf(int(counts.sum()))}
            changes = _changes(transform, partial(_probabilities, counts=n), z, bits)
            first = len(p.values)
            for j, (y, nll) in enumerate(zip(s.y, s.nll, strict=True)):
                p.add(y, **_transform_slack(changes, transform, j))
                log_p.add(-nll, **underflow, **_transform_slack(changes, transform, len(z) + j))
            lse.add(s.lse, s.lse_unit, **underflow)
            defined = bool(z) and not MP.isnan(s.y[0])
        p.totals.append(Total("sum of softmax", ONE, ONE) if defined else None)
        index[i, kept] = first + codes
        if not kept.all():
            index[i, ~kept] = p.add(ZERO)
            log_p.add(-INF)
    p.index = log_p.index = rows.join(index)
    lse.index = np.arange(values.shape[0]).reshape(rows.kept_shape if options.get("keepdims") else rows.outer_shape)
    results: dict[str, tuple[Exact, ...]] = {"softmax": (p,), "log_softmax": (log_p,), "logsumexp": (lse,)}
    if options.get("return_sign"):
        # e^x sums are never negative; an empty or all −inf row sums to 0
        sign = Exact("sign", dtype, index=lse.index)
        for value in lse.values:
            sign.add(value if MP.isnan(value) else ZERO if value == -INF else ONE)
        results["logsumexp"] = (lse, sign)
    return results


def _probabilities(z, counts) -> list:
    s = state(z, counts)
    return [*s.y, *(-a for a in s.nll)]


def _weighted_logsumexp(
    x, default_float, *, b, axis=-1, where=None, keepdims=False, return_sign=False
) -> tuple[Exact, ...]:
    x, b = _floating(x, default_float), _floating(np.asarray(b), default_float)
    dtype = promoted(x.dtype.name, b.dtype.name)
    rows = AsRows.of(np.broadcast_shapes(x.shape, b.shape, np.shape(where) if where is not None else ()), axis)
    lse, sign = Exact("logsumexp", dtype), Exact("sign", dtype)
    columns = rows.split(as_float64(x)), rows.split(as_float64(b)), row_mask(where, rows)
    for row, factors, kept in zip(*columns, strict=True):
        (levels, weights), _, counts = distinct(*(a[kept & (factors != 0)] for a in (row, factors)))
        value, unit, positive, below = _signed_sum(levels, weights, counts)
        slack = {"underflowing sums": MP.mpf(row.size), "signed terms": below}
        lse.add(NAN if positive == -1 and not return_sign else value, unit, **slack)
        sign.add(positive)
    lse.index = sign.index = np.arange(len(lse.values)).reshape(rows.kept_shape if keepdims else rows.outer_shape)
    return (lse, sign) if return_sign else (lse,)


def _signed_sum(levels, weights, counts) -> tuple:
    """Log |Σ b·e^x|, its unit, its sign, and the share of the terms below the maximum."""
    if np.isnan(levels).any() or np.isnan(weights).any():
        return NAN, NAN, NAN, ZERO
    if (levels == np.inf).any():
        signs = set(np.sign(weights[levels == np.inf]).tolist())
        return (INF, INF, MP.mpf(signs.pop()), ZERO) if len(signs) == 1 else (NAN, NAN, NAN, ZERO)
    finite = levels > -np.inf
    levels, weights, counts = levels[finite], weights[finite], counts[finite]
    if not levels.size:
        return -INF, INF, ZERO, ZERO
    with MP.workprec(2200):  # from 1 to an ulp of the smallest number
        m = MP.mpf(float(levels.max()))
        terms = [
            n * MP.mpf(b) * exp(MP.mpf(a) - m)
            for a, b, n in zip(levels.tolist(), weights.tolist(), counts.tolist(), strict=True)
        ]
        total = MP.fsum(terms)
        if not total:
            return -INF, INF, ZERO, ZERO
        log_s = MP.log(abs(total))
        value = m + log_s
        cancellation = MP.fsum(abs(t) for t in terms) / abs(total)
        below = MP.fsum(abs(t) for t, a in zip(terms, levels.tolist(), strict=True) if a < m) / abs(total)
        return value, max(abs(m), abs(log_s), abs(value)) * cancellation, MP.sign(total), below


def _jacobian(arrays, options, default_float, verbs) -> dict[str, tuple[Exact, ...]]:
    y = _floating(arrays["y"], default_float)
    rows = AsRows.of(y.shape, options.get("axis", -1))
    result = Exact("jacobian", y.dtype.name)
    values = rows.split(as_float64(y))
    index = np.empty((*values.shape, values.shape[1]), np.int64)
    for i, row in enumerate(values):
        (levels,), codes, counts = distinct(row)
        with MP.workprec(2200):
            p = [MP.mpf(a) for a in levels.tolist()]
            total = MP.fsum(n * a for n, a in zip(counts.tolist(), p, strict=True))
            pairs = np.array([[result.add(-a * b) for b in p] for a in p]).reshape(len(p), len(p))
            # 1 − y_i, or the sum of the others where that cancels
            diagonal = np.array(
                [result.add(a * (1 - a), a * abs(total - a), **{"off the simplex": a * abs(1 - total)}) for a in p]
            )
        index[i] = pairs[codes[:, None], codes]
        np.fill_diagonal(index[i], diagonal[codes])
    result.index = index.reshape(*rows.outer_shape, *index.shape[1:])
    return {"softmax_jacobian": (result,)}


def _products(kind: str, combine: Callable) -> Callable:
    """The two vector products of a family; ``combine`` gives value, unit and slack of each distinct entry of a row."""

    def compute(arrays, options, default_float, verbs) -> dict[str, tuple[Exact, ...]]:
        y, v = (_floating(a, default_float) for a in arrays.values())
        where = options.get("where")
        rows = AsRows.of(y.shape, options.get("axis", -1))
        dtype = promoted(y.dtype.name, v.dtype.name)
        results = {verb: Exact(kind, dtype, rows.axes) for verb in verbs}
        mask = row_mask(where, rows)
        index = np.empty(mask.shape, np.int64)
        for i, (row, vector, kept) in enumerate(
            zip(rows.split(as_float64(y)), rows.split(as_float64(v)), mask, strict=True)
        ):
            (levels, entries), codes, counts = distinct(row[kept], vector[kept])
            with MP.workprec(400):
                a, b = ([MP.mpf(t) for t in c.tolist()] for c in (levels, entries))
                for verb, result in results.items():
                    first = len(result.values)
                    for value, unit, slack in combine(verb, a, b, counts.tolist()):
                        result.add(value, unit, **slack)
                    if not kept.all():
                        index[i, ~kept] = result.add(ZERO)
            index[i, kept] = first + codes
        for result in results.values():
            result.index = rows.join(index)
        return {verb: (result,) for verb, result in results.items()}

    return compute


def _softmax_product(verb, y, v, counts) -> list[tuple]:
    """y·(v − Σ y v), the same for both: the Jacobian is symmetric."""
    mean = MP.fsum(n * a * b for n, a, b in zip(counts, y, v, strict=True))
    mean_abs = MP.fsum(n * a * abs(b) for n, a, b in zip(counts, y, v, strict=True))
    off = abs(1 - MP.fsum(n * a for n, a in zip(counts, y, strict=True)))
    largest = max(y, default=ZERO)
    at_top = max((abs(b) for a, b in zip(y, v, strict=True) if a == largest), default=ZERO)
    return [
        (a * (b - mean), a * (abs(b) + mean_abs), {"off the simplex": a * at_top * off})
        for a, b in zip(y, v, strict=True)
    ]


def _log_softmax_product(verb, log_y, v, counts) -> list[tuple]:
    """The vjp v_i (1 − y_i) − y_i Σ_{j≠i} v_j, the jvp v_i (1 − y_i) − Σ_{j≠i} y_j v_j.

    Where several classes have more than half, y is no probability: then |v_i| (1 − y_i) is |v_i| (1 + y_i) in the unit.
    """
    y, not_y = [exp(a) for a in log_y], [-MP.expm1(a) if a > -1 else 1 - exp(a) for a in log_y]
    vjp = verb == "log_softmax_vjp"
    terms = v if vjp else [a * b for a, b in zip(y, v, strict=True)]
    total = MP.fsum(n * t for n, t in zip(counts, terms, strict=True))
    total_abs = MP.fsum(n * abs(t) for n, t in zip(counts, terms, strict=True))
    alone = sum(n for n, a in zip(counts, y, strict=True) if a > 0.5) <= 1
    # what multiplies y, and so its rounding where it is subnormal
    lost = MP.fsum(n * (1 + abs(b)) for n, b in zip(counts, v, strict=True))
    results: list[tuple] = []
    for i, (a, b) in enumerate(zip(y, v, strict=True)):
        others, others_abs, factor = total - terms[i], total_abs - abs(terms[i]), a if vjp else ONE
        if a > 0.5:  # where the difference would lose them
            left = [n - (j == i) for j, n in enumerate(counts)]
            others = MP.fsum(n * t for n, t in zip(left, terms, strict=True))
            others_abs = MP.fsum(n * abs(t) for n, t in zip(left, terms, strict=True))
        unit = abs(b) * (abs(not_y[i]) if alone else 1 + a) + factor * others_abs
        results.append((b * not_y[i] - factor * others, unit, {"underflowing sums": lost}))
    return results


def _cross_entropy(
    arrays,
    options,
    default_float,
    verbs,
) -> dict[str, tuple[Exact, ...]]:
    logits, targets = _floating(arrays["logits"], default_float), arrays["targets"]
    problem = LossProblem(logits, targets, **options)
    rows, transform = problem.rows, problem.transform
    x, v = rows.split(as_float64(logits)), rows.split(as_float64(arrays.get("v", np.zeros(()))))
    dtype = logits.dtype.name
    losses = Reduction(problem, _loss_dtype(dtype))
    grad = Exact("gradient", dtype, rows.axes)
    hvp, diag = Exact("vector_product", dtype, rows.axes), Exact("hessian_diag", dtype, rows.axes)
    index = np.empty(x.shape, np.int64)

    def fill(i, where, value):
        for result in (grad, hvp, diag):
            index[i, where] = result.add(value)

    for i, row in enumerate(x):
        if not problem.present[i]:
            fill(i, slice(None), ZERO)
        elif problem.bad[i]:
            fill(i, slice(None), NAN)
        if not problem.present[i] or problem.bad[i]:
            losses.add(i, NAN if problem.bad[i] and problem.present[i] else ZERO, ZERO, {})
            grad.totals.append(None)
            continue
        kept = problem.mask[i]
        levels, codes, counts = distinct(*(a[kept] for a in (row, problem.targets[i], problem.weight, v[i])))
        n = counts.tolist()
        bits = working_bits(levels[0], counts, transform)
        with MP.workprec(bits):
            coefs = problem.coefficients(levels[1].tolist(), levels[2].tolist(), n)
            z, vector = [transform(a) for a in levels[0].tolist()], [MP.mpf(a) for a in levels[3].tolist()]
            scale, z_scale = problem.scales(i)
            rest = (n, coefs, transform, scale, z_scale, vector, problem.masked_coefficient(i))
            exact = loss_row(z, *rest)
            flat = _changes(transform, lambda z, rest=rest: loss_row(z, *rest).values(), z, bits)
            loss, loss_unit = exact.loss
            weight = abs(scale) * (abs(rest[-1]) + MP.fsum(a * abs(q) for a, q in zip(n, coefs, strict=True)))
            # what multiplies y, or its product with v, and so their rounding where they are subnormal
            pull = max(weight, abs(scale)) + (2 * abs(z_scale * state(z, n).lse) if z_scale and z else ZERO)
            lost = pull * len(row)
            losses.add(i, loss, loss_unit, {"underflowing sums": lost, **_transform_slack(flat, transform, 0)})
            first, k = len(grad.values), len(z)
            # of gradient, Hessian diagonal and product, which a small T makes more of after these roundings
            slope = max(1 / MP.mpf(transform.temperature), ONE)
            sizes = (slope, slope**2, slope**2 * max(map(abs, [*vector, ONE])))
            underflow = [{"underflowing sums": lost * size} for size in sizes]
            for part, result in enumerate((grad, diag, hvp)):
                for j, (value, unit) in enumerate((exact.grad, exact.hessian_diag, exact.hvp)[part]):
                    result.add(value, unit, **underflow[part], **_transform_slack(flat, transform, 1 + part * k + j))
            grad.totals.append(problem.gradient_total(exact, coefs, n, weight))
        index[i, kept] = first + codes
        if not kept.all():
            fill(i, ~kept, ZERO)
    grad.kind = "gradient" if problem.one_hot else "general_gradient"
    for result in (grad, hvp, diag):
        result.index = rows.join(index)
    loss = losses.result()
    return {
        "cross_entropy": (loss,),
        "cross_entropy_grad": (grad,),
        "cross_entropy_and_grad": (loss, grad),
        "cross_entropy_hvp": (hvp,),
        "cross_entropy_grad_and_hessian_diag": (grad, diag),
    }


def _linear(arrays, options, default_float, verbs) -> dict[str, tuple[Exact, ...]]:
    """Of inputs whose logits are exact in their dtype, so that no product for them rounds."""
    of_logits = {name: value for name, value in options.items() if name not in ("linear_bias", "chunk_size")}
    x, factor = (_floating(arrays[name], default_float) for name in ("input", "linear_weight"))
    exact = as_float64(x) @ as_float64(factor).T + as_float64(options.get("linear_bias", np.zeros(())))
    logits = exact.astype(x.dtype)
    if not np.array_equal(as_float64(logits), exact):
        raise ValueError("linear_cross_entropy: the case's logits are not exact in their dtype")
    of_whole = {"logits": logits, "targets": arrays["targets"]}
    results = _cross_entropy(of_whole, of_logits, default_float, verbs)
    (grad,) = results["cross_entropy_grad"]
    ones = np.ones((len(x), 1), x.dtype)
    verb = "linear_cross_entropy_and_grad"
    return {
        "linear_cross_entropy": results["cross_entropy"],
        f"{verb}.grad_input": (_product(grad, grad.index, factor),),
        f"{verb}.grad_linear_weight": (_product(grad, grad.index.T, x),),
        f"{verb}.grad_linear_bias": (_product(grad, grad.index.T, ones, (len(factor),)),),
    }


def _product(grad: Exact, index: np.ndarray, other: np.ndarray, shape: tuple[int, ...] | None = None) -> Exact:
    """g @ other in units of n Σ |terms|: sums of n terms in any order are off by half an ulp of these at most."""
    result = Exact("linear_gradient", other.dtype.name)
    columns = [[MP.mpf(a) for a in column] for column in as_float64(other).T.tolist()]
    # a subnormal g is off by as much as the smallest normal one
    tiny = FORMATS["float32" if other.dtype.name in HALF else other.dtype.name].tiny
    with MP.workprec(400):
        for codes in index.tolist():
            row = [grad.values[code] for code in codes]
            units = [max(grad.units[code], tiny) if g else g for g, code in zip(row, codes, strict=True)]
            slack = [grad.slack[code] for code in codes]
            for column in columns:
                size = [abs(a) for a in column]
                result.add(
                    MP.fsum(g * a for g, a in zip(row, column, strict=True)),
                    len(codes) * MP.fsum(u * a for u, a in zip(units, size, strict=True)),
                    **{name: partial(_allowed, name, slack, size) for name in {name for one in slack for name in one}},
                )
    result.index = np.arange(len(result.values)).reshape(shape or (len(index), len(columns)))
    return result


def _allowed(name: str, slack: list[dict], sizes: list):
    """Σ of an allowance times what it is multiplied by."""
    with MP.workprec(400):
        return MP.fsum(amount(one.get(name, ZERO)) * a for one, a in zip(slack, sizes, strict=True))


def _from_probs(arrays, options, default_float, verbs) -> dict[str, tuple[Exact, ...]]:
    probs, targets = _floating(arrays["probs"], default_float), arrays["targets"]
    problem = LossProblem(probs, targets, **options)
    losses = Reduction(problem, _loss_dtype(probs.dtype.name))
    for i, row in enumerate(problem.rows.split(as_float64(probs))):
        if not problem.present[i] or problem.bad[i]:
            losses.add(i, NAN if problem.bad[i] and problem.present[i] else ZERO, ZERO, {})
            continue
        (p, q, w), _, counts = distinct(row, problem.targets[i], problem.weight)
        with MP.workprec(300):
            scale, _ = problem.scales(i)
            coefs = problem.coefficients(q.tolist(), w.tolist(), counts.tolist())
            terms = [-scale * n * c * _log(a) for a, c, n in zip(p.tolist(), coefs, counts.tolist(), strict=True) if c]
            losses.add(i, MP.fsum(terms) if all(map(MP.isfinite, terms)) else sum(terms), MP.fsum(map(abs, terms)), {})
    return {"cross_entropy_from_probs": (losses.result(),)}


def _log(p: float):
    return NAN if p != p or p < 0 else -INF if p == 0 else MP.log(MP.mpf(p))


def _divergence(name: str, term: Callable) -> Callable:
    """Sums of ``term`` over the class axis, in ulps of Σ |term|."""

    def compute(arrays, options, default_float, verbs) -> dict[str, tuple[Exact, ...]]:
        inputs = [_floating(a, default_float) for a in arrays.values()]
        dtype = promoted(*(a.dtype.name for a in inputs))
        rows = AsRows.of(inputs[0].shape, options.get("axis", -1))
        exact = Exact("divergence", dtype)
        for columns in zip(*(rows.split(as_float64(a)) for a in inputs), strict=True):
            levels, _, counts = distinct(*columns)
            with MP.workprec(300):
                terms = [
                    n * term(*entry) for n, *entry in zip(counts.tolist(), *(a.tolist() for a in levels), strict=True)
                ]
                exact.add(sum(terms, ZERO), sum(map(abs, terms), ZERO))
        exact.index = np.arange(len(exact.values)).reshape(rows.outer_shape)
        return {name: (exact,)}

    return compute


def _entropy_term(p: float):
    if p != p:
        return NAN
    return -INF if p < 0 else ZERO if p == 0 else -MP.mpf(p) * MP.log(MP.mpf(p))


def _relative_entropy_term(p: float, q: float):
    if p != p or q != q:
        return NAN
    if p > 0 and q > 0:
        return MP.mpf(p) * MP.log(MP.mpf(p) / MP.mpf(q))
    return ZERO if p == 0 and q >= 0 else INF


_COMPUTE = {
    "softmax": _softmax,
    "jacobian": _jacobian,
    "softmax product": _products("vector_product", _softmax_product),
    "log_softmax product": _products("log_product", _log_softmax_product),
    "cross_entropy": _cross_entropy,
    "linear": _linear,
    "from_probs": _from_probs,
    "entropy": _divergence("entropy", _entropy_term),
    "kl_divergence": _divergence("kl_divergence", _relative_entropy_term),
}
