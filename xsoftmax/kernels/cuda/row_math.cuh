// The arithmetic of a row, for CUDA and for a host compiler.
//
// x logits, m = max x, w = exp(x − c) 2^k, wm the maximum's w, q = Σ w less one copy of wm, s = q + wm, y = w / s.
// c makes x − c exact and k brings wm near 2^top, so that no w that counts is subnormal and no sum overflows: flushing
// of subnormals costs nothing but results that are themselves subnormal. A temperature T divides differences, (x − m) / T.

#include "numbers.cuh"

namespace xsoftmax {

// ---------------------------------------------------------------------------------------------------------------------
// Arithmetics. exp(−reach) is 0 beside 1, also as a sum of 2²¹ terms; up to `unshifted` |m|, c = 0. `Compared` holds
// every logit: on devices a comparison of float64 takes as long as a multiplication. `low_terms`, `low_ratio`: whether
// terms of the sum and the ratio of w to y are of two numbers. `divided`: whether there may be a temperature.

struct Float64 {
    typedef double Real;
    typedef double Compared;
    static constexpr bool divided = false;
    static constexpr int top = 500;
    static constexpr double reach = 760.0, unshifted = 0x1p20;
    static constexpr bool low_terms = false, low_ratio = true;
    static XS_FUNCTION Sum<double> exp(double x, int k) { return {exp_double(x, k), 0.0}; }
};

// float32 in float64, transformed there before: rounded once, 0.5 ulp.
struct Float32Transformed : Float64 {
    static constexpr bool low_ratio = false;
    static XS_FUNCTION Sum<double> exp(double x, int k) { return {exp_short(x, k), 0.0}; }
};

struct Float32Wide : Float32Transformed {
    typedef float Compared;
};

// Results of 16 bits. With a reach of 128, m − reach could round to m − 256, and exp(−256) 2^60 is no normal number.
struct Float16 {
    typedef float Real;
    typedef float Compared;
    static constexpr bool divided = false;
    static constexpr int top = 60;
    static constexpr float reach = 127.9f, unshifted = 0x1p12f;
    static constexpr bool low_terms = false, low_ratio = false;
    static XS_FUNCTION Sum<float> exp(float x, int k) { return {exp_float(x, k), 0.0f}; }
};

// float32 in pairs of float32, where float64 is slow; only what is computed once a row is in float64.
struct Float32Pairs : Float16 {
    static constexpr bool low_terms = true, low_ratio = true;
    static XS_FUNCTION Sum<float> exp(float x, int k) { return exp_pair(x, k); }
};

template <class A>
struct Divided : A {
    static constexpr bool divided = true;
};

// ---------------------------------------------------------------------------------------------------------------------
// Division by a temperature

// Whether a Real is as good.
template <class Real>
XS_FUNCTION bool is_moderate(double number) {
    return sizeof(Real) == 8 || (number > 0x1p-100 && number < 0x1p100);
}

template <class Real>
XS_CALLED Real over_number(Real x, double number) {
    return is_moderate<Real>(number) ? x / Real(number) : Real(double(x) / number);
}

// (x − m) / T where x − m overflows, or T does as a Real.
template <class Real>
XS_CALLED Real far_quotient(Real x, Real m, double temperature) {
    return Real(2.0 * ((0.5 * double(x) - 0.5 * double(m)) / temperature));
}

// (x − m) / T, and what the rounding of x − m leaves of it: a power of two is exact.
template <class Real>
XS_FUNCTION Sum<Real> quotient(Real x, Real m, double temperature) {
    Sum<Real> d = difference(x, m);
    if (!is_moderate<Real>(temperature) || !is_finite(d.high)) return {far_quotient(x, m, temperature), 0};
    return {d.high / Real(temperature), d.low / Real(temperature)};
}

template <bool divided>
struct Temperature {
    static constexpr double temperature = 1.0;
    XS_FUNCTION explicit Temperature(double) {}
};

template <>
struct Temperature<true> {
    double temperature;
    XS_FUNCTION explicit Temperature(double temperature) : temperature(temperature) {}
};

// t (m − x) / T, where m − x alone may overflow.
template <class Real>
XS_FUNCTION Sum<Real> distant(Real t, Real m, Real x, double temperature) {
    if (temperature != 1.0) {
        Sum<Real> z = quotient(x, m, temperature);
        return {-t * z.high, -t * z.low};
    }
    Sum<Real> d = difference(m, x);
    Real far = product(t, d.high);
    if (is_finite(far)) return {far, fma(t, d.high, -far) + t * d.low};
    return {t * (m / 2 - x / 2) * 2, 0};
}

// ---------------------------------------------------------------------------------------------------------------------

// How the logits of a row with maximum m are exponentiated.
template <class A>
struct Scale : Temperature<A::divided> {
    typedef typename A::Real Real;
    typedef typename A::Compared Compared;
    using Temperature<A::divided>::temperature;
    Real m, c, lowest;
    Compared floor;
    int k;

