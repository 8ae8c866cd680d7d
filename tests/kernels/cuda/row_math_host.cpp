// Row arithmetic on the host. A row comes in pieces: ends[i] is where piece i ends; merges are pairs of pieces, into
// the first of which the second goes.
#include <vector>

#include "row_math.cuh"
#ifdef __SSE__
#include <xmmintrin.h>
#endif

using namespace xsoftmax;

// As CuPy compiles: subnormals of float32 are 0.
struct Flushing {
#ifdef __SSE__
    unsigned before = _mm_getcsr();
    explicit Flushing(bool on) { if (on) _mm_setcsr(before | 0x8040); }
    ~Flushing() { _mm_setcsr(before); }
#else
    explicit Flushing(bool) {}
#endif
};

template <class A>
struct Pieces {
    typedef typename A::Real Real;
    std::vector<TargetRow<A>> rows;

    Pieces(const double* x, const double* t, const int* ends, int pieces, double temperature)
        : rows(pieces, TargetRow<A>{Row<A>(-Format<Real>::infinity(), temperature), {}}) {
        for (int i = 0, j = 0; i < pieces; ++i) {
            for (; j + 4 <= ends[i]; j += 4) add<4>(rows[i], x + j, t + j);
            for (; j < ends[i]; ++j) add<1>(rows[i], x + j, t + j);
        }
    }
    template <int N>
    static void add(TargetRow<A>& row, const double* x, const double* t) {
        Real logits[N], targets[N];
        for (int j = 0; j < N; ++j) logits[j] = Real(x[j]), targets[j] = Real(t[j]);
        row.add(logits, targets);
    }
};

template <class A, class Result>
void results(const double* x, const double* t, int classes, const int* ends, int pieces, const int* merges, int label,
             double total, double zeta, double factor, double temperature, double* softmax, double* log_softmax,
             double* grad, double* target_grad, double* numbers) {
    typedef typename A::Real Real;
    Flushing flushing(sizeof(Real) == 4);
    Pieces<A> p(x, t, ends, pieces, temperature);
    for (int i = 0; i < pieces - 1; ++i) p.rows[merges[2 * i]].merge(p.rows[merges[2 * i + 1]]);
    const TargetRow<A>& whole = p.rows[merges[2 * pieces - 2]];
    const Row<A>& row = whole.row;
    RowSums sums(row);
    Softmax<A> y(sums);
    LogSoftmax<A> log_y(sums);
    LabelLoss<A> by_label(sums, row.at, total, zeta, Real(x[label]));
    Shares<A> shares(sums, factor * by_label.pull);
    TargetLoss<A> by_targets(sums, row.at, whole.sums, zeta, factor);
    for (int j = 0; j < classes; ++j) {
        Real w = row.at.term(Real(x[j])).high;
        softmax[j] = sums.finite() ? double(Result(y(w))) : nan();
        log_softmax[j] = sums.finite() ? double(Result(log_y(Real(x[j])))) : nan();
        double slope = j == label ? factor * by_label.at_label : double(by_label.gradient(shares(w), w));
        grad[j] = sums.finite() ? double(Result(slope)) : nan();
        target_grad[j] = double(Result(by_targets.gradient(Real(t[j]), w)));
    }
    numbers[0] = sums.logsumexp();
    numbers[1] = by_label.loss;
    numbers[2] = by_targets.loss;
}

extern "C" {

#define RESULTS(NAME, A, RESULT)                                                                             \
    void NAME(const double* x, const double* t, int classes, const int* ends, int pieces, const int* merges, \
              int label, double total, double zeta, double factor, double temperature, double* softmax,      \
              double* log_softmax, double* grad, double* target_grad, double* numbers) {                     \
        (temperature == 1.0 ? results<A, RESULT> : results<Divided<A>, RESULT>)(                             \
            x, t, classes, ends, pieces, merges, label, total, zeta, factor, temperature, softmax,           \
            log_softmax, grad, target_grad, numbers);                                                        \
    }

RESULTS(float64, Float64, double)
RESULTS(float32_wide, Float32Wide, float)
RESULTS(float32_pairs, Float32Pairs, float)
RESULTS(float16, Float16, float)

void functions(const double* x, int n, int k, double* exp64, double* exp32, double* pair, double* single,
               double* log1p) {
    for (int i = 0; i < n; ++i) {
        exp64[i] = exp_double(x[i], k);
        exp32[i] = exp_short(x[i], k);
        pair[i] = exp_pair(float(x[i]), k).value();
        single[i] = exp_float(float(x[i]), k);
        log1p[i] = log1p_positive(x[i] < 0 ? -x[i] : x[i]);
    }
}

}
