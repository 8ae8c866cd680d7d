// Kernels for rows of every length. What is read twice is read from registers, shared memory or the cache.

#include "row_math.cuh"

#include "elements.cuh"
#include "teams.cuh"
#include "view.cuh"
#include "results.cuh"
#include "products.cuh"
#include "weighing.cuh"

namespace xsoftmax {

struct Count {
    int n;
    XS_FUNCTION void merge(Count other) { n += other.n; }
};

// Smoothing spreads over the classes that are kept.
template <class P, class Team>
XS_FUNCTION void count_kept(View<P>& view, const Team& team) {
    if constexpr (P::options && P::verb == target_loss) {
        if (view.a.smoothing == 0.0 || !view.a.where.data) return;
        Count kept = {0};
        for (int c = team.lane; c < view.classes; c += Team::size) kept.n += view.kept(c) ? 1 : 0;
        team.reduce(kept);
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

// Of n classes from what was kept of them.
template <class P, int n>
XS_FUNCTION void store_results(const View<P>& view, const Results<P>& results, int c,
                               const typename P::A::Real (&kept)[n]) {
    typename P::A::Real values[n];
#pragma unroll
    for (int j = 0; j < n; ++j) values[j] = results(view, c + j, kept[j]);
    view.template store<n>(c, values);
}

// Of n classes from their logits, which are read once more.
template <class P, int n>
XS_FUNCTION void store_again(const View<P>& view, const Results<P>& results, const Parts<P>& parts, int c,
                             const Vector<typename P::T, n>& elements) {
    typename P::A::Real kept[n];
    view.template logits<n>(elements, c, view.classes, kept);
#pragma unroll
    for (int j = 0; j < n; ++j) kept[j] = parts.kept(kept[j]);
    store_results(view, results, c, kept);
}

// A row in registers: `chunks` vectors of n classes for each thread of a team.
template <class P, class Team, int n, int chunks>
__global__ void __launch_bounds__(Team::threads) resident(const Arguments a) {
    typedef typename P::A::Real Real;
    Team team;
    for (Int64 first = Int64(blockIdx.x) * Team::rows; first < a.rows; first += Int64(gridDim.x) * Team::rows) {
        View<P> view(a, first + team.slot);
        count_kept(view, team);
        Real kept[chunks][n], at_label = view.at_label();
        Largest<typename P::A::Compared> top = {-Format<typename P::A::Compared>::infinity()};
#pragma unroll
        for (int i = 0; i < chunks; ++i) {
            int c = (i * Team::size + team.lane) * n;
            view.template logits<n>(view.template elements<n>(c, view.classes), c, view.classes, kept[i]);
        }
#pragma unroll
        for (int i = 0; i < chunks; ++i) {
#pragma unroll
            for (int j = 0; j < n; ++j) top.merge({typename P::A::Compared(kept[i][j])});
        }
        team.reduce(top);
        Parts<P> parts(top.m);
#pragma unroll
        for (int i = 0; i < chunks; ++i) {
            Real w[n];
            int c = (i * Team::size + team.lane) * n;
            parts.template add_known<n>(view, {c, 0, view.classes}, kept[i], w);
#pragma unroll
            for (int j = 0; j < n; ++j) kept[i][j] = Parts<P>::keeps_terms ? w[j] : kept[i][j];
        }
        parts.reduce_known(team);
        Results<P> results(view, parts, at_label);
        if (!view.exists) continue;
        if (team.lane == 0) results.store(view);
#pragma unroll
        for (int i = 0; i < chunks; ++i) {
            store_results(view, results, (i * Team::size + team.lane) * n, kept[i]);
        }
    }
}

// A row in shared memory: of one block, or of a cluster, each of whose blocks has a share.
template <class P, class Team, int n>
XS_FUNCTION void in_shared_memory(const Arguments& a, Int64 row, Int64 step) {
    typedef typename P::A::Real Real;
    typedef Vector<typename P::T, n> Elements;
    Elements* own = static_cast<Elements*>(row_space()) + threadIdx.x;  // each thread reads only what it wrote
    Team team;
    const int stride = Team::size * n, begin = team.lane * n;
    for (; row < a.rows; row += step) {
        View<P> view(a, row);
        count_kept(view, team);
        Real x[n], at_label = view.at_label();
        Largest<typename P::A::Compared> top = {-Format<typename P::A::Compared>::infinity()};
        for (int c = begin, i = 0; c < view.classes; c += 4 * stride, i += 4 * Team::threads) {
            Elements elements[4];
            load(view, {c, stride, view.classes}, elements);
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                if (c + k * stride >= view.classes) break;
                own[i + k * Team::threads] = elements[k];
                view.template logits<n>(elements[k], c + k * stride, view.classes, x);
#pragma unroll
                for (int j = 0; j < n; ++j) top.merge({typename P::A::Compared(x[j])});
            }
        }
        team.reduce(top);
        Parts<P> parts(top.m);
        for (int c = begin, i = 0; c < view.classes; c += stride, i += Team::threads) {
            Real w[n];
            view.template logits<n>(own[i], c, view.classes, x);
            parts.template add_known<n>(view, {c, stride, view.classes}, x, w);
        }
        parts.reduce_known(team);
        Results<P> results(view, parts, at_label);
        if (team.lane == 0) results.store(view);
        for (int c = begin, i = 0; c < view.classes; c += stride, i += Team::threads) {
            store_again(view, results, parts, c, own[i]);
        }
    }
}

template <class P, int threads, int n>
__global__ void __launch_bounds__(threads) shared(const Arguments a) {
    in_shared_memory<P, Block<threads>, n>(a, blockIdx.x, gridDim.x);
}

#if XS_CLUSTERS
template <class P, int blocks, int threads, int n>
__global__ void __cluster_dims__(blocks, 1, 1) __launch_bounds__(threads) clustered(const Arguments a) {
    in_shared_memory<P, Cluster<blocks, threads>, n>(a, blockIdx.x / blocks, gridDim.x / blocks);
}
#endif

// The part of a row that is in classes begin … end.
template <class P, class Team, int n>
XS_FUNCTION void add_all(const View<P>& view, const Team& team, Parts<P>& parts, int begin, int end) {
    constexpr int vectors = n == 1 ? 8 : 4, together = n < 4 ? 4 / n : 1, stride = Team::size * n;
    for (int c = begin + team.lane * n; c < end; c += vectors * stride) {
        Vector<typename P::T, n> elements[vectors];
        load(view, {c, stride, end}, elements);
#pragma unroll
        for (int i = 0; i < vectors; i += together) {
            typename P::A::Real x[together * n];
            Classes classes = {c + i * stride, stride, end};
#pragma unroll
            for (int k = 0; k < together; ++k) {
                view.template logits<n>(elements[i + k], classes.c + k * stride, end, x + k * n);
            }
            parts.template add<n>(view, classes, x);
        }
    }
}

// The results of classes begin … end, where there is a place for them.
template <class P, class Team, int n>
XS_FUNCTION void store_all(const View<P>& view, const Team& team, const Results<P>& results, const Parts<P>& parts,
                           int begin, int end) {
    if constexpr (P::verb != logsumexp) {
        if (!view.y) return;
        constexpr int vectors = n == 1 ? 8 : 4, stride = Team::size * n;
        for (int c = begin + team.lane * n; c < end; c += vectors * stride) {
            Vector<typename P::T, n> elements[vectors];
            load(view, {c, stride, end}, elements);
#pragma unroll
            for (int i = 0; i < vectors; ++i) {
                if (c + i * stride < end) store_again(view, results, parts, c + i * stride, elements[i]);
            }
        }
    }
}

// A row of any length: read once for a number, twice for numbers of its classes.
template <class P, class Team, int n>
__global__ void __launch_bounds__(Team::threads) swept(const Arguments a) {
    Team team;
    for (Int64 first = Int64(blockIdx.x) * Team::rows; first < a.rows; first += Int64(gridDim.x) * Team::rows) {
        View<P> view(a, first + team.slot);
        count_kept(view, team);
        typename P::A::Real at_label = view.at_label();
        Parts<P> parts;
        add_all<P, Team, n>(view, team, parts, 0, view.classes);
        team.reduce(parts);
        Results<P> results(view, parts, at_label);
        if (!view.exists) continue;
        if (team.lane == 0) results.store(view);
        store_all<P, Team, n>(view, team, results, parts, 0, view.classes);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Few rows: each is cut into `slices`, a block for each; first their parts, then from these the results.

template <class P>
struct Piece {
    Parts<P> parts;
    typename P::A::Real at_label;  // read before a gradient in place can overwrite it
};

enum { piece_numbers = 15 };  // no piece is larger

template <class P, int n>
struct Slice {
    Int64 row;
    int index, begin, end;

    XS_FUNCTION explicit Slice(const Arguments& a) {
        row = blockIdx.x / a.slices;
        index = int(blockIdx.x - row * a.slices);
        Int64 vectors = (a.classes + n - 1) / n, length = (vectors + a.slices - 1) / a.slices * n;
        begin = int(index * length < a.classes ? index * length : a.classes);
        end = int(begin + length < a.classes ? begin + length : a.classes);
    }
};

template <class P, int threads, int n>
__global__ void __launch_bounds__(threads) piece(const Arguments a) {
    static_assert(sizeof(Piece<P>) <= piece_numbers * sizeof(typename P::A::Real), "larger than the workspace has it");
    Block<threads> team;
    Slice<P, n> slice(a);
    View<P> view(a, slice.row);
    count_kept(view, team);
    Piece<P> piece;
    piece.at_label = view.at_label();
    add_all<P, Block<threads>, n>(view, team, piece.parts, slice.begin, slice.end);
    team.reduce(piece.parts);
    if (team.lane == 0) static_cast<Piece<P>*>(a.pieces)[blockIdx.x] = piece;
}

template <class P, int threads, int n>
__global__ void __launch_bounds__(threads) joined(const Arguments a) {
    Block<threads> team;
    Slice<P, n> slice(a);
    View<P> view(a, slice.row);
    count_kept(view, team);
    const Piece<P>* pieces = static_cast<const Piece<P>*>(a.pieces) + slice.row * a.slices;
    Parts<P> parts;
    for (int i = team.lane; i < a.slices; i += threads) parts.merge(pieces[i].parts);
    team.reduce(parts);
    Results<P> results(view, parts, pieces[0].at_label);
    if (slice.index == 0 && team.lane == 0) results.store(view);
    store_all<P, Block<threads>, n>(view, team, results, parts, slice.begin, slice.end);
}

}  // namespace xsoftmax
