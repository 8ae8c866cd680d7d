// Products with a vector v: softmax_product y_i (v_i − Σ_j y_j v_j), log_softmax_vjp v_i (1 − y_i) − y_i Σ_{j≠i} v_j and
// log_softmax_jvp v_i (1 − y_i) − Σ_{j≠i} y_j v_j, where y = exp(log_y). A class alone with more than half of y stays out
// of the sum that its own result needs. softmax_product takes v relative to it where Σ y = 1 but for rounding.

namespace xsoftmax {

// Σ y and v at its majority.
template <class P>
struct ProductTotal {
    typedef typename P::A::Real Real;
    Sum<Real> total = {0, 0};
    Real at_majority = 0;

    XS_FUNCTION void add(Real y, Real v) {
        total.add(y);
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
    Real pivot;

    XS_FUNCTION explicit ProductMean(Real pivot) : pivot(pivot) {}
    XS_FUNCTION void add(Real y, Real v) { dot.add_product(y, difference(v, pivot)); }
    XS_FUNCTION void merge(const ProductMean& other) { dot.add(other.dot); }
};

template <class Real>
XS_FUNCTION bool is_majority(Real log_y) {
    return log_y > Real(-0.6931471805599453);
}

// Σ of the terms, v or y v, of classes with no more than half of y; of the others, how many there are, and Σ of their
// terms, their v and their log_y.
template <class P>
struct LogSums {
    typedef typename P::A::Real Real;
    Sum<Real> rest = {0, 0};
    Real top = 0, v_top = 0, log_top = 0;
    int above = 0;

    XS_FUNCTION void add(Real log_y, Real v) {
        const bool is_above = is_majority(log_y);
        Real y = P::verb == log_softmax_vjp ? Real(1) : exp(log_y);
        top += is_above ? y * v : Real(0);
        v_top += is_above ? v : Real(0);
        log_top += is_above ? log_y : Real(0);
        above += is_above ? 1 : 0;
        if constexpr (P::verb == log_softmax_vjp) {
            rest.add(is_above ? Real(0) : v);
        } else {
            rest.add_product(is_above ? Real(0) : y, {is_above ? Real(0) : v, 0});
        }
    }
    XS_FUNCTION void merge(const LogSums& other) {
        rest.add(other.rest);
        top += other.top;
        v_top += other.v_top;
        log_top += other.log_top;
        above += other.above;
    }
};

// What is left of a row's sums; `row.add_to` adds all its classes to one.
template <class P, bool of_logs = P::verb != softmax_product>
struct Product {
    typedef typename P::A::Real Real;
    Real pivot, mean;

    template <class Entries>
    XS_FUNCTION explicit Product(const Entries& row) {
        ProductTotal<P> total;
        row.add_to(total);
        pivot = total.pivot();
        ProductMean<P> of_differences(pivot);
        row.add_to(of_differences);
        mean = rounded(of_differences.dot);
    }
    XS_FUNCTION Real operator()(const View<P>&, int, Real y, Real v) const { return y * ((v - pivot) - mean); }
};

template <class P>
struct Product<P, true> {
    typedef typename P::A::Real Real;
    Real total, at_majority;
    bool has_majority;

    template <class Entries>
    XS_FUNCTION explicit Product(const Entries& row) {
        LogSums<P> found;
        row.add_to(found);
        Real rest = rounded(found.rest), share = P::verb == log_softmax_vjp ? exp(found.log_top) : Real(1);
        has_majority = found.above == 1;
        at_majority = fma(-expm1(found.log_top), found.v_top, -share * rest);
        total = found.top + rest;
    }
    XS_FUNCTION Real operator()(const View<P>&, int, Real log_y, Real v) const {
        if (has_majority && is_majority(log_y)) return at_majority;
        return P::verb == log_softmax_vjp ? fma(-exp(log_y), total, v) : v - total;
    }
};

// y or log_y, and v, of n classes; 0 or −∞, and 0, where there is none.
template <class P, int n>
XS_FUNCTION void read_pair(const View<P>& view, int c, typename P::A::Real (&y)[n], typename P::A::Real (&v)[n]) {
    typedef typename P::A::Real Real;
    view.template logits<n>(view.template elements<n>(c, view.classes), c, view.classes, y);
    view.template read_targets<n>(c, view.classes, v);
    if constexpr (P::verb == softmax_product) {
#pragma unroll
        for (int j = 0; j < n; ++j) y[j] = y[j] == -Format<Real>::infinity() ? Real(0) : y[j];
    }
}

// Both arrays in registers.
template <int n, int chunks, class P, class Team>
struct EntriesInRegisters {
    const Team& team;
    typename P::A::Real y[chunks][n], v[chunks][n];

    XS_FUNCTION EntriesInRegisters(const View<P>& view, const Team& team) : team(team) {
#pragma unroll
        for (int i = 0; i < chunks; ++i) {
            read_pair<P, n>(view, view.template begin<n>(i * Team::size + team.lane), y[i], v[i]);
        }
    }
    template <class Sums>
    XS_FUNCTION void add_to(Sums& sums) const {
#pragma unroll
        for (int i = 0; i < chunks; ++i) {
#pragma unroll
            for (int j = 0; j < n; ++j) sums.add(y[i][j], v[i][j]);
        }
        team.reduce(sums);
    }
};

template <int n, int chunks, class P, class Team>
XS_FUNCTION void product_in_registers(const View<P>& view, const Team& team) {
    EntriesInRegisters<n, chunks, P, Team> row(view, team);
    Product<P> product(row);
    if (!view.exists) return;
#pragma unroll
    for (int i = 0; i < chunks; ++i) {
        store_results(view, product, view.template begin<n>(i * Team::size + team.lane), row.y[i], row.v[i]);
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
template <int n, class P, class Team>
struct EntriesInMemory {
    typedef typename P::A::Real Real;
    static constexpr int stride = Team::size * n, together = n == 1 ? 4 : 2;  // twice as many vectors spill 392 bytes
    const View<P>& view;
    const Team& team;
    int begin;

    XS_FUNCTION EntriesInMemory(const View<P>& view, const Team& team)
        : view(view), team(team), begin(view.template begin<n>(team.lane)) {}
    template <class Sums>
    XS_FUNCTION void add_to(Sums& sums) const {
        Real y[n], v[n];
#pragma unroll together
        for (int c = begin; c < view.classes; c += stride) {
            read_pair<P, n>(view, c, y, v);
#pragma unroll
            for (int j = 0; j < n; ++j) sums.add(y[j], v[j]);
        }
        team.reduce(sums);
    }
    XS_FUNCTION void store(const Product<P>& product) const {
        Real y[n], v[n];
        for (int c = begin; c < view.classes; c += stride) {
            read_pair<P, n>(view, c, y, v);
            store_results(view, product, c, y, v);
        }
    }
};

template <class P, class Team, int n>
__global__ void __launch_bounds__(Team::threads) product_swept(const Arguments a) {
    Team team;
    for (Int64 first = Int64(blockIdx.x) * Team::rows; first < a.rows; first += Int64(gridDim.x) * Team::rows) {
        View<P> view(a, first + team.slot);
        EntriesInMemory<n, P, Team> row(view, team);
        row.store(Product<P>(row));
    }
}

}  // namespace xsoftmax
