// Functions of one number, for CUDA and for a host compiler: bit patterns, sums with what rounding leaves, exp, log1p.

#ifdef __CUDACC__
#define XS_FUNCTION __device__ __forceinline__
#define XS_CALLED __device__ __noinline__  // with what is long inlined, ptxas takes half as long again
#else
#include <cmath>
#include <cstring>
#define XS_FUNCTION inline
#define XS_CALLED inline
using std::exp;
using std::expm1;
using std::fma;
using std::tanh;
#endif

namespace xsoftmax {

typedef long long Int64;

#ifdef __CUDACC__
XS_FUNCTION Int64 bits(double x) { return __double_as_longlong(x); }
XS_FUNCTION double from_bits(Int64 n) { return __longlong_as_double(n); }
XS_FUNCTION int bits(float x) { return __float_as_int(x); }
XS_FUNCTION float from_bits(int n) { return __int_as_float(n); }
// Rounded, whatever is added to it.
XS_FUNCTION double product(double x, double y) { return __dmul_rn(x, y); }
XS_FUNCTION float product(float x, float y) { return __fmul_rn(x, y); }
#else
template <class To, class From>
XS_FUNCTION To reinterpreted(From x) {
    To y;
    static_assert(sizeof x == sizeof y, "another size");
    std::memcpy(&y, &x, sizeof y);
    return y;
}
XS_FUNCTION Int64 bits(double x) { return reinterpreted<Int64>(x); }
XS_FUNCTION double from_bits(Int64 n) { return reinterpreted<double>(n); }
XS_FUNCTION int bits(float x) { return reinterpreted<int>(x); }
XS_FUNCTION float from_bits(int n) { return reinterpreted<float>(n); }
template <class Real>
XS_FUNCTION Real product(Real x, Real y) {
    return x * y;
}
#endif

template <class Real>
struct Format;

template <>
struct Format<float> {
    typedef unsigned Bits;
    static constexpr int digits = 23, bias = 127;
    static constexpr float round = 0x1.8p23f;  // adding it rounds to an integer, found in the lowest bits
    static constexpr float large = 0x1p96f;
    static constexpr float ln2 = 0x1.62e430p-1f, ln2_rest = -0x1.05c610p-29f;
    static XS_FUNCTION float infinity() { return from_bits(0x7f800000); }
};

template <>
struct Format<double> {
    typedef unsigned long long Bits;
    static constexpr int digits = 52, bias = 1023;
    static constexpr double round = 0x1.8p52;
    static constexpr double large = 0x1p992;
    static constexpr double ln2 = 0x1.62e42fefa39efp-1, ln2_rest = 0x1.abc9e3b39803fp-56;
    static XS_FUNCTION double infinity() { return from_bits(Int64(0x7ff0000000000000)); }
};

constexpr double log2_e = 0x1.71547652b82fep0;

XS_FUNCTION double nan() { return from_bits(Int64(0x7ff8000000000000)); }

template <class Real>
XS_FUNCTION bool is_finite(Real x) {
    return x > -Format<Real>::infinity() && x < Format<Real>::infinity();
}

// The larger; nan if one is nan.
template <class Real>
XS_FUNCTION Real larger(Real a, Real b) {
    return a > b || a != a ? a : b;
}

template <class Real>
XS_FUNCTION Real power_of_two(int n) {
    return from_bits(decltype(bits(Real()))(n + Format<Real>::bias) << Format<Real>::digits);
}

// The n of exp(x) = 2^n (0.7 … 1.42).
template <class Real>
XS_FUNCTION int exponent(Real x) {
    return int(bits(x * Real(log2_e) + Format<Real>::round) - bits(Format<Real>::round));
}

// A number, and what its rounding left.
template <class Real>
struct Sum {
    Real high, low;