    XS_FUNCTION explicit Scale(Real largest, double temperature) : Temperature<A::divided>(temperature) {
        m = largest;
        if (is_divided()) {
            c = m, k = A::top, lowest = -A::reach, floor = Compared(m);
            return;
        }
        // x − c is exact: both are multiples of an ulp, and near each other. c of a large m moves in steps of 64, so
        // that sums are seldom multiplied by anything but a power of two.
        c = m >= -A::unshifted && m <= A::unshifted ? Real(0) : near_64(m);
        k = A::top - exponent(m - c);
        lowest = (m - c) - A::reach;
        floor = Compared(m) - Compared(A::reach);
    }
    XS_FUNCTION bool is_divided() const { return A::divided && temperature != 1.0; }
    XS_FUNCTION Sum<Real> term(Real x) const {
        if (!is_divided()) return A::exp(Compared(x) >= floor ? x - c : lowest, k);
        Sum<Real> z = quotient(x, m, temperature), e = A::exp(z.high >= lowest ? z.high : lowest, k);
        return {fma(e.high, z.low, e.high), e.low};
    }
    XS_FUNCTION bool is_below(Real x) const { return Compared(x) < Compared(m); }
    XS_FUNCTION bool is_maximum(Real x) const { return Compared(x) == Compared(m); }

  private:
    static XS_FUNCTION Real near_64(Real m) {
        constexpr Real round = Format<Real>::round, far = 16 * round;  // beyond, ulps are no smaller
        return m > -far && m < far ? ((m / 64 + round) - round) * 64 : m;
    }
};

// Of the classes seen so far: Σ w below the maximum, and how many are at it.
template <class A>
struct Seen {
    typedef typename A::Real Real;
    Sum<Real> below;
    unsigned copies;

    XS_FUNCTION Seen() : below{0, 0}, copies(0) {}
    XS_FUNCTION void merge(const Seen& other) {
        below.add(other.below);
        copies += other.copies;
    }
};

// A row, or a piece of it. Pieces merge in any order.
template <class A>
struct Row {
    typedef typename A::Real Real;
    Scale<A> at;
    Seen<A> seen;

    XS_FUNCTION explicit Row(Real m = -Format<Real>::infinity(), double temperature = 1.0) : at(m, temperature) {}

    template <int N>
    XS_FUNCTION void add(const Real (&x)[N]) {
        typename A::Compared before = at.m, top = before;
        for (int j = 0; j < N; ++j) top = larger(top, typename A::Compared(x[j]));
        Real w[N];
        if (!(top == before)) raise(top);
        add_known(x, w);
    }

    // The same where no x is above m; w as in softmax.
    template <int N>
    XS_FUNCTION void add_known(const Real (&x)[N], Real (&w)[N]) {
        Sum<Real> terms = {0, 0};
        for (int j = 0; j < N; ++j) {
            Sum<Real> term = at.term(x[j]);
            bool counts = at.is_below(x[j]);
            Sum<Real> counted = {counts ? term.high : Real(0), counts ? term.low : Real(0)};
            if (A::low_terms) {
                terms.add(counted);
            } else {
                terms.high += counted.high;
            }
            seen.copies += at.is_maximum(x[j]) ? 1u : 0u;
            w[j] = term.high;
        }
        seen.below.add(terms);
    }

    XS_FUNCTION void merge(Row other) {
        Real top = larger(at.m, other.at.m);
        if (!(top == at.m)) raise(top);
        if (!(top == other.at.m)) other.raise(top);
        seen.merge(other.seen);
    }

    // To a larger maximum, or one that is not a number.
    XS_FUNCTION void raise(Real top) {
        Scale<A> to(top, at.temperature);
        Sum<Real> below = {0, 0};
        if (is_finite(at.m) && is_finite(top)) {
            below = seen.below;
            below.add_product(Real(seen.copies), at.term(at.m));
            below = rescaled(below, to);
        }
        seen = Seen<A>();
        seen.below = below;
        at = to;
    }

