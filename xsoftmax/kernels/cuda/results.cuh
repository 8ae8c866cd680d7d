// What a verb makes of a finished row: a number for the row, and one for each class, from what was kept of it and its
// target.

namespace xsoftmax {

// Of N logits n are side by side from class c on, and so again every `stride`; from `end` on there are none.
struct Classes {
    int c, stride, end;
};

// The row alone, or with its targets; `keeps_terms`: a result follows from a class's w, else from its logit.
template <class P, Verb verb = P::verb>
struct Parts {
    typedef typename P::A A;
    typedef typename A::Real Real;
    static constexpr bool keeps_terms = verb != log_softmax;
    Row<A> row;

    XS_FUNCTION Parts(Real m, double temperature) : row(m, temperature) {}
    template <int n, int N>
    XS_FUNCTION void add(const View<P>&, Classes, const Real (&x)[N]) {
        row.add(x);
    }
    template <int n, int N>
    XS_FUNCTION void add_known(const View<P>&, Classes, const Real (&x)[N], Real (&w)[N]) {
        row.add_known(x, w);
    }
    XS_FUNCTION void merge(const Parts& other) { row.merge(other.row); }
    XS_FUNCTION Real kept(Real x) const { return keeps_terms ? row.at.term(x).high : x; }
    // The parts of one row all have its maximum.
    template <class Team>
    XS_FUNCTION void reduce_known(const Team& team) {
        team.reduce(row.seen);
    }
};

template <class P>
struct Parts<P, target_loss> {
    typedef typename P::A A;
    typedef typename A::Real Real;
    static constexpr bool keeps_terms = true;
    TargetRow<A> both;

    XS_FUNCTION Parts(Real m, double temperature) : both{Row<A>(m, temperature), {}} {}
    template <int n, int N>
    XS_FUNCTION void add(const View<P>& view, Classes classes, const Real (&x)[N]) {
        Real t[N];
        read<n>(view, classes, t);
        both.add(x, t);
    }
    template <int n, int N>
    XS_FUNCTION void add_known(const View<P>& view, Classes classes, const Real (&x)[N], Real (&w)[N]) {
        Real t[N];
        read<n>(view, classes, t);
        both.row.add_known(x, w);
#pragma unroll
        for (int j = 0; j < N; ++j) both.sums.add(both.row.at, x[j], t[j]);
    }
    XS_FUNCTION void merge(const Parts& other) { both.merge(other.both); }
    XS_FUNCTION Real kept(Real x) const { return both.row.at.term(x).high; }
    template <class Team>
    XS_FUNCTION void reduce_known(const Team& team) {
        team.reduce(both.row.seen);
        team.reduce(both.sums);
    }

  private:
    template <int n, int N>
    XS_FUNCTION static void read(const View<P>& view, Classes classes, Real (&t)[N]) {
#pragma unroll
        for (int k = 0; k < N / n; ++k) {
            view.template read_targets<n>(classes.c + k * classes.stride, classes.end, t + k * n);
        }
    }
};

template <class P, Verb verb = P::verb>
struct Results;

// A function of what is kept of a class.
template <class P, class Function>
struct EachClass {
    typedef typename P::A::Real Real;
    Function y;
    XS_FUNCTION EachClass(const View<P>&, const Parts<P>& parts, Real) : y(RowSums(parts.row)) {}
    XS_FUNCTION void store(const View<P>&) const {}
    XS_FUNCTION Real operator()(const View<P>&, int, Real kept, Real) const { return y(kept); }
};

template <class P>
struct Results<P, softmax> : EachClass<P, Softmax<typename P::A>> {
    using EachClass<P, Softmax<typename P::A>>::EachClass;
};

template <class P>
struct Results<P, log_softmax> : EachClass<P, LogSoftmax<typename P::A>> {
    using EachClass<P, LogSoftmax<typename P::A>>::EachClass;
};

template <class P>
struct Results<P, logsumexp> {
    typedef typename P::A::Real Real;
    double value;
    XS_FUNCTION Results(const View<P>&, const Parts<P>& parts, Real) : value(RowSums(parts.row).logsumexp()) {}
    XS_FUNCTION void store(const View<P>& view) const {
        narrow(value, static_cast<typename P::T*>(view.a.value)[view.row]);
    }
};

// 0 where a mask keeps nothing.
template <class P>
XS_FUNCTION void store_loss(const View<P>& view, double loss) {
    if (view.a.value) static_cast<double*>(view.a.value)[view.row] = view.keeps_some ? loss : 0.0;
}

template <class P>
struct Results<P, label_loss> {
    typedef typename P::A A;
    typedef typename A::Real Real;
    RowSums sums;
    LabelLoss<A> loss;
    double scale;
    Shares<A> shares;
    Real at_label;

    XS_FUNCTION Results(const View<P>& view, const Parts<P>& parts, Real x)
        : sums(parts.row),
          loss(sums, parts.row.at, view.label_weight(), view.zeta(), x),
          scale(view.scale()),
          shares(sums, scale * loss.pull),
          at_label(loss.gradient_at_label(scale)) {}
    XS_FUNCTION void store(const View<P>& view) const { store_loss(view, loss.loss); }
    // A row that is absent has gradient 0, whatever it holds.
    XS_FUNCTION Real operator()(const View<P>& view, int c, Real w, Real) const {
        return scale == 0.0 ? Real(0) : c == view.label ? at_label : loss.gradient(shares(w), w);
    }
};

template <class P>
struct Results<P, target_loss> {
    typedef typename P::A A;
    typedef typename A::Real Real;
    double scale;
    TargetLoss<A> loss;

    XS_FUNCTION Results(const View<P>& view, const Parts<P>& parts, Real)
        : scale(view.scale()),
          loss(RowSums(parts.both.row), parts.both.row.at, parts.both.sums, view.zeta(), scale) {}
    XS_FUNCTION void store(const View<P>& view) const { store_loss(view, loss.loss); }
    XS_FUNCTION Real operator()(const View<P>&, int, Real w, Real t) const {
        return scale == 0.0 ? Real(0) : loss.gradient(t, w);
    }
};

}  // namespace xsoftmax
