// Products with a vector v: softmax_product y_i (v_i − Σ_j y_j v_j), log_softmax_vjp v_i − exp(log_y_i) Σ_j v_j and
// log_softmax_jvp v_i − Σ_j exp(log_y_j) v_j. v is taken relative to a class with more than half of y where Σ y = 1 but
// for rounding, since that class's own entry would cancel.

namespace xsoftmax {

// y, or exp(log_y); 0 where there is no class.
template <class P>
XS_FUNCTION typename P::A::Real product_weight(typename P::A::Real x) {
    typedef typename P::A::Real Real;
    if constexpr (P::verb == softmax_product) return x == -Format<Real>::infinity() ? Real(0) : x;
    return exp(x);
}

// Σ y and v at its majority, or Σ v.
template <class P>
struct ProductTotal {
    typedef typename P::A::Real Real;
    Sum<Real> total = {0, 0};
    Real at_majority = 0;

    XS_FUNCTION void add(Real y, Real v) {
        total.add(P::verb == softmax_product ? y : v);
        at_majority += y > Real(0.5) ? v : Real(0);
    }
    XS_FUNCTION void merge(const ProductTotal& other) {
        total.add(other.total);
        at_majority += other.at_majority;
    }
    XS_FUNCTION Real pivot() const {
        Real off = total.high - Real(1);
        return off < Real(1.0 / 64) && off > Real(-1.0 / 64) ? at_majority : Real(0);
    }
};

// Σ y (v − pivot)
template <class P>
struct ProductMean {
    typedef typename P::A::Real Real;
    Sum<Real> dot = {0, 0};

    XS_FUNCTION void add(Real y, Real v, Real pivot) { dot.add_product(y, difference(v, pivot)); }
    XS_FUNCTION void merge(const ProductMean& other) { dot.add(other.dot); }
};

template <class P>
struct Product {
    typedef typename P::A::Real Real;
    Real total, pivot, mean;

    XS_FUNCTION explicit Product(const ProductTotal<P>& sums)
        : total(sums.total.high + sums.total.low), pivot(P::verb == softmax_product ? sums.pivot() : Real(0)), mean(0) {}
    XS_FUNCTION void finish(const ProductMean<P>& sums) { mean = sums.dot.high + sums.dot.low; }
    XS_FUNCTION Real operator()(const View<P>&, int, Real y, Real v) const {
        if constexpr (P::verb == softmax_product) return y * ((v - pivot) - mean);
        if constexpr (P::verb == log_softmax_vjp) return fma(-y, total, v);
        return v - mean;
    }
};

// y and v of n classes, 0 where there is none.
template <class P, int n>
XS_FUNCTION void read_pair(const View<P>& view, int c, typename P::A::Real (&y)[n], typename P::A::Real (&v)[n]) {
    view.template logits<n>(view.template elements<n>(c, view.classes), c, view.classes, y);
    view.template read_targets<n>(c, view.classes, v);
#pragma unroll
    for (int j = 0; j < n; ++j) y[j] = product_weight<P>(y[j]);
}

// Both arrays in registers.
template <int n, int chunks, class P, class Team>
XS_FUNCTION void product_in_registers(const View<P>& view, const Team& team) {
    typename P::A::Real y[chunks][n], v[chunks][n];
    ProductTotal<P> total;
    ProductMean<P> mean;
#pragma unroll
    for (int i = 0; i < chunks; ++i) {
        read_pair<P, n>(view, view.template begin<n>(i * Team::size + team.lane), y[i], v[i]);
    }
#pragma unroll
    for (int i = 0; i < chunks; ++i) {
#pragma unroll
        for (int j = 0; j < n; ++j) total.add(y[i][j], v[i][j]);
    }
    team.reduce(total);
    Product<P> product(total);
    if constexpr (P::verb != log_softmax_vjp) {
#pragma unroll
        for (int i = 0; i < chunks; ++i) {
#pragma unroll
            for (int j = 0; j < n; ++j) mean.add(y[i][j], v[i][j], product.pivot);
        }
        team.reduce(mean);
        product.finish(mean);
    }
    if (!view.exists) return;
#pragma unroll
    for (int i = 0; i < chunks; ++i) {
        store_results(view, product, view.template begin<n>(i * Team::size + team.lane), y[i], v[i]);
    }
}

template <class P, class Team, int n, int chunks>
__global__ void __launch_bounds__(Team::threads) product_resident(const Arguments a) {
    Team team;
    for (Int64 first = Int64(blockIdx.x) * Team::rows; first < a.rows; first += Int64(gridDim.x) * Team::rows) {
        product_in_registers<n, chunks>(View<P>(a, first + team.slot), team);
    }
}

// Both read for each sum, and for the results.
template <class P, class Team, int n>
__global__ void __launch_bounds__(Team::threads) product_swept(const Arguments a) {
    typedef typename P::A::Real Real;
    Team team;
    constexpr int stride = Team::size * n, together = n == 1 ? 4 : 2;  // twice as many vectors spill 392 bytes
    for (Int64 first = Int64(blockIdx.x) * Team::rows; first < a.rows; first += Int64(gridDim.x) * Team::rows) {
        View<P> view(a, first + team.slot);
        const int begin = view.template begin<n>(team.lane);
        Real y[n], v[n];
        ProductTotal<P> total;
        ProductMean<P> mean;
        if constexpr (P::verb != log_softmax_jvp) {
#pragma unroll together
            for (int c = begin; c < view.classes; c += stride) {
                read_pair<P, n>(view, c, y, v);
#pragma unroll
                for (int j = 0; j < n; ++j) total.add(y[j], v[j]);
            }
            team.reduce(total);
        }
        Product<P> product(total);
        if constexpr (P::verb != log_softmax_vjp) {
#pragma unroll together
            for (int c = begin; c < view.classes; c += stride) {
                read_pair<P, n>(view, c, y, v);
#pragma unroll
                for (int j = 0; j < n; ++j) mean.add(y[j], v[j], product.pivot);
            }
            team.reduce(mean);
            product.finish(mean);
        }
        if (!view.exists) continue;
        for (int c = begin; c < view.classes; c += stride) {
            read_pair<P, n>(view, c, y, v);
            store_results(view, product, c, y, v);
        }
    }
}

}  // namespace xsoftmax