  private:
    XS_FUNCTION Sum<Real> rescaled(Sum<Real> below, const Scale<A>& to) const {
        int n = to.k - at.k;  // in two steps, each of which is a normal number
        if (at.is_divided()) {
            Sum<Real> z = quotient(at.m, to.m, at.temperature);
            Real root = A::exp(z.high / 2, 0).high;
            return z.high < -A::reach ? Sum<Real>{0, 0} : below * root * fma(root, z.low, root);
        }
        if (at.m - to.m < -A::reach) return {0, 0};
        if (at.c == to.c) return below * power_of_two<Real>(n / 2) * power_of_two<Real>(n - n / 2);
        Real half = (at.c - to.c) / 2;
        return below * A::exp(half, n / 2).high * A::exp(half, n - n / 2).high;
    }
};

// What follows from a whole row, in float64 whatever its arithmetic. Without a finite maximum all but logsumexp is nan.
struct RowSums {
    double m, q, wm, log_sum, temperature;  // log_sum = logsumexp − m / T

    template <class A>
    explicit XS_FUNCTION RowSums(const Row<A>& row) {
        m = double(row.at.m), temperature = row.at.temperature;
        wm = row.at.term(row.at.m).value();
        q = row.seen.below.value() + (double(row.seen.copies) - 1.0) * wm;
        bool finite = is_finite(m);
        q = finite ? q : nan();
        log_sum = finite ? log1p_positive(q / wm) : nan();
    }
    XS_FUNCTION bool finite() const { return is_finite(m); }
    XS_FUNCTION double logsumexp() const { return finite() ? m / temperature + log_sum : m; }
    // t (m − x) / T
    XS_FUNCTION double far(double t, double x) const { return t == 0.0 ? 0.0 : distant(t, m, x, temperature).high; }
    // Whether one class has so much of y that 1 − y cancels; no other has nearly as much.
    XS_FUNCTION bool has_majority() const { return wm > 1.125 * q; }

    // factor / s, and what its rounding and that of s leave.
    XS_FUNCTION Sum<double> quotient(double factor) const {
        Sum<double> s = {wm, 0.0};
        s.add(q);
        double ratio = factor / s.high;
        return {ratio, (fma(-s.high, ratio, factor) - s.low * ratio) / s.high};
    }
};

// factor · y of each class, from its w; factor 1 gives softmax.
template <class A>
struct Shares {
    typedef typename A::Real Real;
    Sum<Real> ratio;

    XS_FUNCTION Shares(const RowSums& row, double factor) {
        Sum<double> exact = row.quotient(factor);
        ratio = {Real(exact.high), Real((exact.high - double(Real(exact.high))) + exact.low)};
    }
    XS_FUNCTION Real operator()(Real w) const {
        return A::low_ratio ? fma(w, ratio.high, w * ratio.low) : w * ratio.high;
    }
};

template <class A>
struct Softmax {
    Shares<A> shares;
    XS_FUNCTION explicit Softmax(const RowSums& row) : shares(row, 1.0) {}
    XS_FUNCTION typename A::Real operator()(typename A::Real w) const {
        typename A::Real y = shares(w);
        return y > 1 ? 1 : y;  // nan stays
    }
};

template <class A>
struct LogSoftmax {
    typedef typename A::Real Real;
    Real m, log_sum;
    double temperature;
    XS_FUNCTION explicit LogSoftmax(const RowSums& row)
        : m(Real(row.m)), log_sum(Real(row.log_sum)), temperature(row.temperature) {}
    XS_FUNCTION Real operator()(Real x) const {
        if (!A::divided || temperature == 1.0) return (x - m) - log_sum;
        Sum<Real> z = quotient(x, m, temperature);
        return (z.high - log_sum) + z.low;
    }
};

// ---------------------------------------------------------------------------------------------------------------------
// Cross-entropy: L = Σ_i t_i (lse − x_i) + ζ lse², ∂L/∂x_i = T y_i − t_i + 2 ζ lse y_i, T = Σ_i t_i. The gradient is
// multiplied by a factor before it is rounded.

XS_FUNCTION double z_loss(const RowSums& row, double zeta) {
    double lse = row.logsumexp();
    return zeta == 0.0 ? 0.0 : zeta * lse * lse;
}

// t = T at the label, 0 elsewhere. The gradient is one of two numbers times `larger`, a power of two: without it 2 ζ lse
// could overflow where factor makes a number of it.
template <class A>
struct LabelLoss {
    typedef typename A::Real Real;
    double loss, pull, at_label;
    Real larger, least;