    XS_FUNCTION void add(Real x) {  // Knuth
        Real s = high + x, b = s - high;
        low += (high - (s - b)) + (x - b);
        high = s;
    }
    XS_FUNCTION void add(Sum x) {  // the same bits for a + b and b + a
        Sum s = {high, 0};
        s.add(x.high);
        high = s.high;
        low = (low + x.low) + s.low;
    }
    XS_FUNCTION void add_product(Real a, Sum b) {
        Real p = product(a, b.high);
        add(p);
        low += fma(a, b.high, -p) + a * b.low;
    }
    XS_FUNCTION Sum operator*(Real factor) const { return {high * factor, low * factor}; }
    XS_FUNCTION double value() const { return double(high) + double(low); }
};

// Beside ∞ the low part is nan.
template <class Real>
XS_FUNCTION double value_or_infinity(const Sum<Real>& sum) {
    return is_finite(sum.high) ? sum.value() : double(sum.high);
}

template <class Real>
XS_FUNCTION Real rounded(const Sum<Real>& sum) {
    return is_finite(sum.high) ? sum.high + sum.low : sum.high;
}

template <class Real>
XS_FUNCTION Sum<Real> difference(Real a, Real b) {
    Sum<Real> d = {a, 0};
    d.add(-b);
    return d;
}

template <class Real>
XS_FUNCTION Sum<Real> split(double x) {
    Real high = Real(x);
    return {high, Real(x - double(high))};
}

// ---------------------------------------------------------------------------------------------------------------------
// exp(x) 2^k = 2^(n + k) exp(r), x = n ln 2 + r, |r| ≤ ln(2) / 2. With a fused multiply-add x − n ln2 is exact.

template <class Real>
struct Reduced {
    Real r, lost;  // r + lost
    int n;
};

template <class Real>
XS_FUNCTION Reduced<Real> reduced(Real x) {
    typedef Format<Real> F;
    Real t = fma(x, Real(log2_e), F::round), n = t - F::round;
    Real near = fma(-n, F::ln2, x), r = fma(-n, F::ln2_rest, near);
    return {r, fma(-n, F::ln2_rest, near - r), int(bits(t) - bits(F::round))};
}

template <class Real>
XS_FUNCTION Real scaled(Real x, int n) {
    typedef typename Format<Real>::Bits Bits;  // of nan, signed ones would overflow
    return from_bits(decltype(bits(x))(Bits(bits(x)) + (Bits(n) << Format<Real>::digits)));
}

template <class Real, class... Rest>
XS_FUNCTION Real polynomial(Real x, double highest, Rest... rest) {
    Real p = Real(highest);
    ((p = fma(p, x, Real(rest))), ...);
    return p;
}

// exp(r) = 1 + r + r² P(r). Relative errors 2^−61.4 and 2^−32.1, Chebyshev nodes.
XS_FUNCTION double exp_tail_long(double r) {
    return polynomial(r, 0x1.1f730349868cep-29, 0x1.af4de97ca4194p-26, 0x1.27e4db646b17ep-22, 0x1.71de0231960ebp-19,
                      0x1.a01a01a6d889cp-16, 0x1.a01a01abe7fe1p-13, 0x1.6c16c16c162d4p-10, 0x1.11111111100dcp-7,
                      0x1.5555555555556p-5, 0x1.5555555555557p-3, 0x1.0000000000000p-1);
}

template <class Real>
XS_FUNCTION Real exp_tail(Real r) {
    return polynomial(r, 0x1.a124f19fe89acp-13, 0x1.6d43246b523b4p-10, 0x1.1110e0f238322p-7, 0x1.5554e9063586ep-5,
                      0x1.5555555a78ed4p-3, 0x1.0000000b9129bp-1);
}

// Within 0.7 ulp.
XS_FUNCTION double exp_double(double x, int k) {
    Reduced<double> a = reduced(x);
    double one = 1.0 + a.r;
    return scaled(one + fma(exp_tail_long(a.r), a.r * a.r, (a.r - (one - 1.0)) + a.lost), a.n + k);
}

// Within 2^−31.9, for results in float32.
XS_FUNCTION double exp_short(double x, int k) {
    Reduced<double> a = reduced(x);
    return scaled(1.0 + fma(exp_tail(a.r), a.r * a.r, a.r), a.n + k);
}

// Within an ulp of float32.
XS_FUNCTION float exp_float(float x, int k) {
    Reduced<float> a = reduced(x);
    return scaled(1.0f + fma(exp_tail(a.r), a.r * a.r, a.r), a.n + k);
}

// Within 2^−26.
XS_FUNCTION Sum<float> exp_pair(float x, int k) {
    Reduced<float> a = reduced(x);
    Sum<float> e = {1.0f, 0.0f};
    e.add(a.r);
    e.low += fma(exp_tail(a.r), a.r * a.r, a.lost);
    float high = e.high + e.low;
    float low = (e.high - high) + e.low, power = power_of_two<float>(a.n + k);
    return {high * power, low * power};
}

// ---------------------------------------------------------------------------------------------------------------------
// log1p(u) for 0 ≤ u < 2¹⁰⁰⁰: 1 + u = 2^k (1 + z), s = z / (2 + z), log(1 + z) = 2s + s³ L(s²)

XS_FUNCTION double log1p_positive(double u) {
    constexpr Int64 sqrt_half = 0x3FE6A09E667F3BCD, one = 0x3FF0000000000000;
    double f = 1.0 + u, lost = u < 1.0 ? u - (f - 1.0) : 1.0 - (f - u);
    int k = int((bits(f) + (one - sqrt_half)) >> 52) - 1023;
    double z = k == 0 ? u : from_bits(bits(f) - (Int64(k) << 52)) - 1.0;
    lost = k == 0 ? 0.0 : power_of_two<double>(-k) * lost * (1.0 - z * (1.0 - z));  // over 1 + z
    double s = z / (2.0 + z), w = s * s;
    double p = polynomial(w, 0x1.0c0aff044a970p-3, 0x1.0fbde0f4ad17bp-3, 0x1.3b1c3c1c81c8fp-3, 0x1.745cf8e4bba1bp-3,
                          0x1.c71c7201a55d7p-3, 0x1.2492492476a1ap-2, 0x1.9999999999a39p-2, 0x1.5555555555555p-1);
    // log(1 + z) = z − (z²/2 − s (z²/2 + s² L)): z itself is exact, and so is k · 0x1.62e42feep-1
    double half = 0.5 * z * z, whole = double(k) * 0x1.62e42feep-1;
    double high = whole + z, low = k == 0 ? 0.0 : z - (high - whole);
    return high + (low + ((double(k) * 0x1.a39ef35793c76p-33 + lost) - (half - s * (half + w * p))));
}

}  // namespace xsoftmax
