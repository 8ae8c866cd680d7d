// What kernels have in common: reading several vectors, writing results.

namespace xsoftmax {

struct Count {
    int n;
    XS_FUNCTION void merge(Count other) { n += other.n; }
};

// Smoothing spreads over the classes that are kept; without any there is no loss.
template <class P, class Team>
XS_FUNCTION void count_kept(View<P>& view, const Team& team) {
    if constexpr (P::options && P::loss) {
        if (!view.a.where.data) return;
        Count kept = {0};
        for (int c = team.lane; c < view.classes; c += Team::size) kept.n += view.kept(c) ? 1 : 0;
        team.reduce(kept);
        view.keeps_some = kept.n > 0;
        view.share = view.a.smoothing / (kept.n > 0 ? kept.n : 1);
    }
}

// Several vectors at once, so that many reads are on their way: the compiler moves none above a write.
template <class P, int n, int vectors>
XS_FUNCTION void load(const View<P>& view, Classes classes, Vector<typename P::T, n> (&elements)[vectors]) {
#pragma unroll
    for (int i = 0; i < vectors; ++i) {
        elements[i] = view.template elements<n>(classes.c + i * classes.stride, classes.end);
    }
}

// Of n classes from what was kept of them and their targets.
template <class P, class Results, class Real, int n>
XS_FUNCTION void store_results(const View<P>& view, const Results& results, int c, const Real (&kept)[n],
                               const Real (&t)[n]) {
    Real values[n];
#pragma unroll
    for (int j = 0; j < n; ++j) values[j] = results(view, c + j, kept[j], t[j]);
    view.template store<n>(c, values);
}

// The same where targets are still to be read.
template <class P, class Real, int n>
XS_FUNCTION void store_kept(const View<P>& view, const Results<P>& results, int c, const Real (&kept)[n]) {
    Real t[n];
    view.template read_targets<n>(c, view.classes, t);
    store_results(view, results, c, kept, t);
}

// Of n classes from their logits, which are read once more.
template <class P, int n>
XS_FUNCTION void store_again(const View<P>& view, const Results<P>& results, const Parts<P>& parts, int c,
                             const Vector<typename P::T, n>& elements) {
    typename P::A::Real kept[n];
    view.template logits<n>(elements, c, view.classes, kept);
#pragma unroll
    for (int j = 0; j < n; ++j) kept[j] = parts.kept(kept[j]);
    store_kept(view, results, c, kept);
}

}  // namespace xsoftmax