    XS_FUNCTION LabelLoss(const RowSums& row, const Scale<A>& at, double total, double zeta, Real x) {
        double s = row.q + row.wm, y = at.term(x).value() / s, lse = zeta == 0.0 ? 0.0 : row.logsumexp();
        bool majority = row.has_majority() && double(x) == row.m;
        loss = total * row.log_sum + row.far(total, double(x)) + z_loss(row, zeta);
        bool large = lse > Format<Real>::large || -lse > Format<Real>::large;
        larger = large && row.finite() ? Real(0x1p32) : Real(1);  // a row with an infinite maximum is nan throughout
        least = Real(row.wm) * Real(0x1p-64);
        total /= double(larger);
        double of_lse = 2.0 * zeta / double(larger) * lse;
        pull = total + of_lse;
        at_label = (majority ? -total * (row.q / s) : total * y - total) + of_lse * y;
    }
    XS_FUNCTION Real gradient_at_label(double factor) const { return Real(factor * at_label) * larger; }
    // `share` is that of w in Shares(row, factor · pull). In a row so large w is 0 but for the ties of the maximum.
    XS_FUNCTION Real gradient(Real share, Real w) const {
        return larger == 1 ? share : w < least ? Real(0) : share * larger;
    }
};

// Σ t, Σ t below the maximum, and Σ t (m − x) / T where t ≠ 0, of the classes seen so far.
template <class A>
struct TargetSums {
    typedef typename A::Real Real;
    Sum<Real> total, others, far;

    XS_FUNCTION TargetSums() : total{0, 0}, others{0, 0}, far{0, 0} {}
    XS_FUNCTION void add(const Scale<A>& at, Real x, Real t) {
        total.add(t);
        if (x < at.m) others.add(t);
        // a class at −∞ is infinitely far whatever the maximum becomes
        if ((x < at.m || x == -Format<Real>::infinity()) && t != 0) add_far(t, at, x);
    }
    // From one maximum to a larger one.
    XS_FUNCTION void raise(Real from, const Scale<A>& to) {
        others = total;
        if (from == -Format<Real>::infinity() || total.value() == 0.0) return;
        add_far(total.high, to, from);
        if (total.low != 0) add_far(total.low, to, from);
    }
    XS_FUNCTION void merge(const TargetSums& other) {
        total.add(other.total);
        others.add(other.others);
        far.add(other.far);
    }

  private:
    XS_FUNCTION void add_far(Real t, const Scale<A>& at, Real x) {
        Real m = x == -Format<Real>::infinity() ? Real(0) : at.m;
        far.add(distant(t, m, x, at.temperature));
    }
};

// A row and its targets, or a piece of both.
template <class A>
struct TargetRow {
    typedef typename A::Real Real;
    Row<A> row;
    TargetSums<A> sums;

    template <int N>
    XS_FUNCTION void add(const Real (&x)[N], const Real (&t)[N]) {
        Real before = row.at.m;
        row.add(x);
        if (!(row.at.m == before)) sums.raise(before, row.at);
        for (int j = 0; j < N; ++j) sums.add(row.at, x[j], t[j]);
    }
    XS_FUNCTION void merge(TargetRow other) {
        Real before = row.at.m;
        row.merge(other.row);
        if (!(row.at.m == before)) sums.raise(before, row.at);
        if (!(row.at.m == other.row.at.m)) other.sums.raise(other.row.at.m, row.at);
        sums.merge(other.sums);
    }
};

template <class A>
struct TargetLoss {
    typedef typename A::Real Real;
    double loss;
    Shares<A> shares;
    Real wm, total, at_majority, lse, pull, factor;
    bool majority;

    XS_FUNCTION TargetLoss(const RowSums& row, const Scale<A>& at, const TargetSums<A>& t, double zeta, double scale)
        : shares(row, 1.0) {
        double sum = t.total.value();
        loss = sum * row.log_sum + value_or_infinity(t.far) + z_loss(row, zeta);
        wm = at.term(at.m).high;
        lse = zeta == 0.0 ? Real(0) : Real(row.logsumexp());
        total = Real(sum), pull = Real(2.0 * zeta * scale), factor = Real(scale);
        at_majority = Real(t.others.value() - sum * (row.q / (row.q + row.wm)));
        majority = row.has_majority();
    }
    // A majority has a w of its own.
    XS_FUNCTION Real gradient(Real t, Real w) const {
        Real y = shares(w);
        Real away = majority && w == wm ? at_majority : fma(total, y, -t);
        return fma(pull, y * lse, factor * away);
    }
};

}  // namespace xsoftmax
