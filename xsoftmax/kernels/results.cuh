// What a verb makes of a finished row: a number for the row, and one for each class.

namespace xsoftmax {

// Logits of N classes: n side by side from c on, and again every `stride`; from `end` on there are none.
struct Classes {
    int c, stride, end;
    template <int n>
    XS_FUNCTION int at(int j) const {
        return c + j / n * stride + j % n;
    }
};

// The row alone, or with its targets; `keeps_terms`: a result follows from a class's w, else from its logit.
template <class P, Verb verb = P::verb>
struct Parts {
    typedef typename P::A A;
    typedef typename A::Real Real;
    static constexpr bool keeps_terms = verb != log_softmax;
    Row<A> row;

    XS_FUNCTION Parts() {}
    XS_FUNCTION explicit Parts(Real m) : row(m) {}
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

    XS_FUNCTION Parts() {}
    XS_FUNCTION explicit Parts(Real m) { both.row = Row<A>(m); }
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
        for (int j = 0; j < N; ++j) both.sums.add(both.row.at.m, x[j], t[j]);
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
        for (int j = 0; j < N; ++j) t[j] = view.target(classes.at<n>(j), classes.end);
    }
};

template <class P, Verb verb = P::verb>
struct Results;

template <class P>
struct Results<P, softmax> {
    typedef typename P::A::Real Real;
    Softmax<typename P::A> y;
    XS_FUNCTION Results(const View<P>&, const Parts<P>& parts, Real) : y(RowSums(parts.row)) {}
    XS_FUNCTION void store(const View<P>&) const {}
    XS_FUNCTION Real operator()(const View<P>&, int, Real w) const { return y(w); }
};

template <class P>
struct Results<P, log_softmax> {
    typedef typename P::A::Real Real;
    LogSoftmax<typename P::A> log_y;
    XS_FUNCTION Results(const View<P>&, const Parts<P>& parts, Real) : log_y(RowSums(parts.row)) {}
    XS_FUNCTION void store(const View<P>&) const {}
    XS_FUNCTION Real operator()(const View<P>&, int, Real x) const { return log_y(x); }
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
          at_label(Real(scale * loss.at_label)) {}
    XS_FUNCTION void store(const View<P>& view) const {
        if (view.a.value) static_cast<double*>(view.a.value)[view.row] = loss.loss;
    }
    // A row that is absent has gradient 0, whatever it holds.
    XS_FUNCTION Real operator()(const View<P>& view, int c, Real w) const {
        return scale == 0.0 ? Real(0) : c == view.label ? at_label : shares(w);
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
    XS_FUNCTION void store(const View<P>& view) const {
        if (view.a.value) static_cast<double*>(view.a.value)[view.row] = loss.loss;
    }
    XS_FUNCTION Real operator()(const View<P>& view, int c, Real w) const {
        return scale == 0.0 ? Real(0) : loss.gradient(view.target(c), w);
    }
};

}  // namespace xsoftmax
