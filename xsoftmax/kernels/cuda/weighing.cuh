// Which rows of a loss count, what their gradients are multiplied by, and the sum or mean of their losses.

namespace xsoftmax {

// s of each row, L its loss, w of each class, t the labels; an address 0 stands for 1, or for labels that are not there.
struct Weighing {
    Int64 rows, classes, ignored;
    const void* labels;
    const double *s, *w, *loss;
    double *partial, *scale, *zeta, *divisor;
    unsigned char* absent;
    void* result;
    double z_loss, divided_by;  // stands for a divisor that is no array
    int label_kind, ignores, is_mean, is_float32, parts;
};

// Σ c w_t and Σ c of the rows that count, c = s; or Σ s L.
struct RowTotals {
    Sum<double> weighted, plain;

    XS_FUNCTION RowTotals() : weighted{0.0, 0.0}, plain{0.0, 0.0} {}
    XS_FUNCTION void add(double a, double b) {
        weighted.add(a);
        plain.add(b);
    }
    XS_FUNCTION void merge(const RowTotals& other) {
        weighted.add(other.weighted);
        plain.add(other.plain);
    }
};

struct CountedRow {
    double s, weight;
    bool absent, bad;

    XS_FUNCTION CountedRow(const Weighing& a, Int64 row) : s(a.s ? a.s[row] : 1.0), weight(1.0), bad(false) {
        Int64 label = a.labels ? label_at(a.labels, a.label_kind, row) : 0;
        absent = s == 0.0 || (a.ignores && label == a.ignored);
        bad = !absent && (label < 0 || label >= a.classes);
        if (absent || bad) s = 0.0;
        if (a.w) weight = absent || bad ? 0.0 : a.w[label];
    }
};

template <int threads>
XS_FUNCTION RowTotals counted(const Weighing& a) {
    RowTotals totals;
    for (Int64 row = Int64(blockIdx.x) * threads + threadIdx.x; row < a.rows; row += Int64(gridDim.x) * threads) {
        CountedRow counts(a, row);
        totals.add(counts.s * counts.weight, counts.s);
    }
    Block<threads>().reduce(totals);
    return totals;
}

template <int threads>
XS_FUNCTION void scale_rows(const Weighing& a, const RowTotals& totals) {
    double divisor = value_or_infinity(totals.weighted), plain = value_or_infinity(totals.plain);
    const bool nothing = a.is_mean && divisor == 0.0;
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        *a.divisor = divisor;
        *a.zeta = a.z_loss * divisor / (plain == 0.0 ? 1.0 : plain);
    }
    for (Int64 row = Int64(blockIdx.x) * threads + threadIdx.x; row < a.rows; row += Int64(gridDim.x) * threads) {
        CountedRow counts(a, row);
        a.scale[row] = counts.bad ? nan() : nothing ? 0.0 : a.is_mean ? counts.s / divisor : counts.s;
        if (a.absent) a.absent[row] = counts.absent;
    }
}

// What `parts` blocks left.
template <int threads>
XS_FUNCTION RowTotals joined_totals(const Weighing& a) {
    RowTotals totals;
    for (int i = threadIdx.x; i < a.parts; i += threads) totals.add(a.partial[2 * i], a.partial[2 * i + 1]);
    Block<threads>().reduce(totals);
    return totals;
}

XS_FUNCTION void leave_part(const Weighing& a, const RowTotals& totals) {
    if (threadIdx.x != 0) return;
    a.partial[2 * blockIdx.x] = value_or_infinity(totals.weighted);
    a.partial[2 * blockIdx.x + 1] = value_or_infinity(totals.plain);
}

// All rows by one block.
template <int threads>
__global__ void __launch_bounds__(threads) weigh(const Weighing a) {
    scale_rows<threads>(a, counted<threads>(a));
}

template <int threads>
__global__ void __launch_bounds__(threads) count_part(const Weighing a) {
    leave_part(a, counted<threads>(a));
}

template <int threads>
__global__ void __launch_bounds__(threads) scale_part(const Weighing a) {
    scale_rows<threads>(a, joined_totals<threads>(a));
}

template <int threads>
XS_FUNCTION RowTotals losses(const Weighing& a) {
    RowTotals totals;
    for (Int64 row = Int64(blockIdx.x) * threads + threadIdx.x; row < a.rows; row += Int64(gridDim.x) * threads) {
        if (a.absent && a.absent[row]) continue;
        totals.add((a.s ? a.s[row] : 1.0) * a.loss[row], 0.0);
    }
    Block<threads>().reduce(totals);
    return totals;
}

// The mean over no row is nan. No loss is −0.0, as 0 over a negative divisor and a negative one that underflows would be.
XS_FUNCTION void store_loss(const Weighing& a, const RowTotals& totals) {
    if (threadIdx.x != 0) return;
    double sum = value_or_infinity(totals.weighted), divisor = a.divisor ? *a.divisor : a.divided_by;
    if (a.is_mean) sum = divisor == 0.0 ? nan() : sum / divisor;
    if (a.is_float32) {
        *static_cast<float*>(a.result) = to_double(to_float(sum)) == 0.0 ? 0.0f : to_float(sum);
    } else {
        *static_cast<double*>(a.result) = sum == 0.0 ? 0.0 : sum;
    }
}

template <int threads>
__global__ void __launch_bounds__(threads) sum_losses(const Weighing a) {
    store_loss(a, losses<threads>(a));
}

template <int threads>
__global__ void __launch_bounds__(threads) sum_part(const Weighing a) {
    leave_part(a, losses<threads>(a));
}

template <int threads>
__global__ void __launch_bounds__(threads) join_losses(const Weighing a) {
    store_loss(a, joined_totals<threads>(a));
}

}  // namespace xsoftmax
