// A row of the arguments: where its elements are, and what options make of them.

namespace xsoftmax {

enum Verb { softmax, log_softmax, logsumexp, label_loss, target_loss, softmax_product, log_softmax_vjp, log_softmax_jvp };

// Row r of an array starts (r / inner_rows) · outer + (r % inner_rows) · inner elements from `data` on, its classes are
// `step` apart.
struct Place {
    void* data;
    Int64 outer, inner, step;
};

// An address 0 stands for an array that is not there. zeta and scale are of each row, or with step 0 of all; z_loss and
// factor stand for them where they are numbers.
struct Arguments {
    Int64 rows, inner_rows, classes;
    Place x, y, targets, where;
    const void* labels;
    const double *weight, *zeta, *scale;
    void* value;  // logsumexp in the dtype of the logits, loss in float64
    void* pieces;
    double softcap, temperature, smoothing, z_loss, factor;  // softcap 0: none
    int label_kind, zeta_step, scale_step, slices;
};

template <bool first, class A, class B>
struct Either {
    typedef A Type;
};
template <class A, class B>
struct Either<false, A, B> {
    typedef B Type;
};

// A: arithmetic, T: logits and result, U: targets, or the vector of a product, which takes their place. Without options
// there are no mask, softcap, temperature, smoothing and no weight of targets, and classes are side by side.
template <class A_, class T_, class U_, Verb verb_, bool options_>
struct Problem {
    typedef T_ T;
    typedef U_ U;
    static constexpr Verb verb = verb_;
    static constexpr bool options = options_, product = verb >= softmax_product;
    typedef typename Either<options && !product, Divided<A_>, A_>::Type A;
    static constexpr bool loss = verb == label_loss || verb == target_loss, has_targets = verb == target_loss || product;
};

template <class Real>
XS_CALLED Real softcapped(Real x, double cap) {
    if (!is_finite(x)) return x;
    return is_moderate<Real>(cap) ? Real(cap) * tanh(x / Real(cap)) : Real(cap * tanh(double(x) / cap));
}

// Its derivative sech²(x / cap); 1 − tanh² would cancel
template <class Real>
XS_CALLED Real softcap_slope(Real x, double cap) {
    Real u = over_number(x, cap), e = exp(-2 * (u < 0 ? -u : u));
    return 4 * e / ((1 + e) * (1 + e));
}

template <class P>
struct View {
    typedef typename P::A::Real Real;
    typedef typename P::T T;
    typedef typename P::U U;

    const Arguments& a;
    Int64 row;
    bool exists;
    int classes;
    const T* x;
    T* y;
    const U* targets;
    const unsigned char* where;
    Int64 label;
    double share;  // what smoothing adds to each class that is kept
    bool keeps_some = true;

    XS_FUNCTION View(const Arguments& a, Int64 index) : a(a), exists(index < a.rows), classes(exists ? int(a.classes) : 0) {
        row = exists ? index : a.rows - 1;
        x = at<T>(a.x);
        y = at<T>(a.y);
        targets = at<U>(a.targets);
        where = P::options ? at<unsigned char>(a.where) : nullptr;
        label = a.labels ? label_at(a.labels, a.label_kind, row) : -1;
        share = P::options ? a.smoothing / a.classes : 0.0;
    }

    XS_FUNCTION bool label_exists() const { return label >= 0 && label < classes; }
    XS_FUNCTION Real at_label() const { return label_exists() ? logit(x[place<1>(label, a.x.step)], label) : Real(0); }
    XS_FUNCTION double zeta() const { return a.zeta ? a.zeta[row * a.zeta_step] : a.z_loss; }
    XS_FUNCTION double scale() const { return a.scale ? a.scale[row * a.scale_step] : a.factor; }
    // A label that is none makes its row nan.
    XS_FUNCTION double label_weight() const { return !label_exists() ? nan() : a.weight ? a.weight[label] : 1.0; }

    XS_FUNCTION bool kept(Int64 c) const { return !P::options || !where || where[c * a.where.step]; }

    // Where a lane begins that reads vectors of n classes. They lie at multiples of 16 bytes: the first may start before
    // the row, and is then read and written class by class, as one that ends behind it.
    template <int n>
    XS_FUNCTION int begin(int lane) const {
        return lane * n - (n == 1 ? 0 : int(reinterpret_cast<unsigned long long>(x) / sizeof(T) % n));
    }

