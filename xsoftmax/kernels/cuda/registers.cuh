// A row in registers.

namespace xsoftmax {

// `chunks` vectors of n classes for each thread of a team.
template <int n, int chunks, class P, class Team>
XS_FUNCTION void in_registers(View<P>& view, const Team& team) {
    typedef typename P::A::Real Real;
    count_kept(view, team);
    Real kept[chunks][n], at_label = view.at_label();
    Largest<typename P::A::Compared> top = {-Format<typename P::A::Compared>::infinity()};
#pragma unroll
    for (int i = 0; i < chunks; ++i) {
        int c = view.template begin<n>(i * Team::size + team.lane);
        view.template logits<n>(view.template elements<n>(c, view.classes), c, view.classes, kept[i]);
    }
#pragma unroll
    for (int i = 0; i < chunks; ++i) {
#pragma unroll
        for (int j = 0; j < n; ++j) top.merge({typename P::A::Compared(kept[i][j])});
    }
    team.reduce(top);
    Parts<P> parts(top.m, view.a.temperature);
#pragma unroll
    for (int i = 0; i < chunks; ++i) {
        Real w[n];
        int c = view.template begin<n>(i * Team::size + team.lane);
        parts.template add_known<n>(view, {c, 0, view.classes}, kept[i], w);
#pragma unroll
        for (int j = 0; j < n; ++j) kept[i][j] = Parts<P>::keeps_terms ? w[j] : kept[i][j];
    }
    parts.reduce_known(team);
    Results<P> results(view, parts, at_label);
    if (!view.exists) return;
    if (team.lane == 0) results.store(view);
    if constexpr (P::verb != logsumexp) {
        if (!view.y) return;
#pragma unroll
        for (int i = 0; i < chunks; ++i) {
            store_kept(view, results, view.template begin<n>(i * Team::size + team.lane), kept[i]);
        }
    }
}

template <class P, class Team, int n, int chunks>
__global__ void __launch_bounds__(Team::threads) resident(const Arguments a) {
    Team team;
    for (Int64 first = Int64(blockIdx.x) * Team::rows; first < a.rows; first += Int64(gridDim.x) * Team::rows) {
        View<P> view(a, first + team.slot);
        in_registers<n, chunks>(view, team);
    }
}

}  // namespace xsoftmax
