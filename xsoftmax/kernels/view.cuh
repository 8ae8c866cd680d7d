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

// A: arithmetic, T: logits and result, U: targets, or the vector of a product, which takes their place. Without options
// there are no mask, softcap, temperature, smoothing and no weight of targets, and classes are side by side.
template <class A_, class T_, class U_, Verb verb_, bool options_>
struct Problem {
    typedef A_ A;
    typedef T_ T;
    typedef U_ U;
    static constexpr Verb verb = verb_;
    static constexpr bool options = options_, product = verb >= softmax_product;
};

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

    XS_FUNCTION View(const Arguments& a, Int64 index) : a(a), exists(index < a.rows), classes(int(a.classes)) {
        row = exists ? index : a.rows - 1;
        x = at<T>(a.x);
        y = at<T>(a.y);
        targets = at<U>(a.targets);
        where = P::options ? at<unsigned char>(a.where) : nullptr;
        label = a.labels ? label_at(a.labels, a.label_kind, row) : -1;
        share = P::options ? a.smoothing / classes : 0.0;
    }

    XS_FUNCTION bool label_exists() const { return label >= 0 && label < classes; }
    XS_FUNCTION Real at_label() const { return label_exists() ? logit(element(label), label) : Real(0); }
    XS_FUNCTION double zeta() const { return a.zeta ? a.zeta[row * a.zeta_step] : a.z_loss; }
    XS_FUNCTION double scale() const { return a.scale ? a.scale[row * a.scale_step] : a.factor; }
    // A label that is none makes its row nan.
    XS_FUNCTION double label_weight() const { return !label_exists() ? nan() : a.weight ? a.weight[label] : 1.0; }

    XS_FUNCTION bool kept(Int64 c) const { return !P::options || !where || where[c * a.where.step]; }

    // n classes from c on; from `end` on nothing is read, logits are −∞ and targets 0.
    template <int n>
    XS_FUNCTION Vector<T, n> elements(int c, int end) const {
        Vector<T, n> v = {};
        if (n > 1 && c + n <= end) return *reinterpret_cast<const Vector<T, n>*>(x + c);
#pragma unroll
        for (int j = 0; j < n; ++j) {
            if (c + j < end) v.at[j] = element(c + j);
        }
        return v;
    }
    template <int n>
    XS_FUNCTION void logits(const Vector<T, n>& v, int c, int end, Real* z) const {
#pragma unroll
        for (int j = 0; j < n; ++j) z[j] = c + j < end ? logit(v.at[j], c + j) : -Format<Real>::infinity();
    }
    XS_FUNCTION Real target(int c, int end) const { return c < end ? target(c) : Real(0); }
    XS_FUNCTION Real target(int c) const {
        if constexpr (P::verb != target_loss && !P::product) {
            return 0;
        } else if constexpr (!P::options) {
            return Real(widened(targets[c]));
        } else if constexpr (P::product) {
            return kept(c) ? Real(widened(targets[c * a.targets.step])) : Real(0);
        } else {
            double t = label_exists() ? c == label : nan();  // also where a mask hides it: a loss of ∞, as without
            if (targets) t = kept(c) ? double(widened(targets[c * a.targets.step])) : 0.0;
            if (a.smoothing != 0.0) t = (1.0 - a.smoothing) * t + (kept(c) ? share : 0.0);
            return Real(a.weight ? t * a.weight[c] : t);
        }
    }

    template <int n>
    XS_FUNCTION void store(int c, const Real* values) const {
        Vector<T, n> v;
#pragma unroll
        for (int j = 0; j < n; ++j) narrow(c + j < classes ? result(c + j, values[j]) : Real(0), v.at[j]);
        if (n > 1 && c + n <= classes) {
            *reinterpret_cast<Vector<T, n>*>(y + c) = v;
            return;
        }
#pragma unroll
        for (int j = 0; j < n; ++j) {
            if (c + j < classes) y[P::options ? (c + j) * a.y.step : c + j] = v.at[j];
        }
    }

  private:
    template <class E>
    XS_FUNCTION E* at(const Place& place) const {
        if (!place.data) return nullptr;
        Int64 outer = a.inner_rows == 1 ? row : row / a.inner_rows, inner = row - outer * a.inner_rows;
        return static_cast<E*>(place.data) + outer * place.outer + inner * place.inner;
    }
    XS_FUNCTION T element(Int64 c) const { return x[P::options ? c * a.x.step : c]; }

    XS_FUNCTION Real logit(T element, Int64 c) const {
        Real z = widened(element);
        if constexpr (P::options) {
            if (!kept(c)) return -Format<Real>::infinity();
            if (a.softcap != 0.0 && is_finite(z)) z = Real(a.softcap) * tanh(z / Real(a.softcap));
            if (a.temperature != 1.0) z = z / Real(a.temperature);
        }
        return z;
    }
    XS_FUNCTION Real result(int c, Real value) const {
        if constexpr (P::options) {
            if (!kept(c)) return P::verb == log_softmax ? -Format<Real>::infinity() : Real(0);
            if (P::verb == label_loss || P::verb == target_loss) return value == 0 ? value : value * slope(c);
        }
        return value;
    }
    // dz/dx = sech²(x / softcap) / temperature; 1 − tanh² would cancel
    XS_FUNCTION Real slope(int c) const {
        Real slope = Real(1) / Real(a.temperature);
        if (a.softcap == 0.0) return slope;
        Real u = Real(widened(element(c))) / Real(a.softcap);
        Real e = exp(-2 * (u < 0 ? -u : u));
        return slope * (4 * e / ((1 + e) * (1 + e)));
    }
};

}  // namespace xsoftmax