    // n classes from c on; before the row and from `end` on nothing is read, logits are −∞ and targets 0.
    template <int n>
    XS_FUNCTION Vector<T, n> elements(int c, int end) const {
        return read<n>(x, a.x.step, c, end);
    }
    template <int n>
    XS_FUNCTION void logits(const Vector<T, n>& v, int c, int end, Real* z) const {
#pragma unroll
        for (int j = 0; j < n; ++j) z[j] = is_in(c + j, end) ? logit(v.at[j], c + j) : -Format<Real>::infinity();
    }
    template <int n>
    XS_FUNCTION void read_targets(int c, int end, Real* t) const {
        Vector<U, n> v = {};
        if (P::has_targets && targets) v = read<n>(targets, a.targets.step, c, end);
#pragma unroll
        for (int j = 0; j < n; ++j) t[j] = P::has_targets && is_in(c + j, end) ? target(v.at[j], c + j) : Real(0);
    }

    template <int n>
    XS_FUNCTION void store(int c, const Real* values) const {
        Vector<T, n> v, again = {};
        if (P::options && P::loss && a.softcap != 0.0) again = elements<n>(c, classes);
#pragma unroll
        for (int j = 0; j < n; ++j) {
            narrow(is_in(c + j, classes) ? result(c + j, values[j], again.at[j]) : Real(0), v.at[j]);
        }
        if (n > 1 && c >= 0 && c + n <= classes) {
            *reinterpret_cast<Vector<T, n>*>(y + c) = v;
            return;
        }
#pragma unroll
        for (int j = 0; j < n; ++j) {
            if (is_in(c + j, classes)) y[place<n>(c + j, a.y.step)] = v.at[j];
        }
    }

  private:
    template <class E>
    XS_FUNCTION E* at(const Place& place) const {
        if (!place.data) return nullptr;
        Int64 outer = a.inner_rows == 1 ? row : row / a.inner_rows, inner = row - outer * a.inner_rows;
        return static_cast<E*>(place.data) + outer * place.outer + inner * place.inner;
    }
    static XS_FUNCTION bool is_in(int c, int end) { return unsigned(c) < unsigned(end); }
    // Vectors are of classes side by side, single ones may be `step` apart.
    template <int n>
    static XS_FUNCTION Int64 place(Int64 c, Int64 step) {
        return P::options && n == 1 ? c * step : c;
    }
    template <int n, class E>
    static XS_FUNCTION Vector<E, n> read(const E* from, Int64 step, int c, int end) {
        if (n > 1 && c >= 0 && c + n <= end) return *reinterpret_cast<const Vector<E, n>*>(from + c);
        Vector<E, n> v = {};
#pragma unroll
        for (int j = 0; j < n; ++j) {
            if (is_in(c + j, end)) v.at[j] = from[place<n>(c + j, step)];
        }
        return v;
    }

    XS_FUNCTION Real logit(T element, Int64 c) const {
        Real z = number<Real>(element);
        if constexpr (P::options) {
            if (!kept(c)) return -Format<Real>::infinity();
            if (a.softcap != 0.0) z = softcapped(z, a.softcap);
        }
        return z;
    }
    XS_FUNCTION Real target(U element, int c) const {
        if constexpr (!P::options) {
            return number<Real>(element);
        } else if constexpr (P::product) {
            return kept(c) ? number<Real>(element) : Real(0);
        } else {
            double t = label_exists() ? c == label : nan();  // also where a mask hides it: a loss of ∞, as without
            if (targets) t = kept(c) ? number<double>(element) : 0.0;
            if (a.smoothing != 0.0) t = (1.0 - a.smoothing) * t + (kept(c) ? share : 0.0);
            return Real(a.weight && t != 0.0 ? t * a.weight[c] : t);
        }
    }
    XS_FUNCTION Real result(int c, Real value, T element) const {
        if constexpr (P::options) {
            if (!kept(c)) return P::verb == log_softmax ? -Format<Real>::infinity() : Real(0);
            if (P::loss && value != 0) {
                if (a.softcap != 0.0) value *= softcap_slope(number<Real>(element), a.softcap);
                return over_number(value, a.temperature);
            }
        }
        return value;
    }
};

}  // namespace xsoftmax
